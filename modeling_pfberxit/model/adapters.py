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
