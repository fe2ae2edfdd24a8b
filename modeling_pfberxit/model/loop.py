"""The loop: enter a layer, run it, run its exits, apply the criterion, remove the rows that exit.

One step is one layer, for rows at one depth or at several depths that share the layer. Policy, phase and results of a
call are kept in the loop and its `CallRecord`, never on the model, so one model serves many threads. Not here: a row's
tensors (`rows`), the arithmetic of a layer (`layers`), whether a short cut pays (`execution`), and which rows share a
batch when many are queued (`streams`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .adapters import Adapter
from .backbones import encoder_layers, never_called, pooler_dense, reads_backbone_pooler
from .criteria import rule_of
from .encoder_layer import same
from .evidence import Evidence, ExitState
from .exit_policy import FULL_DEPTH, ExitPolicy
from .families import family_of
from .layers import ByDepth, FirstPositions, Sublayers, check_layers, check_never_called, hooked, sharded
from .rows import CallRecord, Rows
from .steps import chance, start, step
from .strategies import Phase, branch
from .validation import is_recorded, refuse

# ---- the encoder, depth by depth -------------------------------------------------------------------------------------


class Encoding:
    """The layers of a model, for one call; on its own, for all positions of all rows, up to the last layer."""

    # How many positions, the first ones, the exits below the last layer and the last exit read; None: all.
    read_positions: int | None = None
    last_positions: int | None = None

    def __init__(self, model: PreTrainedModel, record: CallRecord) -> None:
        self.depths, self.prompts, self.prompt_layer = model.depths, model.prompts, model.config.prompt_layer
        self.record, self.execution = record, model.execution
        self.layers = encoder_layers(model.backbone, self.execution.fused, model.config._attn_implementation)
        if (layers := len(self.layers)) != (made := len(self.depths)):
            refuse("num_hidden_layers", layers, f"{made}, as when the model was made: its encoder's list was changed")
        self.final_norm = family_of(model.backbone.config).final_norm(model.backbone)
        run = [*model.depths, *(layer.stock for layer in self.layers)]
        check_layers(run)
        check_never_called(model, never_called(model.backbone, self.layers))
        self.hooked = any(map(hooked, run))
        self.sharded = self.hooked and any(map(sharded, run))

    def encode(self, rows: Rows) -> Rows:
        """Run rows in front of the first layer through all layers."""
        self.record.add_states(rows)
        for _ in self.depths:
            rows = self.enter(rows)
            self.run_whole_layer(rows)
            self.leave_layer(rows)
        return rows

    def leave_layer(self, rows: Rows) -> None:
        """What happens above a layer that all rows pass: nothing, without exits."""

    def enter(self, rows: Rows) -> Rows:
        """Move rows into their next layer; prompts join them above the layer they belong to."""
        if self.prompts is not None and rows.depth == self.prompt_layer and not rows.prompts:
            rows = rows.join(self.prompts(rows.tokens(), rows.padding_mask))
        rows.descend()
        return rows

    def run_whole_layer(self, rows: Rows) -> None:
        """Put the output of the layer the rows are in in the place of their states."""
        hidden_states, weights = self.run_layer(rows)
        rows.advance(hidden_states)
        self.record.add_states(rows, weights, self.final_norm if rows.depth == len(self.depths) else same)

    def run_layer(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """The layer's output (B, q, d); at the last layer only for the positions its exit reads.

        Not so in a graph that is kept: how many that are depends on the length, which must stay open there.
        """
        states, depth = rows.hidden_states, rows.depth
        if len(rows.groups) > 1:
            return self.sublayers(rows).begin(*rows.inputs(self.kind(rows))).output, None
        queries = rows.queries()
        if depth == len(self.depths) and self.last_positions is not None and self.execution.token_first:
            queries = None if is_recorded(states) else min(self.last_positions, states.shape[1])
        states, context, padding = rows.inputs(self.kind(rows))
        layer, compiled = self.layers[depth - 1], self.execution.compiled
        return self.depths[depth - 1](states, context.mask, context, padding, layer, queries, compiled)

    def kind(self, rows: Rows) -> str:
        """Of the layer the rows are in, what it attends in."""
        return self.layers[rows.depth - 1].kind

    def sublayers(self, rows: Rows) -> Sublayers:
        """The layer the rows share, with the adapters of every row's depth."""
        layer = self.layers[rows.depth - 1]
        if len(rows.groups) == 1:
            return self.depths[rows.depth - 1].beside(layer, self.execution.compiled)
        depths = [self.depths[depth - 1] for depth, _ in rows.groups]
        sizes = [size for _, size in rows.groups]
        beside_attention = by_depth([each.attention_adapter for each in depths], sizes)
        beside_ffn = by_depth([each.ffn_adapter for each in depths], sizes)
        return Sublayers(layer, beside_attention, beside_ffn, depths[0].sequential)


def by_depth(adapters: Sequence[Adapter | None], sizes: list[int]) -> ByDepth | None:
    """The adapters of several depths as one; None where depths have none."""
    present = [adapter for adapter in adapters if adapter is not None]
    return ByDepth(present, sizes) if present else None


# ---- the loop --------------------------------------------------------------------------------------------------------


class Loop(Encoding):
    """The layers, the exits above them, and what one call asks of both."""

    def __init__(
        self, model: PreTrainedModel, record: CallRecord, policy: ExitPolicy | None, phase: Phase | None,
        problem_type: str,
    ) -> None:  # fmt: skip
        super().__init__(model, record)
        self.exits, self.exit_depths = model.exits, model.exit_depths
        self.pooler = pooler_dense(model.backbone) if reads_backbone_pooler(model.config) else None
        self.early_exit, self.policy, self.phase = policy is not None, policy or FULL_DEPTH, phase
        self.num_labels, self.problem_type = model.num_labels, problem_type
        self.forgetful = not rule_of(self.policy).looks_back(self.policy, len(self.exit_depths))
        # Layers sharded over processes are run by all of them together, for every row.
        self.keeps_rows = record.wants_layers or self.sharded
        if not (self.keeps_rows or self.hooked or model.token_exits is not None):
            self.read_positions, self.last_positions = model.exits.positions(0), model.exits.positions(-1)

    def run(self, rows: Rows) -> None:
        """Run layers until every row has its prediction in the record."""
        if not self.early_exit:
            self.encode(rows)
            return
        rows.state = self.new_state(rows)
        self.record.add_states(rows)
        remaining: Rows | None = rows
        while remaining is not None:
            remaining = self.step(remaining)

    def leave_layer(self, rows: Rows) -> None:
        """Without early exit: keep the exit's evidence; at the last layer its logits are all rows' predictions."""
        if rows.depth not in self.exit_depths:
            return
        to_exit, rows.hidden_states = branch(rows.hidden_states, self.exit_depths.index(rows.depth), self.phase)
        evidence = self.run_exits(rows, to_exit)
        self.record.evidence.append(evidence)
        if rows.depth == len(self.depths):
            self.record.answer(rows.index, evidence.logits, rows.depths())

    def new_state(self, rows: Rows) -> ExitState:
        """The criterion's memory in front of the first exit."""
        size, device = rows.index.shape[0], rows.index.device
        return start(size, self.num_labels, self.policy, len(self.exit_depths), self.problem_type, device)

    def step(self, rows: Rows) -> Rows | None:
        """Run one layer and its exits; the rows that remain, or None where all have exited."""
        rows = self.enter(rows)
        begun = self.run_first_positions(rows)
        if begun is None:
            self.run_whole_layer(rows)
        keep = self.apply_exits(rows, rows.hidden_states if begun is None else begun.output)
        if keep is not None:
            if not len(keep):
                return None
            rows = rows.select(keep, self.execution.trim)
            if begun is not None:
                begun = begun.select(keep, rows.hidden_states.shape[1])
        if begun is not None:
            rows.hidden_states = self.sublayers(rows).finish(begun, *rows.inputs(self.kind(rows)))
        return rows

    def run_first_positions(self, rows: Rows) -> FirstPositions | None:
        """The layer for the positions that exits read, where running them first is expected to pay."""
        positions = self.positions_read(rows)
        if positions is None or not self.token_first_pays(rows):
            return None
        return self.sublayers(rows).begin(*rows.inputs(self.kind(rows)), positions)

    def positions_read(self, rows: Rows) -> int | None:
        """How many positions, the first ones, the exits at the rows' depths read; None: all."""
        last = len(self.depths)
        read = {self.last_positions if depth == last else self.read_positions for depth, _ in rows.groups}
        return None if None in read else max(each for each in read if each is not None)

    def token_first_pays(self, rows: Rows) -> bool:
        """Whether enough rows are expected to exit here."""
        if rows.state is None:
            return False
        last = len(self.depths)
        # Where one depth alone is run and all rows exit or none does, no row is saved anything.
        if len(rows.groups) == 1 and (rows.depth == last or not self.may_exit(rows.depth)):
            return False
        leaving = 0.0
        expected = chance(rows.state, self.policy, rows.depths(), len(self.exit_depths))
        for depth, own in rows.slices():
            if depth in self.exit_depths:
                leaving += len(expected[own]) if depth == last else expected[own].sum().item()
        return self.execution.splits(leaving, *rows.hidden_states.shape[:2], rows.index.device.type)

    # ---- exits ------------------------------------------------------------------------------------------------------

    def apply_exits(self, rows: Rows, states: Tensor) -> Tensor | None:
        """Record the predictions of the rows that exit here.

        Args:
            states: (B, n, d) the layer's output, or the first positions of it, which are all that exits read.

        Returns:
            The numbers (B',) of the rows to go on with; None: all of them.
        """
        state = rows.state
        if state is None or all(depth not in self.exit_depths for depth, _ in rows.groups):
            return None
        may_exit = any(self.may_exit(depth) for depth, _ in rows.groups)
        if not may_exit and self.forgetful and len(rows.groups) == 1:  # this exit's evidence would be used by nothing
            state.seen = state.seen + 1
            return None
        fire, logits = self.decide(rows, self.run_exits(rows, states), state)
        return self.exit_rows(rows, fire, logits) if may_exit else None

    def run_exits(self, rows: Rows, states: Tensor) -> Evidence:
        """The evidence of the exits at the rows' depths, in the rows' order; rows without an exit are left out."""
        weights, mask = rows.mean_weights, rows.padding_mask
        parts = []
        for depth, own in rows.slices():
            if depth in self.exit_depths:
                number = self.exit_depths.index(depth)
                read = self.final_norm(states[own][:, : self.exits.positions(number)])
                shares = None if weights is None else weights[own]
                padding = None if mask is None else mask[own][:, : read.shape[1]]
                parts.append(self.exits(number, read, shares, padding, self.pooler))
        return parts[0] if len(parts) == 1 else Evidence.cat(parts)

    def decide(self, rows: Rows, evidence: Evidence, state: ExitState) -> tuple[Tensor, Tensor]:
        """Which rows the criterion lets exit, (B,), and their logits, (B, C); rows without an exit go on."""
        depths = rows.depths()
        if all(depth in self.exit_depths for depth, _ in rows.groups):
            return step(evidence, state, self.policy, depths)
        able = torch.isin(depths, torch.tensor(self.exit_depths, device=depths.device)).nonzero().squeeze(1)
        part = state.select(able)
        fire, logits = step(evidence, part, self.policy, depths[able])
        state.put(able, part)
        no_fire = torch.zeros_like(rows.index, dtype=torch.bool)
        no_logits = logits.new_zeros(len(no_fire), logits.shape[1])
        return no_fire.index_copy(0, able, fire), no_logits.index_copy(0, able, logits)

    def may_exit(self, depth: int) -> bool:
        """Whether any row could exit after this layer; known without looking at the rows."""
        if depth == len(self.depths):
            return True
        if depth not in self.exit_depths or depth < self.policy.floor:
            return False
        return self.exit_depths.index(depth) + 1 >= rule_of(self.policy).first_exit(self.policy)

    def exit_rows(self, rows: Rows, fire: Tensor, logits: Tensor) -> Tensor | None:
        """Record the rows that exit now; the numbers of the rows to go on with, None: all of them."""
        depths, before = rows.depths(), rows.exited
        exits = fire | (depths == len(self.depths))
        self.record.answer_where(exits if before is None else exits & ~before, rows.index, logits, depths)
        return self.drop_exited(rows, exits if before is None else exits | before)

    def drop_exited(self, rows: Rows, exited: Tensor) -> Tensor | None:
        """The numbers of the remaining rows; None where exited rows, (B,), are too few to be worth a copy."""
        gone, size = int(exited.sum()), len(exited)
        at_last = rows.depth == len(self.depths)
        if self.keeps_rows:  # all layers of all rows are asked for
            rows.exited = exited
            return rows.index[:0] if at_last else None
        if gone == 0:
            return None
        if gone < size and not at_last and not self.execution.drops(gone, size):
            rows.exited = exited
            return None
        return (~exited).nonzero().squeeze(1)
