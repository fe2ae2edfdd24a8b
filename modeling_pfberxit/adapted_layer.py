"""One depth: a stock encoder layer with this depth's adapters beside its sub-layers."""

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .adapters import Adapter
from .backbones import EncoderLayer


class AdaptedLayer(GradientCheckpointingLayer):
    """The adapters of one depth. The backbone layer is handed in, since ALBERT shares it between depths."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int):
        super().__init__()
        place = config.adapter_placement
        self.sequential = place == "sequential"
        beside_attention = place in ("attention", "both", "sequential")
        self.attention_adapter = Adapter(config, hidden_size) if beside_attention else None
        self.ffn_adapter = Adapter(config, hidden_size) if place in ("ffn", "both") else None

    def forward(
        self,
        hidden_states: Tensor,
        layer: EncoderLayer,
        attention_mask: Tensor | None,
        padding_mask: Tensor | None,
        queries: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, n, d) -> (B, n, d), and the attention weights where there are any; the first `queries` positions only.

        attention: a = LN1(x + y + A(x));  sequential: a = LN1(x + y + A(y));  ffn: h = LN2(a + FFN(a) + A(a)).
        """
        keys, values = layer.keys_values(hidden_states)
        if queries is not None:
            hidden_states = hidden_states[:, :queries]
            attention_mask = None if attention_mask is None else attention_mask[:, :, :queries]
            padding_mask = None if padding_mask is None else padding_mask[:, :queries]
        attended, weights = layer.attend(hidden_states, keys, values, attention_mask)
        summed = hidden_states + attended
        if self.attention_adapter is not None:
            summed = summed + self.attention_adapter(attended if self.sequential else hidden_states, padding_mask)
        attended = layer.attention_norm(summed)
        summed = layer.feed_forward(attended) + attended
        if self.ffn_adapter is not None:
            summed = summed + self.ffn_adapter(attended, padding_mask)
        return layer.output_norm(summed), weights
