// The HTTP interface as functions. Whatever goes wrong arrives as a Refusal, except an AbortError.

const PATIENCE = 20;

/**
 * What was refused, and why. `wait` are the seconds after which to ask again, 0 where that is no use; `text` the key
 * and the values of what the page itself says in both languages, null where the server explains.
 */
export class Refusal extends Error {
  constructor({ code, message = "", hint = "", field = null, wait = 0, text = null }) {
    super(message);
    Object.assign(this, { code, hint, field, wait, text });
  }
}

/** Do `attempt` again for as long as the service is busy, each time after the wait that it names to `waiting`. */
export async function patiently(attempt, { signal, waiting = () => {} }) {
  for (let left = PATIENCE; ; left -= 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.wait || !left) throw error;
      waiting(error.wait);
      await sleep(1000 * error.wait, signal);
    }
  }
}

/** Wait, or throw the reason for which `signal` aborts. */
export function sleep(milliseconds, signal) {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
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
 * Answers the painting, or `{ job }` with the status of the job where the optimiser has to make it.
 */
export async function paint(content, style, options, { signal } = {}) {
  const [path, init] = await commission(content, style, options, signal);
  const response = await ask(path, { ...init, headers: { ...init.headers, Prefer: "respond-async" } });
  return response.status === 202 ? { job: await response.json() } : painting(response);
}

/** How a job of the optimiser stands. */
export const job = (id) => askJson(`/v1/jobs/${encodeURIComponent(id)}`);

/** The painting of a job that is done. */
export const result = async ({ links }, { signal } = {}) => painting(await ask(links.result, { signal }));

/** The picture at an address of the service's. */
export const picture = async (url, { signal } = {}) => (await ask(url, { signal })).blob();

/** Let go of a job, also when the page is about to be left; whether that succeeds changes nothing here. */
export const cancel = ({ links }) => ask(links.status, { method: "DELETE", keepalive: true }).catch(() => {});

/** The picture, the facts of the `Lienzo-*` headers by their lower-case names, and milliseconds by stage. */
async function painting(response) {
  const facts = {};
  for (const [name, value] of response.headers) {
    if (name.startsWith("lienzo-")) facts[name.slice(7)] = decoded(value);
  }
  return { blob: await response.blob(), facts, stages: timing(response.headers.get("server-timing") ?? "") };
}

async function commission(content, style, options, signal) {
  if (!content.file && !style.file) {
    return ["/v1/text_to_art", json({ content_id: content.id, style_id: style.id, ...options }, signal)];
  }
  // An own style on a gallery picture: the interface takes uploads only together, so the picture goes there and back.
  const image = content.file ?? (await picture(content.url, { signal }));
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
  const wait = Number(response.headers.get("retry-after")) || 0;
  throw new Refusal({ code: "no_answer", message: `The server answered ${response.status}.`, ...error, wait });
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
