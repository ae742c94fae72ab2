// From words to a painting: the state of the page, the way through the HTTP interface, and the address that repeats it.

import * as api from "./api.js";
import { hang, take, unveil } from "./compare.js";
import * as jobs from "./jobs.js";
import { duration, language, number, t, toggle, translate } from "./language.js";
import { prepare } from "./own.js";
import * as sheet from "./sheet.js";
import { byline, hangCards, hangExamples, make, refuse, tile } from "./wall.js";

const { sleep } = api;
const OPTIONS = { size: 512, strength: 1, preserve_color: false, engine: "auto", steps: 60, format: "png" };
const SIZES = [256, 512, 768, 1024, 2048];
const FORMATS = { png: "png", jpeg: "jpg" };
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
const SHEET = { side: 5, size: 256 };
const LARGEST_PREVIEWED_UPLOAD = 4 * 2 ** 20;
/** Until the service has said its own, those that it has where nobody set others. */
const LIMITS = { size: 2048, optimize_size: 1024, steps: 500, body_bytes: 32 * 2 ** 20, pixels: 64e6, side: 16 };

const PARTS = ["#exhibit", "#contents", "#styles", "#sheet"];

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
  limits: LIMITS,
  job: null,
};
/** Every gallery picture that was met, by its id. */
const met = new Map();
/** Which network has learned a style, by the style's file or id; empty where none has. */
const learned = new Map();
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

/** Remember what the pictures are, though not how far they are from what was looked for. */
function meet(works) {
  for (const { distance: _, ...work } of works) met.set(work.id, work);
  return works;
}

async function lookForContents(wanted, signal) {
  const { title, description } = state.words;
  state.matches = [];
  if (title || description) {
    announce(t("finding"));
    try {
      state.matches = meet(await api.findContents(title, description, { signal }));
      announce(t("found", { count: state.matches.length }));
    } catch (error) {
      if (!wanted || error.code !== "no_match") throw error;
    }
  }
  state.content = choose(state.matches, wanted) ?? state.matches[0];
}

async function lookForStyles(wanted, signal) {
  announce(t("near_styles"));
  state.near = meet(await api.findStyles(state.content, { signal }));
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
  works.unshift({ id, title: id, url, thumbnail: `${url}?size=320`, ...met.get(id) });
  return works[0];
}

async function paint(signal) {
  const { content, style, options } = state;
  const begun = await taken(signal);
  label();
  progress("painting");
  if (!begun && (await optimized(content, style, options, signal))) {
    // A preview where the server can make one; whatever else is wrong, the optimiser would refuse too.
    const sketch = await api.paint(content, style, { ...within(options), engine: "instant" }, { signal }).catch((error) => {
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
  const answer = begun ? { job: begun } : await api.paint(content, style, within(options), { signal });
  const painting = answer.job ? await watch(answer.job, signal) : answer;
  await finish({ ...painting, content, style });
}

/** The job that the address names, if it can still be followed: after a reload it goes on. */
async function taken(signal) {
  const job = state.job && (await api.job(state.job).catch(() => null));
  signal.throwIfAborted();
  const usable = job && ["queued", "running", "done"].includes(job.state);
  state.job = null;
  if (!usable) remember();
  return usable ? job : null;
}

/** Follow the optimiser's job while its painting evolves in the frame; answers the painting. */
async function watch(job, signal) {
  state.job = job.id;
  remember();
  if ($("#doing").dataset.doing !== "optimizing") progress("optimizing"); // else it was said already
  let [shown, over] = [null, false];
  const see = async ({ state: doing, position, step, steps, links }) => {
    if (doing === "queued") $("#doing").textContent = t("queued", { count: position });
    if (doing === "running") $("#doing").textContent = t("step", { step, steps });
    if (!links.preview || links.preview === shown) return;
    shown = links.preview;
    const blob = await api.picture(shown, { signal }).catch(() => null); // the next one will do
    if (!blob || signal.aborted || over) return;
    state.result = null;
    label();
    await unveil(blob, t("alt_evolving", { title: state.content.title, style: state.style.title }));
  };
  const ended = await jobs.follow(job, see, signal);
  if (ended.state !== "done") {
    state.job = null;
    remember();
    throw new api.Refusal(ended.error ?? { code: "job_gone", text: { key: "job_gone" } });
  }
  const painting = await api.result(ended, { signal });
  over = true;
  return painting;
}

/** Whether the optimiser is going to paint: with `auto`, where no network has learned the style. */
async function optimized(content, style, { engine }, signal) {
  if (style.card || engine !== "auto") return engine === "optimize" && !style.card;
  const network = await networkOf(content, style, signal).catch((error) => {
    if (signal.aborted) throw error;
    return "";
  });
  offerSizes();
  return !network;
}

/** The network that has learned `style`: a tile of `content` tells which is nearest, and how far from the style. */
async function networkOf(content, style, signal) {
  if (style.card) return style.id;
  if (!state.fast.some(({ card }) => card.cluster)) return "";
  if (!learned.has(known(style))) {
    const { facts } = await api.paint(content, style, TILE, { signal });
    const cluster = state.fast.find(({ id }) => id === facts.model)?.card.cluster;
    learned.set(known(style), cluster && Number(facts["model-distance"]) <= cluster.radius ? facts.model : "");
  }
  return learned.get(known(style));
}

const known = (style) => style.file ?? style.id;

// The sheet

sheet.install({
  announce,
  plan() {
    const { words, options } = state;
    const { size, strength, preserve_color, format } = within(options);
    // What is being looked at is on the sheet, also where it is none of the nearest.
    const near = state.near.slice(0, SHEET.side);
    const styles = near.includes(state.style) ? near : [state.style, ...near].filter(Boolean).slice(0, SHEET.side);
    return {
      contents: onWall(),
      styles,
      title: words.title || words.description,
      options: { size: Math.min(SHEET.size, size), strength, preserve_color, format, painters: new Map() },
    };
  },
  async paint(content, style, { size, strength, preserve_color, painters }, signal) {
    const network = await networkOf(content, style, signal);
    // Two styles of one network would give the same column twice: the second is painted by its own statistics.
    if (network && !painters.has(network)) painters.set(network, known(style));
    const engine = network && painters.get(network) === known(style) ? "fast" : "instant";
    return (await api.paint(content, style, { size, strength, preserve_color, engine, format: "jpeg" }, { signal })).blob;
  },
  open(content, style) {
    Object.assign(state, { content, style, job: null });
    remember("push");
    bringIntoView($("#exhibit"));
    follow("content", { wanted: style.file ? {} : { style: style.id } });
  },
  address: (content, style) => (content.file || style.file ? null : addressOf({ ...state, content, style, job: null })),
});

/** The pictures to choose from, as many as a sheet has rows. */
function onWall() {
  return [state.own.content, ...state.matches].filter(Boolean).slice(0, SHEET.side);
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

async function adopt(role, original) {
  const place = role === "content" ? places.words : places.styles;
  const signal = begin();
  announce(t("checking"));
  let work = null;
  try {
    await arrived;
    const file = await prepare(original, state.limits, state.limits.size);
    signal.throwIfAborted();
    work = own(role, file);
    // Finding its styles is also what tells whether the server can read it.
    const near = meet(await api.findStyles(work, { signal }));
    Object.assign(state, { [role]: work, job: null });
    state.own[role] = work;
    if (role === "content") {
      state.near = near;
      chooseStyle();
    }
  } catch (error) {
    if (work) URL.revokeObjectURL(work.url);
    if (signal.aborted) return;
    explain(place, error);
    rest();
    return;
  }
  remember("push");
  await follow("style");
}

/** A file of one's own as a work on the wall. */
function own(role, file) {
  const url = URL.createObjectURL(file);
  return {
    id: role === "content" ? OWN_CONTENT : OWN_STYLE,
    get title() {
      return t("own_picture");
    },
    artist: file.name,
    file,
    url,
    thumbnail: url,
  };
}

for (const input of document.querySelectorAll("[data-own]")) {
  input.addEventListener("change", () => {
    if (input.files.length) adopt(input.dataset.own, input.files[0]);
    input.value = "";
  });
}

addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (!file) return; // text, which goes where it always goes
  event.preventDefault();
  adopt(document.activeElement?.closest("#styles") ? "style" : "content", file);
});

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
  const role = event.target.closest?.("[data-drop]")?.dataset.drop ?? "content";
  const [file] = event.dataTransfer.files;
  if (file) return adopt(role, file);
  explain(role === "content" ? places.words : places.styles, new api.Refusal({ code: "no_file", text: { key: "drop_files" } }));
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
  state.content = state.job = null;
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
    state.job = null;
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
  state.job = null;
  offerSizes();
  remember();
  // What takes a second follows the hand; the optimiser waits to be asked.
  const { style, options, result } = state;
  const quick = style?.card || ["fast", "instant"].includes(options.engine) || (options.engine === "auto" && result?.facts.engine === "fast" && !result.sketch);
  if (quick) follow("style", { pause: PAUSE.options });
});
$("#options").addEventListener("submit", (event) => {
  event.preventDefault();
  readOptions();
  state.job = null;
  remember();
  follow("style");
});

$("#stop").addEventListener("click", () => {
  way.abort();
  state.job = null;
  remember();
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
    format: form.format.value,
  };
}

function writeOptions() {
  const form = $("#options").elements;
  const { strength, preserve_color, engine, steps, format } = within(state.options);
  offerSizes();
  Object.assign(form.strength, { value: strength });
  Object.assign(form.preserve_color, { checked: preserve_color });
  Object.assign(form.engine, { value: engine });
  Object.assign(form.steps, { max: state.limits.steps, value: steps });
  Object.assign(form.format, { value: format });
  showStrength();
}

/** The longest side that the service paints here: what has to be optimised stays smaller than what a network paints. */
function largest() {
  const { style, limits, options } = state;
  const fast = options.engine === "fast" || (options.engine === "auto" && style && (style.card || learned.get(known(style))));
  return fast ? limits.size : limits.optimize_size;
}

/** The options as far as the service allows them. */
function within(options) {
  return { ...options, size: Math.min(options.size, largest()), steps: Math.min(options.steps, state.limits.steps) };
}

/** Offer the sizes that the service paints, and the one that is wanted. */
function offerSizes() {
  const { size } = within(state.options);
  const offered = [...new Set([...SIZES.filter((side) => side <= largest()), size])].sort((a, b) => a - b);
  const select = $("#size");
  if (`${[...select.options].map(({ value }) => value)}` !== `${offered}`) {
    select.replaceChildren(...offered.map((side) => make("option", { value: side, textContent: `${side} px` })));
  }
  select.value = size;
}

function showStrength() {
  $("#strength-shown").textContent = number(Number($("#strength").value), { style: "percent" });
}

// The address

/** Put the state into the address, so that a link repeats the painting; "push" makes it a step to go back from. */
function remember(how = "replace") {
  history[how === "push" ? "pushState" : "replaceState"](null, "", addressOf(state));
}

function addressOf({ words, content, style, options, job }) {
  const query = new URLSearchParams();
  if (!content?.file) {
    for (const [name, value] of Object.entries({ ...words, content: content?.id })) if (value) query.set(name, value);
    if (style && !style.file) query.set("style", style.id);
    for (const [name, value] of Object.entries(options)) if (value !== OPTIONS[name]) query.set(name, value);
    if (job) query.set("job", job);
  }
  return `${query}` ? `/?${query}` : "/";
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
  for (const [name, least, most] of [["size", 64, Infinity], ["strength", 0, 1], ["steps", 1, Infinity]]) {
    const value = Number(query.get(name) ?? NaN);
    if (value >= least && value <= most) options[name] = name === "strength" ? value : Math.round(value);
  }
  if (["auto", "fast", "instant", "optimize"].includes(query.get("engine"))) options.engine = query.get("engine");
  options.preserve_color = query.get("preserve_color") === "true";
  if (query.get("format") in FORMATS) options.format = query.get("format");
  state.content = state.style = null;
  state.job = query.get("job");
  writeOptions();
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
  for (const part of PARTS) $(part).hidden = false;
  if (!sheet.shows(onWall())) sheet.clear();
  const { content, result } = state;
  if (result?.content !== content) state.result = null;
  hang(content.file ? content.url : `${content.url}?size=1024`, t("alt_before", { title: content.title }));
  label();
  hangContents();
}

async function showEntrance() {
  document.body.dataset.view = "entrance";
  for (const part of PARTS) $(part).hidden = true;
  take();
  sheet.clear();
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
  offerSizes();
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
    const ending = FORMATS[result.blob.type.replace("image/", "")];
    download.download = `${slug(result.content.title)}-${slug(result.style.title)}.${ending}`;
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
  sheet.translateSheet();
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

function slug(text) {
  return text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "painting";
}

translate();
showStrength();
const arrived = Promise.allSettled([
  api.fastStyles().then((cards) => (state.fast = cards.map(describe))),
  api.health().then((answer) => Object.assign(state, { health: answer, limits: answer.limits })),
]).then(() => {
  writeOptions();
  render();
});
recall();
