"""The small modules inside the encoder: adapters (eq. 1), late prompts, and HashEE's table of token depths.

Equation 1 is A(x) = W_up f(g(W_down x)), beside a frozen sub-layer; f is a sub-learning module on the bottleneck of
width r. The paper's equation shows neither biases nor norms, but its parameter counts (Table 2) come out only with a
bias in both projections, a LayerNorm over the hidden size and, in the convolution and the self-attention, one over the
bottleneck. Where an adapter's output is added in a layer is in `layers`; when prompts join, in `loop`.

Every sub-learner has a `reach`: how many positions away a token can be and still change another one's output (0: none;
None: any distance). Padding is never read.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig
from transformers import initialization as init

from .validation import refuse

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


class SubLearner(nn.Module):
    """f of eq. 1, on the bottleneck: (B, n, r) -> (B, n, r)."""

    reach: int | None = 0

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()


class Identity(SubLearner):
    """Nothing between the projections ("PF-orig")."""

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:  # (B, n, r) -> (B, n, r)
        """Give back x."""
        return hidden_states


class Mlp(SubLearner):
    """A fully connected layer, token by token."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.dense = nn.Linear(config.adapter_dim, config.adapter_dim)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:  # (B, n, r) -> (B, n, r)
        """W x + b."""
        return self.dense(hidden_states)


class Conv(SubLearner):
    """A convolution along the sentence and a non-linearity, in two readings of equal size.

    Kernel 3 (or wider): depth-wise, then point-wise, no biases: k r + r^2 weights. Kernel 1: point-wise with bias and a
    LayerNorm: r^2 + 3 r. For the paper's r = 32 both make 1,120.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        r, kernel = config.adapter_dim, config.adapter_conv_kernel
        if kernel % 2 == 0:
            refuse("adapter_conv_kernel", kernel, "odd, so that the convolution is centred")
        self.reach = kernel // 2
        if kernel == 1:
            self.depthwise, self.pointwise, self.norm = None, nn.Linear(r, r), nn.LayerNorm(r)
        else:
            self.depthwise = nn.Conv1d(r, r, kernel, padding=self.reach, groups=r, bias=False)
            self.pointwise, self.norm = nn.Linear(r, r, bias=False), nn.Identity()
        self.activation = ACTIVATIONS[config.adapter_activation]()

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:  # (B, n, r) -> (B, n, r)
        """Convolve along the sentence; padding counts as zero."""
        if self.depthwise is not None:
            if padding_mask is not None:
                hidden_states = hidden_states * padding_mask[..., None]
            hidden_states = self.depthwise(hidden_states.transpose(1, 2)).transpose(1, 2)
        return self.activation(self.norm(self.pointwise(hidden_states)))


class SelfAttention(SubLearner):
    """Multi-head self-attention on the bottleneck, residual and LayerNorm, then a non-linearity."""

    reach = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        r, self.heads = config.adapter_dim, config.adapter_num_heads
        if r % self.heads:
            refuse("adapter_num_heads", self.heads, f"a divisor of adapter_dim={r}")
        self.query, self.key, self.value, self.out = (nn.Linear(r, r) for _ in range(4))
        self.norm = nn.LayerNorm(r)
        self.activation = ACTIVATIONS[config.adapter_activation]()

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:  # (B, n, r) -> (B, n, r)
        """LayerNorm(x + attention(x)), padding masked."""
        q, k, v = (
            project(hidden_states).view(*hidden_states.shape[:-1], self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mask = None if padding_mask is None else padding_mask[:, None, None, :].bool()
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return self.activation(self.norm(hidden_states + self.out(mixed)))

    def pair_macs(self, tokens: int) -> int:
        """Multiply-adds between positions, beside those of the projections."""
        return 2 * tokens * tokens * (self.heads + self.query.in_features)


SUBLEARNERS: dict[str, type[SubLearner]] = {
    "identity": Identity,
    "self_attention": SelfAttention,
    "conv": Conv,
    "mlp": Mlp,
}


class Placement(NamedTuple):
    """Where a depth has an adapter."""

    attention: bool = False  # beside the self-attention ...
    sequential: bool = False  # ... or behind it, reading its output
    ffn: bool = False  # beside the feed-forward network
    bypass: bool = False  # in front of the exit alone


PLACEMENTS = {
    "ffn": Placement(ffn=True),
    "attention": Placement(attention=True),
    "both": Placement(attention=True, ffn=True),
    "sequential": Placement(attention=True, sequential=True),
    "bypass": Placement(bypass=True),
    "none": Placement(),
}


class UpProjection(nn.Linear):
    """Starts at zero, so that training starts from the untouched backbone."""


class OutputNorm(nn.LayerNorm):
    """Starts at zero in place of the up-projection: a LayerNorm over zeros would explode at the first step."""


class Adapter(nn.Module):
    """One adapter: norm, down to r, g, f, up to d, scale."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int) -> None:
        super().__init__()
        place = config.adapter_layer_norm
        self.norm = nn.LayerNorm(hidden_size) if place == "in" else nn.Identity()
        self.down = nn.Linear(hidden_size, config.adapter_dim)
        self.activation = ACTIVATIONS[config.adapter_activation]()
        self.sublearner = SUBLEARNERS[config.adapter_sublearner](config)
        self.up = (nn.Linear if place == "out" else UpProjection)(config.adapter_dim, hidden_size)
        self.output_norm = OutputNorm(hidden_size) if place == "out" else nn.Identity()
        self.dropout = nn.Dropout(config.adapter_dropout)
        self.scaling = config.adapter_scaling

    @property
    def reach(self) -> int | None:
        """How far other positions influence one position."""
        return self.sublearner.reach

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(B, n, d) and 1 for tokens, 0 for padding (B, n) -> what is added beside the sub-layer, (B, n, d)."""
        bottleneck = self.activation(self.down(self.norm(hidden_states)))  # (B, n, r)
        output = self.output_norm(self.up(self.sublearner(bottleneck, padding_mask)))
        return self.dropout(output) if self.scaling == 1.0 else self.dropout(output) * self.scaling


@torch.no_grad()
def init_adapter_weights(module: nn.Module) -> None:
    """Zero the module that closes an adapter, so that a new one adds nothing.

    Keyed by class: `transformers` calls this for modules with parameters of their own, never for the adapter.
    """
    if isinstance(module, (UpProjection, OutputNorm)):
        init.zeros_(module.weight)
        init.zeros_(module.bias)


# ---- late prompts ----------------------------------------------------------------------------------------------------


class Prompts(nn.Module):
    """Makes p prompts for every row: (B, n, d) and 1 for tokens, 0 for padding (B, n) -> (B, p, d)."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__()
        if config.prompt_layer >= layers:
            refuse(
                "prompt_layer", config.prompt_layer, f"a layer below the last, 0 to {layers - 1}: prompts join above it"
            )
        self.kind, self.length = config.prompt_generator, config.prompt_length


class Table(Prompts):
    """The same prompts for every row."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__(config, hidden_size, layers)
        self.table = nn.Embedding(self.length, hidden_size)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, p, d), whatever the states."""
        return self.table.weight.expand(hidden_states.shape[0], -1, -1).to(hidden_states.dtype)


class FromFirst(Prompts):
    """NPG: all of them from the row's first token."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__(config, hidden_size, layers)
        self.down = nn.Linear(hidden_size, config.prompt_dim)
        self.up = nn.Linear(config.prompt_dim, hidden_size * self.length)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, n, d) -> (B, p, d)."""
        return self.up(self.down(hidden_states[:, 0]).relu()).view(-1, self.length, hidden_states.shape[-1])


class FromSlots(Prompts):
    """Each from a slot of the row's tokens, by the mean of their values (APPG)."""

    largest = False

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__(config, hidden_size, layers)
        self.down = nn.Linear(hidden_size, config.prompt_dim)
        self.up = nn.Linear(config.prompt_dim, hidden_size)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, n, d) and 1 for tokens, 0 for padding (B, n) -> (B, p, d)."""
        slots = slot_members(hidden_states, padding_mask, self.length)
        return self.up(pool_slots(self.down(hidden_states), slots, self.largest).relu())


class FromLargest(FromSlots):
    """MPPG: by the largest value of each slot."""

    largest = True


GENERATORS = {"none": None, "table": Table, "npg": FromFirst, "mppg": FromLargest, "appg": FromSlots}


def slot_members(hidden_states: Tensor, padding_mask: Tensor | None, slots: int) -> Tensor:
    """Which tokens fall into which of p slots, (B, p, n).

    Slot j of a row of n tokens holds floor(j n / p) up to, but without, ceil((j + 1) n / p), as adaptive pooling has
    it. Slots overlap where n is no multiple of p.
    """
    longest = hidden_states.shape[1]
    tokens = torch.ones_like(hidden_states[..., 0]) if padding_mask is None else padding_mask
    lengths = (tokens != 0).sum(-1, keepdim=True)
    number = torch.arange(slots, device=hidden_states.device)
    first = number * lengths // slots  # (B, p)
    end = ((number + 1) * lengths + slots - 1) // slots
    token = torch.arange(longest, device=hidden_states.device)
    return (token >= first[..., None]) & (token < end[..., None])


def pool_slots(values: Tensor, slots: Tensor, largest: bool) -> Tensor:
    """The mean or the largest value of each slot: (B, n, m) and (B, p, n) -> (B, p, m)."""
    if largest:
        return values[:, None].masked_fill(~slots[..., None], -torch.inf).amax(2)
    weights = slots.to(values.dtype)
    return torch.bmm(weights / weights.sum(-1, keepdim=True), values)


# ---- tokens that leave on their own ----------------------------------------------------------------------------------

DRAWN = 0  # in the table: every occurrence draws its own layer
WORD = 0xFFFFFFFF  # 32 bits; products of two such numbers would leave int64, so `scramble` multiplies by less


class TokenExits(nn.Module):
    """HashEE's table: the last layer at which each token of the vocabulary queries; in a new one, the last layer."""

    def __init__(self, config: PreTrainedConfig, vocabulary: int, layers: int) -> None:
        super().__init__()
        self.layers, self.seed = layers, config.token_exit_seed
        drawn: tuple[int, int] = config.token_exit_range or (1, layers)
        self.low, self.high = drawn
        self.register_buffer("depths", torch.full((vocabulary,), layers, dtype=torch.int16))

    def forward(self, input_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The layer each token leaves after: ids (B, n) -> (B, n), 0 at padding. A row's first token never leaves."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        drawn = self.low + scramble(input_ids, positions, self.seed) % (self.high - self.low + 1)
        depths = self.depths[input_ids].long()
        depths = torch.where(depths == DRAWN, drawn, depths).clamp(max=self.layers)
        depths[:, 0] = self.layers
        return depths if padding_mask is None else depths * (padding_mask != 0)


def resize(table: TokenExits, vocabulary: int) -> None:
    """Fit the table to a vocabulary of another size; new tokens query at all layers."""
    kept = table.depths[:vocabulary]
    table.depths = torch.cat([kept, kept.new_full((vocabulary - len(kept),), table.layers)])


def check_reach(depths: nn.Module, exits: nn.Module | None) -> None:
    """Refuse adapters that read a token's neighbours: positions are sorted anew, and some are no longer computed."""
    inside, beside = (
        [module.reach for module in part.modules() if isinstance(module, Adapter)]
        for part in (depths, nn.Module() if exits is None else exits)
    )
    if any(reach != 0 for reach in inside) or any(reach not in (0, None) for reach in beside):
        refuse("token_exits", True, "False with this adapter_sublearner; identity and mlp look at one token alone")


def scramble(token: Tensor, position: Tensor, seed: int) -> Tensor:
    """A whole number >= 0 that looks random and depends on token, position and seed alone: never on the batch."""
    mixed = (token * 0x9E3779B1 + position * 0x85EBCA77 + seed * 0xC2B2AE3D) & WORD
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & WORD
    return mixed ^ (mixed >> 15)


@torch.no_grad()
def init_token_exits(module: nn.Module) -> None:
    """A table that no checkpoint fills: all tokens query at all layers."""
    if isinstance(module, TokenExits):
        init.constant_(module.depths, module.layers)
