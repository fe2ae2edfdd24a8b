"""HashEE's hash functions: the layer that every token of a vocabulary exits after."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from sklearn.cluster import KMeans

from ..model.blueprint import rebuilt
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.positions import DRAWN, TokenExits
from ..model.validation import refuse

METHODS = ("random", "random_each_time", "frequency", "mutual_information", "clustered")


def fit_token_exits(
    model: PFBerxitForSequenceClassification,
    token_ids: Sequence[Sequence[int]],
    labels: np.ndarray,
    special_ids: Sequence[int],
    method: str = "frequency",
    layers: tuple[int, int] | None = None,
    buckets: int | None = None,
    seed: int = 0,
) -> None:
    """Fill the model's table of token depths from a training set; special and unseen tokens go to the last layer.

    Args:
        token_ids: the tokens of every training row.
        labels: (N,) classes, or (N, C) of 0 and 1; for `mutual_information`.
        special_ids: the tokenizer's `all_special_ids`.
        method: `random` (per token of the vocabulary), `random_each_time` (per occurrence, by a hash of token and
            position), `frequency` (frequent tokens exit first), `mutual_information` (tokens that inform most about the
            label exit first), `clustered` (k-means over the word embeddings; the cluster whose norms
            add up to least exits first).
        layers: the lowest and the highest layer tokens exit after; default: all.
        buckets: how many groups of equal size; default: one per layer.

    Raises:
        ValueError: an unknown method, or a model without `token_exits`.
    """
    exits = model.token_exits
    if exits is None:
        refuse("token_exits", False, "True before the model is made")
    low, high = check_layers(exits, method, layers)
    buckets = check_buckets(buckets, low, high)
    labels = np.asarray(labels)
    if method == "mutual_information" and labels.ndim == 1 and not np.issubdtype(labels.dtype, np.integer):
        refuse("labels", str(labels.dtype), "classes, or 0 and 1 for every label, to tell anything about")
    table = np.full(len(exits.depths), exits.layers)
    seen = np.setdiff1d(np.unique(np.concatenate([np.asarray(row) for row in token_ids])), np.asarray(special_ids))
    if method == "clustered" and len(seen) < buckets:
        refuse("token_ids", f"{len(seen)} different tokens", f"rows with at least {buckets}, one for every bucket")
    if not len(seen):
        method = "random"  # nothing to place: only special tokens were seen
    if method == "random_each_time":
        table[seen] = DRAWN
        exits.low, exits.high, exits.seed = low, high, seed
        rebuilt(model, token_exit_range=[low, high], token_exit_seed=seed)
    elif method == "random":
        table[seen] = np.random.default_rng(seed).integers(low, high + 1, len(seen))
    else:
        bucket = bucket_of_tokens(method, seen, token_ids, labels, model, buckets, seed)
        table[seen] = low + bucket * ((high - low + 1) // buckets)
    exits.depths.copy_(torch.as_tensor(table, dtype=torch.int16))


def check_buckets(buckets: int | None, low: int, high: int) -> int:
    """How many groups tokens are put in: one per layer from `low` to `high` by default, and at most."""
    layers = high - low + 1
    buckets = layers if buckets is None else buckets
    if not 1 <= buckets <= layers:
        refuse("buckets", buckets, f"1 to {layers}: no more than there are layers from {low} to {high}")
    return buckets


def fit_by_frequency(
    model: PFBerxitForSequenceClassification, rows: Dataset, special_ids: Sequence[int],
    layers: Sequence[int] | None = None,
) -> None:  # fmt: skip
    """Set the layer at which each token exits by its frequency in encoded rows, within a range of layers or all."""
    low, high = layers or (1, len(model.depths))
    fit_token_exits(model, rows["input_ids"], np.asarray(rows["labels"]), special_ids, "frequency", (low, high))


def check_layers(exits: TokenExits, method: str, layers: tuple[int, int] | None) -> tuple[int, int]:
    """The lowest and the highest layer tokens may exit after; refuses an unknown method, or layers there are not."""
    if method not in METHODS:
        refuse("method", method, f"one of {', '.join(METHODS)}")
    low, high = layers or (1, exits.layers)
    if not 1 <= low <= high <= exits.layers:
        refuse("layers", layers, f"two layers, lowest first, 1 to {exits.layers}")
    return low, high


def bucket_of_tokens(
    method: str, seen: np.ndarray, token_ids: Sequence[Sequence[int]], labels: np.ndarray,
    model: PFBerxitForSequenceClassification, buckets: int, seed: int,
) -> np.ndarray:  # fmt: skip
    """The bucket of every seen token; bucket 0 exits first."""
    if method == "clustered":
        vectors = model.get_input_embeddings().weight.detach().float().cpu().numpy()[seen]
        return cluster_buckets(vectors, buckets, seed)
    counts = token_counts(token_ids, model.get_input_embeddings().num_embeddings)[seen]
    score = counts if method == "frequency" else mutual_information(seen, token_ids, labels)
    rank = np.empty(len(seen), dtype=int)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(seen))
    return rank * buckets // len(seen)


def token_counts(token_ids: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray:
    """How often every token occurs, (vocabulary,)."""
    return np.bincount(np.concatenate([np.asarray(row) for row in token_ids]), minlength=vocabulary)


def mutual_information(seen: np.ndarray, token_ids: Sequence[Sequence[int]], labels: np.ndarray) -> np.ndarray:
    """Each token's share of the mutual information with the label, (tokens,), in nats.

    For an occurrence x of the token, the sum over labels y of p(x, y) ln(p(x, y) / (p(x) p(y))); of several labels, the
    sum over all of them.
    """
    if labels.ndim == 2:
        each = [mutual_information(seen, token_ids, (column > 0.5).astype(int)) for column in labels.T]
        return np.sum(each, axis=0)
    joint = np.zeros((int(seen.max()) + 1, int(labels.max()) + 1))
    for ids, label in zip(token_ids, labels, strict=True):
        row = np.asarray(ids)
        np.add.at(joint, (row[row < len(joint)], label), 1.0)
    joint = joint[seen] / joint[seen].sum()
    apart = joint / (joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True))
    return (joint * np.log(np.where(joint > 0, apart, 1.0))).sum(1)


def cluster_buckets(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """k-means over vectors (N, d), the clusters ordered by the sum of their vectors' norms: (N,)."""
    cluster = KMeans(clusters, n_init=1, random_state=seed).fit_predict(vectors)
    weight = np.bincount(cluster, weights=np.linalg.norm(vectors, axis=1), minlength=clusters)
    place = np.empty(clusters, dtype=int)
    place[np.argsort(weight, kind="stable")] = np.arange(clusters)
    return place[cluster]
