// The picture and its painting in one frame, with a divider between them that a range input moves.

const box = document.querySelector("#compare");
const [before, after] = [document.querySelector("#before"), document.querySelector("#after")];
const cut = document.querySelector("#cut");
const sides = document.querySelector("#sides");
const REVEAL = { from: 100, to: 12, milliseconds: 1400 };

let painting = null;
let reveal = 0;

cut.addEventListener("input", () => {
  cancelAnimationFrame(reveal);
  divide();
});
for (const picture of [before, after]) {
  picture.addEventListener("load", () => box.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight));
}
// A picture that the server reads and the browser does not, such as a TIFF.
before.addEventListener("error", () => before.removeAttribute("src"));

/** Hang the picture that is going to be painted; a painting of another one comes down. */
export function hang(url, alt) {
  before.alt = alt;
  if (before.getAttribute("src") === url) return;
  before.src = url;
  take();
}

/** Take the painting down. */
export function take() {
  cancelAnimationFrame(reveal);
  if (painting) URL.revokeObjectURL(painting);
  painting = null;
  after.hidden = cut.hidden = sides.hidden = true;
  after.removeAttribute("src");
  box.dataset.painted = "no";
}

/** Hang the painting over the picture, unveiling the first one; answers its address. */
export async function unveil(blob, alt) {
  const [url, first] = [URL.createObjectURL(blob), painting === null];
  after.alt = alt;
  after.src = url;
  await after.decode().catch(() => {});
  if (painting) URL.revokeObjectURL(painting);
  painting = url;
  after.hidden = cut.hidden = sides.hidden = false;
  box.dataset.painted = "yes";
  if (first) sweep();
  return url;
}

function sweep() {
  const { from, to, milliseconds } = REVEAL;
  const start = performance.now();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const move = (now) => {
    const part = still ? 1 : Math.min(1, Math.max(0, now - start) / milliseconds);
    cut.value = from + (to - from) * (1 - (1 - part) ** 3);
    divide();
    if (part < 1) reveal = requestAnimationFrame(move);
  };
  move(start);
}

function divide() {
  box.style.setProperty("--cut", `${cut.value}%`);
  cut.setAttribute("aria-valuetext", `${Math.round(cut.value)} %`);
}
