// Server-sent events over fetch: EventSource can neither POST nor carry a key.

/** The data of each event in a stream of bytes; comments, which only keep the connection open, are left out. */
export async function* events(bytes) {
  let rest = "";
  for await (const text of pieces(bytes.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + text).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

/** What a stream holds; not every browser lets `for await` read one. */
async function* pieces(stream) {
  const reader = stream.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading has no use for the rest
  }
}
