// The playground: streaming chat, and similarity of texts.

import { ApiError, post, stream } from "./api.js";
import { find, make, withShare } from "./dom.js";
import { duration, number, say } from "./words.js";

const USABLE = ["ready", "sleeping"]; // a sleeping model wakes on request

const messages = [];
let running = null; // AbortController of the current answer

// The available models; the selection is kept.
export function offerModels(models) {
  offer("chat", models.filter((model) => model.type === "llm" || model.type === "multimodal"));
  offer("embed", models.filter((model) => model.type === "embedding"));
}

function offer(form, models) {
  const select = find(`${form}-model`);
  const names = models.filter((model) => USABLE.includes(model.state)).map((model) => model.id);
  const key = names.join("\n") || say("noModelOfType");
  if (select.dataset.offered !== key) {
    const chosen = select.value;
    select.dataset.offered = key;
    select.replaceChildren(...(names.length ? names.map((name) => make("option", { value: name }, name)) : [make("option", { value: "" }, say("noModelOfType"))]));
    if (names.includes(chosen)) select.value = chosen;
  }
  select.disabled = !names.length;
  find(`${form}-send`).disabled = !names.length || (form === "chat" && running !== null);
}

export function start() {
  const tabs = ["chat", "embed"].map((name) => find(`tab-${name}`));
  tabs.forEach((tab, n) => {
    tab.addEventListener("click", () => openTab(tabs, tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      openTab(tabs, tabs[1 - n]);
      tabs[1 - n].focus();
    });
  });
  onSubmit("chat", chat);
  onSubmit("embed", embed);
  find("chat-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!find("chat-send").disabled) find("chat").requestSubmit();
  });
  find("chat-stop").addEventListener("click", () => running?.abort());
  find("chat-clear").addEventListener("click", () => {
    running?.abort();
    messages.length = 0;
    find("chat-log").replaceChildren();
    find("chat-figures").textContent = "";
    find("chat-text").focus();
  });
  find("embed-texts").value = say("textsExample");
}

function onSubmit(id, action) {
  find(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

function openTab(tabs, chosen) {
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    find(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

async function chat() {
  const text = find("chat-text").value.trim();
  if (!text || running) return;
  const log = find("chat-log"), bubble = make("div", { class: "said assistant" });
  messages.push({ role: "user", content: text });
  log.append(make("div", { class: "said user" }, text), bubble);
  find("chat-text").value = "";
  running = new AbortController();
  busy(true);
  const turn = { bubble, text: "", began: performance.now(), first: null, tokens: 0 };
  try {
    await readAnswer(turn, running.signal);
  } catch (error) {
    const stopped = error.name === "AbortError";
    const what = stopped ? say("stopped") : error instanceof ApiError ? error.message : say("lost");
    log.append(make("div", { class: stopped ? "quiet" : "said problem", role: "alert" }, what));
  }
  if (turn.text) messages.push({ role: "assistant", content: turn.text });
  else bubble.remove();
  showFigures(turn);
  running = null;
  busy(false);
  log.scrollTop = log.scrollHeight;
}

async function readAnswer(turn, signal) {
  const system = find("chat-system").value.trim();
  const body = {
    model: find("chat-model").value,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: find("chat-temperature").valueAsNumber || 0,
    max_tokens: find("chat-tokens").valueAsNumber || 256,
    stream: true,
    stream_options: { include_usage: true },
  };
  const log = find("chat-log");
  for await (const chunk of stream("/v1/chat/completions", body, signal, say("cutOff"))) {
    const piece = chunk.choices[0]?.delta?.content;
    if (piece) {
      turn.first ??= performance.now();
      turn.last = performance.now();
      turn.tokens += 1;
      turn.text += piece;
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40; // keep the position of users who scrolled up
      turn.bubble.append(piece);
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
    if (chunk.usage) turn.tokens = chunk.usage.completion_tokens;
  }
}

function showFigures(turn) {
  if (turn.first === null) return;
  const seconds = (turn.last - turn.first) / 1000;
  const rate = turn.tokens > 1 && seconds > 0 ? number((turn.tokens - 1) / seconds, 1) : "–";
  find("chat-figures").textContent = say("chatFigures", { tokens: number(turn.tokens), rate, ttft: duration((turn.first - turn.began) / 1000) });
}

function busy(now) {
  find("chat-send").disabled = now;
  find("chat-stop").hidden = !now;
  find("chat-log").ariaBusy = String(now);
}

async function embed() {
  const texts = find("embed-texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const result = find("embed-result"), figures = find("embed-figures");
  if (texts.length < 2) return showProblem(result, say("twoTexts"));
  const send = find("embed-send"), began = performance.now();
  send.disabled = true;
  try {
    const answer = await post("/v1/embeddings", { model: find("embed-model").value, input: texts });
    const vectors = answer.data.map((item) => item.embedding);
    figures.textContent = say("embedFigures", { dim: number(vectors[0].length), tokens: number(answer.usage.prompt_tokens), time: duration((performance.now() - began) / 1000) });
    result.replaceChildren(matrix(texts, vectors));
  } catch (error) {
    showProblem(result, error instanceof ApiError ? error.message : say("lost"));
    figures.textContent = "";
  } finally {
    send.disabled = false;
  }
}

function showProblem(host, text) {
  host.replaceChildren(make("p", { class: "said problem", role: "alert" }, text));
}

function matrix(texts, vectors) {
  const head = texts.map((_, n) => make("th", { scope: "col" }, String(n + 1)));
  const rows = texts.map((text, row) => make("tr", {},
    make("th", { scope: "row", class: "break" }, `${row + 1}. ${text}`),
    ...texts.map((_, column) => {
      const value = cosine(vectors[row], vectors[column]);
      return withShare(make("td", { class: "heat" }, number(value, 2)), value);
    })));
  return make("table", {}, make("caption", { class: "hidden" }, say("cosine")), make("thead", {}, make("tr", {}, make("td"), ...head)), make("tbody", {}, ...rows));
}

function cosine(a, b) {
  const dot = (u, v) => u.reduce((sum, value, index) => sum + value * v[index], 0);
  const norm = Math.sqrt(dot(a, a) * dot(b, b));
  return norm ? dot(a, b) / norm : 0;
}
