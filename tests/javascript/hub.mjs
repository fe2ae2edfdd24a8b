// node hub.mjs FOLDER OPTIONS TEXTS: a folder as the Hub has it, through `pipeline` of transformers.js; as JSON.
import { basename, dirname } from "node:path";
import { createRequire } from "node:module";

const [folder, options, texts] = process.argv.slice(2);
const { AutoModelForSequenceClassification, AutoTokenizer, env, pipeline } = createRequire(`${process.env.NODE_MODULES}/`)("@huggingface/transformers");
Object.assign(env, { allowRemoteModels: false, localModelPath: dirname(folder) });
const given = { dtype: "fp32", ...JSON.parse(options) };
const classify = await pipeline("text-classification", basename(folder), given);
const answers = await classify(JSON.parse(texts));
const inputs = await classify.tokenizer(JSON.parse(texts), { padding: true, truncation: true });
const raw = await classify.model(inputs);
const layers = raw.exit_layer ? Array.from(raw.exit_layer.data, Number) : null;
console.log(JSON.stringify({ answers, layers, outputs: Object.keys(raw) }));
