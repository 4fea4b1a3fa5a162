import { Original } from "./Original";
import { Publish } from "./Publish";
import { WithHook } from "./WithHook";

/** All on the same server. An `api` of "" is this page's own, which passes it on (vite.config.js). */
export function App({ api }: { api: string }) {
  const url = `${api}/events`;
  return (
    <main>
      <h1>qgstream and React</h1>
      <Publish url={url} />
      <div className="panes">
        <WithHook url={url} />
        <Original url={url} />
      </div>
    </main>
  );
}
