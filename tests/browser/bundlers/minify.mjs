// Makes client.min.js of client.js: `make client`. Another output: node minify.mjs FILE
import {readFileSync, writeFileSync} from "node:fs";
import {fileURLToPath} from "node:url";
import {transform} from "esbuild";

const web = new URL("../../../qgstream/web/", import.meta.url);
const source = readFileSync(new URL("client.js", web), "utf8");
const output = process.argv[2] ?? fileURLToPath(new URL("client.min.js", web));

const {code} = await transform(source, {
  minify: true, format: "esm", target: "es2022", charset: "utf8", legalComments: "none",
});
writeFileSync(output, `// client.js of qgstream, minified. Apache-2.0\n${code}`);
