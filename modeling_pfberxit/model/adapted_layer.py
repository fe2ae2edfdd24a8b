"""One depth: a stock encoder layer with this depth's adapters beside its sub-layers."""

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .adapters import PLACEMENTS, Adapter
from .backbones import EncoderLayer
from .hooks import through
from .sublayers import Sublayers


class AdaptedLayer(GradientCheckpointingLayer):
    """The adapters of one depth. The backbone layer is handed in, since ALBERT shares it between depths."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int):
        super().__init__()
        place = PLACEMENTS[config.adapter_placement]
        self.sequential = place.sequential
        self.attention_adapter = Adapter(config, hidden_size) if place.attention else None
        self.ffn_adapter = Adapter(config, hidden_size) if place.ffn else None

    def beside(self, layer: EncoderLayer, compiled: bool = False) -> Sublayers:
        """The layer with this depth's adapters."""
        return Sublayers(layer, self.attention_adapter, self.ffn_adapter, self.sequential, compiled)

    def forward(
        self,
        hidden_states: Tensor,
        layer: EncoderLayer,
        attention_mask: Tensor | None,
        padding_mask: Tensor | None,
        queries: int | None = None,
        compiled: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, n, d) -> (B, n, d), and the attention weights where there are any; the first `queries` positions only."""
        weights = None

        def run(hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            """In the place of the stock layer's forward."""
            nonlocal weights
            kept, sublayers = layer.keys_values(hidden_states), self.beside(layer, compiled)
            states, weights = sublayers.output(hidden_states, *kept, attention_mask, padding_mask, queries)
            return states

        return through(layer.stock, run, hidden_states, attention_mask), weights
