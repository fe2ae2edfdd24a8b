"""A page that classifies as one types, and shows the layer each sentence left after: one HTML file, no server.

    npm install onnxruntime-web @huggingface/tokenizers
    pfberxit export runs/faster --onnx out/model.onnx --int8
    python examples/06_browser.py out/model_int8.onnx --output page.html

Runtime, tokenizer and model are put into the page, which then opens from a disk and sends nothing anywhere.
"""

import argparse
import base64
import json
from pathlib import Path

from pfberxit.onnx import Classifier

HERE = Path(__file__).parent / "browser"
MODULES = {
    "runtime": "onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
}


def page_of(model: Path, modules: Path) -> str:
    """The page's HTML, everything inside it."""
    classifier = Classifier(model)
    parts = {name: (modules / path).read_bytes() for name, path in MODULES.items()}
    parts |= {
        "classifier": (HERE / "classifier.mjs").read_bytes(),
        "model": model.read_bytes(),
        "tokenizer": classifier.tokenizer.to_str().encode(),
        "metadata": json.dumps(classifier.metadata).encode(),
    }
    encoded = {name: base64.b64encode(content).decode() for name, content in parts.items()}
    return (HERE / "page.html").read_text(encoding="utf-8").replace("{{PARTS}}", json.dumps(encoded))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="what `pfberxit export` wrote")
    parser.add_argument("--modules", type=Path, default=Path("node_modules"), help="where npm installs")
    parser.add_argument("--output", type=Path, default=Path("page.html"))
    options = parser.parse_args()
    options.output.write_text(page_of(options.model, options.modules), encoding="utf-8")
    print(f"Wrote {options.output}, {options.output.stat().st_size / 2**20:.0f} MB: open it in a browser.")


if __name__ == "__main__":
    main()
