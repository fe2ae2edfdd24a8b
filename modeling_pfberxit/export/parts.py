"""The model's own modules as functions of tensors: what is in front of the layers, a layer, an exit, a step of a rule.

The arithmetic is the model's; here are only the names under which tensors go from one part to the next:

    states (B, n, d)    mask (B, n), 1 for tokens    shares (B, 1, n), what each weighs in a mean
    context.KIND.FIELD, what layers of a kind attend in; .0 and .1 behind it where a field holds two tensors

and of the rule's memory, `past` and `count`, as `ExitState` has them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..model.backbones import embed, encoder_layers, pooler_dense, reads_backbone_pooler, set_attention
from ..model.criteria import rule_of
from ..model.encoder_layer import Context
from ..model.evidence import ABSTAIN, EMITTED_BY, NAMES, Evidence, ExitState, PolicyFields, outcomes
from ..model.exit_policy import ExitPolicy
from ..model.families import family_of, padding_alone
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.rows import Rows
from ..model.steps import one_by_one, step
from .templates import Inputs

NO_OPERATOR = "use_nsp"  # of the config: for what only `cap` reads, and takes a pseudo-inverse, which ONNX lacks
ROWS, TOKENS = "rows", "tokens"  # what an open size is a number of
EXAMPLE = (3, 7)  # rows and tokens; different from each other, and none of them 1


def prepared(model: PFBerxitForSequenceClassification) -> PFBerxitForSequenceClassification:
    """A copy of the model as it is exported: on the CPU, in float32, its attention spelled out, without a NSP."""
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    set_attention(model.backbone.config, "eager")
    model.exits.emits_nsp = False
    return model.requires_grad_(False)


def emitting(model: PFBerxitForSequenceClassification) -> list[str]:
    """The config's fields by which exits emit what a file can hold; of `EMITTED_BY`, in its order."""
    return [field for field in EMITTED_BY if getattr(model.config, field) and field != NO_OPERATOR]


class Start(nn.Module):
    """Tokens and mask -> states, mask and shares, and the contexts of all kinds of layers."""

    def __init__(self, model: PFBerxitForSequenceClassification) -> None:
        super().__init__()
        self.model = model
        self.kinds = list(dict.fromkeys(layer.kind for layer in layers_of(model)))
        rows = self.rows(*examples(model).values())
        self.fields = [f"context.{kind}.{name}" for kind in self.kinds for name in named(self.context(rows, kind))]

    def rows(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Rows:
        """The batch in front of the first layer, its mask in any case."""
        states = embed(self.model.backbone, input_ids, token_type_ids)
        started = Rows.start(self.model.backbone, states, attention_mask)
        return replace(started, padding_mask=attention_mask)

    def context(self, rows: Rows, kind: str) -> Context:
        """What layers of a kind attend in, as small as it can be."""
        context = rows.context(kind)
        if family_of(self.model.backbone.config).context is padding_alone and context.mask is not None:
            return context._replace(mask=context.mask[:, :, :1])  # it is the same for all that query
        return context

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """In the order of `outputs`."""
        rows = self.rows(*inputs)
        contexts = {kind: named(self.context(rows, kind)) for kind in self.kinds}
        found = [contexts[kind][name] for kind, name in (field.split(".", 2)[1:] for field in self.fields)]
        assert rows.mean_weights is not None
        return rows.hidden_states, rows.mean_weights, *found

    @property
    def outputs(self) -> list[str]:
        """The names of its results."""
        return ["states", "shares", *self.fields]


def named(context: Context) -> dict[str, Tensor]:
    """The tensors of a context by name: those of a field that holds two are numbered."""
    found: dict[str, Tensor] = {}
    for name, value in context._asdict().items():
        if isinstance(value, tuple):
            found |= {f"{name}.{number}": part for number, part in enumerate(value)}
        elif value is not None:
            found[name] = value
    return found


def context_of(tensors: Mapping[str, Tensor]) -> Context:
    """The way back."""
    fields: dict[str, Any] = {name: value for name, value in tensors.items() if "." not in name}
    for name in dict.fromkeys(name.partition(".")[0] for name in tensors if "." in name):
        fields[name] = tuple(tensors[each] for each in sorted(tensors) if each.startswith(f"{name}."))
    return Context(**fields)


def layers_of(model: PFBerxitForSequenceClassification) -> list[Any]:
    """The layers as the loop sees them."""
    return encoder_layers(model.backbone, model.execution.fused, "eager")


def examples(model: PFBerxitForSequenceClassification) -> dict[str, Tensor]:
    """A batch with padding, under the names of the model's inputs."""
    rows, tokens = EXAMPLE
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, -2:] = 0
    ids = torch.full((rows, tokens), 5)
    found = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in family_of(model.backbone.config).inputs:
        found["token_type_ids"] = torch.zeros_like(ids)
    return found


class Layer(nn.Module):
    """One layer with its adapters; the last one is run for the first token alone where its exit reads no other."""

    def __init__(self, model: PFBerxitForSequenceClassification, number: int, fields: list[str]) -> None:
        super().__init__()
        self.model, self.number, self.view = model, number, layers_of(model)[number]
        self.fields = [field for field in fields if field.split(".")[1] == self.view.kind]
        self.looks_around = model.depths[number].beside(self.view).looks_around
        alone = number == len(model.depths) - 1 and not self.looks_around and first_token_alone(model)
        self.queries = 1 if alone else None

    @property
    def inputs(self) -> list[str]:
        """The names of its arguments."""
        return ["states", *(["mask"] if self.looks_around else []), *self.fields]

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, n, d) -> (B, n, d), or (B, 1, d)."""
        given = dict(zip(self.inputs, inputs, strict=True))
        context = context_of({field.split(".", 2)[2]: given[field] for field in self.fields})
        depth, padding = self.model.depths[self.number], given.get("mask")
        return depth(given["states"], context.mask, context, padding, self.view, self.queries)[0]


def first_token_alone(model: PFBerxitForSequenceClassification) -> bool:
    """Whether the last layer can be run for the first token alone: its exit reads no other, its weights are its own.

    Not where scores depend on places: what is sliced there can not be translated with its length open.
    """
    views = layers_of(model)
    own = all(view.stock is not views[-1].stock for view in views[:-1])  # else it is a turn of a loop
    plain = family_of(model.backbone.config).context is padding_alone
    return own and plain and model.exits.positions(len(model.exit_depths) - 1) == 1


class Exit(nn.Module):
    """One exit: states -> logits and what else it emits."""

    def __init__(self, model: PFBerxitForSequenceClassification, number: int) -> None:
        super().__init__()
        self.model, self.number, self.reads = model, number, model.exits.positions(number)
        bypassed = number < len(model.exits.bypass_adapters)
        self.looks_around = bypassed and model.exits.bypass_adapters[number].reach != 0
        self.final_norm = family_of(model.backbone.config).final_norm(model.backbone)
        self.pooler = pooler_dense(model.backbone) if reads_backbone_pooler(model.config) else None
        self.emitted = [EMITTED_BY[field] for field in emitting(model)]

    @property
    def inputs(self) -> list[str]:
        """The names of its arguments."""
        return ["states", *([] if self.reads is not None else ["shares"]), *(["mask"] if self.looks_around else [])]

    @property
    def outputs(self) -> list[str]:
        """The names of its results."""
        return ["logits", *self.emitted]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """In the order of `outputs`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        states, mask = given["states"], given.get("mask")
        if self.reads is not None:
            states = states[:, : self.reads]
            mask = None if mask is None else mask[:, : self.reads]
        evidence = self.model.exits(self.number, self.final_norm(states), given.get("shares"), mask, self.pooler)
        return tuple(part for part in evidence if part is not None)


class Step(nn.Module):
    """One step of a rule, tau and patience of every row among its inputs; `seen` and `depth` are all rows', (1,)."""

    def __init__(self, policy: ExitPolicy, exits: int, num_labels: int, problem_type: str, emitted: list[str]) -> None:
        super().__init__()
        self.policy, self.problem_type, self.emitted = policy, problem_type, emitted
        self.shape = outcomes(num_labels, problem_type)
        # The patience that a request brings may be any that the exits allow.
        self.memory = rule_of(policy).remembered(replace(policy, patience=exits), exits)
        # Then a row's answer is the exit's, and no result.
        self.own = rule_of(policy).own(policy) and policy.answer != ABSTAIN
        self.fixed = not per_row(policy)
        self.counted = num_labels if one_by_one(policy, problem_type) else 0  # counts of a row; 0: one, of rank 0
        self.counts = True
        example = example_state(self, 2, num_labels)
        self.counts = self(*example.values())[1] is not example["count"]

    @property
    def inputs(self) -> list[str]:
        """The names of its arguments."""
        memory = ["past"] if self.memory else []
        return ["logits", *self.emitted, *memory, "count", "seen", "depth", "tau", "patience"]

    @property
    def outputs(self) -> list[str]:
        """The names of its results."""
        others = {"count_after": self.counts, "answer": not self.own, "past_after": self.memory}
        return ["fire", *(name for name, there in others.items() if there)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """In the order of `outputs`."""
        given = dict(zip(self.inputs, inputs, strict=True))
        logits = given["logits"]
        past = given["past"] if self.memory else logits.new_full((logits.shape[0], 1, *self.shape), torch.nan)
        seen = given["seen"].expand(logits.shape[0]) if self.counted else given["seen"]
        state = ExitState(past, seen, given["count"], self.problem_type)
        asked = {"patience": given["patience"]} | ({} if self.fixed else {"threshold": given["tau"]})
        if self.counted:  # every label of every row is judged by its row's numbers
            asked = {name: value[:, None].expand(-1, self.counted).reshape(-1) for name, value in asked.items()}
        policy = PolicyFields(**{name: getattr(self.policy, name) for name in NAMES} | asked)
        evidence = Evidence(logits, given.get("lte"), given.get("distances"))
        fire, answer = step(evidence, state, policy, given["depth"])
        found = {"fire": fire, "count_after": state.count, "answer": answer, "past_after": state.past}
        return tuple(found[name] for name in self.outputs)


def per_row(policy: ExitPolicy) -> bool:
    """Whether tau is a number that a row may bring: one for each exit is none, and neither is none but the labels'."""
    return not isinstance(policy.threshold, tuple) and not (policy.threshold is None and policy.label_thresholds)


def example_state(step: Step, rows: int, num_labels: int) -> dict[str, Tensor]:
    """Values for every input of a step."""
    whole = torch.arange(1, rows + 1)
    count = whole[:, None].repeat(1, step.counted) if step.counted else whole
    found = {"logits": torch.randn(rows, num_labels), "lte": torch.rand(rows), "count": count, "seen": whole[:1],
             "distances": torch.rand(rows, *step.shape), "past": torch.rand(rows, step.memory, *step.shape),
             "depth": whole[:1] + 1, "tau": torch.rand(rows), "patience": torch.ones_like(whole)}  # fmt: skip
    return {name: found[name] for name in step.inputs}


def open_sizes(values: Mapping[str, Tensor], sizes: Mapping[str, Mapping[int, str]]) -> Inputs:
    """Examples with the sizes that are open."""
    return {name: (value, sizes[name]) for name, value in values.items()}
