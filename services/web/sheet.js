// The sheet: several pictures in several styles, filled painting by painting, saved as one picture.

import * as api from "./api.js";
import { t } from "./language.js";
import { byline, make } from "./wall.js";

const place = document.querySelector("#sheet");
const [table, button, save] = ["table", "#sheet-paint", "#sheet-save"].map((selector) => place.querySelector(selector));
const [line, bar, said] = ["#sheet-progress", "progress", "#sheet-said"].map((selector) => place.querySelector(selector));

/** The sheet that hangs, with what is painted of it. */
let sheet = null;
/** Aborts what paints it; null while nobody does. */
let work = null;
/** The refusal that ended it, if one did. */
let trouble = null;

/**
 * Make the sheet's button paint.
 * `plan` answers the works and the options, `paint` paints one, `open` shows one in the main view, `address` is a
 * link to it, null where none can be, and `announce` says something to those who do not see.
 */
export function install({ plan, paint, open, address, announce }) {
  button.addEventListener("click", async () => {
    if (work) return work.abort();
    if (!sheet || complete()) hang({ ...plan(), paintings: new Map() });
    await fill();
  });
  save.addEventListener("click", async () => {
    const link = make("a", { href: URL.createObjectURL(await draw()), download: `lienzo-sheet.${sheet.options.format === "png" ? "png" : "jpg"}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });

  function hang(next) {
    clear();
    sheet = next;
    const { contents, styles } = sheet;
    const head = make("tr", {}, make("td"), ...styles.map((style) => heading(style, "col")));
    const rows = contents.map((content, row) => {
      const cells = styles.map((_, column) => make("td", { data: { cell: key(row, column) } }, make("span", { className: "blank" })));
      return make("tr", {}, heading(content, "row"), ...cells);
    });
    table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    table.closest(".scroll").hidden = false;
    show();
  }

  async function fill() {
    work = new AbortController();
    trouble = null;
    const [{ signal }, painted] = [work, sheet];
    show();
    announce(t("sheet_begun", { count: total() }));
    try {
      for (const [row, content] of painted.contents.entries()) {
        for (const [column, style] of painted.styles.entries()) {
          if (painted.paintings.has(key(row, column))) continue;
          const waiting = (seconds) => (said.textContent = t("sheet_waits", { seconds }));
          const attempt = () => paint(content, style, painted.options, signal);
          const blob = await api.patiently(attempt, { signal, waiting }).catch(passOver);
          signal.throwIfAborted(); // its answer and the end of the sheet may have met
          painted.paintings.set(key(row, column), { content, style, blob, url: blob && URL.createObjectURL(blob) });
          put(row, column);
          show();
        }
        announce(t("sheet_done", { done: done(), count: total() }));
      }
    } catch (error) {
      if (!signal.aborted && !(error instanceof api.Refusal)) throw error;
      if (!signal.aborted) trouble = error;
      if (sheet === painted) announce(t(signal.aborted ? "stopped" : "sheet_failed", { why: error.message }));
    } finally {
      if (work?.signal === signal) work = null;
      if (sheet === painted) show();
    }
  }

  /** One painting that cannot be, such as of a picture too narrow for a network, does not end the others. */
  function passOver(error) {
    if (!(error instanceof api.Refusal) || error.wait || error.code === "no_answer") throw error;
    return null;
  }

  function put(row, column) {
    const { content, style, url } = sheet.paintings.get(key(row, column));
    const cell = table.querySelector(`[data-cell="${key(row, column)}"]`);
    if (!url) return cell.replaceChildren(make("p", { className: "blank none", textContent: t("sheet_none") }));
    const href = address(content, style);
    const picture = make("img", { src: url, alt: describe(content, style), decoding: "async" });
    const tile = href ? make("a", { href }, picture) : make("button", { type: "button" }, picture);
    tile.className = "tile";
    tile.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab or window, as with every link
      event.preventDefault();
      open(content, style);
    });
    cell.replaceChildren(tile);
  }
}

/** Take the sheet down, as when other pictures were found. */
export function clear() {
  work?.abort();
  for (const { url } of sheet?.paintings.values() ?? []) if (url) URL.revokeObjectURL(url);
  sheet = work = trouble = null;
  table.replaceChildren();
  table.closest(".scroll").hidden = true;
  show();
}

/** Whether `contents` are what the sheet shows. */
export const shows = (contents) => sheet?.contents.every(({ url }, at) => url === contents[at]?.url) ?? false;

/** Say everything anew, after a change of the language. */
export function translateSheet() {
  show();
  for (const cell of table.querySelectorAll("td[data-cell]")) {
    const painting = sheet.paintings.get(cell.dataset.cell);
    if (painting?.url) cell.querySelector("img").alt = describe(painting.content, painting.style);
    else if (painting) cell.firstElementChild.textContent = t("sheet_none");
  }
}

function show() {
  const [many, all] = [done(), total()];
  button.textContent = t(work ? "stop" : !sheet ? "sheet_paint" : complete() ? "sheet_anew" : "sheet_rest");
  save.hidden = !complete();
  line.hidden = !sheet;
  [bar.max, bar.value, bar.hidden] = [all || 1, many, complete()];
  said.textContent = trouble ? t("sheet_failed", { why: trouble.message }) : t("sheet_done", { done: many, count: all });
  place.toggleAttribute("aria-busy", Boolean(work));
}

const key = (row, column) => `${row} ${column}`;
const done = () => [...(sheet?.paintings.values() ?? [])].filter(({ url }) => url).length;
const complete = () => sheet !== null && sheet.paintings.size === total();
const total = () => (sheet ? sheet.contents.length * sheet.styles.length : 0);
const describe = (content, style) => t("alt_after", { title: content.title, style: style.title });

function heading(work, scope) {
  const picture = work.card && !work.thumbnail ? null : make("img", { src: work.thumbnail, alt: "", decoding: "async" });
  return make("th", { scope }, picture, make("cite", { textContent: work.title }));
}

// The sheet as one picture

const CELL = { width: 260, height: 208, gap: 24 };
const MARGIN = 48;
const HEAD = { rows: 230, columns: 92, title: 104 };
const COLOURS = { wall: "#f4f5f2", ink: "#1e2422", soft: "#515a56" };
const SERIF = '"Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif';

async function draw() {
  const { contents, styles, paintings, options, title } = sheet;
  const canvas = document.createElement("canvas");
  const [left, top] = [MARGIN + HEAD.rows, MARGIN + HEAD.title + HEAD.columns];
  canvas.width = left + styles.length * (CELL.width + CELL.gap) - CELL.gap + MARGIN;
  canvas.height = top + contents.length * (CELL.height + CELL.gap) - CELL.gap + MARGIN;
  const brush = canvas.getContext("2d");
  brush.fillStyle = COLOURS.wall;
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.imageSmoothingQuality = "high";
  write(brush, title || "Lienzo", MARGIN, MARGIN + 40, canvas.width - 2 * MARGIN, { size: 44, lines: 1 });
  const x = (column) => left + column * (CELL.width + CELL.gap);
  const y = (row) => top + row * (CELL.height + CELL.gap);
  styles.forEach((style, column) => label(brush, style, x(column), top - HEAD.columns + 12, CELL.width, 2));
  contents.forEach((content, row) => label(brush, content, MARGIN, y(row) + 18, HEAD.rows - CELL.gap, 4));
  for (const [at, { blob }] of paintings) {
    if (!blob) continue;
    const [row, column] = at.split(" ").map(Number);
    const picture = await createImageBitmap(blob);
    const scale = Math.min(CELL.width / picture.width, CELL.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    brush.drawImage(picture, x(column), y(row), width, height);
    picture.close();
  }
  return new Promise((resolve) => canvas.toBlob(resolve, options.format === "png" ? "image/png" : "image/jpeg", 0.9));
}

function label(brush, work, x, y, width, lines) {
  const below = write(brush, work.title, x, y, width, { size: 20, lines });
  write(brush, byline(work), x, below + 2, width, { size: 14, lines: lines - 1, colour: COLOURS.soft });
}

/** Text in lines that fit; answers where the next line would stand. */
function write(brush, text, x, y, width, { size, lines, colour = COLOURS.ink }) {
  brush.font = `${size}px ${SERIF}`;
  brush.fillStyle = colour;
  const words = text.split(/\s+/).filter(Boolean);
  for (let at = 0; words.length && at < lines; at += 1) {
    let said = words.shift();
    while (words.length && brush.measureText(`${said} ${words[0]}`).width <= width) said += ` ${words.shift()}`;
    if (words.length && at === lines - 1) said += " …";
    brush.fillText(said, x, y, width);
    y += size * 1.25;
  }
  return y;
}
