// WebKit's driver does not tell what the console said, so a page keeps it. Pages of the tests load this file first; the
// driver runs it in all others, after they were loaded.
(() => {
  if (window.said) return;
  const said = window.said = [];
  const text = (it) => it instanceof Error ? String(it) : typeof it === "string" ? it : JSON.stringify(it);
  for (const level of ["error", "warn"]) {
    const real = console[level];
    console[level] = (...what) => { said.push(what.map(text).join(" ")); real.apply(console, what); };
  }
  addEventListener("error", (event) => { if (event.message) said.push(`${event.message} (${event.filename})`); });
  addEventListener("unhandledrejection", (event) => said.push(`unhandled: ${text(event.reason)}`));
})();
