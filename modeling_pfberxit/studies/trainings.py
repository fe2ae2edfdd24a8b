"""One cache of trainings, keyed by the content of encoder, data, config and budget, not by their paths or names.

An entry is a folder named by the hash of that key. It holds two recordings of the trained model, on the held-out and on
the evaluation rows, and the key in clear, `made_of.json`. Entries appear in one move and are never written again, so a
comparison that was interrupted goes on where it stopped, new rules cost no training, and entries of another format stay
as they are. Models are not kept.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..data.metrics import majority_score
from ..evaluation.recording import Recording
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import POLICY_CHECKS
from ..model.persistence import sha256_of, weight_files
from ..model.validation import refuse
from ..training.finetuning import new_tokenizer
from .runs import Run, train_and_record

FORMAT = 1  # of the entries; to be raised by a change after which the same key trains another model
PARTS, MADE_OF = ("held_out.safetensors", "evaluation.safetensors"), "made_of.json"
# Fields of a config that change no training: names, paths (their content is hashed), the policy, how it is saved.
ASIDE = {
    "system", "operating_points", "format_version", "weights_sha256", "adapter_only", "architectures", "auto_map",
    "base_model_name_or_path", "base_model_revision", "base_model_sha256", "transformers_version", "_name_or_path",
    "problem_type", "id2label", "label2id", *(f"exit_{name}" for name in POLICY_CHECKS),
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The recordings of a trained model: on the rows to choose thresholds on, and on those to report on."""

    chosen_on: Recording
    reported_on: Recording

    @property
    def facts(self) -> dict[str, Any]:
        """Task, metric, run, and what the training cost."""
        return self.reported_on.source

    @property
    def metric(self) -> str:
        """The name of the task's metric."""
        return self.facts["metric"]

    @property
    def majority(self) -> float:
        """What the labels' frequencies alone score on the reported rows."""
        return majority_score(self.metric, self.reported_on.known_labels.numpy())


def trained(folder: Path, run: Run, config: PFBerxitConfig, say: Callable[[str], None], progress: str = "") -> Trained:
    """The recordings of one training, from `folder` or made now; `say` is called when one is trained.

    Their facts have the names that this run has for encoder and data, whatever those were called when it was trained.
    """
    key, facts = key_of(run, config), run.facts()
    # What is loaded for the training is checked against the hash in the key.
    config = PFBerxitConfig.from_backbone(config, base_model_sha256=key["encoder"]["weights"])

    def train() -> tuple[Recording, Recording]:
        say(f"{progress}training {config.system or 'a model'} on {facts['task']}, seed {run.seed} ...")
        return train_and_record(run, config)

    kept = cached(folder, key, train)
    facts["run"] |= {"encoder": key["encoder"]["weights"], "data": key["data"]}
    parts = (kept.chosen_on, kept.reported_on)
    return Trained(*(replace(part, source={**part.source, **facts}) for part in parts))


# ---- the key --------------------------------------------------------------------------------------------------------


def key_of(run: Run, config: PFBerxitConfig) -> dict[str, Any]:
    """All that goes into a training, by content, in values of JSON."""
    trained = {name: value for name, value in sorted(config.to_dict().items()) if name not in ASIDE}
    return content_of(run, config.base_model_name_or_path, config.base_model_revision, config=trained)


def content_of(run: Run, encoder: str | None, revision: str | None = None, **what: Any) -> dict[str, Any]:
    """A run's encoder, data and budget by content, and `what` is done with them, in values of JSON."""
    task = run.source.task
    key = {
        "format": FORMAT,
        "encoder": encoder_content(encoder, revision),
        "data": run.source.sha256,
        "task": {"problem_type": task.problem_type, "labels": task.labels},
        "budget": run.budget.stated(),
        "seed": run.seed,
        **what,
    }
    return json.loads(json.dumps(key))


def encoder_content(name: str | None, revision: str | None) -> dict[str, str]:
    """Hashes of an encoder's weights and of its tokenizer.

    Raises:
        ValueError, OSError: there is none, or it has no safetensors weights.
    """
    files = [] if name is None else [Path(file).resolve() for file in weight_files(name, revision=revision)]
    if name is None or not files:
        refuse("backbone", name, "an encoder with safetensors weights")
    state = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return {"weights": weights_hash(state), "tokenizer": tokenizer_hash(name, revision)}


@lru_cache
def weights_hash(state: tuple[tuple[str, int, int], ...]) -> str:
    """The SHA-256 of files, (path, size, time of last change) each; read once as long as these stay the same."""
    return sha256_of(*(path for path, *_ in state))


def tokenizer_hash(name: str, revision: str | None) -> str:
    """The SHA-256 of all that decides how an encoder's tokenizer turns texts into ids."""
    tokenizer = new_tokenizer(name, revision)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    about = [type(tokenizer).__name__, rules, tokenizer.model_input_names, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()


# ---- the entries ----------------------------------------------------------------------------------------------------


def cached(folder: Path, key: dict[str, Any], train: Callable[[], tuple[Recording, Recording]]) -> Trained:
    """The entry of a key in `folder/recordings`; `train` makes it where there is none.

    Raises:
        OSError: an entry that cannot be read, or whose `made_of.json` has another key. It is left as it is.
    """
    place = entry(folder, key)
    if not place.exists():
        write(place, key, train())
    try:
        made_of = json.loads((place / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OSError(f"{place}: {MADE_OF} cannot be read ({error}); move the folder away to train anew.") from error
    if made_of != key:
        other = sorted(name for name in {*made_of, *key} if made_of.get(name) != key.get(name))
        raise OSError(f"{place}: made of another {', '.join(other)}; move the folder away to train anew.")
    return Trained(*(Recording.load(place / part) for part in PARTS))


def entry(folder: Path, key: dict[str, Any]) -> Path:
    """The path of a key's entry, whether there is one or not."""
    return folder / "recordings" / name_of(key)


def name_of(key: dict[str, Any]) -> str:
    """A folder's name for a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def write(place: Path, key: dict[str, Any], recordings: tuple[Recording, Recording]) -> None:
    """Write an entry in one move; where another process was quicker, its entry stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as scratch:
        draft = Path(scratch) / place.name
        for part, recording in zip(PARTS, recordings, strict=True):
            recording.save(draft / part)
        (draft / MADE_OF).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        try:
            os.rename(draft, place)
        except OSError:
            if not place.exists():
                raise
