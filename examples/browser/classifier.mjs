// Runs what `pfberxit export` wrote, in node and in browsers; `pfberxit/onnx.py` in another language.

export class Classifier {
  // ort: onnxruntime-node or onnxruntime-web; Tokenizer: of @huggingface/tokenizers; model: the file's bytes or path;
  // tokenizer: tokenizer.json, parsed; metadata: what the file says of itself, under its key `pfberxit`.
  static async load({ ort, Tokenizer, model, tokenizer, metadata }) {
    const executionProviders = [metadata.provider ?? "wasm"];
    // Memory planned anew in every branch costs more than it gives.
    const options = { executionProviders, enableMemPattern: false, logSeverityLevel: 3 }; // errors alone
    const session = await ort.InferenceSession.create(model, options);
    return new Classifier(ort, session, new Tokenizer(tokenizer, {}), metadata);
  }

  constructor(ort, session, tokenizer, metadata) {
    Object.assign(this, { ort, session, tokenizer, metadata });
  }

  // Label, score, exit layer and logits of each text. asked: threshold and patience, where the rule reads them.
  async predict(texts, asked = {}) {
    if (texts.length === 0) return [];
    if (this.metadata.single && texts.length > 1) {
      const answers = [];
      for (const text of texts) answers.push(...(await this.predict([text], asked)));
      return answers;
    }
    const { threshold, patience } = this.point(asked);
    const rows = texts.map((text) => this.encode(text));
    const tokens = Math.max(...rows.map((ids) => ids.length));
    const flat = (value) => BigInt64Array.from(rows.flatMap((ids) => Array.from({ length: tokens }, (_, i) => BigInt(value(ids, i)))));
    const table = (value) => new this.ort.Tensor("int64", flat(value), [rows.length, tokens]);
    const column = (kind, values) => new this.ort.Tensor(kind, values, [rows.length]);
    const every = {
      input_ids: table((ids, i) => (i < ids.length ? ids[i] : this.metadata.padding.id)),
      attention_mask: table((ids, i) => (i < ids.length ? 1 : 0)),
      token_type_ids: table(() => 0),
      tau: column("float32", new Float32Array(rows.length).fill(threshold)),
      patience: column("int64", new BigInt64Array(rows.length).fill(BigInt(patience))),
    };
    const given = Object.fromEntries(this.session.inputNames.map((name) => [name, every[name]]));
    const { logits, exit_layer } = await this.session.run(given);
    const labels = this.metadata.id2label.length;
    return rows.map((_, row) => ({
      ...this.labelled(Array.from(logits.data.slice(row * labels, (row + 1) * labels))),
      exit_layer: Number(exit_layer.data[row]),
    }));
  }

  // Tau and patience of a request; refuses what the rule cannot work with.
  point(asked) {
    for (const name of Object.keys(asked)) {
      if (!this.metadata.reads.includes(name)) throw new Error(`${name}: must be among ${this.metadata.reads.join(", ") || "none"}`);
    }
    const { threshold = 0, patience = 1 } = { ...this.metadata.policy, ...asked };
    const tau = Array.isArray(threshold) ? 0 : threshold;
    if (!(tau >= 0 && tau < Infinity)) throw new Error(`threshold=${tau}: must be a finite number of at least 0`);
    if (!(Number.isInteger(patience) && patience >= 1 && patience <= this.metadata.most_patience)) {
      throw new Error(`patience=${patience}: must be a whole number from 1 to ${this.metadata.most_patience}`);
    }
    return { threshold: tau, patience };
  }

  // The ids of a text, cut to the file's length with the special tokens around it kept.
  encode(text) {
    const { ids } = this.tokenizer.encode(text);
    const over = ids.length - this.metadata.max_length;
    if (over <= 0) return ids;
    const bare = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    const behind = ids.length - bare.length - ids.indexOf(bare[0]);
    return [...ids.slice(0, ids.length - behind - over), ...ids.slice(ids.length - behind)];
  }

  // The likeliest label and its score; an empty one for a text that left as unsure.
  labelled(logits) {
    if (logits.some(Number.isNaN)) return { label: "", score: null, logits };
    const best = logits.indexOf(Math.max(...logits));
    return { label: this.metadata.id2label[best], score: this.score(logits, best), logits };
  }

  score(logits, number) {
    if (this.metadata.activation === "none") return logits[number];
    if (this.metadata.activation === "sigmoid") return 1 / (1 + Math.exp(-logits[number]));
    return 1 / logits.reduce((sum, each) => sum + Math.exp(each - logits[number]), 0);
  }
}
