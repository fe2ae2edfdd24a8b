"""The loop: layer by layer run the rows, ask their exits, let the criterion decide, and let those that are done leave.

Reads on from `rows` and `layers`. One step is one layer for rows that stand at one depth, or at several that share the
layer. What a call asks for and what it has found so far belongs to the loop and its record, never to the model: one
model serves many threads. How many rows wait for each other, and which of them, is not decided here but in `streams`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .backbones import encoder_layers, never_called, pooler_dense, reads_backbone_pooler
from .criteria import chance, rule_of, start, step
from .exit_policy import ExitPolicy
from .exits import Evidence, ExitState
from .layers import Begun, ByDepth, Sublayers, check_layers, check_never_called, hooked, sharded
from .rows import Rows, Walk
from .strategies import Phase, branch
from .validation import flag, is_recorded, real

# For about as many tokens, reading a layer's weights takes as long as using them, on a few CPU cores. Accelerators have
# to be fed a thousand; that is an estimate.
WEIGHTS_IN_TOKENS = {"cpu": 12}
FED_IN_TOKENS = 1024
WELL_FED = 20  # times that many tokens: reading the weights is a twentieth of the work then
# More tokens than these at once no longer fit a CPU's caches, and every one of them costs more.
MOST_TOKENS = {"cpu": 2048}
ALONE = 2  # positions of a whole row that one on its own costs as much as
DROP_SHARE = 0.02  # copying a row costs about one fiftieth of running a layer for it


@dataclass(frozen=True)
class Execution:
    """The short cuts of the loop; each may be switched off to see what it is worth.

    Args:
        token_first: exits that read one token have it run before the others, where a row may leave.
        drop_rows: rows that have left are no longer computed.
        trim: nor is padding beyond the longest row left.
        fused: ALBERT's activation as one operation instead of eight, in training as well; equal to rounding.
        compiled: layers run as `torch.compile` translates them, at the first calls; a handful of translations serves
            all depths and lengths. Batches whose rows stand at several depths run as written.
        weights_in_tokens: how many tokens' arithmetic takes as long as reading a layer's weights; None: by device.

    Raises:
        ValueError: a switch that is no bool, a number below 0.
    """

    token_first: bool = True
    drop_rows: bool = True
    trim: bool = True
    fused: bool = True
    compiled: bool = False
    weights_in_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("token_first", "drop_rows", "trim", "fused", "compiled"):
            flag(name, getattr(self, name))
        if self.weights_in_tokens is not None:
            real(0.0)("weights_in_tokens", self.weights_in_tokens)

    def splits(self, leaving: float, rows: int, length: int, device: str) -> bool:
        """Whether running one token first is expected to pay, when so many of the rows are expected to leave.

        Each row that leaves saves its other positions. If any stays, the layer's weights are read a second time, and
        each of those that stay has had its first position run for nothing.
        """
        if not (self.token_first and self.drop_rows) or leaving <= 0:
            return False
        return leaving * (length - 1) > self.weights(device) * (1 - leaving / rows) + ALONE * (rows - leaving)

    def feeds(self, tokens: int, device: str) -> bool:
        """Whether so many tokens use a layer's weights about as well as any number would."""
        return tokens >= WELL_FED * self.weights(device)

    def room(self, length: int, device: str) -> int:
        """How many rows of so many tokens are best run through a layer at once, at most."""
        return max(1, MOST_TOKENS[device] // length) if device in MOST_TOKENS else sys.maxsize

    def weights(self, device: str) -> float:
        """How many tokens' arithmetic takes as long as reading a layer's weights."""
        known = self.weights_in_tokens
        return WEIGHTS_IN_TOKENS.get(device, FED_IN_TOKENS) if known is None else known

    def drops(self, done: int, rows: int) -> bool:
        """Whether it pays to take the rows that are done out of their batch."""
        return self.drop_rows and done >= DROP_SHARE * rows


# ---- the encoder, depth by depth -------------------------------------------------------------------------------------


class Encoding:
    """The layers of a model, for one call; on its own, for all positions of all rows, up to the last layer."""

    wide: int | None = None  # how many positions, the first ones, are read of a layer's output; None: all

    def __init__(self, model: PreTrainedModel, walk: Walk):
        self.depths, self.prompts, self.prompt_layer = model.depths, model.prompts, model.config.prompt_layer
        self.layers, self.execution = encoder_layers(model.backbone, model.execution.fused), model.execution
        self.walk = walk
        run = [*model.depths, *(layer.stock for layer in self.layers)]
        check_layers(run)
        check_never_called(model, never_called(model.backbone, self.layers))
        self.hooked = any(map(hooked, run))
        self.sharded = self.hooked and any(map(sharded, run))

    def encode(self, rows: Rows) -> Rows:
        """Rows in front of the first layer -> the same rows above the last one."""
        self.walk.see(rows)
        for _ in self.depths:
            rows = self.enter(rows)
            self.ascend(rows)
        return rows

    def enter(self, rows: Rows) -> Rows:
        """Into the next layer; prompts join the rows above the layer they belong to."""
        if self.prompts is not None and rows.groups[0][0] == self.prompt_layer and not rows.prompts:
            rows = rows.join(self.prompts(rows.tokens(), rows.padding_mask))
        rows.descend()
        return rows

    def ascend(self, rows: Rows) -> None:
        """Through the layer they are in."""
        hidden_states, weights = self.run_layer(rows)
        rows.advance(hidden_states, rows.groups[0][0])
        self.walk.see(rows, weights)

    def run_layer(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """The layer's output; at the last layer only for the positions its exit reads.

        Not so in a graph that is kept: how many that are depends on the length, which must stay open there.
        """
        states, depth = rows.hidden_states, rows.groups[0][0]
        if len(rows.groups) > 1:
            sublayers = self.sublayers(rows)
            return finish(sublayers, rows, *sublayers.layer.keys_values(states)), None
        queries = rows.queries(depth)
        if depth == len(self.depths) and self.wide is not None and self.execution.token_first:
            queries = None if is_recorded(states) else min(self.wide, states.shape[1])
        masks, compiled = (rows.attention_mask, rows.padding_mask), self.execution.compiled
        return self.depths[depth - 1](states, self.layers[depth - 1], *masks, queries, compiled)

    def sublayers(self, rows: Rows) -> Sublayers:
        """The layer the rows share, with the adapters of every row's depth."""
        layer = self.layers[rows.groups[0][0] - 1]
        if len(rows.groups) == 1:
            return self.depths[rows.groups[0][0] - 1].beside(layer, self.execution.compiled)
        own = [self.depths[depth - 1].beside(layer) for depth, _ in rows.groups]
        sizes, first = [size for _, size in rows.groups], own[0]
        beside_attention = first.attention_adapter and ByDepth([each.attention_adapter for each in own], sizes)
        beside_ffn = first.ffn_adapter and ByDepth([each.ffn_adapter for each in own], sizes)
        return Sublayers(layer, beside_attention, beside_ffn, first.sequential)


def begin(sublayers: Sublayers, rows: Rows, wide: int) -> Begun:
    """Run the layer for the first `wide` positions of every row."""
    keys, values = sublayers.layer.keys_values(rows.hidden_states)
    return Begun(keys, values, finish(sublayers, rows, keys, values, wide))


def finish(sublayers: Sublayers, rows: Rows, keys: Tensor, values: Tensor, wide: int | None = None) -> Tensor:
    """The layer's output from its keys and values: (B, n, d), or the first `wide` positions of it."""
    return sublayers.output(rows.hidden_states, keys, values, rows.attention_mask, rows.padding_mask, wide)[0]


# ---- the loop --------------------------------------------------------------------------------------------------------


class Loop(Encoding):
    """The layers, the exits above them, and what one call asks of both."""

    def __init__(
        self, model: PreTrainedModel, walk: Walk, policy: ExitPolicy | None, phase: Phase | None,
        problem_type: str,
    ):  # fmt: skip
        super().__init__(model, walk)
        self.exits, self.exit_depths = model.exits, model.exit_depths
        self.pooler = pooler_dense(model.backbone) if reads_backbone_pooler(model.config) else None
        self.policy, self.phase = policy, phase
        self.num_labels, self.problem_type = model.num_labels, problem_type
        self.forgetful = policy is not None and not rule_of(policy).looks_back(policy, len(self.exit_depths))
        # Layers sharded over processes are run by all of them together, for every row.
        self.watched = walk.watched or self.sharded
        self.wide = None if self.watched or self.hooked or model.token_exits is not None else model.exits.positions

    def run(self, rows: Rows) -> None:
        """All the way: until every row has its answer."""
        rows.state = self.new_state(rows)
        self.walk.see(rows)
        left: Rows | None = rows
        while left is not None:
            left = self.step(left)

    def new_state(self, rows: Rows) -> ExitState | None:
        """What the criterion will remember of the rows; None where there is no criterion."""
        if self.policy is None:
            return None
        size, device = rows.index.shape[0], rows.index.device
        return start(size, self.num_labels, self.policy, len(self.exit_depths), self.problem_type, device)

    def step(self, rows: Rows) -> Rows | None:
        """One layer; the rows that go on, or None where none does."""
        rows = self.enter(rows)
        if self.token_first_pays(rows):
            sublayers = self.sublayers(rows)
            rows.begun = begin(sublayers, rows, self.wide)
            left = self.judge(rows, rows.begun.output)
            if left is not None:
                own, left.begun = left.begun, None
                left.hidden_states = finish(self.sublayers(left), left, own.keys, own.values)
            return left
        self.ascend(rows)
        return self.judge(rows, rows.hidden_states)

    def token_first_pays(self, rows: Rows) -> bool:
        """Whether to run what the exits read first, and the rest for those that stay."""
        alone = len(rows.groups) == 1
        if self.policy is None or self.wide is None or (alone and not self.may_leave(rows.groups[0][0])):
            return False
        if alone and rows.groups[0][0] == len(self.depths):  # nobody stays
            return False
        leaving, start = 0.0, 0
        expected = chance(rows.state, self.policy, rows.standing(), len(self.exit_depths))
        for depth, size in rows.groups:
            part = expected[start : start + size]
            start += size
            if depth in self.exit_depths:
                leaving += size if depth == len(self.depths) else part.sum().item()
        return self.execution.splits(leaving, *rows.hidden_states.shape[:2], rows.index.device.type)

    # ---- exits ------------------------------------------------------------------------------------------------------

    def judge(self, rows: Rows, states: Tensor) -> Rows | None:
        """Take the answers of the rows that stop here; without a policy, all of them at the last layer.

        Args:
            states: (B, n, d) the layer's output, or (B, w, d) of it what the exits read.

        Returns:
            The rows that go on, or None where none does.
        """
        depth, last = rows.groups[0][0], len(self.depths)
        if all(depth not in self.exit_depths for depth, _ in rows.groups):
            return rows
        if self.policy is None:
            to_exit, rows.hidden_states = branch(states, self.exit_depths.index(depth), self.phase)
            evidence = self.ask(rows, to_exit)
            self.walk.evidence.append(evidence)
            if depth == last:
                self.walk.answer(rows.index, evidence.logits, rows.standing())
            return None if depth == last else rows
        stay = not any(self.may_leave(depth) for depth, _ in rows.groups)
        if stay and self.forgetful and len(rows.groups) == 1:  # then nobody has to hear this exit
            rows.state.seen = rows.state.seen + 1
            return rows
        fire, answer = self.decide(rows, self.ask(rows, states))
        if stay:
            return rows
        standing = rows.standing()
        stops = fire | (standing == last)
        if rows.done is not None:
            stops, rows.done = stops & ~rows.done, rows.done | stops
        self.walk.answer_some(stops, rows.index, answer, standing)
        return self.dismiss(rows, stops if rows.done is None else rows.done)

    def ask(self, rows: Rows, states: Tensor) -> Evidence:
        """What the exits at the rows' depths say of them, in their order; rows without an exit are left out."""
        mask, weights = rows.padding_mask, rows.mean_weights
        mask = mask if mask is None else mask[:, : states.shape[1]]
        parts, start = [], 0
        for depth, size in rows.groups:
            own = slice(start, start + size) if len(rows.groups) > 1 else slice(None)
            start += size
            if depth in self.exit_depths:
                cut = [None if each is None else each[own] for each in (weights, mask)]
                parts.append(self.exits(self.exit_depths.index(depth), states[own], *cut, self.pooler))
        return parts[0] if len(parts) == 1 else Evidence.cat(parts)

    def decide(self, rows: Rows, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Whether the criterion lets rows stop, (B,), and their answers, (B, C); rows without an exit go on."""
        standing = rows.standing()
        if all(depth in self.exit_depths for depth, _ in rows.groups):
            return step(evidence, rows.state, self.policy, standing)
        able = torch.isin(standing, torch.tensor(self.exit_depths, device=standing.device)).nonzero().squeeze(1)
        state = rows.state.select(able)
        fire, answer = step(evidence, state, self.policy, standing[able])
        rows.state.put(able, state)
        nothing = torch.zeros_like(rows.index, dtype=torch.bool)
        return nothing.index_copy(0, able, fire), answer.new_zeros(len(nothing), answer.shape[1]).index_copy(
            0, able, answer
        )

    def may_leave(self, depth: int) -> bool:
        """Whether any row could have its answer from this layer; known without looking at the rows."""
        if depth == len(self.depths):
            return True
        if depth not in self.exit_depths or depth < self.policy.floor:
            return False
        return self.exit_depths.index(depth) + 1 >= rule_of(self.policy).earliest(self.policy)

    def dismiss(self, rows: Rows, done: Tensor) -> Rows | None:
        """The rows without those that are done; while they are few, those are computed on with the others."""
        gone, size = int(done.sum()), len(done)
        if self.watched:  # someone wants to see every layer of every row
            rows.done = done
            return None if rows.groups[0][0] == len(self.depths) else rows
        if gone in (0, size):
            return None if gone else rows
        deepest = max(depth for depth, _ in rows.groups)
        if deepest < len(self.depths) and not self.execution.drops(gone, size):
            rows.done = done
            return rows
        return rows.select((~done).nonzero().squeeze(1), self.execution.trim)
