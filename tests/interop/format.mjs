// Reads streams in pieces as client.js reads them, without a server: node format.mjs CLIENT.mjs < cases.json
// A case is a list of pieces, in base64. Prints for each what came, as JSON.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

globalThis.location = new URL("https://page.example/");
globalThis.addEventListener = globalThis.removeEventListener = () => {};
const {Stream} = await import(pathToFileURL(process.argv[2]));

let pieces;
globalThis.fetch = async () => {
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new Uint8Array(Buffer.from(piece, "base64")));
      controller.close();
    },
  });
  return new Response(body, {headers: {"Content-Type": "text/event-stream; charset=utf-8"}});
};

for (const each of JSON.parse(readFileSync(0, "utf8"))) {
  pieces = each;
  const stream = new Stream("https://api.example/events", {share: false, lastEventId: "e-0"}), came = [];
  const keep = (e) => came.push([e.type, e.event, e.data, e.lastEventId]);
  for (const type of ["connected", "*", "reset"]) stream.addEventListener(type, keep);
  const ending = await new Promise((resolve) => {
    stream.addEventListener("state", (e) => { if (e.state === "waiting") resolve(e); });
  });
  stream.close();
  console.log(JSON.stringify({came, why: ending.why, waitMs: ending.waitMs}));
}
