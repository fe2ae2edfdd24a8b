"""A family in a few lines: the two that docs/adding.md writes out, run against encoders that have what they name."""

import re
from pathlib import Path

import pytest
import torch
from tiny import awaken, enliven, tiny_batch, tiny_config
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, BertConfig, EuroBertConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertPooler
from transformers.models.eurobert.modeling_eurobert import (
    EuroBertDecoderLayer,
    EuroBertRMSNorm,
    EuroBertRotaryEmbedding,
)

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.model import encoder_layer, families, heads, rotary

GUIDE = Path(__file__).parents[1] / "docs" / "adding.md"


def records() -> dict:
    """The families that the guide writes out, by name."""
    text = GUIDE.read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text[text.index("## An encoder") :], re.MULTILINE | re.DOTALL)
    names = {**vars(encoder_layer), **vars(heads), **vars(rotary), **vars(families), "FAMILIES": {}}
    for block in code:
        exec(block, names)
    return names["FAMILIES"]


# ---- a relative of BERT ---------------------------------------------------------------------------------------------


class CousinConfig(BertConfig):
    model_type = "cousin"


class CousinAttention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))
        self.head_size, self.dropout = size // heads, nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for each in (self.q, self.k, self.v))
        scores = (q @ k.mT * self.head_size**-0.5).masked_fill(mask[:, None, None] == 0, -torch.inf)
        return self.o((self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2))


class CousinFFN(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.wide, self.act, self.narrow = nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.act(self.wide(x)))


class CousinLayer(nn.Module):
    def __init__(self, config: CousinConfig) -> None:
        super().__init__()
        self.attention = CousinAttention(config.hidden_size, config.num_attention_heads)
        self.ffn, self.dropout = CousinFFN(config.hidden_size, config.intermediate_size), nn.Dropout(0.1)
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        a = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(a + self.ffn(a))


class CousinModel(PreTrainedModel):
    config_class, base_model_prefix, _supports_sdpa = CousinConfig, "cousin", True

    def __init__(self, config: CousinConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings, self.encoder = BertEmbeddings(config), nn.Module()
        self.encoder.layers = nn.ModuleList(CousinLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(input_ids)
        for layer in self.encoder.layers:
            x = layer(x, attention_mask)
        return x


# ---- one that normalises first --------------------------------------------------------------------------------------


class PineConfig(EuroBertConfig):
    model_type = "pine"
    layer_types: list[str] | None = None
    sliding_window: int = 2


class PineEmbeddings(nn.Module):
    def __init__(self, config: PineConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> torch.Tensor:
        return self.tokens(input_ids) if inputs_embeds is None else inputs_embeds


class PineModel(PreTrainedModel):
    config_class, base_model_prefix, _supports_sdpa = PineConfig, "pine", True

    def __init__(self, config: PineConfig) -> None:
        super().__init__(config)
        self.embeddings, self.rotary_emb = PineEmbeddings(config), EuroBertRotaryEmbedding(config)
        self.layers = nn.ModuleList(EuroBertDecoderLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = EuroBertRMSNorm(config.hidden_size)
        for layer, kind in zip(self.layers, config.layer_types, strict=True):
            layer.attention_type = kind
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.tokens

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x, places = self.embeddings(input_ids), torch.arange(input_ids.shape[1])[None]
        everywhere = attention_mask[:, None, None].bool().expand(-1, -1, input_ids.shape[1], -1)
        near = (places[:, :, None] - places[:, None]).abs() <= self.config.sliding_window
        for layer in self.layers:
            seen = everywhere if layer.attention_type == "full_attention" else everywhere & near
            x = layer(x, attention_mask=seen, position_embeddings=self.rotary_emb(x, places))
        return self.norm(x)


# ---- both -----------------------------------------------------------------------------------------------------------

KINDS = {"layer_types": ["full_attention", "sliding_attention"] * 3, "pad_token_id": 0}
ENCODERS = {"cousin": (CousinConfig, CousinModel, {}), "pine": (PineConfig, PineModel, KINDS)}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_family_written_as_the_guide_says_gives_its_encoder_s_states_and_exits(name, monkeypatch):
    kind, model_class, more = ENCODERS[name]
    AutoConfig.register(name, kind, exist_ok=True)
    AutoModel.register(kind, model_class, exist_ok=True)
    monkeypatch.setitem(families.FAMILIES, name, records()[name])
    sizes = {field: getattr(tiny_config("bert"), field) for field in families.BERT_SHAPE[:6]}
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(kind(**sizes, **more), num_labels=3, adapter_dim=8)
    awaken(model.backbone)
    for parameter in model.backbone.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # norms are told from each other
    batch = tiny_batch(7)
    tokens = batch["attention_mask"].bool()
    with torch.no_grad():
        found = model.base_model(**batch).last_hidden_state
        assert_close(found[tokens], model.backbone(**batch)[tokens], rtol=1e-4, atol=1e-4)
        enliven(model)
        policy = {"criterion": "entropy", "threshold": 0.5, "patience": 1}
        together = model(**batch, exit_policy=policy)
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = model(input_ids=batch["input_ids"][row : row + 1, :length], exit_policy=policy)
            assert alone.exit_layer[0] == together.exit_layer[row]
            assert_close(alone.logits[0], together.logits[row], rtol=1e-3, atol=1e-3)
    assert len(set(together.exit_layer.tolist())) > 1
