"""What both models are made of: a stock encoder, the adapters of every depth, and what joins or leaves on the way."""

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .adapted_layer import AdaptedLayer
from .adapters import init_adapter_weights
from .backbones import build_backbone, check_supported, embed, num_depths
from .blueprint import blueprint, rebuilt
from .checkpoints import CheckpointMixin
from .backbones import reads_backbone_pooler
from .configuration_pfberxit import PFBerxitConfig
from .execution import Execution
from .exits import Exits, init_exit_weights
from .persistence import check_base
from .prompts import GENERATORS
from .rows import Rows
from .token_exits import TokenExits, check_reach, init_token_exits, resize
from .validation import refuse


class PFBerxitPreTrainedModel(CheckpointMixin, PreTrainedModel):
    """The parts of a model, under the same names in checkpoints of the classifier and of the headless model."""

    config_class = PFBerxitConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["AdaptedLayer"]  # and the encoder's own
    execution = Execution()  # which short cuts the loop takes; answers are the same without them

    def __init__(self, config: PFBerxitConfig):
        super().__init__(config)
        encoder = config.encoder_config()
        check_supported(encoder)
        check_base(config)
        encoder._attn_implementation = config._attn_implementation
        layers, size = num_depths(encoder), encoder.hidden_size
        self.exit_depths = config.exit_depths(layers)
        self.backbone = build_backbone(encoder, reads_backbone_pooler(config))
        self.depths = nn.ModuleList(AdaptedLayer(config, size) for _ in range(layers))
        self.exits = self._new_exits(size)
        generator = GENERATORS[config.prompt_generator]
        self.prompts = generator and generator(config, size, layers)
        self.token_exits = TokenExits(config, encoder.vocab_size, layers) if config.token_exits else None
        if config.token_exits:
            check_reach(self.depths, self.exits)
        if config.adapter_only:  # a placeholder until `attach_backbone`
            for module in self.backbone.modules():
                module._is_hf_initialized = True
        self.post_init()
        self._mark_backbone_keys()
        self.backbone.requires_grad_(config.train_backbone)
        self.built_from = blueprint(config)

    def _new_exits(self, hidden_size: int) -> Exits | None:
        """The heads, or None for a model without."""
        return None

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for initialise in (init_adapter_weights, init_exit_weights, init_token_exits):
            initialise(module, init)

    def get_input_embeddings(self) -> nn.Embedding:
        """The encoder's embeddings of tokens."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put other embeddings in their place."""
        self.backbone.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in `transformers`; the table of token depths grows or shrinks with the vocabulary."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.token_exits is not None:
            resize(self.token_exits, embeddings.num_embeddings)
        rebuilt(self, backbone_config=self.config.backbone_config)
        return embeddings

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, of how many."""
        total = sum(parameter.numel() for parameter in self.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    # ---- what a call is given ---------------------------------------------------------------------------------------

    def _wanted(self, hidden_states: bool | None, attentions: bool | None) -> tuple[bool, bool]:
        """Whether a call returns them: what it says, or else the config."""
        states = self.config.output_hidden_states if hidden_states is None else hidden_states
        return states, self.config.output_attentions if attentions is None else attentions

    def _check_inputs(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, want_attentions: bool) -> None:
        """Refuse what this model cannot read or cannot show."""
        if (input_ids is None) == (inputs_embeds is None):
            refuse("input_ids", None if input_ids is None else "...", "given, or inputs_embeds: exactly one of them")
        if want_attentions and self.backbone.config._attn_implementation != "eager":
            refuse("output_attentions", True, "False unless the model was loaded with attn_implementation='eager'")
        if self.token_exits is not None and (want_attentions or input_ids is None):
            name = "output_attentions" if want_attentions else "inputs_embeds"
            refuse(name, "...", "left out: with token_exits, input_ids say which tokens still ask")

    def _start(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, token_type_ids: Tensor | None,
        position_ids: Tensor | None, inputs_embeds: Tensor | None,
    ) -> tuple[Rows, Tensor | None]:  # fmt: skip
        """The rows of a call in front of the first layer, and where tokens leave on their own, after which (B, n)."""
        hidden_states = embed(self.backbone, input_ids, token_type_ids, position_ids, inputs_embeds)
        token_layers = None if self.token_exits is None else self.token_exits(input_ids, attention_mask)
        return Rows.start(self.backbone.config, hidden_states, attention_mask, token_layers), token_layers
