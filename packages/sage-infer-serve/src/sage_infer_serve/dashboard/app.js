// The page: polls the server's state every two seconds and shows it.

import { ApiError, get, getKey, setKey } from "./api.js";
import { Chart } from "./charts.js";
import { showCluster } from "./cluster.js";
import { find } from "./dom.js";
import { offerModels, start as startPlayground } from "./playground.js";
import { showHealth, showKv, showMemory, showModels, showQueue, showTiles } from "./state.js";
import { duration, number, otherLanguage, putWords, say } from "./words.js";

const EVERY_MS = 2000, PATIENCE_MS = 8000;

const percentiles = (name) => ["p50", "p99"].map((p) => ({ name: p, value: (point) => point[name][p] }));
const tokens = (name) => ({ name, value: (point) => point.rates?.[name] ?? null });
const charts = [
  new Chart(find("chart-ttft"), "ttft", percentiles("ttft"), duration),
  new Chart(find("chart-itl"), "itl", percentiles("itl"), duration),
  new Chart(find("chart-tokens"), "throughput", ["output", "prompt", "embedded"].map(tokens), (n) => number(n, n > 0 && n < 10 ? 1 : 0), true),
];

let state = null; // last known state
let lostAt = null; // time of the first failed poll
let timer = 0;
let newest = 0; // number of the latest poll; results of older polls are ignored

async function poll() {
  clearTimeout(timer);
  const mine = ++newest;
  try {
    const answer = await get("/dashboard/state", AbortSignal.timeout(PATIENCE_MS));
    if (mine !== newest) return;
    state = answer;
    lostAt = null;
    banner("");
    show();
  } catch (error) {
    if (mine !== newest) return;
    complain(error);
  }
  timer = setTimeout(poll, document.hidden ? EVERY_MS * 5 : EVERY_MS);
}

function complain(error) {
  find("main").classList.add("stale");
  if (error instanceof ApiError) {
    lostAt = null;
    const wanted = error.status === 401 || error.status === 403;
    banner(say(wanted ? "keyWanted" : "failed", { reason: error.message }));
    if (wanted) openKeyForm(true);
    return;
  }
  lostAt ??= Date.now();
  find("health").textContent = "";
  banner(say("unreachable", { seconds: number(Math.round((Date.now() - lostAt) / 1000)) }));
}

function banner(text) {
  const element = find("banner");
  element.hidden = !text;
  if (element.textContent !== text) element.textContent = text;
}

function show() {
  find("main").classList.remove("stale");
  const { points, interval_s: interval } = state.series;
  for (const point of points) {
    const seconds = Math.min(interval, state.now - point.t);
    // The current interval is incomplete.
    if (seconds >= 1) {
      point.rates = { output: point.output_tokens / seconds, prompt: point.prompt_tokens / seconds, embedded: point.embedded_tokens / seconds };
    }
  }
  for (const chart of charts) chart.show(points);
  for (const part of [showHealth, showTiles, showModels, showQueue, showMemory, showCluster, showKv]) part(state);
  offerModels(state.models);
}

function openKeyForm(open) {
  if (find("key-form").hidden === !open) return;
  find("key-form").hidden = !open;
  find("key-button").ariaExpanded = String(open);
  if (open) find("key").focus();
}

find("key-button").addEventListener("click", () => openKeyForm(find("key-form").hidden));
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(find("key").value.trim());
  openKeyForm(false);
  poll();
});
find("key-forget").addEventListener("click", () => {
  find("key").value = "";
  setKey("");
  openKeyForm(false);
  poll();
});
find("language").addEventListener("click", () => {
  otherLanguage();
  if (state) show();
});
document.addEventListener("visibilitychange", () => document.hidden || poll());

putWords();
find("key").value = getKey();
startPlayground();
poll();
