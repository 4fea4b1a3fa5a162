// A page as a frontend writes it, for the bundlers.
import {Stream} from "client";

const seen = window.seen = [];
const stream = window.stream = new Stream(`${new URLSearchParams(location.search).get("api")}/events`);
stream.addEventListener("connected", (event) => seen.push(event.json.event));
stream.addEventListener("created", (event) => seen.push(event.json));
