"""PF-BERxiT: an encoder with an adapter and an exit at every depth; the models, their calls and outputs.

A call checks what it is given, runs `loop`, and makes an output of the record. The parts and their loading and saving
are in `checkpoints`.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .backbones import pooler_dense, reads_backbone_pooler
from .base_encoder import check_trainable
from .blueprint import check_blueprint
from .checkpoints import PFBerxitPreTrainedModel
from .configuration_pfberxit import PFBerxitConfig
from .exit_policy import FULL_DEPTH, POLICY_CHECKS, ExitPolicy, resolve_policy
from .exits import Exits
from .heads import POOLINGS, mean_weights
from .identity import as_certified
from .layers import check_predictable
from .loop import Encoding, Loop
from .losses import ExitLoss, answer_loss, check_labels, check_objective, check_weights, problem_type_of, training_loss
from .rows import CallRecord
from .sources import as_last_exit
from .strategies import Phase, TrainingProgress, current_phase, whole_objective
from .streams import predict
from .trainable import check_trained, name_heads, watch_gradients
from .validation import is_recorded, refuse

# What a tuple has where the config asks for one, as stock classifiers have it: `Trainer` takes all of it for logits.
OF_TUPLES = ("loss", "logits", "hidden_states", "attentions")
WITHOUT_EXITS = "left out: PFBerxitModel has no exits, every row runs through all layers"


@dataclass
class PFBerxitOutput(ModelOutput):
    """What a forward pass returns.

    Args:
        loss: of the exits that learn in this step; in evaluation of those that learn in the run, as they weigh in the
            end, or of the answers, where rows leave early; rows that leave as unsure have none.
        logits: (B, C) each row's answer.
        exit_layer: (B,) how many layers were executed for it.
        exit_logits: (B, exits, C) of every exit, in training and while early exit is off, else None.
        exit_lte: (B, exits) likewise, the learning-to-exit scores of a model that has them.
        exit_distances: (B, exits, L, K) likewise, to the prototypes of a model that has them.
        exit_nsp: (B, exits) likewise, how much of what it read no class of it sees, with `use_nsp`.
        token_layers: (B, tokens) the layer each token left after, where tokens leave on their own; 0 at padding.
        hidden_states: (n + 1) x (B, tokens, d), the embeddings first.
        attentions: n x (B, heads, positions, positions); prompts, where they have joined, are positions as well.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_layer: Tensor | None = None
    exit_logits: Tensor | None = None
    exit_lte: Tensor | None = None
    exit_distances: Tensor | None = None
    exit_nsp: Tensor | None = None
    token_layers: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PFBerxitModel(PFBerxitPreTrainedModel):
    """Encoder and adapters at full depth: what the last exit reads, as features without classes.

    Its checkpoints have the classifier's keys without `exits.*`, so each loads the other's. A stored exit policy stays
    in the config, for the classifier; one that is given to this model is refused.

    Example:
        >>> model = AutoModel.from_pretrained(repo, trust_remote_code=True)
        >>> model(**batch).last_hidden_state  # (B, n, d)
    """

    _keys_to_ignore_on_load_unexpected: Collection[str] = [r"^exits\."]

    @classmethod
    def from_backbone(cls, backbone: Any, **knobs: Any) -> "PFBerxitModel":
        """As the classifier's, without fields of an exit policy."""
        for name in knobs.keys() & {"exit_policy", *(f"exit_{field}" for field in POLICY_CHECKS)}:
            refuse(name, knobs[name], WITHOUT_EXITS)
        return super().from_backbone(backbone, **knobs)

    @classmethod
    def _check_wanted(cls, stored: PFBerxitConfig, wanted: PFBerxitConfig) -> None:
        super()._check_wanted(stored, wanted)
        for field, value in asdict(wanted.exit_policy).items():
            if value != getattr(stored.exit_policy, field):
                refuse(f"exit_{field}", value, WITHOUT_EXITS)

    @classmethod
    def of(cls, model: PFBerxitPreTrainedModel) -> "PFBerxitModel":
        """A view: a module of its own, hooks included, on another model's parts, config and mode."""
        view = cls.__new__(cls)
        nn.Module.__init__(view)
        for name, value in model.__dict__.items():  # but not what replaces methods of the other
            if name not in view.__dict__ and not callable(getattr(cls, name, None)):
                view.__dict__[name] = value
        for name, part in model.named_children():
            if name != "exits":
                view.add_module(name, part)
        view.exits, view.training = None, model.training
        view._keys_to_ignore_on_load_unexpected = set(cls._keys_to_ignore_on_load_unexpected)
        return view

    @property
    def base_model(self) -> "PFBerxitModel":
        """Itself."""
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        exit_policy: None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """Run every row through all layers.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, n), padded on the right. No exit_policy.

        Returns:
            `last_hidden_state` (B, n, d); `pooler_output` (B, d) where exits read the encoder's own pooler.
        """
        if exit_policy is not None:
            refuse("exit_policy", exit_policy, WITHOUT_EXITS)
        want_states, want_attentions = self._wanted(output_hidden_states, output_attentions)
        self._check_inputs(input_ids, inputs_embeds, want_attentions)
        rows, _ = self.embedded(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        record = CallRecord.of(want_states, want_attentions)
        encoding = Encoding(self, record)
        states = encoding.final_norm(encoding.encode(rows).tokens())
        output = BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self._pooled(states, attention_mask),
            **record.shown(),
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _pooled(self, states: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """(B, n, d) -> (B, d) as exits read it through the encoder's own pooler, or None where they do not."""
        if not reads_backbone_pooler(self.config):
            return None
        weights = None if attention_mask is None else mean_weights(attention_mask, states.dtype)
        return torch.tanh(pooler_dense(self.backbone)(POOLINGS[self.config.exit_pooling].pool(states, weights)))


class PFBerxitForSequenceClassification(PFBerxitPreTrainedModel):
    """A text classifier that stops as soon as its exits agree.

    Example:
        >>> model = PFBerxitForSequenceClassification.from_backbone("albert/albert-base-v2", num_labels=2)
        >>> model.config.exit_threshold, model.config.exit_patience = 0.3, 2  # off until there is a threshold
        >>> model(**batch).exit_layer  # layers executed for each row
    """

    # The loss is a mean over this call's rows; with **kwargs or True, Trainer would not divide it by the accumulation.
    accepts_loss_kwargs = False
    exits: Exits  # a classifier always has them
    training_progress: TrainingProgress | None = None  # for strategies that follow the steps; StrategyCallback sets it
    # Takes one exit's logits (B, C) and the labels, returns a scalar; every exit then learns from it. Not saved.
    exit_loss: ExitLoss | None = None
    new_loop: Callable[..., Loop] = Loop  # makes the loop of every call; an instance may have its own

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "exit_loss":
            if value is not None and not callable(value):
                refuse(name, value, "a function of one exit's logits (B, C) and the labels, or None")
            object.__setattr__(self, name, value)  # if it is a module, it is none of the model's: it is not saved
            return
        super().__setattr__(name, value)
        if name == "peft_config":
            name_heads(self, value)

    def _new_exits(self, hidden_size: int) -> Exits:
        check_weights(self.config, self.config.problem_type)
        self.num_labels = self.config.num_labels
        return Exits(self.config, hidden_size, len(self.exit_depths))

    @classmethod
    def from_classifier(cls, classifier: str | os.PathLike, **knobs: Any) -> "PFBerxitForSequenceClassification":
        """A fine-tuned classifier with untrained exits below its own head: the same logits at full depth.

        Args:
            classifier: a Hub id or a folder with a `...ForSequenceClassification` of a supported family.
            knobs: as `from_backbone` takes them; labels, problem type and dtype are the classifier's.

        Raises:
            OSError, ValueError: it is no such classifier, or exits early already; or a knob would change its answers.
        """
        knobs, kept = as_last_exit(classifier, knobs)
        model = cls.from_backbone(classifier, **knobs)
        model.config.update(kept)
        return model

    @property
    def base_model(self) -> "PFBerxitModel":
        """The model without its exits: a view of the very same modules."""
        return PFBerxitModel.of(self)

    # ---- forward ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        exit_policy: ExitPolicy | dict | str | None = None,
        output_hidden_states: bool | None = None, output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> PFBerxitOutput | tuple:  # fmt: skip
        """Classify; each row exits where the policy lets it, at any batch size as if it were alone.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, n), padded on the right.
            labels: (B,) class ids or values, or (B, C) for several labels.
            exit_policy: for this call alone: an `ExitPolicy`, a dict of the fields to change, or the name of an
                operating point. Training always runs every exit.
            output_hidden_states, output_attentions: run every row to the end and return them; answers stay the same.

        Raises:
            ValueError: labels, mask or policy do not fit, before any layer runs. Early exit is on while the call is
                traced or exported, or its tensors have no values.
        """
        check_blueprint(self)
        want_states, want_attentions = self._wanted(output_hidden_states, output_attentions)
        inputs = self._check_inputs(input_ids, inputs_embeds, want_attentions)
        problem_type = problem_type_of(self.config, labels)
        self.exits.check_prototypes(self.num_labels, problem_type)
        self._check_labels(labels, inputs.shape[0], problem_type)
        policy = None if self.training else self._policy(exit_policy, inputs, problem_type)
        phase = self._phase() if self.training else None
        if phase is not None and torch.is_grad_enabled():
            check_trained(self, phase)
            check_trainable(self)

        rows, token_layers = self.embedded(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        record = CallRecord.of(want_states, want_attentions)
        self.new_loop(self, record, policy, phase, problem_type).run(rows)
        logits, exit_layer = record.collect()
        loss = None if labels is None else self._loss(logits, record, labels, policy, phase, problem_type)
        output = PFBerxitOutput(
            loss, logits, exit_layer, token_layers=token_layers, **record.every_exit(), **record.shown()
        )
        if phase is not None and not is_recorded(logits):
            watch_gradients(output, phase)
        if return_dict is None and not self.config.return_dict:
            return tuple(value for name, value in output.items() if name in OF_TUPLES)
        return output.to_tuple() if return_dict is False else output

    def predict(
        self,
        rows: Iterable[Mapping[str, Any]],
        exit_policy: ExitPolicy | dict | str | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> PFBerxitOutput:
        """Classify any number of rows, in batches that stay full while rows leave; the same answers as `forward`.

        Args:
            rows: tokenised rows (`input_ids`, `token_type_ids`; further columns are ignored), padded or not. A data set
                or a list is read twice, first to check every row; an iterator is checked as it is read.
            exit_policy: as for `forward`.
            batch_size: rows that run through a layer together.
            progress: show a bar.

        Returns:
            `logits` (N, C) and `exit_layer` (N,) in the order of the rows, on the CPU.

        Raises:
            ValueError: the model is in training mode, there is no row, the policy does not fit. Or a row cannot be
                read: the error has its number as `row`. Nothing has been run then for a data set or a list. All rows
                before it have been for an iterator, which goes on behind it: the error has their answers as `logits`
                (row, C) and `exit_layer` (row,).
        """
        weight = next(self.parameters())
        if is_recorded(weight):
            refuse("predict", "...", "called outside torch.jit.trace and torch.export, on a model that has weights")
        check_blueprint(self)
        check_predictable(self)
        problem_type = problem_type_of(self.config)
        self.exits.check_prototypes(self.num_labels, problem_type)
        policy = self._policy(exit_policy, weight, problem_type) or FULL_DEPTH
        logits, layers = predict(self, rows, policy, problem_type, batch_size, progress)
        return PFBerxitOutput(logits=logits, exit_layer=layers)

    def _check_labels(self, labels: Tensor | None, rows: int, problem_type: str) -> None:
        """Refuse labels and losses that do not fit; in training, labels settle a problem type that was left open."""
        if labels is None:
            return
        # A user's own loss may take any labels, unless other heads learn from them.
        if self.exit_loss is None or self.config.use_lte or self.config.use_prototypes:
            check_labels(labels, self.num_labels, rows, problem_type)
        check_objective(self.config, problem_type, self.exit_loss)
        if self.training and self.config.problem_type is None:  # saved with the model, as in `transformers`
            self.config.problem_type = problem_type

    def _policy(self, request: ExitPolicy | dict | str | None, inputs: Tensor, problem_type: str) -> ExitPolicy | None:
        """The policy of a call on `inputs`; None without early exit. Refused where a graph of the call is made."""
        policy = resolve_policy(as_certified(self, request), self.config, self.exit_depths, problem_type)
        if policy is not None and is_recorded(inputs):
            allowed = "None (exit_policy={'criterion': None}) in a call that is traced, exported or without values"
            refuse("exit_criterion", policy.criterion, f"{allowed}: which rows leave where, a graph cannot hold")
        return policy

    def _phase(self) -> Phase:
        """What this training step teaches."""
        return current_phase(self.config, self.exit_depths, self.training_progress, self._learned_weights())

    def _learned_weights(self) -> Tensor | None:
        """What the exits' losses weigh, (exits,), where that is learned."""
        return None if self.exits.loss_weights is None else self.exits.loss_weights()

    def _loss(
        self, logits: Tensor, record: CallRecord, labels: Tensor, policy: ExitPolicy | None, phase: Phase | None,
        problem_type: str,
    ) -> Tensor:  # fmt: skip
        """Of the answers where rows leave early, else of the exits that learn in this phase or in the whole run."""
        if policy is not None:
            return answer_loss(logits, labels, problem_type, self.config, self.exit_loss, policy)
        phase = phase or whole_objective(self.config, self.exit_depths, self._learned_weights())
        return training_loss(record.evidence, labels, problem_type, self.config, phase, self.exit_loss)
