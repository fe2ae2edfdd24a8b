"""From a model's parts to files in memory, each held against the model before anything is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx

from ..evaluation.certificates import Certificate
from ..model.exit_policy import ExitPolicy, describe
from ..model.losses import problem_type_of
from .compose import File, Rule
from .evidence import EvidenceFile, recertified
from .int8 import agreement, check_products, without_certificates
from .loops import LoopFile, loops
from .quantised import quantised
from .segments import Segments, rule_of_rows
from .storage import opened
from .verification import SIZES, Compared, Row, check_same, compare, made_up, settings

METADATA = "pfberxit"  # the key of a file's properties under which everything stands, as JSON


class Made(NamedTuple):
    """A file in memory, its session, and how it compares with its model."""

    proto: onnx.ModelProto
    session: Any
    compared: Compared


class Small(NamedTuple):
    """A file in 8 bits, how it compares with the one in float32, and what was certified of it, if anything was."""

    proto: onnx.ModelProto
    measured: dict[str, Any]
    certificate: Certificate | None = None


class Promise(NamedTuple):
    """Of answers in 8 bits, how many may differ from full depth's in float32, and how surely."""

    differ: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Form:
    """What files are made of, and in which form.

    Args:
        facts: what they say of themselves.
        rows: texts, as tokens, on which they are held against the model; none: some are drawn.
        single: for one row at a time.
        built_in: tokens are the only inputs.
    """

    segments: Segments
    policy: ExitPolicy
    facts: dict[str, Any]
    rows: Sequence[Row] = ()
    single: bool = False
    built_in: bool = False
    texts: Sequence[Row] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", self.rows or made_up(self.segments.model))

    def said(self, policy: ExitPolicy | None = None, **more: Any) -> dict[str, Any]:
        """The facts of a file in this form."""
        policy = policy or self.policy
        own = {"policy": policy.stated(), "rule": describe(policy), "single": self.single, "built_in": self.built_in}
        if self.built_in:
            own |= {"reads": [], "operating_points": {}}
        return {**self.facts, **own, **more}

    def made(self, path: str) -> Made:
        """The file in float32; refuses one that differs from the model."""
        model = self.segments.model
        proto = one_file(self.segments, self.policy, self.single, self.built_in)
        describe_in(proto, self.said())
        session = opened(proto)
        sizes = SIZES[:1] if self.single else SIZES
        found = compare(session, model, self.texts, [self.policy], sizes)
        if not self.built_in:
            others = settings(self.policy, model)[1:]
            found = found.and_then(compare(session, model, self.texts, others, sizes[1:2] or sizes))
        check_same(found, path)
        return Made(proto, session, found)

    def in_8_bits(self, made: Made, path: str, promise: Promise | None = None) -> Small:
        """The second file, for its own threshold where one is certified."""
        certificate = self.certified(promise) if promise else None
        policy = certificate.policy if certificate and certificate.passed else self.policy
        proto = quantised(one_file(self.segments, policy, self.single, self.built_in))
        full = made.session
        if policy != self.policy:  # a threshold that is built in is to be the same in both
            full = opened(one_file(self.segments, policy, self.single, self.built_in))
        measured = agreement(full, opened(proto), self.segments.model, self.texts, policy, self.single)
        measured |= {"products": check_products(proto, path), "texts": "texts" if self.rows else "drawn rows"}
        facts = without_certificates(self.said(policy), measured)
        if certificate and certificate.passed:
            point = certificate.as_point(max_length=self.facts["max_length"])
            facts["operating_points"] = {**facts["operating_points"], certificate.name: point}
        describe_in(proto, facts)
        return Small(proto, measured, certificate)

    def certified(self, promise: Promise) -> Certificate:
        """A threshold for 8 bits, chosen and certified on the texts."""
        file = begun(EvidenceFile, self.segments, self.policy)
        return recertified(file, self.rows, self.policy, promise.differ, promise.confidence)


def begun(kind: type[File], segments: Segments, policy: ExitPolicy, **form: Any) -> Any:
    """A file of some kind under construction."""
    problem_type = problem_type_of(segments.model.config)
    return kind(segments, Rule(policy, problem_type, *rule_of_rows(segments, policy, problem_type)), **form)


def one_file(segments: Segments, policy: ExitPolicy, single: bool = False, built_in: bool = False) -> onnx.ModelProto:
    """The graph for a policy's rule."""
    kind = LoopFile if loops(segments) else File
    return begun(kind, segments, policy, single=single, built_in=built_in).build()


def describe_in(proto: onnx.ModelProto, facts: dict[str, Any]) -> None:
    """Put the facts into a file."""
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(facts)})
