// What a renderer on a server does with the client: it imports it, makes a stream, listens, and ends.
const {Stream, StreamEvent} = await import(process.argv[2]);

for (const url of ["/events", "http://localhost:1/events"]) {
  const stream = new Stream(url, {topics: ["orders"]});
  stream.addEventListener("created", () => {});
  stream.setTopics(["news"]);
  console.log(stream.state, stream.topics.join(), stream.lastEventId === "");
  if (url !== "/events") stream.close();
}
console.log(typeof StreamEvent);
