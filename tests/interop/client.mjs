// Prints each event of a stream as a line of JSON, until one of type "end" comes.
// node client.mjs MODULES URL
import {createRequire} from "node:module";
const [modules, url] = process.argv.slice(2);
const {EventSource} = createRequire(`${modules}/`)("eventsource");

const source = new EventSource(url);
const print = ({type, data, lastEventId}) => process.stdout.write(JSON.stringify({type, data, id: lastEventId}) + "\n");
for (const type of ["message", "text", "json"]) source.addEventListener(type, print);
source.addEventListener("end", (event) => { print(event); source.close(); });
source.onerror = (event) => { console.error(event.message ?? "error"); process.exitCode = 1; source.close(); };
