# /// script
# dependencies = ["modeling-pfberxit[train]"]
# ///
"""3. Share: push adapters, code, tokenizer and card to the Hub, and load them back as anyone would.

    hf auth login
    python examples/03_share.py runs/topics your-name/desk-topics

What travels is 2 to 3 MB for an encoder of ALBERT's or BERT's base size; the encoder is pinned by its commit.
"""

import argparse
from pathlib import Path

from huggingface_hub import ModelCard, metadata_update
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def main() -> None:
    """Push, then pull back and classify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a fine-tuned model")
    parser.add_argument("repo", help="where to push it: name/repository")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--text", default="Nobody has answered me for two weeks.")
    options = parser.parse_args()

    model = AutoModelForSequenceClassification.from_pretrained(options.folder, trust_remote_code=True)
    model.push_to_hub(options.repo, private=options.private)
    AutoTokenizer.from_pretrained(options.folder, trust_remote_code=True).push_to_hub(options.repo)
    card = Path(options.folder) / "README.md"
    if card.exists():
        ModelCard.load(card).push_to_hub(options.repo)
    relation = "adapter" if model.config.adapter_only else "finetune"
    facts = {"base_model_relation": relation, "pipeline_tag": "text-classification", "library_name": "transformers"}
    metadata_update(options.repo, facts, overwrite=True)

    classifier = pipeline("text-classification", model=options.repo, trust_remote_code=True)
    print(classifier(options.text))


if __name__ == "__main__":
    main()
