// Server state from /dashboard/state: figures, models, memory, queue.

import { find, make, withShare } from "./dom.js";
import { age, bytes, duration, number, say } from "./words.js";

const MOOD = {
  ok: "good", ready: "good", starting: "wait", loading: "wait", draining: "wait", degraded: "wait",
  registered: "off", sleeping: "off", dead: "bad", failed: "bad",
};
const COLOURS = 6;

export function showHealth(state) {
  const pill = find("health");
  pill.className = `pill ${MOOD[state.health.status] ?? "off"}`;
  pill.textContent = say(`health.${state.health.status}`) + (state.health.reason ? `: ${state.health.reason}` : "");
  find("about").textContent = say("about", { version: state.version, time: age(state.now - state.started) });
}

export function showTiles(state) {
  const { points, interval_s: interval } = state.series;
  const minute = points.slice(-Math.round(60 / interval));
  const seconds = (minute.length - 1) * interval + Math.max(1, state.now - points.at(-1).t);
  const sum = (name) => minute.reduce((total, point) => total + point[name], 0);
  const latest = (name) => points.findLast((point) => point[name].count)?.[name].p50;
  const time = (seconds) => (seconds === undefined ? "–" : duration(seconds));
  const errors = sum("errors");
  find("tiles").replaceChildren(
    tile("tileRequests", number((sum("requests") * 60) / seconds), say("each")),
    tile("tileErrors", number(errors), say("each"), errors ? "bad" : ""),
    tile("tileOutput", number(sum("output_tokens") / seconds, 1), say("rate")),
    tile("tileTtft", time(latest("ttft"))),
    tile("tileItl", time(latest("itl"))),
    tile("tileOpen", number(state.queue.open), ` / ${number(state.queue.limit)}`),
  );
}

function tile(name, figure, unit = "", mood = "") {
  return make("div", { class: "tile" }, make("span", { class: "quiet" }, say(name)), make("b", { class: mood }, figure, make("small", {}, unit)));
}

export function showModels(state) {
  if (!state.models.length) return find("models").replaceChildren(make("p", { class: "quiet" }, say("noModels")));
  const rows = state.models.map((model) => {
    const pill = make("span", { class: `pill ${MOOD[model.state] ?? "off"}` }, say(`states.${model.state}`));
    const cell = make("td", {}, pill);
    if (model.loading) {
      const { stage, share } = model.loading;
      const known = share !== null;
      const bar = make("progress", { max: "1", "aria-label": `${model.id}: ${stage}`, ...(known ? { value: share } : {}) });
      cell.append(make("div", { class: "quiet" }, known ? `${stage} ${number(share * 100)}%` : stage), bar);
    }
    if (model.reason) cell.append(make("div", { class: `break ${MOOD[model.state] === "bad" ? "bad" : "quiet"}` }, model.reason));
    const name = make("td", {}, make("strong", {}, model.id));
    const since = make("td", { class: "number" }, model.since ? age(state.now - model.since) : "–");
    return make("tr", {}, name, make("td", {}, say(`types.${model.type}`)), cell, since);
  });
  find("models").replaceChildren(table(["model", "type", "state"], ["since"], rows));
}

export function showQueue(state) {
  const { open, limit, running, waiting, kv_blocks_total: blocks, kv_blocks_free: free } = state.queue;
  const bars = [...bar("queueOpen", open, limit), ...count("queueRunning", running), ...count("queueWaiting", waiting)];
  if (blocks) bars.push(...bar("queueKv", blocks - free, blocks));
  find("queue").replaceChildren(make("div", { class: "bars" }, ...bars));
}

function bar(name, value, total) {
  const filled = make("div", { class: "bar" });
  if (value) filled.append(withShare(make("i", { class: "m0" }), value / total));
  return [make("span", {}, say(name)), filled, make("span", { class: "number" }, say("of", { n: number(value), total: number(total) }))];
}

const count = (name, value) => [make("span", {}, say(name)), make("span"), make("span", { class: "number" }, number(value))];

export function showMemory(state) {
  if (!state.memory) return find("memory").replaceChildren(make("p", { class: "quiet" }, say("noPlan")));
  const { mode, devices, shares } = state.memory;
  const names = [...new Set(shares.map((share) => share.model))];
  const colour = (model) => `m${names.indexOf(model) % COLOURS}`;
  find("memory").replaceChildren(
    make("p", { class: "quiet" }, say(`modes.${mode}`)),
    ...devices.map((device) => deviceCard(device, shares.filter((share) => share.device === device.name), colour)),
  );
}

const planned = (share) => share.weights + share.kv + share.activations + share.overhead;

function deviceCard(device, shares, colour) {
  const usable = say("usable", { usable: bytes(device.usable), total: bytes(device.total) });
  const head = make("div", { class: "chart-head" }, make("h3", {}, device.name), make("span", { class: "quiet" }, usable));
  const bars = make("div", { class: "bars" },
    ...memoryBar("planned", device, shares, planned, device.planned, colour),
    ...memoryBar("measured", device, shares, (share) => share.measured, device.measured, colour));
  const rows = shares.map((share) => make("tr", {},
    make("td", {}, make("span", { class: `swatch ${colour(share.model)}` }), share.model),
    ...["weights", "kv", "activations", "overhead"].map((part) => make("td", { class: "number" }, share[part] ? bytes(share[part]) : "–")),
    make("td", { class: "number" }, bytes(planned(share))),
    make("td", { class: "number" }, share.measured === null ? "–" : bytes(share.measured))));
  const columns = ["weights", "kv", "activations", "overhead", "plannedColumn", "measuredColumn"];
  return make("div", { class: "device" }, head, bars, make("div", { class: "scroll" }, table(["model"], columns, rows)));
}

// A device as a bar: each model's share, and a mark at the end of usable memory.
function memoryBar(name, device, shares, amount, total, colour) {
  const bar = make("div", { class: "bar" });
  for (const share of shares) {
    const value = amount(share);
    if (value) bar.append(withShare(make("i", { class: colour(share.model), title: `${share.model}: ${bytes(value)}` }), value / device.total));
  }
  bar.append(withShare(make("i", { class: "fits" }), device.usable / device.total));
  return [make("span", {}, say(name)), bar, make("span", { class: "number" }, total === null ? say("notMeasured") : bytes(total))];
}

export function showKv(state) {
  find("kv-section").hidden = !state.kv.length;
  find("kv-stores").replaceChildren(...state.kv.map(kvStore));
}

// Blocks of each tier, and what the store has been good for.
function kvStore(store) {
  const reused = say("kvReused", { bytes: bytes(store.bytes_reused), blocks: number(store.fetched) });
  const head = make("div", { class: "chart-head" }, make("h3", {}, store.model), make("span", { class: "quiet" }, reused));
  if (store.paused) head.append(make("span", { class: "pill bad" }, say("kvPaused")));
  const total = store.capacity_blocks || Math.max(store.blocks, 1);
  const tiers = Object.entries(store.tiers).length ? Object.entries(store.tiers) : [["all", store.blocks]];
  const bars = tiers.flatMap(([tier, blocks]) => bar(`tiers.${tier}`, blocks, Math.max(total, blocks)));
  const looked = store.hits + store.misses;
  if (looked) bars.push(...bar("kvHits", store.hits, looked));
  const losses = ["saved", "dropped", "corrupt", "failures"].map((name) => say(`kvCounts.${name}`, { n: number(store[name]) }));
  return make("div", { class: "device" }, head, make("div", { class: "bars" }, ...bars), make("p", { class: "quiet" }, losses.join(" · ")));
}

export function table(columns, numbers, rows) {
  const head = [...columns.map((name) => make("th", { scope: "col" }, say(name))), ...numbers.map((name) => make("th", { scope: "col", class: "number" }, say(name)))];
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}
