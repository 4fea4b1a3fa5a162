import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import "./style.css";

// ?api=http://localhost:8001 is another server.
const api = new URLSearchParams(location.search).get("api") ?? "http://localhost:8000";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App api={api} />
  </StrictMode>,
);
