// Requests to the gateway, with the user's key.

const KEY = "sage-infer-key";

export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

// An error response; `status` is 0 for an error inside a stream.
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, body, signal) {
  const headers = { accept: "application/json" };
  if (getKey()) headers.authorization = `Bearer ${getKey()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, signal, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = text.slice(0, 300);
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // Not a response of the gateway, such as a proxy's page: show its beginning.
  }
  throw new ApiError(answer.status, message || `HTTP ${answer.status}`);
}

export const get = async (path, signal) => (await send(path, undefined, signal)).json();
export const post = async (path, body, signal) => (await send(path, body, signal)).json();

// The chunks of a streamed answer; ends without an error only after [DONE].
export async function* stream(path, body, signal, cutOff) {
  const answer = await send(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, cutOff);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new ApiError(0, chunk.error.message);
      yield chunk;
    }
  }
}
