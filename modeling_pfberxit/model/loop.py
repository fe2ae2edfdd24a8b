"""The loop: layer by layer run the rows, let their exits speak, let the criterion judge, send away those that are done.

One step is one layer for rows that stand at one depth, or at several that share the layer. What a call asks for and
what it has found so far belongs to the loop and its walk, never to the model: one model serves many threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backbones import pooler_dense
from .backbones import reads_backbone_pooler
from .criteria import chance, rule_of, start, step
from .encoding import Encoding
from .evidence import Evidence, ExitState
from .exit_policy import ExitPolicy
from .rows import Rows
from .strategies import Phase, branch
from .token_first import begin, finish
from .walk import Walk

if TYPE_CHECKING:
    from .modeling_pfberxit import PFBerxitForSequenceClassification


class Loop(Encoding):
    """The layers, the exits above them, and what one call asks of both."""

    def __init__(
        self, model: PFBerxitForSequenceClassification, walk: Walk, policy: ExitPolicy | None, phase: Phase | None,
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
