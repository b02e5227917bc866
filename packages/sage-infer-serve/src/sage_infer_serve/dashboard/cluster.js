// Instances of a control plane: states, roles, load, KV, cache hits and moved requests.

import { find, make, withShare } from "./dom.js";
import { table } from "./state.js";
import { number, say } from "./words.js";

const MOOD = {
  ready: "good", probation: "wait", starting: "wait", pausing: "wait", stopping: "wait", draining: "wait", suspect: "wait",
  lost: "bad", dead: "bad", failed: "bad", gone: "off",
};
const COUNTS = ["open", "waiting", "migrations", "retries", "pauses", "hand_overs"];

export function showCluster(state) {
  const { replicas = [], requests = {}, scaling = [] } = state.cluster ?? {};
  find("cluster-section").hidden = !(replicas.length || scaling.length);
  if (!replicas.length && !scaling.length) return;
  const counts = COUNTS.filter((name) => name in requests).map((name) => say(`clusterCounts.${name}`, { n: number(requests[name]) }));
  find("cluster-requests").textContent = counts.join(" · ");
  find("cluster-scaling").replaceChildren(...scaling.map((model) => make("div", {}, scalingText(model))));
  find("cluster").replaceChildren(table(["instance", "role", "state", "kvUsed", "hits"], ["running", "queuedTokens", "moved", "restarts"], replicas.map(row)));
}

// The numbers of a model's replicas, and the reason of the last decision.
function scalingText(model) {
  const numbers = { model: model.model, min: number(model.min), max: number(model.max), desired: number(model.desired), actual: number(model.actual) };
  return say("scaling", numbers) + (model.reason ? ` · ${model.reason}` : "");
}

function row(replica) {
  const state = make("td", {}, make("span", { class: `pill ${MOOD[replica.state] ?? "off"}` }, say(`instanceStates.${replica.state}`)));
  if (replica.reason) state.append(make("div", { class: `break ${MOOD[replica.state] === "bad" ? "bad" : "quiet"}` }, replica.reason));
  const moved = "migrated_in" in replica ? say("inOut", { n: number(replica.migrated_in), m: number(replica.migrated_out) }) : "–";
  return make(
    "tr", {},
    make("td", {}, make("strong", {}, replica.instance)),
    make("td", {}, replica.role ? say(`roles.${replica.role}`) : "–"),
    state,
    share("m0", replica.kv_used),
    share("m1", replica.cache_hits),
    ...[figure(replica.running), figure(replica.queued_tokens), moved, figure(replica.restarts)].map((text) => make("td", { class: "number" }, text)),
  );
}

const figure = (value) => (value === undefined ? "–" : number(value));

// A share of 0 to 1 as a bar and in per cent; a dash where it is unknown.
function share(colour, value) {
  if (value === undefined || value === null) return make("td", {}, "–");
  const filled = make("div", { class: "bar" });
  if (value) filled.append(withShare(make("i", { class: colour }), value));
  return make("td", { class: "share" }, filled, make("span", { class: "quiet" }, `${number(value * 100)}%`));
}
