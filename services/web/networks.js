// The cards of the fast networks: what each learned from, what it makes of a picture, and how good it is.

import * as api from "./api.js";
import { language, number, t, toggle, translate } from "./language.js";
import { byline, make, motif, refuse } from "./wall.js";

/** Words that find the picture of the examples; where they find none, it is the gallery's first. */
const WORDS = "A boat trip on a sunny day";

const list = document.querySelector("#networks");
const switcher = document.querySelector("#language");
let [cards, content] = [[], null];

switcher.addEventListener("click", () => {
  toggle();
  render();
});

async function load() {
  const [place, none] = [document.querySelector("#networks-error"), () => []];
  place.hidden = true;
  try {
    [cards, [content = null]] = await Promise.all([api.fastStyles(), api.findContents(WORDS, "", { k: 1 }).catch(none)]);
    render();
  } catch (error) {
    if (!(error instanceof api.Refusal)) throw error;
    refuse(place, error, load);
  }
}

function render() {
  switcher.textContent = language() === "en" ? "Español" : "English";
  switcher.lang = language() === "en" ? "es" : "en";
  list.replaceChildren(...cards.map(describe));
}

function describe(card) {
  const { slug, name, styles, data, training, validation, reference, parity, parameters, bytes, created, licence } = card;
  const best = reference?.equals_steps;
  const tried = Math.max(...Object.keys(reference?.optimizer_total ?? {}).map(Number));
  const facts = {
    card_after: styles.map((style) => [style.title, byline(style)].filter(Boolean).join(", ")).join("; "),
    card_content: data.pictures === undefined ? "" : t("card_pictures", { count: data.pictures }),
    card_training: training.seconds === undefined ? "" : t("card_trained", { count: training.steps, minutes: Math.ceil(training.seconds / 60) }),
    card_loss: figure(reference?.network_total ?? validation.total),
    card_reference: !reference ? t("card_unmeasured") : best ? t("card_steps", { count: best }) : t("card_beyond", { count: tried }),
    card_parity: number(parity.max_difference, { maximumSignificantDigits: 2 }),
    card_size: t("card_weight", { parameters, megabytes: number(bytes / 1e6, { maximumFractionDigits: 1 }) }),
    card_created: created,
    card_licence: licence,
  };
  const rows = Object.entries(facts).filter(([, value]) => value);
  return make(
    "li",
    { className: "network", data: { slug } },
    example(card),
    make("h2", { textContent: name }),
    make("dl", {}, ...rows.flatMap(([key, value]) => [make("dt", { textContent: t(key) }), make("dd", { textContent: value })])),
    make("a", { href: `/?${new URLSearchParams({ ...(content ? { content: content.id } : { title: WORDS }), style: slug })}`, textContent: t("card_use") }),
  );
}

/** The picture that the network painted; only those come that are looked at. */
function example({ slug, name }) {
  const query = content ? `?content_id=${encodeURIComponent(content.id)}` : "";
  const alt = t("card_example", { title: content?.title ?? "", name });
  const image = make("img", { loading: "lazy", decoding: "async", width: 320, height: 256, alt });
  image.addEventListener("error", () => image.replaceWith(motif({ id: slug })));
  image.src = `/v1/styles/${encodeURIComponent(slug)}/example${query}`;
  return image;
}

function figure(value) {
  return value === undefined ? "" : number(value, { maximumFractionDigits: 2 });
}

translate();
render();
load();
