// Streams a chat with nothing but fetch: for Node 18 or newer, and for browsers.

/** Yields the answer's text, piece by piece. Throws what the server says is wrong. */
export async function* streamChat(url, messages, options = {}, signal = undefined) {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ messages, stream: true, ...options }),
    signal,
  });
  if (!response.ok) {
    throw new Error((await response.json()).error.message);
  }
  let rest = "";
  const decoder = new TextDecoder();
  for await (const bytes of pieces(response.body)) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      // Other lines are empty, or comments that keep the connection alive.
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      const text = event.choices[0]?.delta.content;
      if (text) yield text;
    }
  }
}

// Not every browser lets one iterate over a stream.
async function* pieces(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
