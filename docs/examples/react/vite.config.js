import react from "@vitejs/plugin-react";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

// Where the server is, for pages that say `new EventSource("/events")`: they get it through this one.
const proxy = { "/events": process.env.API_URL ?? "http://localhost:8000" };

export default defineConfig({
  plugins: [react()],
  resolve: {
    alias: {
      // In a project of your own: a copy of http://localhost:8000/client.js among your sources.
      "qgstream-client": fileURLToPath(new URL("../../../qgstream/web/client.js", import.meta.url)),
    },
  },
  server: { port: 3000, strictPort: true, proxy, fs: { allow: ["../../.."] } },
  preview: { port: 3000, strictPort: true, proxy },
});
