// Components with the hook, as the tests want them: `show([{name, hidden, ...options}])`.

import { Activity, StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useSSE, type UseSSEOptions } from "./src/useSSE";

interface Part extends UseSSEOptions {
  name: string;
  hidden?: boolean;
}

const query = new URLSearchParams(location.search);
const seen = Object.assign(window, {
  heard: {} as Record<string, unknown[]>,
  shown: {} as Record<string, unknown>,
  renderings: {} as Record<string, number>,
  show: (_: Part[]) => {},
});

function Component({ name, options }: { name: string; options: UseSSEOptions }) {
  seen.renderings[name] = (seen.renderings[name] ?? 0) + 1;
  const sse = useSSE(`${query.get("api")}/events`, {
    ...options,
    onEvent: (event) => (seen.heard[name] ??= []).push(event.json),
  });
  useEffect(() => {
    seen.shown[name] = sse;
  }, [sse]);
  return <p>{sse.state}</p>;
}

function Page() {
  const [parts, setParts] = useState<Part[]>([]);
  useEffect(() => {
    seen.show = setParts;
    document.body.dataset.ready = "yes";
  }, []);
  return parts.map(({ name, hidden, ...options }) => (
    <Activity key={name} mode={hidden ? "hidden" : "visible"}>
      <Component name={name} options={options} />
    </Activity>
  ));
}

createRoot(document.getElementById("root")!).render(query.has("strict") ? <StrictMode><Page /></StrictMode> : <Page />);
