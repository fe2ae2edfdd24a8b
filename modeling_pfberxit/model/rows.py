"""`Rows`: all that belongs to the rows of a batch, as tensors whose first dimension is the row; `CallRecord`: results.

Removing rows is one `index_select` over those tensors, so rows of different depths can share a batch. Nothing here runs
a layer or an exit; that is `loop`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .encoder_layer import Context, reorder, same
from .evidence import Evidence, ExitState
from .families import family_of
from .heads import mean_weights
from .validation import is_readable, is_recorded, refuse


@dataclass
class Rows:
    """The remaining rows of a batch, in front of a layer or in one.

    Rows are sorted by depth, the deepest first. Where tokens leave on their own, positions are sorted by the layer they
    leave after, the last first, so that those still querying are the first ones. Prompts are the positions 1 ... p:
    behind the first token, which exits may read.
    """

    encoder: PreTrainedModel
    index: Tensor  # (B,) the row's number in the call
    hidden_states: Tensor  # (B, n, d)
    padding_mask: Tensor | None  # (B, n) 1 for tokens and prompts, 0 for padding; None where nothing is padding
    state: ExitState | None = None
    token_depths: Tensor | None = None  # (B, n) the layer each position leaves after; None: they all stay
    order: Tensor | None = None  # (B, n) the tokens' places in the text, where `token_depths` has sorted them
    position_ids: Tensor | None = None  # (B, n) the tokens' positions, where layers read them and the call says them
    prompts: int = 0  # how many have joined
    groups: tuple[tuple[int, int], ...] = ()  # (depth, number of rows at it), the deepest first
    exited: Tensor | None = None  # (B,) which have exited and are still computed, to save a copy; None: none of them
    _contexts: dict[str, Context] = field(init=False, default_factory=dict, repr=False)  # made when asked for
    _mean_weights: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.groups = self.groups or ((0, self.hidden_states.shape[0]),)  # `len` would make a number of it

    def __len__(self) -> int:
        return self.hidden_states.shape[0]

    @property
    def depth(self) -> int:
        """The deepest rows' depth: how many layers they have passed, or the one they are in."""
        return self.groups[0][0]

    def depths(self) -> Tensor:
        """(B,) the depth of every row."""
        if len(self.groups) == 1:
            return torch.full_like(self.index, self.depth)
        depths, sizes = zip(*self.groups)
        return torch.tensor(depths).repeat_interleave(torch.tensor(sizes)).to(self.index.device)

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Every depth, and which rows are at it."""
        start = 0
        for depth, size in self.groups:
            # One group is all rows: a number of rows would be a constant in a traced graph.
            yield depth, slice(start, start + size) if len(self.groups) > 1 else slice(None)
            start += size

    def context(self, kind: str) -> Context:
        """What layers of this kind attend in: made once for these rows."""
        if kind not in self._contexts:
            self._contexts[kind] = family_of(self.encoder.config).context(self.encoder, self, kind)
        return self._contexts[kind]

    def inputs(self, kind: str) -> tuple[Tensor, Context, Tensor | None]:
        """What a layer of this kind is given: states (B, n, d), context and padding mask (B, n)."""
        return self.hidden_states, self.context(kind), self.padding_mask

    def places(self) -> Tensor:
        """The place of every position in its row, (1, n), or (B, n) where positions are sorted."""
        states, order = self.hidden_states, self.order
        if order is None:
            return torch.arange(states.shape[1], device=states.device)[None]
        if not self.prompts:
            return order
        prompts = torch.arange(1, 1 + self.prompts, device=states.device).expand(len(order), -1)
        return insert(torch.where(order > 0, order + self.prompts, 0), prompts)

    def positions(self) -> Tensor:
        """The number of every position, (1 or B, n): its place, or what the call says."""
        if self.position_ids is None:
            return self.places()
        return self.position_ids if self.order is None else self.position_ids.gather(1, self.order)

    @property
    def mean_weights(self) -> Tensor | None:
        """What each token weighs in the mean over its row, (B, 1, n), prompts nothing; None where all are tokens."""
        if self._mean_weights is None and (self.padding_mask is not None or self.prompts):
            counted = self.mask()
            if self.prompts:
                counted = counted.clone()
                counted[:, 1 : 1 + self.prompts] = 0
            self._mean_weights = mean_weights(counted, self.hidden_states.dtype)
        return self._mean_weights

    @classmethod
    def start(
        cls, encoder: PreTrainedModel, hidden_states: Tensor, attention_mask: Tensor | None,
        token_depths: Tensor | None = None, position_ids: Tensor | None = None,
    ) -> Rows:  # fmt: skip
        """All rows of a batch, before the first layer.

        A mask without padding is dropped and one with padding on the left refused, where its values can be read: on the
        CPU, unless the call is traced. Elsewhere the mask stays, and a row padded on the left is NaN from here on.
        """
        index = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        if attention_mask is not None:
            check_mask(attention_mask, hidden_states)
            if is_readable(attention_mask):
                attention_mask = unless_full(attention_mask)
            else:
                hidden_states = hidden_states.masked_fill((attention_mask[:, :1] == 0)[..., None], torch.nan)
        rows = cls(encoder, index, hidden_states, attention_mask, token_depths=token_depths, position_ids=position_ids)
        if token_depths is None or is_recorded(token_depths):  # how many still query, a graph cannot hold
            return rows
        token_depths, order = token_depths.sort(dim=1, descending=True, stable=True)
        hidden_states = reorder(hidden_states, order)
        attention_mask = None if attention_mask is None else attention_mask.gather(1, order)
        return replace(
            rows, hidden_states=hidden_states, padding_mask=attention_mask, token_depths=token_depths, order=order
        )

    # ---- into the next layer, and out of it ------------------------------------------------------------------------

    def join(self, prompts: Tensor) -> Rows:
        """The rows with prompts (B, p, d) behind their first token."""
        prompts, mask, depths = prompts.to(self.hidden_states.dtype), self.padding_mask, self.token_depths
        return replace(
            self,
            hidden_states=insert(self.hidden_states, prompts),
            padding_mask=None if mask is None else insert(mask, mask[:, :1].expand(-1, prompts.shape[1])),
            token_depths=None if depths is None else insert(depths, depths[:, :1].expand(-1, prompts.shape[1])),
            prompts=prompts.shape[1],
        )

    def descend(self) -> None:
        """Count the layer that is entered."""
        self.groups = tuple((depth + 1, size) for depth, size in self.groups)

    def queries(self) -> int | None:
        """How many positions, the first ones, the layer has to be run for; None: all."""
        if self.token_depths is None or self.order is None:
            return None
        return int((self.token_depths >= self.depth).sum(1).max())

    def advance(self, hidden_states: Tensor) -> None:
        """Take over the layer's output (B, q, d) for the positions that queried; the others keep their states."""
        if self.token_depths is not None:
            queries, before = hidden_states.shape[1], self.hidden_states
            queried = (self.token_depths[:, :queries] >= self.depth)[..., None]
            hidden_states = torch.where(queried, hidden_states, before[:, :queries])
            hidden_states = torch.cat([hidden_states, before[:, queries:]], dim=1)
        self.hidden_states = hidden_states

    def tokens(self) -> Tensor:
        """The states of the tokens, without prompts and in the order they came in, (B, n, d)."""
        states = self.hidden_states
        if self.prompts:
            place = torch.arange(states.shape[1] - self.prompts, device=states.device)
            states = states.index_select(1, place + self.prompts * (place > 0))
        return states if self.order is None else reorder(states, self.order.argsort(1))

    # ---- batches ---------------------------------------------------------------------------------------------------

    def select(self, keep: Tensor, trim: bool = True) -> Rows:
        """The rows with the increasing numbers `keep` (B',); `trim` cuts off padding beyond the longest of them."""
        mask, longest = self.padding_mask, self.hidden_states.shape[1]
        if mask is not None:
            mask = mask.index_select(0, keep)
            longest = int(mask.any(0).nonzero().max()) + 1 if trim else longest
            mask = unless_full(mask[:, :longest].contiguous())

        def chosen(part: Tensor | None, length: int | None = None) -> Tensor | None:
            """A part's kept rows, cut to a length where one is given."""
            if part is None:
                return None
            return (part if length is None else part[:, :length]).index_select(0, keep)

        return replace(
            self,
            index=self.index.index_select(0, keep),
            hidden_states=self.hidden_states[:, :longest].index_select(0, keep),
            padding_mask=mask,
            state=None if self.state is None else self.state.select(keep),
            token_depths=chosen(self.token_depths, longest),
            order=chosen(self.order, longest - self.prompts),
            position_ids=chosen(self.position_ids, longest),
            groups=regroup(self.groups, keep),
            exited=chosen(self.exited),
        )

    def split(self, size: int) -> tuple[Rows, Rows]:
        """The first `size` rows, and the others."""
        numbers = torch.arange(len(self), device=self.index.device)
        return self.select(numbers[:size]), self.select(numbers[size:])

    @classmethod
    def cat(cls, parts: list[Rows]) -> Rows:
        """Rows of several batches in one, sorted by depth, padded to the longest."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.hidden_states.shape[1] for part in parts)
        order = torch.cat([part.depths() for part in parts]).argsort(descending=True, stable=True)
        sizes: Counter[int] = Counter()
        for part in parts:
            sizes.update(dict(part.groups))
        states = [part.state for part in parts if part.state is not None]
        return replace(
            parts[0],
            index=torch.cat([part.index for part in parts])[order],
            hidden_states=torch.cat([lengthen(part.hidden_states, longest) for part in parts])[order],
            padding_mask=unless_full(torch.cat([lengthen(part.mask(), longest) for part in parts])[order]),
            state=ExitState.cat(states).select(order) if states else None,
            groups=tuple(sorted(sizes.items(), reverse=True)),
            exited=torch.cat([part.have_exited() for part in parts])[order],
        )

    def mask(self) -> Tensor:
        """(B, n) 1 for tokens and prompts, 0 for padding."""
        return torch.ones_like(self.hidden_states[..., 0]) if self.padding_mask is None else self.padding_mask

    def have_exited(self) -> Tensor:
        """(B,) which rows have exited and are still computed."""
        return torch.zeros_like(self.index, dtype=torch.bool) if self.exited is None else self.exited


def regroup(groups: tuple[tuple[int, int], ...], keep: Tensor) -> tuple[tuple[int, int], ...]:
    """The groups of the rows with the increasing numbers `keep` (B',)."""
    if len(groups) == 1:
        return ((groups[0][0], len(keep)),)
    ends = torch.tensor([size for _, size in groups]).cumsum(0)
    sizes = torch.bucketize(keep.cpu(), ends, right=True).bincount(minlength=len(groups)).tolist()
    return tuple((depth, size) for (depth, _), size in zip(groups, sizes, strict=True) if size)


def unless_full(mask: Tensor) -> Tensor | None:
    """The mask (B, n), or None where nothing is padding."""
    return None if bool((mask != 0).all()) else mask


def lengthen(positions: Tensor, length: int) -> Tensor:
    """(B, n, ...) -> (B, length, ...), filled up with zeros."""
    missing = positions.new_zeros(len(positions), length - positions.shape[1], *positions.shape[2:])
    return torch.cat([positions, missing], dim=1) if missing.numel() else positions


def insert(positions: Tensor, more: Tensor) -> Tensor:
    """More positions behind the first one: (B, n, ...) and (B, p, ...) -> (B, n + p, ...)."""
    count = more.shape[1]
    place = torch.arange(positions.shape[1] + count, device=positions.device)
    # Cut in two behind the first position, an exported graph would not take rows of two.
    place = torch.where(place > count, place, (place - 1) % (count + 1))
    return torch.cat([more, positions], dim=1).index_select(1, place)


def check_mask(attention_mask: Tensor, hidden_states: Tensor) -> None:
    """Refuse masks this library does not know: of another shape or, where that can be read, padded on the left."""
    if not isinstance(attention_mask, Tensor):
        refuse("attention_mask", type(attention_mask).__name__, "a tensor")
    if attention_mask.shape != hidden_states.shape[:2]:
        allowed = f"of the tokens' shape {tuple(hidden_states.shape[:2])}"
        refuse("attention_mask", tuple(attention_mask.shape), allowed)
    if is_readable(attention_mask) and not bool((attention_mask[:, 0] != 0).all()):
        refuse("attention_mask", "0 at a row's first token", "1 there: pad on the right (padding_side='right')")


# ---- the record of a call --------------------------------------------------------------------------------------------


@dataclass
class CallRecord:
    """What one call has found. Nothing of it is kept on the model, so one model serves many threads."""

    hidden_states: list[Tensor] | None = None  # None: not asked for
    attentions: list[Tensor] | None = None  # None: not asked for
    evidence: list[Evidence] = field(default_factory=list)  # of every exit, where all rows pass all of them
    answers: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # rows' numbers, logits, layers executed

    @classmethod
    def of(cls, hidden_states: bool, attentions: bool) -> CallRecord:
        """An empty record of a call that asks for these or not."""
        return cls([] if hidden_states else None, [] if attentions else None)

    @property
    def wants_layers(self) -> bool:
        """Whether every layer's output is asked for: then all rows are computed to the last layer."""
        return self.hidden_states is not None or self.attentions is not None

    def add_states(self, rows: Rows, weights: Tensor | None = None, norm: Callable[[Tensor], Tensor] = same) -> None:
        """Keep the tokens' states (B, n, d) behind a norm, and the attention weights, where they are asked for."""
        if self.hidden_states is not None:
            self.hidden_states.append(norm(rows.tokens()))
        if self.attentions is not None and weights is not None:
            self.attentions.append(weights)

    def answer(self, index: Tensor, logits: Tensor, layers: Tensor) -> None:
        """Keep the predictions of rows: their numbers (B,), logits (B, C) and layers executed (B,)."""
        self.answers.append((index, logits, layers))

    def answer_where(self, exits: Tensor, index: Tensor, logits: Tensor, layers: Tensor) -> None:
        """Keep those of the rows that exit, (B,) of True and False."""
        which = exits.nonzero().squeeze(1)
        if which.numel():
            self.answer(index[which], logits[which], layers[which])

    def collect(self) -> tuple[Tensor, Tensor]:
        """All logits (B, C) and layers executed (B,), in the order of the rows' numbers."""
        index, logits, layers = (torch.cat(part) for part in zip(*self.answers))
        order = index.argsort()
        return logits[order], layers[order]

    def every_exit(self) -> dict[str, Tensor | None]:
        """`exit_logits` ... (B, exits, ...) as outputs have them; nothing where not every exit ran for every row."""
        parts = Evidence.stack(self.evidence)._asdict() if self.evidence else {}
        return {f"exit_{name}": part for name, part in parts.items()}

    def shown(self) -> dict[str, tuple[Tensor, ...] | None]:
        """`hidden_states` and `attentions` as outputs of `transformers` have them."""
        parts = {"hidden_states": self.hidden_states, "attentions": self.attentions}
        return {name: None if part is None else tuple(part) for name, part in parts.items()}
