// Makes client.min.js of client.js: `make client`. Another output: node minify.mjs FILE
// By terser: what esbuild makes of this file is 160 bytes longer when it is compressed.
// `conditionals` makes the file shorter, and the compressed file longer.
import {readFileSync, writeFileSync} from "node:fs";
import {fileURLToPath} from "node:url";
import {minify} from "terser";

const web = new URL("../../../qgstream/web/", import.meta.url);
const source = readFileSync(new URL("client.js", web), "utf8");
const output = process.argv[2] ?? fileURLToPath(new URL("client.min.js", web));

const {code} = await minify(source, {module: true, ecma: 2022, compress: {passes: 3, unsafe_arrows: true, conditionals: false}});
writeFileSync(output, `// client.js of qgstream. Apache-2.0\n${code}\n`);
