// All texts of the page in each language, and formatting of quantities.

const WORDS = {
  en: {
    otherLanguage: "中文",
    skip: "Go to the playground",
    key: "API key",
    keyLabel: "API key of this server",
    keyUse: "Use",
    keyForget: "Clear",
    keyNote: "Stored in this tab only, until it is closed.",
    keyWanted: "API key missing or not accepted: {reason}",
    unreachable: "Server unreachable for {seconds} s. Retrying; the figures are the last known ones.",
    failed: "The server returned an error: {reason}",
    health: { ok: "ready", starting: "starting", degraded: "degraded", dead: "stopped" },
    about: "version {version}, running for {time}",
    now: "Now",
    charts: "The last five minutes",
    ttft: "Time to first token",
    itl: "Between tokens",
    throughput: "Tokens per second",
    p50: "median",
    p99: "99th percentile",
    output: "generated",
    prompt: "prompts",
    embedded: "embedded",
    noRequests: "no requests in the last five minutes",
    chartSummary: "{title}: {figures}. Use the left and right arrow keys to read values.",
    tileRequests: "Requests",
    tileErrors: "Errors",
    tileOutput: "Tokens generated",
    tileTtft: "First token, median",
    tileItl: "Between tokens, median",
    tileOpen: "Open requests",
    each: "/min",
    rate: "/s",
    models: "Models",
    model: "Model",
    type: "Type",
    state: "State",
    since: "Since",
    types: { llm: "LLM", embedding: "embedding", reranker: "reranker", multimodal: "multimodal" },
    states: {
      registered: "registered", loading: "loading", ready: "ready", draining: "draining", sleeping: "asleep", failed: "failed",
    },
    noModels: "This server has no models.",
    queue: "Queue",
    queueOpen: "Open requests",
    queueRunning: "Running in engines",
    queueWaiting: "Waiting in engines",
    queueKv: "KV blocks in use",
    of: "{n} of {total}",
    cluster: "Instances",
    clusterCounts: {
      open: "open: {n}", waiting: "waiting: {n}", migrations: "moved after their first token: {n}", retries: "moved before it: {n}",
      pauses: "paused: {n}", hand_overs: "prefilled elsewhere: {n}",
    },
    scaling: "{model}: {actual} ready, {desired} wanted, {min} to {max} allowed",
    instance: "Instance",
    role: "Role",
    kvUsed: "KV in use",
    hits: "Prompt tokens cached",
    running: "Running",
    queuedTokens: "Queued tokens",
    moved: "Moved in / out",
    restarts: "Restarts",
    inOut: "{n} / {m}",
    roles: { general: "general", prefill: "prefill", decode: "decode", embedding: "embedding", hybrid: "hybrid" },
    instanceStates: {
      starting: "starting", ready: "ready", probation: "on probation", suspect: "suspect", lost: "lost", draining: "draining",
      dead: "dead", pausing: "waits to restart", stopping: "stopping", failed: "failed", gone: "removed",
    },
    kvStores: "KV stores",
    kvReused: "{bytes} reused ({blocks} blocks)",
    kvPaused: "left alone after failures",
    kvHits: "Look-ups with a hit",
    kvCounts: { saved: "saved: {n}", dropped: "dropped: {n}", corrupt: "damaged: {n}", failures: "failed calls: {n}" },
    tiers: { all: "Blocks", hbm: "HBM", dram: "Memory", ssd: "SSD", remote: "Server" },
    memory: "Memory",
    noPlan: "This server does not plan its memory.",
    modes: { time_slice: "models share the device's time", mps: "models run side by side (MPS)", exclusive: "one device per model" },
    planned: "planned",
    measured: "measured",
    notMeasured: "not measured",
    usable: "{usable} of {total} usable",
    weights: "Weights",
    kv: "KV cache",
    activations: "Activations",
    overhead: "Overhead",
    plannedColumn: "Planned",
    measuredColumn: "Measured",
    playground: "Playground",
    chat: "Chat",
    embed: "Compare texts",
    temperature: "Temperature",
    maxTokens: "Max tokens",
    system: "System message (optional)",
    message: "Message",
    messageHint: "Type a message: Enter to send, Shift+Enter for a new line",
    logEmpty: "No messages yet.",
    send: "Send",
    stop: "Stop",
    clear: "New chat",
    you: "You",
    stopped: "stopped",
    chatFigures: "{tokens} tokens, {rate} tokens/s, TTFT {ttft}",
    noModelOfType: "no model ready",
    texts: "Texts, one per line",
    textsExample: "A cat sleeps on the sofa.\nA kitten naps on the couch.\nInterest rates rose in March.",
    compare: "Compare",
    twoTexts: "Enter at least two texts, one per line.",
    embedFigures: "{dim} dimensions, {tokens} tokens, {time}",
    cosine: "Cosine similarity of the texts",
    cutOff: "The stream ended before the answer was complete.",
    lost: "Connection lost.",
    linkApi: "API description",
  },
  zh: {
    otherLanguage: "English",
    skip: "跳到体验区",
    key: "API 密钥",
    keyLabel: "本服务的 API 密钥",
    keyUse: "使用",
    keyForget: "清除",
    keyNote: "仅保存在当前标签页，关闭后清除。",
    keyWanted: "缺少 API 密钥或密钥无效：{reason}",
    unreachable: "服务已 {seconds} 秒无法连接，正在重试；当前显示最近一次的数据。",
    failed: "服务返回错误：{reason}",
    health: { ok: "就绪", starting: "启动中", degraded: "降级", dead: "已停止" },
    about: "版本 {version}，已运行 {time}",
    now: "当前",
    charts: "最近五分钟",
    ttft: "首 token 延迟",
    itl: "token 间隔",
    throughput: "每秒 token 数",
    p50: "中位数",
    p99: "P99",
    output: "生成",
    prompt: "输入",
    embedded: "嵌入",
    noRequests: "最近五分钟没有请求",
    chartSummary: "{title}：{figures}。使用左右方向键查看各点数值。",
    tileRequests: "请求",
    tileErrors: "错误",
    tileOutput: "生成的 token",
    tileTtft: "首 token，中位数",
    tileItl: "token 间隔，中位数",
    tileOpen: "进行中的请求",
    each: "/分钟",
    rate: "/秒",
    models: "模型",
    model: "模型",
    type: "类型",
    state: "状态",
    since: "持续",
    types: { llm: "大语言模型", embedding: "嵌入", reranker: "重排", multimodal: "多模态" },
    states: { registered: "已注册", loading: "加载中", ready: "就绪", draining: "等待请求结束", sleeping: "休眠", failed: "失败" },
    noModels: "本服务没有模型。",
    queue: "队列",
    queueOpen: "进行中的请求",
    queueRunning: "引擎中运行",
    queueWaiting: "引擎中等待",
    queueKv: "已用 KV 块",
    of: "{n} / {total}",
    cluster: "实例",
    clusterCounts: {
      open: "进行中：{n}", waiting: "等待：{n}", migrations: "已输出后迁移：{n}", retries: "未输出前迁移：{n}", pauses: "已暂停：{n}",
      hand_overs: "由其他实例预填充：{n}",
    },
    scaling: "{model}：就绪 {actual}，目标 {desired}，允许 {min} 到 {max}",
    instance: "实例",
    role: "角色",
    kvUsed: "已用 KV",
    hits: "缓存命中的输入 token",
    running: "运行中",
    queuedTokens: "排队 token",
    moved: "迁入 / 迁出",
    restarts: "重启次数",
    inOut: "{n} / {m}",
    roles: { general: "通用", prefill: "预填充", decode: "解码", embedding: "嵌入", hybrid: "混合" },
    instanceStates: {
      starting: "启动中", ready: "就绪", probation: "试用中", suspect: "疑似异常", lost: "失联", draining: "等待请求结束", dead: "已终止",
      pausing: "等待重启", stopping: "停止中", failed: "失败", gone: "已移除",
    },
    kvStores: "KV 存储",
    kvReused: "已复用 {bytes}（{blocks} 块）",
    kvPaused: "多次失败，暂停使用",
    kvHits: "命中的查询",
    kvCounts: { saved: "已保存：{n}", dropped: "已丢弃：{n}", corrupt: "已损坏：{n}", failures: "失败调用：{n}" },
    tiers: { all: "块", hbm: "显存", dram: "内存", ssd: "固态硬盘", remote: "服务器" },
    memory: "内存",
    noPlan: "本服务未启用内存规划。",
    modes: { time_slice: "各模型分时共用设备", mps: "各模型并行运行（MPS）", exclusive: "每个模型独占一个设备" },
    planned: "规划",
    measured: "实测",
    notMeasured: "未测量",
    usable: "共 {total}，可用 {usable}",
    weights: "权重",
    kv: "KV 缓存",
    activations: "激活",
    overhead: "开销",
    plannedColumn: "规划",
    measuredColumn: "实测",
    playground: "体验",
    chat: "对话",
    embed: "比较文本",
    temperature: "温度",
    maxTokens: "最大 token 数",
    system: "系统消息（可选）",
    message: "消息",
    messageHint: "输入消息：Enter 发送，Shift+Enter 换行",
    logEmpty: "暂无消息。",
    send: "发送",
    stop: "停止",
    clear: "新对话",
    you: "你",
    stopped: "已停止",
    chatFigures: "{tokens} 个 token，{rate} token/秒，首 token {ttft}",
    noModelOfType: "没有就绪的模型",
    texts: "文本，每行一条",
    textsExample: "猫在沙发上睡觉。\n小猫在长椅上打盹。\n三月份利率上升了。",
    compare: "比较",
    twoTexts: "请至少输入两条文本，每行一条。",
    embedFigures: "{dim} 维，{tokens} 个 token，{time}",
    cosine: "文本的余弦相似度",
    cutOff: "数据流中断，回答不完整。",
    lost: "连接已断开。",
    linkApi: "API 说明",
  },
};

const chosen = localStorage.getItem("sage-infer-language");
let language = chosen in WORDS ? chosen : navigator.language.startsWith("zh") ? "zh" : "en";

export function otherLanguage() {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("sage-infer-language", language);
  putWords();
}

// A text by its key (a.b for nested tables), with {names} replaced.
export function say(key, values = {}) {
  const found = key.split(".").reduce((words, step) => words?.[step], WORDS[language]);
  return (found ?? key.split(".").pop()).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Inserts the texts into the static parts of the page.
export function putWords() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
  document.getElementById("chat-log").dataset.empty = say("logEmpty");
  document.getElementById("tiles").ariaLabel = say("now");
}

export const number = (value, digits = 0) =>
  value.toLocaleString(language, { maximumFractionDigits: digits, minimumFractionDigits: digits });

export function duration(seconds) {
  if (seconds >= 10) return `${number(seconds, 1)} s`;
  if (seconds >= 1) return `${number(seconds, 2)} s`;
  return `${number(seconds * 1000, seconds >= 0.1 || seconds === 0 ? 0 : 1)} ms`;
}

export function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${number(Math.floor(seconds / size))} ${unit}`;
  }
  return `${number(Math.max(0, Math.floor(seconds)))} s`;
}

export function bytes(value) {
  const [unit, power] = value >= 1024 ** 3 ? ["GiB", 3] : ["MiB", 2];
  const amount = value / 1024 ** power;
  return `${number(amount, amount >= 100 || power === 2 ? 0 : amount >= 10 ? 1 : 2)} ${unit}`;
}
