// One's own pictures: looked at before they travel, turned upright, and made no larger than painting needs.

import { Refusal } from "./api.js";

/** What the server reads; anything else that the browser can show goes as JPEG. */
const READ_THERE = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"];
const LARGE_FILE = 2 * 2 ** 20;
const QUALITY = 0.92;

/**
 * The file to send for `file`: itself where it is small, else a JPEG whose longer side is at most `side` pixels.
 * What neither the browser nor, by its kind, the server can read is refused here, without a way through the network.
 */
export async function prepare(file, limits, side) {
  if (!file.size) throw refusal("empty_picture", "own_empty");
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) {
    // A TIFF, or a picture that is damaged: the server can tell.
    if (!READ_THERE.includes(file.type)) throw refusal("not_a_picture", "own_kind");
    if (file.size > limits.body_bytes) throw refusal("body_too_large", "own_large", { most: megabytes(limits.body_bytes) });
    return file;
  }
  try {
    const { width, height } = bitmap;
    if (Math.min(width, height) < limits.side) throw refusal("picture_too_small", "own_small", { width, height, least: limits.side });
    const scale = Math.min(1, side / Math.max(width, height));
    // Reduced by so much there would be nothing left of the shorter side.
    if (Math.min(width, height) * scale < limits.side) throw refusal("picture_too_small", "own_thin", { width, height });
    const small = file.size <= Math.min(LARGE_FILE, limits.body_bytes) && width * height <= limits.pixels;
    return scale === 1 && small && READ_THERE.includes(file.type) ? file : await redrawn(bitmap, scale, file.name);
  } finally {
    bitmap.close();
  }
}

async function redrawn(bitmap, scale, name) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height].map((pixels) => Math.round(pixels * scale));
  const brush = canvas.getContext("2d");
  // Transparency lies over white, as it does in the server.
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  return new File([blob], name, { type: "image/jpeg" });
}

function refusal(code, key, values) {
  return new Refusal({ code, text: { key, values } });
}

function megabytes(bytes) {
  return Math.round(bytes / 2 ** 20);
}
