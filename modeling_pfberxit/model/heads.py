"""Heads: what stands between a row's states and its logits, at our exits and in the classifiers of `transformers`.

Every head is pooling, dropout, dense, activation, dropout, linear, with a norm in front of the dense layer or behind
the activation; parts may be missing. The head of a fine-tuned classifier can be a model's last exit as it is: its
weights then stay in the classifier's own checkpoint, which is the base. How exits use them is in `exits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .validation import refuse

# ---- poolings --------------------------------------------------------------------------------------------------------


def mean_weights(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token weighs in the mean over its sentence: (B, n) of 1 and 0 -> (B, 1, n), each row summing to 1."""
    weights = attention_mask.to(torch.float32)
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)[:, None]


def first_token(hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n, d) -> (B, d): the state of the first token."""
    return hidden_states[:, 0]


def mean_token(hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n, d) and what each token weighs (B, 1, n), None where all weigh the same -> (B, d)."""
    return hidden_states.mean(1) if weights is None else torch.bmm(weights, hidden_states).squeeze(1)


def first_and_mean(hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n, d) -> (B, 2 d): the first token's state, then the mean."""
    return torch.cat([first_token(hidden_states, weights), mean_token(hidden_states, weights)], dim=-1)


class Pooling(NamedTuple):
    """How an exit reads a row."""

    pool: Callable[[Tensor, Tensor | None], Tensor]  # states (B, n, d), and weights that are 0 at padding and prompts
    words: str  # "reading the ... of the tokens"
    positions: int | None = None  # how many of them, the first ones, it reads; None: all
    states: int = 1  # how many of d dimensions it puts together


POOLINGS = {
    "cls": Pooling(first_token, "first", 1),
    "mean": Pooling(mean_token, "mean"),
    "both": Pooling(first_and_mean, "first and the mean", None, 2),
}

activation = cache(ACT2FN.__getitem__)  # one stateless module for all heads

# ---- one head --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """What a head is made of.

    Args:
        pooling: an entry of `POOLINGS`.
        dense: outputs of the dense layer; None: there is none, nor an activation.
        activation: a name of `transformers`: tanh, relu, gelu ...
        norm: `in` (in front of the dense layer), `out` (behind the activation) or `none`.
        dropout, dense_dropout: in front of the linear layer that makes logits, and of the dense layer.
        bias, norm_bias, norm_eps: of the dense layer and of the norm.
        names: of a stock classifier's head, what its parts are called there, by the name they have in our exits.
    """

    pooling: str = "cls"
    dense: int | None = None
    activation: str = "tanh"
    norm: str = "none"
    dropout: float = 0.0
    dense_dropout: float = 0.0
    bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-5
    names: dict[str, str] = field(default_factory=dict)

    def read(self, hidden_size: int) -> int:
        """How many values it reads of a row."""
        return POOLINGS[self.pooling].states * hidden_size

    def width(self, hidden_size: int) -> int:
        """How many values the linear layer reads."""
        return self.dense or self.read(hidden_size)

    def new_dense(self, hidden_size: int) -> nn.Module:
        """Its dense layer, or nothing."""
        return nn.Identity() if self.dense is None else nn.Linear(self.read(hidden_size), self.dense, self.bias)

    def new_norm(self, hidden_size: int) -> nn.Module:
        """Its norm, or nothing."""
        size = self.read(hidden_size) if self.norm == "in" else self.width(hidden_size)
        return nn.Identity() if self.norm == "none" else nn.LayerNorm(size, self.norm_eps, bias=self.norm_bias)

    def project(self, pooled: Tensor, dense: nn.Module | None, norm: nn.Module | None, training: bool) -> Tensor:
        """From what was pooled (B, read) to what the linear layer reads, (B, width)."""
        if norm is not None and self.norm == "in":
            pooled = norm(pooled)
        if self.dense is not None and dense is not None:
            pooled = activation(self.activation)(dense(dropout(pooled, self.dense_dropout, training)))
        return norm(pooled) if norm is not None and self.norm == "out" else pooled


# ---- heads of exits --------------------------------------------------------------------------------------------------

Stock = Callable[[PreTrainedConfig], Head]  # the head of the classifier that `transformers` makes of an encoder
BOTTLENECK = 128  # units, where `exit_pooler_dim` leaves it open


def plain(config: PreTrainedConfig, encoder: PreTrainedConfig, stock: Stock, **parts: Any) -> Head:
    """Pooling, dropout, linear; `parts` stand in between."""
    return Head(config.exit_pooling, dropout=config.exit_dropout, **parts)


def full_size(config: PreTrainedConfig, encoder: PreTrainedConfig, stock: Stock) -> Head:
    """Dense and tanh of the encoder's size, as BERT has them."""
    return plain(config, encoder, stock, dense=encoder.hidden_size)


def bottleneck(config: PreTrainedConfig, encoder: PreTrainedConfig, stock: Stock) -> Head:
    """Norm, a few units, GELU."""
    return plain(config, encoder, stock, dense=config.exit_pooler_dim or BOTTLENECK, activation="gelu", norm="in")


def like_classifier(config: PreTrainedConfig, encoder: PreTrainedConfig, stock: Stock) -> Head:
    """What the family's own classifier has, reading what our exits read."""
    own = {"pooling": config.exit_pooling, "dropout": config.exit_dropout}
    return replace(stock(encoder), dense_dropout=0.0, names={}, **own)


POOLERS: dict[str, Callable[[PreTrainedConfig, PreTrainedConfig, Stock], Head]] = {
    "none": plain,
    "backbone": full_size,
    "own": full_size,
    "bottleneck": bottleneck,
    "classifier": like_classifier,
}
LAST_EXITS = ("alike", "classifier")


def heads_of(config: PreTrainedConfig, encoder: PreTrainedConfig, exits: int, stock: Stock) -> list[Head]:
    """The head of every exit, or the one that all share.

    Args:
        stock: makes the head of the encoder's own classifier.

    Raises:
        ValueError: fields that do not go together.
    """
    check_heads(config)
    inner = POOLERS[config.exit_pooler](config, encoder, stock)
    if config.last_exit == "classifier":
        last = stock(encoder)
        if last.pooling not in POOLINGS:
            refuse("classifier_pooling", last.pooling, "one that pools states; this one judges every token on its own")
        return [inner] * (exits - 1) + [last]
    return [inner] * (1 if config.exit_shared else exits)


def check_heads(config: PreTrainedConfig) -> None:
    """Refuse fields of which one would have no effect, or that the other rules out."""
    if config.exit_pooler == "backbone" and config.exit_pooling == "both":
        refuse("exit_pooling", "both", "cls or mean with exit_pooler='backbone', which reads one state")
    if config.exit_pooler_dim is not None and config.exit_pooler != "bottleneck":
        refuse("exit_pooler_dim", config.exit_pooler_dim, "left out, or given with exit_pooler='bottleneck'")
    if config.last_exit == "alike":
        return
    if config.exit_shared:
        refuse("exit_shared", True, "False with last_exit='classifier', which is a head of its own")
    if config.exit_pooler == "backbone":
        allowed = ", ".join(name for name in POOLERS if name != "backbone")
        refuse("exit_pooler", "backbone", f"one of {allowed} with last_exit='classifier'")
    if config.use_lte and config.lte_shared:
        refuse("lte_shared", True, "False with last_exit='classifier', whose head is of another width")
    if config.use_prototypes:
        refuse("use_prototypes", True, "False with last_exit='classifier', whose head is of another width")


# ---- heads of classifiers --------------------------------------------------------------------------------------------


def stock_head(config: PreTrainedConfig, dense: str, out: str, activation: str = "tanh", **parts: Any) -> Head:
    """First token, dense, activation, linear, under the names the stock classifier has for the two layers."""
    names = {"poolers": dense, "classifiers": out}
    return Head("cls", config.hidden_size, activation, names=names, **parts)


def dropout_of(config: PreTrainedConfig) -> float:
    """In front of a stock classifier: its own (DeBERTa: cls_dropout), else the encoder's."""
    own = getattr(config, "classifier_dropout", getattr(config, "cls_dropout", None))
    return config.hidden_dropout_prob if own is None else own


def head_in_two(config: PreTrainedConfig, activation: str = "tanh") -> Head:
    """A `ClassificationHead` of its own: RoBERTa's, ELECTRA's, MPNet's; dropout in front of both layers."""
    both = {"dropout": dropout_of(config), "dense_dropout": dropout_of(config)}
    return stock_head(config, "classifier.dense", "classifier.out_proj", activation, **both)


def albert_head(config: PreTrainedConfig) -> Head:
    """The encoder's pooler is a linear layer itself."""
    return stock_head(config, "albert.pooler", "classifier", dropout=config.classifier_dropout_prob)


def bert_head(config: PreTrainedConfig, encoder: str = "bert") -> Head:
    """The encoder's pooler, then the classifier; `encoder`: what the classifier calls its encoder."""
    return stock_head(config, f"{encoder}.pooler.dense", "classifier", dropout=dropout_of(config))


def distilbert_head(config: PreTrainedConfig) -> Head:
    """Dense, ReLU, dropout, linear."""
    return stock_head(config, "pre_classifier", "classifier", "relu", dropout=config.seq_classif_dropout)


def modernbert_head(config: PreTrainedConfig) -> Head:
    """Pooling and activation by the config; a norm behind the activation."""
    names = {"poolers": "head.dense", "pooler_norms": "head.norm", "classifiers": "classifier"}
    return Head(
        config.classifier_pooling, config.hidden_size, config.classifier_activation, "out", config.classifier_dropout,
        bias=config.classifier_bias, norm_bias=config.norm_bias, norm_eps=config.norm_eps, names=names,
    )  # fmt: skip


def eurobert_head(config: PreTrainedConfig) -> Head:
    """Pooling by the config, dense, GELU, linear."""
    pooling = {"bos": "cls"}.get(config.classifier_pooling, config.classifier_pooling)
    return replace(stock_head(config, "dense", "classifier", "gelu"), pooling=pooling)


def deberta_head(config: PreTrainedConfig) -> Head:
    """A context pooler, with an activation and a dropout of its own."""
    dropouts = {"dropout": dropout_of(config), "dense_dropout": config.pooler_dropout}
    return stock_head(config, "pooler.dense", "classifier", config.pooler_hidden_act, **dropouts)
