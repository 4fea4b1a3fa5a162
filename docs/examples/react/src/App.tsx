import { Original } from "./Original";
import { WithHook } from "./WithHook";

/** Both, on the same server. An `api` of "" is this page's own, which passes it on (vite.config.js). */
export function App({ api }: { api: string }) {
  return (
    <main>
      <h1>qgstream and React</h1>
      <Original url={`${api}/events`} />
      <WithHook url={`${api}/events`} />
    </main>
  );
}
