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
function motif({ id }) {
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
  const summary = language() === "en" ? "" : t(`refused_${refusal.code}`);
  const original = { lang: refusal.code === "no_answer" ? language() : "en" };
  place.replaceChildren(
    make("p", { className: "what", textContent: summary || sentence(refusal.message), lang: summary ? language() : "en" }),
    ...[summary && refusal.code !== "no_answer" ? sentence(refusal.message) : "", refusal.hint]
      .filter(Boolean)
      .map((text) => make("p", { textContent: text, ...original })),
  );
  if (again) {
    const button = make("button", { type: "button", className: "quiet", textContent: t("retry") });
    button.addEventListener("click", again);
    place.append(button);
  }
  place.hidden = false;
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
