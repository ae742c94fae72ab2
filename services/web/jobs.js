// The optimiser's jobs: followed by server-sent events, drawn as a bar and a curve, cancelled when nobody waits for them.

import * as api from "./api.js";
import { number, t } from "./language.js";

const OVER = ["done", "failed", "cancelled", "expired"];
const PAUSE = 2; // seconds
const [bar, curve] = [document.querySelector("#steps-made"), document.querySelector("#curve")];

/**
 * Follow `job` until it ends, and answer its last status; `see` hears of every one on the way.
 * Aborting cancels the job: nobody else waits for it.
 */
export async function follow(job, see, signal) {
  const losses = [...job.losses];
  const hear = (status) => {
    const fresh = status.losses.filter(({ step }) => !losses.length || step > losses.at(-1).step);
    losses.push(...fresh);
    draw(status, losses);
    see(status);
    return OVER.includes(status.state);
  };
  try {
    return hear(job) ? job : await listen(job, hear, signal);
  } catch (error) {
    if (signal.aborted) api.cancel(job);
    throw error;
  } finally {
    bar.hidden = curve.hidden = true;
  }
}

/** The job's last status. While its server is stopped and another one starts, it is asked for again and again. */
async function listen(job, hear, signal) {
  for (;;) {
    const ended = await stream(job, hear, signal);
    if (ended) return ended;
    const status = await api.patiently(() => api.job(job.id).catch(unanswered), { signal });
    if (hear(status)) return status;
    await api.sleep(1000 * PAUSE, signal);
  }
}

/** Where nobody answers, a server may be starting. */
function unanswered(error) {
  if (error.code === "no_answer") error.wait ||= PAUSE;
  throw error;
}

/** The job's last status by its events, or null where the browser gives them up. */
function stream(job, hear, signal) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(job.links.events);
    const leave = () => (source.close(), reject(signal.reason));
    const end = (settle, value) => (source.close(), signal.removeEventListener("abort", leave), settle(value));
    if (signal.aborted) return leave();
    signal.addEventListener("abort", leave);
    for (const kind of ["state", "progress"]) {
      source.addEventListener(kind, ({ data }) => {
        const status = JSON.parse(data);
        if (hear(status)) end(resolve, status);
      });
    }
    source.addEventListener("error", () => {
      // The browser comes back by itself, unless it was refused: the job has ended, is unknown, or the server stops.
      if (source.readyState === EventSource.CLOSED) end(resolve, null);
    });
  });
}

/** The bar of the steps, and the total loss by step on a logarithmic scale. */
function draw({ step, steps, state }, losses) {
  bar.hidden = state !== "running";
  [bar.max, bar.value] = [steps, step];
  bar.setAttribute("aria-valuetext", t("step", { step, steps }));
  const drawn = losses.filter(({ total }) => total > 0);
  curve.hidden = drawn.length < 2;
  if (curve.hidden) return;
  const logarithms = drawn.map(({ total }) => Math.log(total));
  const [least, most] = [Math.min(...logarithms), Math.max(...logarithms)];
  const points = drawn.map(({ step: at }, index) => {
    const height = (logarithms[index] - least) / (most - least || 1);
    return `${((100 * at) / steps).toFixed(2)},${(37 - 34 * height).toFixed(2)}`;
  });
  curve.querySelector("polyline").setAttribute("points", points.join(" "));
  const loss = (value) => number(value, { maximumSignificantDigits: 3 });
  const said = t("curve", { first: loss(drawn[0].total), last: loss(drawn.at(-1).total), step: drawn.at(-1).step });
  curve.querySelector("svg").setAttribute("aria-label", said);
  curve.querySelector("figcaption").textContent = said;
}
