// node hub.mjs FOLDER OPTIONS TEXTS: a folder as the Hub has it, through `pipeline` of transformers.js; as JSON.
import { basename, dirname } from "node:path";
import { createRequire } from "node:module";

const [folder, options, texts] = process.argv.slice(2);
const { AutoModel, env, pipeline } = createRequire(`${process.env.NODE_MODULES}/`)("@huggingface/transformers");
Object.assign(env, { allowRemoteModels: false, localModelPath: dirname(folder) });
const classify = await pipeline("text-classification", basename(folder), JSON.parse(options));
const answers = await classify(JSON.parse(texts));
const inputs = await classify.tokenizer(JSON.parse(texts), { padding: true, truncation: true });
// The classifiers of transformers.js pass logits on; a type that it does not know gives all outputs.
const raw = await AutoModel.from_pretrained(basename(folder), { dtype: "fp32", config: { model_type: "pfberxit" } });
const { exit_layer } = await raw(inputs);
console.log(JSON.stringify({ answers, layers: Array.from(exit_layer.data, Number) }));
