// The same on a server: what it renders is the state before anything was heard, and it opens nothing.

import { renderToString } from "react-dom/server";
import { App } from "./App";

export const render = (api: string): string => renderToString(<App api={api} />);
