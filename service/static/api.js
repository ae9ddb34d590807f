// Questions to the server, and what can go wrong with them, in words.

export class Failure extends Error {
  // `title` says what happened, `message` what the server says of it; `remedy` is "key", "again" or null.
  constructor(title, message, remedy = null) {
    super(message);
    this.title = title;
    this.remedy = remedy;
  }
}

const TITLES = {
  400: "The server refuses this question",
  401: "This server wants an API key",
  404: "The server has another model now",
  413: "This conversation is too long for the server",
  429: "The server is busy",
  503: "The server is not ready",
};

async function ask(path, key, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null); // a proxy's error page is no JSON
  const title = TITLES[response.status] ?? `The server failed with status ${response.status}`;
  let message = body?.error?.message ?? "it does not say why";
  const wait = response.headers.get("retry-after");
  if (response.status === 429 && wait) message += ` (in about ${wait} s)`;
  const passing = [404, 429].includes(response.status) || response.status >= 500;
  return new Failure(title, message, response.status === 401 ? "key" : passing ? "again" : null);
}

const unreachable = () =>
  new Failure("The server cannot be reached", "it may be stopped, or the network is down", "again");

async function get(path, key) {
  const response = await ask(path, key);
  return response.json().catch(() => {
    throw unreachable(); // it went away amid its answer
  });
}

export async function model(key) {
  return (await get("/v1/models", key)).data[0].id;
}

export async function health() {
  return get("/health");
}

// The parts of a streamed answer: {text, trace, end}, `end` being null but in the last.
export async function* chat(body, key, signal) {
  const response = await ask("/v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, trace: true }),
    signal,
  });
  for await (const event of events(response.body)) {
    if (event === "[DONE]") return;
    const part = JSON.parse(event);
    if (part.error) throw new Failure("The answer ended early", part.error.message, "again");
    const [choice] = part.choices;
    yield { text: choice.delta.content ?? "", trace: choice.trace ?? null, end: choice.finish_reason };
  }
  throw lost();
}

const lost = () =>
  new Failure("The connection was lost", "the answer is not complete, for the server went away", "again");

// The data of server-sent events, as they come.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : lost();
    });
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
}
