// Every sentence of the page in each language, and quantities as people read them.

const WORDS = {
  en: {
    otherLanguage: "中文",
    skip: "Go to the playground",
    key: "API key",
    keyLabel: "API key of this server",
    keyUse: "Use it",
    keyForget: "Forget it",
    keyNote: "Kept in this tab only, and gone when it is closed.",
    keyWanted: "This server wants an API key, and does not know the one that was given: {reason}",
    unreachable: "The server cannot be reached since {seconds} s. Trying again; the figures are the last known ones.",
    failed: "The server answered with an error: {reason}",
    health: { ok: "ready", starting: "starting", degraded: "degraded", dead: "stopped" },
    about: "version {version}, running for {time}",
    now: "Now",
    charts: "The last five minutes",
    ttft: "Time to first token",
    itl: "Between tokens",
    throughput: "Tokens a second",
    p50: "median",
    p99: "99th percentile",
    output: "generated",
    prompt: "prompts",
    embedded: "embedded",
    noRequests: "no requests in the last five minutes",
    chartSummary: "{title}: {figures}. Left and right arrow keys read single values.",
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
    memory: "Memory",
    noPlan: "This server does not plan its memory.",
    modes: { time_slice: "models share the device's time", mps: "models run side by side (MPS)", exclusive: "a device a model" },
    planned: "planned",
    measured: "measured",
    notMeasured: "not measured",
    usable: "{usable} of {total} may be used",
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
    maxTokens: "Most tokens",
    system: "System message (optional)",
    message: "Message",
    messageHint: "Say something: Enter sends, Shift+Enter begins a new line",
    logEmpty: "Nothing has been said yet.",
    send: "Send",
    stop: "Stop",
    clear: "Start anew",
    you: "You",
    stopped: "stopped",
    chatFigures: "{tokens} tokens, {rate} tokens/s, first after {ttft}",
    noModelOfType: "no model is ready",
    texts: "Texts, one a line",
    textsExample: "A cat sleeps on the sofa.\nA kitten naps on the couch.\nInterest rates rose in March.",
    compare: "Compare",
    twoTexts: "Give two texts or more, one a line.",
    embedFigures: "{dim} dimensions, {tokens} tokens, {time}",
    cosine: "Cosine similarity of the texts",
    cutOff: "The stream ended before the answer was complete.",
    lost: "The connection was lost.",
    linkApi: "the API's description",
  },
  zh: {
    otherLanguage: "English",
    skip: "跳到试用区",
    key: "API 密钥",
    keyLabel: "本服务的 API 密钥",
    keyUse: "使用",
    keyForget: "清除",
    keyNote: "只保存在本标签页中,关闭后即消失。",
    keyWanted: "服务需要 API 密钥,或不认识所给的密钥:{reason}",
    unreachable: "已有 {seconds} 秒无法连接服务,正在重试;显示的是最后一次的数据。",
    failed: "服务返回错误:{reason}",
    health: { ok: "就绪", starting: "启动中", degraded: "降级", dead: "已停止" },
    about: "版本 {version},已运行 {time}",
    now: "当前",
    charts: "最近五分钟",
    ttft: "首 token 延迟",
    itl: "token 间隔",
    throughput: "每秒 token 数",
    p50: "中位数",
    p99: "99 分位",
    output: "生成",
    prompt: "提示",
    embedded: "嵌入",
    noRequests: "最近五分钟没有请求",
    chartSummary: "{title}:{figures}。用左右方向键读取单个数值。",
    tileRequests: "请求",
    tileErrors: "错误",
    tileOutput: "生成的 token",
    tileTtft: "首 token,中位数",
    tileItl: "token 间隔,中位数",
    tileOpen: "进行中的请求",
    each: "/分钟",
    rate: "/秒",
    models: "模型",
    model: "模型",
    type: "类型",
    state: "状态",
    since: "持续",
    types: { llm: "大语言模型", embedding: "嵌入", reranker: "重排", multimodal: "多模态" },
    states: { registered: "已登记", loading: "加载中", ready: "就绪", draining: "排空中", sleeping: "休眠", failed: "失败" },
    noModels: "本服务没有模型。",
    queue: "队列",
    queueOpen: "进行中的请求",
    queueRunning: "引擎中运行",
    queueWaiting: "引擎中等待",
    queueKv: "已用 KV 块",
    of: "{n} / {total}",
    memory: "内存",
    noPlan: "本服务没有内存规划。",
    modes: { time_slice: "各模型分时共用设备", mps: "各模型并行运行(MPS)", exclusive: "每个模型独占设备" },
    planned: "规划",
    measured: "实测",
    notMeasured: "未测量",
    usable: "{total} 中可用 {usable}",
    weights: "权重",
    kv: "KV 缓存",
    activations: "激活",
    overhead: "开销",
    plannedColumn: "规划",
    measuredColumn: "实测",
    playground: "试用",
    chat: "对话",
    embed: "比较文本",
    temperature: "温度",
    maxTokens: "最多 token 数",
    system: "系统消息(可选)",
    message: "消息",
    messageHint: "说点什么:Enter 发送,Shift+Enter 换行",
    logEmpty: "还没有对话。",
    send: "发送",
    stop: "停止",
    clear: "重新开始",
    you: "你",
    stopped: "已停止",
    chatFigures: "{tokens} 个 token,{rate} token/秒,首个在 {ttft} 后",
    noModelOfType: "没有就绪的模型",
    texts: "文本,每行一条",
    textsExample: "猫在沙发上睡觉。\n小猫在长椅上打盹。\n三月份利率上升了。",
    compare: "比较",
    twoTexts: "请给出两条或更多文本,每行一条。",
    embedFigures: "{dim} 维,{tokens} 个 token,{time}",
    cosine: "文本的余弦相似度",
    cutOff: "回答还没有完整,数据流就结束了。",
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

// A sentence by its key (a.b for one in a table), with {names} replaced.
export function say(key, values = {}) {
  const found = key.split(".").reduce((words, step) => words?.[step], WORDS[language]);
  return (found ?? key.split(".").pop()).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Puts the words into the page's fixed parts.
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
