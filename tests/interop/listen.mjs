// Opens a stream with every library, for every URL, and prints what each receives as lines of JSON.
// node listen.mjs MODULES '{"cut": "http://...", ...}'; it runs until it is killed.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [modules, urls] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const TYPES = ["message", "created"];

const print = (record) => process.stdout.write(JSON.stringify(record) + "\n");

// Two of them are for pages: they ask for the window's timers, whether the page is hidden, and when it goes away.
globalThis.window = globalThis;
globalThis.addEventListener ??= () => {};
globalThis.document = {hidden: false, addEventListener() {}, removeEventListener() {}};

const imported = async (name) => await import(pathToFileURL(require.resolve(name)));
const open = (EventSource) => (url, received, stopped) => {
  const source = new EventSource(url);
  for (const type of TYPES) source.addEventListener(type, (e) => received(e.type, e.data, e.lastEventId));
  // undici says that there is an error, and closes after that.
  source.addEventListener("error", () => setTimeout(() => { if (source.readyState === 2) stopped("closed"); }));
};

const LIBRARIES = {
  "npm eventsource 2": async () => open(require("eventsource2")),
  "npm eventsource 3": async () => open(require("eventsource").EventSource),
  "npm eventsource 5": async () => open((await imported("eventsource5")).EventSource),
  "undici EventSource": async () => open(require("undici").EventSource),
  "event-source-polyfill": async () => open(require("event-source-polyfill").EventSourcePolyfill),
  "@microsoft/fetch-event-source": async () => {
    const {fetchEventSource} = require("@microsoft/fetch-event-source");
    return (url, received, stopped) => fetchEventSource(url, {
      openWhenHidden: true,
      onmessage: (e) => received(e.event || "message", e.data, e.id),
      onclose: () => { throw new Error("the server closed"); }, // how its documentation asks it to come back
      // It does not look at the status, and takes what is no stream for an error to be retried.
    }).then(() => stopped("resolved"), (error) => stopped(String(error)));
  },
};

process.on("uncaughtException", (error) => print({client: "?", kind: "fault", why: String(error.stack)}));
process.on("unhandledRejection", (error) => print({client: "?", kind: "fault", why: String(error?.stack ?? error)}));
for (const [client, load] of Object.entries(LIBRARIES)) {
  const listen = await load();
  for (const [scenario, url] of Object.entries(JSON.parse(urls))) {
    listen(
      `${url}&client=${encodeURIComponent(client)}`,
      (event, data, id) => print({client, scenario, kind: "event", event, data, id}),
      (why) => print({client, scenario, kind: "stopped", why}),
    );
  }
}
setInterval(() => {}, 1 << 30);
