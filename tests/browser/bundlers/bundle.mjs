// Bundles page.js with the client: node bundle.mjs esbuild|rollup CLIENT_JS FOLDER
import {build} from "esbuild";
import {rollup} from "rollup";

const [tool, client, folder] = process.argv.slice(2);

if (tool === "esbuild") {
  await build({entryPoints: ["page.js"], bundle: true, format: "esm", outdir: folder, alias: {client}});
} else {
  const bundle = await rollup({
    input: "page.js",
    plugins: [{name: "client", resolveId: (id) => id === "client" ? client : null}],
  });
  await bundle.write({dir: folder, format: "es"});
}
