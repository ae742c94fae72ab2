// From words to a painting: the state of the page, the way through the HTTP interface, and the address that repeats it.

import * as api from "./api.js";
import { hang, take, unveil } from "./compare.js";
import { duration, language, number, t, toggle, translate } from "./language.js";
import { byline, hangCards, hangExamples, make, refuse, tile } from "./wall.js";

const OPTIONS = { size: 512, strength: 1, preserve_color: false, engine: "auto", steps: 60 };
const EXAMPLES = [
  {
    title: "A boat trip on a sunny day",
    description: "From a boat accompanied by people you can see the city illuminated by a radiant sun.",
    words: { en: "A boat trip on a sunny day", es: "Un paseo en barca un día de sol" },
  },
  { title: "A city at night", words: { en: "A city at night", es: "Una ciudad de noche" } },
  { title: "A dance class", words: { en: "A dance class", es: "Una clase de baile" } },
  { title: "A harvest in summer", words: { en: "A harvest in summer", es: "La cosecha en verano" } },
  { title: "Still life with apples", words: { en: "Still life with apples", es: "Bodegón con manzanas" } },
  { title: "Cypresses in a wheat field", words: { en: "Cypresses in a wheat field", es: "Cipreses en un trigal" } },
];
const OWN_CONTENT = ":content";
const OWN_STYLE = ":style";
const PAUSE = { choice: 250, options: 450, optimizer: 1200 };
const TILE = { size: 192, engine: "fast", format: "jpeg" };
const LARGEST_PREVIEWED_UPLOAD = 4 * 2 ** 20;
const LARGE_UPLOAD = 16 * 2 ** 20;

const $ = (selector) => document.querySelector(selector);
const places = { words: $("#words-error"), styles: $("#styles-error"), painting: $("#painting-error") };

const state = {
  words: { title: "", description: "" },
  options: { ...OPTIONS },
  content: null,
  style: null,
  matches: [],
  near: [],
  fast: [],
  own: {},
  examples: [],
  result: null,
  health: null,
};
let way = new AbortController();
const refusals = new Map();

// The way from the words to the painting

/**
 * Go from `from` on to the painting: "words" looks for contents, "content" for styles, "style" only paints.
 * Whatever was under way ends. `wanted` names the content and the style that an address asks for.
 */
async function follow(from, { wanted = {}, pause = 0 } = {}) {
  const signal = begin();
  let place = places.words;
  try {
    await sleep(pause, signal);
    if (from === "words") await lookForContents(wanted.content, signal);
    show();
    if (from === "words") bringIntoView($("#exhibit"));
    else place = places.painting;
    if (from !== "style") await lookForStyles(wanted.style, signal);
    place = places.painting;
    remember();
    await paint(signal);
    preview();
  } catch (error) {
    if (signal.aborted) return;
    explain(place, error, place === places.painting && (() => follow(from === "words" ? "content" : from, { wanted })));
    if (place === places.words) showEntrance();
  } finally {
    if (way.signal === signal) rest();
  }
}

async function lookForContents(wanted, signal) {
  const { title, description } = state.words;
  state.matches = [];
  if (title || description) {
    announce(t("finding"));
    try {
      state.matches = await api.findContents(title, description, { signal });
      announce(t("found", { count: state.matches.length }));
    } catch (error) {
      if (!wanted || error.code !== "no_match") throw error;
    }
  }
  state.content = choose(state.matches, wanted) ?? state.matches[0];
}

async function lookForStyles(wanted, signal) {
  announce(t("near_styles"));
  state.near = await api.findStyles(state.content, { signal });
  await arrived;
  chooseStyle(wanted);
}

function chooseStyle(wanted) {
  // A fast style and one's own fit every picture, so they stay; a neighbour of the former picture does not.
  const kept = state.fast.concat(state.own.style ?? []).find(({ id }) => id === state.style?.id);
  const known = wanted && state.fast.find(({ id }) => id === wanted);
  state.style = known ?? choose(state.near, wanted) ?? kept ?? state.near[0] ?? state.fast[0];
  hangStyles();
}

/** The work with the id that an address names; one that was not found by itself joins the others. */
function choose(works, id) {
  if (!id) return null;
  const found = works.find((work) => work.id === id);
  if (found) return found;
  const url = `/v1/pictures/${encodeURIComponent(id)}`;
  works.unshift({ id, title: id, url, thumbnail: `${url}?size=320` });
  return works[0];
}

async function paint(signal) {
  const { content, style, options } = state;
  label();
  progress("painting");
  if (await optimized(content, style, options, signal)) {
    // A preview where the server can make one; whatever else is wrong, the optimiser would refuse too.
    const sketch = await api.paint(content, style, { ...options, engine: "instant" }, { signal }).catch((error) => {
      if (error.code !== "engine_unavailable") throw error;
      return null;
    });
    if (sketch) {
      await finish({ ...sketch, content, style, sketch: true });
      progress("waiting");
      await sleep(PAUSE.optimizer, signal);
    }
    progress("optimizing");
  }
  await finish({ ...(await api.paint(content, style, options, { signal })), content, style });
}

/** Whether the optimiser is going to paint: with `auto`, where the nearest network has not learned the style. */
async function optimized(content, style, { engine }, signal) {
  if (style.card || engine !== "auto") return engine === "optimize" && !style.card;
  if (!state.fast.some(({ card }) => card.cluster)) return true;
  // A tile of that network's tells which it is, and how far from what it learned.
  const tile = await api.paint(content, style, TILE, { signal }).catch((error) => {
    if (signal.aborted) throw error;
    return null;
  });
  const cluster = state.fast.find(({ id }) => id === tile?.facts.model)?.card.cluster;
  return !(cluster && Number(tile.facts["model-distance"]) <= cluster.radius);
}

async function finish(result) {
  const { facts, content, style } = result;
  if (content.title === content.id && facts["content-title"]) content.title = facts["content-title"];
  if (style.title === style.id && facts["style-title"]) style.title = facts["style-title"];
  const titles = { title: content.title, style: style.title };
  result.url = await unveil(result.blob, t("alt_after", titles));
  state.result = result;
  render();
  announce(result.sketch ? t("sketch") : t("painted", titles));
}

/** Show on their tiles what the fast styles make of the picture, one after the other. */
async function preview() {
  const { content } = state;
  if (state.previewed === content || content.file?.size > LARGEST_PREVIEWED_UPLOAD) return;
  state.previewed = content;
  for (const style of state.fast) forget(style);
  for (const style of state.fast) {
    const painted = await api.paint(content, style, TILE).catch(() => null);
    if (!painted || state.content !== content) return;
    style.thumbnail = URL.createObjectURL(painted.blob);
    document.querySelector(`#fast [data-id="${style.id}"] .hook`)?.replaceChildren(tile(style));
  }
}

function forget(style) {
  if (style.thumbnail) URL.revokeObjectURL(style.thumbnail);
  delete style.thumbnail;
}

// One's own pictures

async function adopt(role, file) {
  const place = role === "content" ? places.words : places.styles;
  const signal = begin();
  const work = {
    id: role === "content" ? OWN_CONTENT : OWN_STYLE,
    get title() {
      return t("own_picture");
    },
    artist: file.name,
    file,
    url: URL.createObjectURL(file),
  };
  work.thumbnail = work.url;
  try {
    announce(t("checking"));
    // Finding its styles is also what tells whether it is a picture at all.
    const near = await api.findStyles(work, { signal });
    await arrived;
    state.own[role] = work;
    state[role] = work;
    if (role === "content") {
      state.near = near;
      chooseStyle();
    }
  } catch (error) {
    URL.revokeObjectURL(work.url);
    if (signal.aborted) return;
    if (error.code === "no_answer" && file.size > LARGE_UPLOAD) error.hint = t("hint_large_upload");
    explain(place, error);
    rest();
    return;
  }
  remember("push");
  await follow("style");
}

for (const role of ["content", "style"]) {
  const input = $(`#own-${role}`);
  input.addEventListener("change", () => {
    if (input.files.length) adopt(role, input.files[0]);
    input.value = "";
  });
}

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const zone = event.target.closest?.("[data-drop]");
  if (!zone) return;
  const [file] = event.dataTransfer.files;
  const place = zone.dataset.drop === "content" ? places.words : places.styles;
  if (file) adopt(zone.dataset.drop, file);
  else explain(place, new api.Refusal({ code: "no_file", message: t("drop_files") }));
});

// What a person does

$("#words").addEventListener("submit", (event) => {
  event.preventDefault();
  const [title, description] = [$("#title"), $("#description")];
  if (!title.value.trim() && !description.value.trim()) {
    [title.value, description.value] = [title.placeholder, description.placeholder];
  }
  search();
});

function search() {
  state.words = { title: $("#title").value.trim(), description: $("#description").value.trim() };
  state.content = null;
  remember("push");
  follow("words");
}

$("#description").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("#words").requestSubmit();
});

for (const row of [$("#contents"), $("#styles")]) {
  let pointed = false;
  row.addEventListener("pointerdown", () => (pointed = true));
  row.addEventListener("keydown", () => (pointed = false));
  row.addEventListener("change", ({ target }) => {
    if (target.type !== "radio") return;
    const role = target.name;
    const works = [...Object.values(state.own), ...(role === "content" ? state.matches : [...state.near, ...state.fast])];
    state[role] = works.find(({ id }) => id === target.value);
    remember("push");
    // With the keyboard one walks through the cards, so the page stays where it is.
    if (pointed) bringIntoView($("#exhibit"));
    follow(role, { pause: PAUSE.choice });
  });
}

$("#options").addEventListener("input", showStrength);
$("#options").addEventListener("change", (event) => {
  readOptions();
  if (!event.currentTarget.checkValidity()) return;
  remember();
  // What takes a second follows the hand; the optimiser waits to be asked.
  const { style, options, result } = state;
  const quick = style?.card || ["fast", "instant"].includes(options.engine) || (options.engine === "auto" && result?.facts.engine === "fast" && !result.sketch);
  if (quick) follow("style", { pause: PAUSE.options });
});
$("#options").addEventListener("submit", (event) => {
  event.preventDefault();
  readOptions();
  remember();
  follow("style");
});

$("#stop").addEventListener("click", () => {
  way.abort();
  rest();
  announce(t("stopped"));
});

$("#language").addEventListener("click", () => {
  toggle();
  render();
  hangContents();
  hangStyles();
  for (const [place, [refusal, again]] of refusals) refuse(place, refusal, again);
});

function readOptions() {
  const form = $("#options").elements;
  state.options = {
    size: Number(form.size.value),
    strength: Number(form.strength.value),
    preserve_color: form.preserve_color.checked,
    engine: form.engine.value,
    steps: Number(form.steps.value),
  };
}

function writeOptions() {
  const form = $("#options").elements;
  const { size, strength, preserve_color, engine, steps } = state.options;
  const sizes = [...form.size.options];
  if (!sizes.some((option) => Number(option.value) === size)) {
    const larger = sizes.find((option) => Number(option.value) > size) ?? null;
    form.size.insertBefore(make("option", { value: size, textContent: `${size} px` }), larger);
  }
  Object.assign(form.size, { value: size });
  Object.assign(form.strength, { value: strength });
  Object.assign(form.preserve_color, { checked: preserve_color });
  Object.assign(form.engine, { value: engine });
  Object.assign(form.steps, { value: steps });
  showStrength();
}

function showStrength() {
  $("#strength-shown").textContent = number(Number($("#strength").value), { style: "percent" });
}

// The address

/** Put the state into the address, so that a link repeats the painting; "push" makes it a step to go back from. */
function remember(how = "replace") {
  const { words, content, style, options } = state;
  const query = new URLSearchParams();
  if (!content?.file) {
    for (const [name, value] of Object.entries({ ...words, content: content?.id })) if (value) query.set(name, value);
    if (style && !style.file) query.set("style", style.id);
    for (const [name, value] of Object.entries(options)) if (value !== OPTIONS[name]) query.set(name, value);
  }
  const address = `${query}` ? `/?${query}` : "/";
  history[how === "push" ? "pushState" : "replaceState"](null, "", address);
}

/** Take the state from the address. */
function recall() {
  const query = new URLSearchParams(location.search);
  const get = (name) => query.get(name) ?? "";
  state.words = { title: get("title").slice(0, 500), description: get("description").slice(0, 5000) };
  $("#title").value = state.words.title;
  $("#description").value = state.words.description;
  state.options = { ...OPTIONS };
  const { options } = state;
  for (const [name, least, most] of [["size", 64, 4096], ["strength", 0, 1], ["steps", 1, 500]]) {
    const value = Number(query.get(name) ?? NaN);
    if (value >= least && value <= most) options[name] = name === "strength" ? value : Math.round(value);
  }
  if (["auto", "fast", "instant", "optimize"].includes(query.get("engine"))) options.engine = query.get("engine");
  options.preserve_color = query.get("preserve_color") === "true";
  writeOptions();
  state.content = state.style = null;
  const wanted = { content: query.get("content"), style: query.get("style") };
  if (state.words.title || state.words.description || wanted.content) return follow("words", { wanted });
  begin();
  rest();
  return showEntrance();
}
addEventListener("popstate", recall);

// What is seen

function begin() {
  way.abort();
  way = new AbortController();
  for (const place of Object.values(places)) place.hidden = true;
  refusals.clear();
  $("#words").setAttribute("aria-busy", "true");
  return way.signal;
}

function rest() {
  $("#words").removeAttribute("aria-busy");
  progress(null);
}

function show() {
  document.body.dataset.view = "exhibition";
  $("#examples").hidden = true;
  for (const part of ["#exhibit", "#contents", "#styles"]) $(part).hidden = false;
  const { content, result } = state;
  if (result?.content !== content) state.result = null;
  hang(content.file ? content.url : `${content.url}?size=1024`, t("alt_before", { title: content.title }));
  label();
  hangContents();
}

async function showEntrance() {
  document.body.dataset.view = "entrance";
  for (const part of ["#exhibit", "#contents", "#styles"]) $(part).hidden = true;
  take();
  state.result = null;
  if (!state.examples.length) {
    // In another gallery an example may find nothing; it is left out then.
    const find = ({ title, description = "" }) => api.findContents(title, description, { k: 1 }).catch(() => []);
    const found = await Promise.all(EXAMPLES.map(find));
    state.examples = EXAMPLES.flatMap((example, at) => found[at].map(({ url }) => ({ ...example, url })));
  }
  renderExamples();
}

function renderExamples() {
  $("#examples").hidden = document.body.dataset.view !== "entrance" || !state.examples.length;
  hangExamples($("#examples ul"), state.examples, ({ title, description = "" }) => {
    [$("#title").value, $("#description").value] = [title, description];
    search();
    $("#title").focus();
  });
}

function hangContents() {
  const works = [state.own.content, ...state.matches].filter(Boolean);
  hangCards($("#contents .cards"), "content", works, state.content?.id);
}

function hangStyles() {
  hangCards($("#near"), "style", [state.own.style, ...state.near].filter(Boolean), state.style?.id);
  $("#learned").hidden = !state.fast.length;
  hangCards($("#fast"), "style", state.fast, state.style?.id, tile);
}

/** The wall label beside the painting. */
function label() {
  const { content, style, result } = state;
  if (!content) return;
  $("#painting-title").textContent = content.title;
  $("#painting-artist").textContent = byline(content);
  $("#painting-style").textContent = style ? t("in_style_of", { style: credited(style) }) : "";
  $("#made").textContent = result ? account(result) : "";
  $("#sketch").hidden = !result?.sketch;
  $("#sketch").textContent = t("sketch");
  $("#own-note").hidden = !(content.file || style?.file);
  const download = $("#download");
  download.hidden = !result;
  if (result) {
    download.href = result.url;
    download.download = `${slug(result.content.title)}-${slug(result.style.title)}.png`;
  }
}

function credited({ title, artist, file }) {
  return artist && !file ? t("by", { title, artist }) : title;
}

/** What was chosen, at which distance, by which engine, and how long each step took. */
function account({ facts, stages, content, style }) {
  const distance = (value) => number(Number(value), { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  const provider = (facts.provider ?? "").replace("ExecutionProvider", "").toUpperCase();
  const model = `“${state.fast.find(({ id }) => id === facts.model)?.title ?? facts.model}”`;
  const said = [];
  const fromWords = facts["content-distance"] ?? content.distance;
  const fromContent = facts["style-distance"] ?? style.distance;
  if (fromWords !== undefined) said.push(t("made_content", { distance: distance(fromWords) }));
  if (fromContent !== undefined) said.push(t("made_style", { distance: distance(fromContent) }));
  const near = facts["model-distance"];
  if (facts.engine === "fast") {
    said.push(t(near === undefined ? "made_fast" : "made_fast_near", { model, provider, distance: near && distance(near) }));
  } else if (facts.engine === "instant") {
    said.push(t("made_instant", { provider }));
  } else {
    said.push(t("made_optimize", { provider, count: Number(facts.steps) }));
  }
  const { retrieve, paint: whole, ...parts } = stages;
  const listed = Object.entries(parts).map(([name, spent]) => `${t(`stage_${name}`) || name} ${duration(spent)}`);
  const times = { paint: duration(whole ?? 0), stages: listed.join(", ") };
  said.push(retrieve === undefined ? t("made_times_own", times) : t("made_times", { ...times, retrieve: duration(retrieve) }));
  return said.join(" ");
}

let clock = 0;
function progress(doing) {
  clearInterval(clock);
  $("#progress").hidden = !doing;
  $("#exhibit").toggleAttribute("aria-busy", Boolean(doing));
  if (!doing) return;
  const [began, elapsed] = [performance.now(), $("#elapsed")];
  const tick = () => (elapsed.textContent = t("seconds", { count: Math.floor((performance.now() - began) / 1000) }));
  $("#doing").textContent = t(doing);
  $("#doing").dataset.doing = doing;
  announce(t(doing));
  tick();
  clock = setInterval(tick, 1000);
}

/** Whatever depends on the language and is not in the page's own text. */
function render() {
  label();
  renderExamples();
  hangContents();
  for (const work of state.fast) Object.assign(work, describe(work.card));
  hangStyles();
  const doing = $("#doing").dataset.doing;
  if (doing) $("#doing").textContent = t(doing);
  $("#language").textContent = language() === "en" ? "Español" : "English";
  $("#language").lang = language() === "en" ? "es" : "en";
  const { health } = state;
  const english = health?.gallery === "met";
  $("#catalogue-language").textContent = t("catalogue_language");
  $("#catalogue-language").hidden = !(english && t("catalogue_language"));
  const gallery = english ? t("gallery_met") : health?.gallery;
  $("#about").textContent = health ? t("about", { gallery, count: health.pictures }) : "";
  showStrength();
}

/** A fast style's card as a work on the wall. */
function describe(card) {
  const { slug: id, name: title, styles } = card;
  const [first] = styles;
  if (styles.length > 1) return { id, card, title, artist: t("after_pictures", { count: styles.length }) };
  const own = first && first.title.toLowerCase() !== title.toLowerCase();
  return { id, card, title, artist: own ? t("after_picture", { title: credited(first) }) : first?.artist ?? "" };
}

/** Scroll only where the upper edge is out of sight or far down. */
function bringIntoView(part) {
  const { top } = part.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) part.scrollIntoView({ block: "start" });
}

function explain(place, error, again) {
  if (!(error instanceof api.Refusal)) throw error;
  refusals.set(place, [error, again]);
  refuse(place, error, again);
}

function announce(text) {
  $("#status").textContent = text;
}

function sleep(milliseconds, signal) {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

function slug(text) {
  return text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "painting";
}

translate();
showStrength();
const arrived = Promise.allSettled([
  api.fastStyles().then((cards) => (state.fast = cards.map(describe))),
  api.health().then((answer) => (state.health = answer)),
]).then(render);
recall();
