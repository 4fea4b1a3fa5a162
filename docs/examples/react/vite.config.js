import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// Where the server is, for pages that say `new EventSource("/events")`: they get it through this one.
const proxy = { "/events": process.env.API_URL ?? "http://localhost:8000" };

export default defineConfig({
  plugins: [react()],
  // The client is a link to a folder of the repository. A project of your own, with the package itself, needs no `fs`.
  server: { port: 3000, strictPort: true, proxy, fs: { allow: ["../../.."] } },
  preview: { port: 3000, strictPort: true, proxy },
});
