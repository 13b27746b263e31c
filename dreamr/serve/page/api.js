// Talks to the endpoint. The API key stays in this tab.

export class ApiError extends Error {}

const key = () => document.getElementById("key").value.trim();

function headers() {
  const all = { "Content-Type": "application/json" };
  if (key()) all.Authorization = `Bearer ${key()}`;
  return all;
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw Object.assign(new ApiError(body?.error?.message ?? `The server answered ${response.status}.`), { status: response.status });
}

// `fetch` with a sentence of its own when nothing answers.
async function sent(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Check the network, and whether the server still runs.");
  }
}

export async function getJson(path) {
  return (await checked(await sent(path, { headers: headers() }))).json();
}

export async function health() {
  return (await fetch("/health")).json(); // bad health has a body as well
}

// Chunks of a streamed answer, one by one.
export async function* ask(body, signal) {
  const response = await checked(
    await sent("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify({ ...body, stream: true }), signal }),
  );
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    yield chunk;
  }
  throw new ApiError("The answer broke off. Ask again.");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError("The connection to the server broke off. Ask again.");
    });
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const event of whole) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
