// node node.mjs FOLDER CLASSIFIER TEXTS: the answers of FOLDER/model.onnx in onnxruntime-node, as JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, script, texts] = process.argv.slice(2);
const require = createRequire(`${process.env.NODE_MODULES}/`);
const ort = require("onnxruntime-node");
const { Tokenizer } = require("@huggingface/tokenizers");
const { Classifier } = await import(pathToFileURL(script));
const read = (name) => JSON.parse(readFileSync(`${folder}/${name}`, "utf8"));
const metadata = { ...read("metadata.json"), provider: "cpu" };
const model = `${folder}/model.onnx`;
const classify = await Classifier.load({ ort, Tokenizer, model, tokenizer: read("tokenizer.json"), metadata });
const alone = [];
for (const text of JSON.parse(texts)) alone.push(...(await classify.predict([text])));
console.log(JSON.stringify({ alone, together: await classify.predict(JSON.parse(texts)) }));
