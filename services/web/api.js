// The HTTP interface as functions. Whatever goes wrong arrives as a Refusal, except an AbortError.

const PAUSE = 1000;

export class Refusal extends Error {
  constructor({ code, message, hint = "", field = null }) {
    super(message);
    Object.assign(this, { code, hint, field });
  }
}

/** Gallery pictures that fit the words, the nearest first. */
export function findContents(title, description, { k = 5, signal } = {}) {
  return askJson("/v1/retrieve/content", json({ title, description, k }, signal));
}

/** Gallery pictures whose style is near that of `content`: a gallery picture or a person's own. */
export function findStyles(content, { signal } = {}) {
  const body = content.file ? form({ image: content.file, k: 5 }, signal) : json({ content_id: content.id, k: 5 }, signal);
  return askJson("/v1/retrieve/style", body);
}

/** The cards of the fast styles. */
export const fastStyles = () => askJson("/v1/styles");

/** What runs, and on what. */
export const health = () => askJson("/v1/health");

/**
 * Paint `content` in `style`, each a gallery picture, a fast style or a person's own file.
 * Answers the picture, the facts of the `Lienzo-*` headers by their lower-case names, and milliseconds by stage.
 */
export async function paint(content, style, options, { signal } = {}) {
  const response = await finished(await ask(...(await commission(content, style, options, signal))), signal);
  const facts = {};
  for (const [name, value] of response.headers) {
    if (name.startsWith("lienzo-")) facts[name.slice(7)] = decoded(value);
  }
  return { blob: await response.blob(), facts, stages: timing(response.headers.get("server-timing") ?? "") };
}

/** The painting; where the answer is a job, because the optimiser needs longer than a request waits, that of the job. */
async function finished(response, signal) {
  if (response.status !== 202) return response;
  const { links } = await response.json();
  try {
    for (;;) {
      const { state } = await askJson(links.status, { signal });
      if (!["queued", "running"].includes(state)) return await ask(links.result, { signal });
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
      signal?.throwIfAborted();
    }
  } catch (error) {
    if (signal?.aborted) fetch(links.status, { method: "DELETE", keepalive: true }).catch(() => {});
    throw error;
  }
}

async function commission(content, style, options, signal) {
  if (!content.file && !style.file) {
    return ["/v1/text_to_art", json({ content_id: content.id, style_id: style.id, ...options }, signal)];
  }
  // An own style on a gallery picture: the interface takes uploads only together, so the picture goes there and back.
  const image = content.file ?? (await (await ask(content.url, { signal })).blob());
  const chosen = style.file ? { style_image: style.file } : { style: style.id };
  return ["/v1/stylize", form({ image, ...chosen, ...options }, signal)];
}

function json(value, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), signal };
}

function form(fields, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body, signal };
}

async function askJson(path, init) {
  return (await ask(path, init)).json();
}

async function ask(path, init = {}) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ code: "no_answer", message: "The server does not answer." });
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Refusal(error ?? { code: "no_answer", message: `The server answered ${response.status}.` });
}

function decoded(value) {
  try {
    return decodeURIComponent(value);
  } catch {
    return value;
  }
}

function timing(header) {
  const stages = {};
  for (const [, name, duration] of header.matchAll(/([\w-]+);dur=([\d.]+)/g)) stages[name] = Number(duration);
  return stages;
}
