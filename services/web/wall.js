// Cards on the wall: pictures to choose from, tiles of fast styles, examples; and refusals, in place.

import { language, number, t } from "./language.js";

/** An element with properties, datasets and children. */
export function make(tag, { data = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Fill `place` with one radio button a work; `chosen` is the id of the one that is on. */
export function hangCards(place, name, works, chosen, sight = picture) {
  // What hangs already stays, and with it the keyboard's focus.
  const list = JSON.stringify([language(), ...works.map(({ id, title, artist, url }) => [id, title, artist, url])]);
  if (place.dataset.list === list) {
    for (const input of place.querySelectorAll("input")) input.checked = input.value === chosen;
    return;
  }
  place.dataset.list = list;
  place.replaceChildren(
    ...works.map((work) =>
      make(
        "label",
        { className: "card", data: { id: work.id } },
        make("input", { type: "radio", name, value: work.id, checked: work.id === chosen, className: "unseen" }),
        make("span", { className: "hook" }, sight(work)),
        make(
          "span",
          { className: "caption" },
          make("cite", { textContent: work.title }),
          line(byline(work)),
          line(work.distance === undefined ? "" : t("similarity", { share: share(1 - work.distance) })),
        ),
      ),
    ),
  );
}

/** Artist and date, as far as they are known. */
export const byline = ({ artist, date }) => [artist, date].filter(Boolean).join(", ");

/** What a fast style makes of the picture; until that is known, its motif. */
export const tile = (style) => (style.thumbnail ? picture(style) : motif(style));

/** Strokes whose colour and direction come from a name, for what has no picture. */
export function motif({ id }) {
  let seed = 7;
  for (const letter of id) seed = (seed * 31 + letter.codePointAt(0)) % 3600;
  const tile = make("span", { className: "motif", data: { slug: id } });
  tile.style.setProperty("--hue", seed % 360);
  tile.style.setProperty("--turn", `${20 + (seed % 7) * 20}deg`);
  return tile;
}

/** Examples as pictures with their words beneath. */
export function hangExamples(place, examples, pick) {
  place.replaceChildren(
    ...examples.map((example) => {
      const button = make(
        "button",
        { type: "button", className: "card" },
        make("span", { className: "hook" }, picture({ thumbnail: `${example.url}?size=200` })),
        make("span", { className: "caption" }, make("q", { textContent: example.words[language()] })),
      );
      button.addEventListener("click", () => pick(example));
      return make("li", {}, button);
    }),
  );
}

/** Say in `place` what went wrong and what to do; `again`, where given, is what a button does. */
export function refuse(place, refusal, again) {
  const [what, ...rest] = explained(refusal).filter(({ textContent }) => textContent);
  place.replaceChildren(make("p", { className: "what", ...what }), ...rest.map((said) => make("p", said)));
  if (again) {
    const button = make("button", { type: "button", className: "quiet", textContent: t("retry") });
    button.addEventListener("click", again);
    place.append(button);
  }
  place.hidden = false;
}

/** What went wrong and what to do: the page's own words, or a line of them and then the server's English. */
function explained({ code, message, hint, text }) {
  const lang = language();
  if (text) return [text.key, `${text.key}_hint`].map((key) => ({ textContent: t(key, text.values), lang }));
  const summary = lang === "en" ? "" : t(`refused_${code}`);
  const original = code === "no_answer" ? lang : "en";
  const what = summary ? { textContent: summary, lang } : { textContent: sentence(message), lang: "en" };
  const detail = summary && code !== "no_answer" ? sentence(message) : "";
  return [what, { textContent: detail, lang: original }, { textContent: hint, lang: original }];
}

function picture(work) {
  const image = make("img", { src: work.thumbnail, alt: "", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(motif({ id: work.id ?? "" })));
  return image;
}

function line(text) {
  return text ? make("span", { textContent: text }) : null;
}

function share(similarity) {
  return number(Math.min(1, Math.max(0, similarity)), { style: "percent" });
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
