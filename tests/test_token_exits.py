"""HashEE: tokens stop asking at layers fixed beforehand, and answer as a loop over the stock layers says."""

from collections import Counter
from itertools import count

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from tiny import (
    CHECKPOINTING,
    CONFIGS,
    LAYERS,
    VOCABULARY,
    final_norm,
    hooked,
    rows_of,
    save_backbone,
    stock_layers,
    tiny_batch,
    tiny_config,
    tiny_model,
)  # fmt: skip
from torch.nn import functional as F

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.positions import DRAWN
from modeling_pfberxit.training import fit_token_exits
from modeling_pfberxit.training.token_exits import METHODS, mutual_information

FAMILIES = list(CONFIGS)
SPECIAL = [0, 1, 2, 3, 4]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def hashing(family: str = "bert", **knobs) -> PFBerxitForSequenceClassification:
    """A model whose words leave at any layer; every seventh word draws its own."""
    model = tiny_model(family, **{"num_labels": 3, "adapter_placement": "none", "token_exits": True, **knobs})
    model.token_exits.depths.random_(0, len(model.depths) + 1, generator=torch.Generator().manual_seed(1))
    return model


def by_hand(model: PFBerxitForSequenceClassification, ids: torch.Tensor, layers: torch.Tensor) -> list[torch.Tensor]:
    """The stock encoder over one row, (n,), without padding; after each layer the finished tokens are put back.

    Returns:
        What each layer reads, and what the last one leaves: n + 1 times (tokens, d).
    """
    states, depth = [], count(1)

    def put_back(layer, inputs, output):
        states.append(inputs[0][0])
        new = output[0] if isinstance(output, tuple) else output
        kept = torch.where((layers >= next(depth))[:, None], new, inputs[0])
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    with hooked(stock_layers(model.backbone), after=put_back):
        states.append(model.backbone(input_ids=ids[None]).last_hidden_state[0])
    return states


# ---- the answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_with_every_token_at_the_last_layer_it_is_the_model_without_token_exits(family):
    batch = tiny_batch(6, longest=11)
    plain, fresh = tiny_model(family, num_labels=3), tiny_model(family, num_labels=3, token_exits=True)
    expected, found = (model(**batch, output_hidden_states=True) for model in (plain, fresh))
    assert torch.equal(found.exit_logits, expected.exit_logits)
    tokens = batch["attention_mask"].bool()
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours[tokens], theirs[tokens])
    fresh.token_exits.depths[int(batch["input_ids"][0, 1])] = 1
    assert not torch.allclose(fresh(**batch).logits[0], expected.logits[0], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_finished_tokens_keep_their_state_and_are_still_attended_to(family):
    model, batch = hashing(family), tiny_batch(6, longest=11)
    output = model(**batch, output_hidden_states=True)
    for row, ids in enumerate(rows_of(batch)):
        expected = by_hand(model, ids, output.token_layers[row, : len(ids)])
        assert len(expected) == len(output.hidden_states) == len(model.depths) + 1
        for ours, theirs in zip(output.hidden_states, expected, strict=True):
            torch.testing.assert_close(ours[row, : len(ids)], theirs, **CLOSE)
        norm = final_norm(model)
        read = [*map(norm, expected[1:-1]), expected[-1]]
        for exit, (classifier, states) in enumerate(zip(model.exits.classifiers, read, strict=True)):
            torch.testing.assert_close(output.exit_logits[row, exit], classifier(states.mean(0)), **CLOSE)


@torch.no_grad()
def test_adapters_work_on_the_tokens_that_still_ask():
    model, ids = hashing("bert", adapter_placement="ffn"), torch.randint(5, 100, (1, 9))
    output = model(input_ids=ids, output_hidden_states=True)
    for depth, (layer, adapted) in enumerate(zip(model.backbone.encoder.layer, model.depths, strict=True), start=1):
        x = output.hidden_states[depth - 1]
        attended = layer.attention(x)
        attended = attended if torch.is_tensor(attended) else attended[0]
        ffn = layer.output.dense(layer.intermediate(attended))
        full = layer.output.LayerNorm(attended + ffn + adapted.ffn_adapter(attended))
        expected = torch.where((output.token_layers >= depth)[..., None], full, x)
        torch.testing.assert_close(output.hidden_states[depth], expected, **CLOSE)
        assert not torch.equal(expected, full) or depth == 1


def test_asking_for_states_changes_no_answer():
    model, batch = hashing(), tiny_batch(20, seed=2)
    policy = {"criterion": "patience", "patience": 1}
    before, after = model(**batch, exit_policy=policy), model(**batch, exit_policy=policy, output_hidden_states=True)
    assert torch.equal(after.exit_layer, before.exit_layer)
    assert before.exit_layer.min() < LAYERS
    torch.testing.assert_close(after.logits, before.logits, **CLOSE)


def halving_policy(model: PFBerxitForSequenceClassification, batch: dict[str, torch.Tensor]) -> dict:
    """At every exit the surer half of all rows may leave, the threshold lying midway between two rows."""
    doubts = torch.distributions.Categorical(logits=model(**batch).exit_logits).entropy().sort(0).values
    middle = len(doubts) // 2
    return {"criterion": "entropy", "threshold": doubts[middle - 1 : middle + 1].mean(0).tolist()}


@pytest.mark.parametrize("early", [False, True], ids=["full depth", "beside exits"])
@pytest.mark.parametrize("family", ["albert", "bert", "distilbert"])
@torch.no_grad()
def test_batch_size_order_and_padding_never_change_an_answer(family, early):
    model, batch = hashing(family, exit_layers=[2, 3, 5]), tiny_batch(60, seed=3)
    policy = halving_policy(model, batch) if early else {"criterion": None}
    longer = {name: F.pad(values, (0, 9)) for name, values in batch.items()}
    expected = model(**batch, exit_policy=policy)
    assert len(set(expected.exit_layer.tolist())) >= (3 if early else 1)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    for part in (*shuffled.split(7), *shuffled.split(1), shuffled):
        for tokens, width in ((batch, int(batch["attention_mask"][part].sum(1).max())), (longer, 25)):
            found = model(**{name: values[part, :width] for name, values in tokens.items()}, exit_policy=policy)
            assert torch.equal(found.exit_layer, expected.exit_layer[part])
            torch.testing.assert_close(found.logits, expected.logits[part], **CLOSE)
            assert torch.equal(found.token_layers[:, :16], expected.token_layers[part, :width][:, :16])


@torch.no_grad()
def test_rows_that_leave_early_answer_as_their_exit_does_by_hand():
    model, batch = hashing("bert", exit_layers=[2, 3, 5]), tiny_batch(30, seed=3)
    output = model(**batch, exit_policy=halving_policy(model, batch))
    depths = [2, 3, 5, 6]
    assert len(set(output.exit_layer.tolist())) >= 3
    for row, ids in enumerate(rows_of(batch)):
        depth = int(output.exit_layer[row])
        states = by_hand(model, ids, output.token_layers[row, : len(ids)])[depth]
        expected = model.exits.classifiers[depths.index(depth)](states.mean(0))
        torch.testing.assert_close(output.logits[row], expected, **CLOSE)


# ---- the saving -----------------------------------------------------------------------------------------------------

WHERE = {
    "albert": lambda layer: (layer.attention.query, layer.attention.key, layer.ffn),
    "bert": lambda layer: (layer.attention.self.query, layer.attention.self.key, layer.intermediate.dense),
    "distilbert": lambda layer: (layer.attention.q_lin, layer.attention.k_lin, layer.ffn.lin1),
}


def work(model: PFBerxitForSequenceClassification, family: str, batch: dict, **options) -> tuple[list, list, list, ...]:
    """(rows, positions) that reach the query projection, the key projection and the FFN of each layer run."""
    seen, hooks = ([], [], []), []
    for layer in stock_layers(model.backbone):
        for shapes, module in zip(seen, WHERE[family](layer), strict=True):
            note = lambda module, inputs, shapes=shapes: shapes.append(tuple(inputs[0].shape[:2]))  # noqa: E731
            hooks.append(module.register_forward_pre_hook(note))
    output = model(**batch, **options)
    for hook in hooks:
        hook.remove()
    return *seen, output


@pytest.mark.parametrize("family", WHERE)
def test_alone_a_row_costs_what_its_tokens_still_ask(family):
    model = hashing(family)
    for ids in rows_of(tiny_batch(5, longest=12, seed=4)):
        queries, keys, ffn, output = work(model, family, {"input_ids": ids[None]})
        asking = [int((output.token_layers >= depth).sum()) for depth in range(1, LAYERS + 1)]
        assert queries == ffn == [(1, number) for number in asking]
        assert keys == [(1, len(ids))] * LAYERS
        assert asking == sorted(asking, reverse=True)
        assert asking[-1] < asking[0] <= len(ids)


@pytest.mark.parametrize("family", WHERE)
def test_in_a_batch_every_layer_runs_for_the_longest_row(family):
    model, batch = hashing(family), tiny_batch(9, longest=12, seed=4)
    queries, keys, ffn, output = work(model, family, batch)
    asking = [int((output.token_layers >= depth).sum(1).max()) for depth in range(1, LAYERS + 1)]
    assert queries == ffn == [(9, number) for number in asking]
    assert keys == [(9, 12)] * LAYERS
    assert asking[-1] < 12


def test_rows_that_left_at_an_exit_count_no_more():
    model, batch = hashing("bert", exit_layers=[2, 4]), tiny_batch(30, seed=6)
    queries, keys, ffn, output = work(
        model, "bert", batch, exit_policy={"criterion": "entropy", "threshold": 0.8, "normalize": True}
    )
    lengths = batch["attention_mask"].sum(1)
    expected = []
    for depth in range(1, LAYERS + 1):
        here = output.exit_layer >= depth
        expected.append((int(here.sum()), int((output.token_layers[here] >= depth).sum(1).max())))
        assert keys[depth - 1] == (int(here.sum()), int(lengths[here].max()) if depth > 2 else 16)
    assert queries == ffn == expected
    assert expected[0][0] > expected[2][0] > expected[4][0] > 0


# ---- which token leaves when ----------------------------------------------------------------------------------------


def test_token_layers_are_the_tables_the_first_token_stays_and_padding_has_none():
    model, batch = hashing(), tiny_batch(8, seed=2)
    model.token_exits.depths.clamp_(min=1)
    expected = model.token_exits.depths[batch["input_ids"]].long()
    expected[:, 0] = LAYERS
    found = model(**batch).token_layers
    assert torch.equal(found, expected * batch["attention_mask"])
    assert torch.equal(model(input_ids=batch["input_ids"][:, :3]).token_layers, expected[:, :3])
    assert tiny_model("bert")(**batch).token_layers is None


def drawn(seed: int = 0, low: int = 1, high: int = LAYERS) -> torch.Tensor:
    """What every word of the vocabulary draws at 200 positions behind the first, (tokens, positions)."""
    model = tiny_model("bert", token_exits=True, token_exit_seed=seed, token_exit_range=[low, high])
    model.token_exits.depths.fill_(DRAWN)
    return model.token_exits(torch.arange(VOCABULARY)[:, None].expand(-1, 201), None)[:, 1:]


def chi_square(values: torch.Tensor, cells: int) -> float:
    """How far counts of 0 ... cells - 1 are from even; its mean is cells - 1 where they are drawn evenly."""
    counts, even = values.flatten().bincount(minlength=cells).double(), values.numel() / cells
    return float(((counts - even) ** 2 / even).sum())


def test_drawn_layers_are_spread_evenly_over_words_positions_and_neighbours():
    layers = drawn() - 1
    assert chi_square(layers, LAYERS) < 20.5  # 5 degrees of freedom: 1 in 1000
    for lines in (layers, layers.T):  # one word at all positions; all words at one position
        each = torch.tensor([chi_square(line, LAYERS) for line in lines])
        assert 4 < each.mean() < 6
        assert each.max() < 35
    beside, below = layers[:, :-1] * LAYERS + layers[:, 1:], layers[:-1] * LAYERS + layers[1:]
    assert max(chi_square(beside, LAYERS**2), chi_square(below, LAYERS**2)) < 67  # 35 degrees: 1 in 1000


@pytest.mark.parametrize(("low", "high"), [(1, 6), (2, 4), (5, 6), (3, 3)])
def test_drawn_layers_stay_in_their_range(low, high):
    assert set(drawn(low=low, high=high).flatten().tolist()) == set(range(low, high + 1))


@pytest.mark.parametrize("seed", [1, 2, 1000, 2**32 - 1])
def test_another_seed_draws_other_layers(seed):
    same = (drawn() == drawn(seed)).double().mean()
    assert abs(same - 1 / LAYERS) < 0.01  # 24,000 draws: four standard deviations
    assert torch.equal(drawn(seed), drawn(seed))


def test_what_a_saved_model_draws_never_changes():
    """Worked out with Python's whole numbers, from the formula that checkpoints rely on."""
    model = tiny_model("bert", token_exits=True, token_exit_seed=7, token_exit_range=[2, 6])
    model.token_exits.depths.fill_(DRAWN)
    ids = [[9, 10, 11, 10, 10, 99, 5, 119, 64]]
    expected = []
    for position, token in enumerate(ids[0]):
        mixed = (token * 0x9E3779B1 + position * 0x85EBCA77 + 7 * 0xC2B2AE3D) % 2**32
        mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D % 2**32
        mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39 % 2**32
        expected.append(2 + (mixed ^ (mixed >> 15)) % 5 if position else LAYERS)
    assert model(input_ids=torch.tensor(ids)).token_layers.tolist() == [expected]
    assert model(input_ids=torch.tensor(ids, dtype=torch.int32)).token_layers.tolist() == [expected]


# ---- training -------------------------------------------------------------------------------------------------------


def learner() -> PFBerxitForSequenceClassification:
    return hashing(
        "bert", train_backbone=True, exit_layers=[LAYERS], exit_dropout=0.0, backbone_changes=NO_DROPOUT, liven=False
    )


def test_training_runs_the_same_tokens_and_gets_the_gradients_of_the_loop_by_hand():
    model, batch, labels = learner(), tiny_batch(5, longest=9), torch.tensor([0, 1, 2, 1, 0])
    weights = dict(model.backbone.named_parameters())
    evaluated, trained = model(**batch), model.train()(**batch, labels=labels)
    torch.testing.assert_close(trained.logits, evaluated.logits, **CLOSE)
    assert torch.equal(trained.token_layers, evaluated.token_layers)
    logits = []
    for row, ids in enumerate(rows_of(batch)):
        states = by_hand(model, ids, evaluated.token_layers[row, : len(ids)])
        logits.append(model.exits.classifiers[0](states[-1].mean(0)))
    loss = F.cross_entropy(torch.stack(logits), labels)
    torch.testing.assert_close(trained.loss, loss, **CLOSE)
    expected = torch.autograd.grad(loss, weights.values())
    trained.loss.backward()
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-3, msg=name)
        assert gradient.abs().sum() > 0, name


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = learner().train()
        if checkpointing:
            getattr(model, f"{CHECKPOINTING}_enable")()
        model(**tiny_batch(5), labels=torch.tensor([0, 1, 2, 1, 0])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_loss_goes_down():
    model, batch, labels = learner().train(), tiny_batch(12, seed=8), torch.arange(12) % 3
    table = model.token_exits.depths.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-3:]) < 0.5 * losses[0]
    assert torch.equal(model.token_exits.depths, table)


# ---- fitting the table ----------------------------------------------------------------------------------------------


def corpus(words: int = 60, rows: int = 120, seed: int = 0) -> tuple[list[list[int]], np.ndarray]:
    """Rows of frequent and rare words (ids from 20) in special tokens, and labels that some of the words foretell."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, words + 1) ** 0.7
    ids = [random.choice(words, size=random.integers(4, 15), p=frequency / frequency.sum()) for _ in range(rows)]
    labels = np.array([int(np.isin(row, range(0, words, 4)).sum() >= 3) for row in ids])
    assert 0.2 < labels.mean() < 0.8
    return [[2, *(20 + row).tolist(), 3] for row in ids], labels


def fitted(method: str, rows: list[list[int]], labels: np.ndarray, **options) -> tuple[dict[int, int], list[int]]:
    """The layer of every seen word, and the whole table."""
    model = tiny_model("bert", token_exits=True)
    fit_token_exits(model, rows, labels, SPECIAL, method, **options)
    table = model.token_exits.depths.tolist()
    return {token: table[token] for row in rows for token in row if token not in SPECIAL}, table


def check_buckets(layers: dict[int, int], score: dict[int, float], expected: list[int]) -> None:
    """As many words at each layer, give or take one, and nowhere one that belongs before a word of an earlier layer."""
    sizes = Counter(layers.values())
    assert sorted(sizes) == expected
    assert max(sizes.values()) - min(sizes.values()) <= 1
    for earlier, later in zip(expected, expected[1:]):
        lowest = min(score[token] for token in layers if layers[token] == earlier)
        assert lowest >= max(score[token] for token in layers if layers[token] == later) - 1e-12
    assert max(score.values()) > min(score.values())


def contributions(rows: list[list[int]], labels: np.ndarray) -> dict[int, float]:
    """What meeting each word tells about the label: the information of "this word or not", less what "not" tells."""
    pairs = [(token, label) for row, label in zip(rows, labels) for token in row if token not in SPECIAL]
    told = {}
    for word in {token for token, _ in pairs}:
        both = mutual_info_score([token == word for token, _ in pairs], [label for _, label in pairs])
        absent = Counter(label for token, label in pairs if token != word)
        overall, others = Counter(label for _, label in pairs), absent.total()
        told[word] = both - sum(
            number / len(pairs) * np.log(number * len(pairs) / (others * overall[label]))
            for label, number in absent.items()
        )
    return told


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"layers": (2, 5)}, [2, 3, 4, 5]),
        ({"layers": (1, 6), "buckets": 3}, [1, 3, 5]),
        ({"layers": (2, 6), "buckets": 2}, [2, 4]),
        ({"layers": (4, 4)}, [4]),
    ],
)
@pytest.mark.parametrize("words", [60, 53])
def test_frequent_words_leave_first_in_buckets_of_equal_size(words, options, layers):
    rows, labels = corpus(words)
    found, _ = fitted("frequency", rows, labels, **options)
    check_buckets(found, Counter(token for row in rows for token in row), layers)


def test_telling_words_leave_first():
    rows, labels = corpus()
    found, _ = fitted("mutual_information", rows, labels)
    check_buckets(found, contributions(rows, labels), [1, 2, 3, 4, 5, 6])
    assert found != fitted("frequency", rows, labels)[0]


def test_what_a_word_tells_about_the_label_is_sklearns_mutual_information():
    rows, labels = corpus()
    told = contributions(rows, labels)
    seen = np.array(sorted(told))
    found = mutual_information(seen, rows, labels)
    np.testing.assert_allclose(found, [told[word] for word in seen], atol=1e-12)
    pairs = [(token, label) for row, label in zip(rows, labels) for token in row if token not in SPECIAL]
    assert found.sum() == pytest.approx(mutual_info_score(*zip(*pairs)))


def test_with_several_labels_a_word_tells_about_each():
    rows, first = corpus()
    second = np.array([int(25 in row) for row in rows])
    told = [contributions(rows, labels) for labels in (first, second)]
    seen = np.array(sorted(told[0]))
    found = mutual_information(seen, rows, np.stack([first, second], axis=1).astype(np.float32))
    np.testing.assert_allclose(found, [told[0][word] + told[1][word] for word in seen], atol=1e-12)


def test_clusters_of_embeddings_leave_by_the_sum_of_their_lengths():
    model = tiny_model("bert", token_exits=True)
    directions = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    groups = {3: range(20, 30), 1: range(30, 34), 2: range(40, 60)}  # sums of lengths: 100, 12 and 20
    lengths = {3: 10.0, 1: 3.0, 2: 1.0}
    embeddings = model.get_input_embeddings().weight
    for layer, words in groups.items():
        for word in words:
            embeddings.data[word] = directions[layer] * lengths[layer] + directions[10] * 0.001 * word
    rows = [[2, *words, 3] for words in groups.values()]
    for seed in range(3):
        fit_token_exits(model, rows, np.zeros(3, int), SPECIAL, "clustered", layers=(1, 3), seed=seed)
        for layer, words in groups.items():
            assert set(model.token_exits.depths[list(words)].tolist()) == {layer}


def test_at_random_every_word_has_one_layer_of_its_own():
    rows, labels = corpus(90, rows=400)
    found, table = fitted("random", rows, labels, seed=3)
    sizes = Counter(found.values())
    assert sorted(sizes) == [1, 2, 3, 4, 5, 6]
    assert max(sizes.values()) < 30
    assert fitted("random", rows, labels, seed=3)[1] == table != fitted("random", rows, labels, seed=4)[1]
    assert set(fitted("random", rows, labels, layers=(2, 4))[0].values()) == {2, 3, 4}


def test_at_random_each_time_every_occurrence_draws_in_the_range_asked_for():
    model, (rows, labels) = tiny_model("bert", token_exits=True), corpus()
    fit_token_exits(model, rows, labels, SPECIAL, "random_each_time", layers=(2, 5), seed=11)
    assert (model.config.token_exit_range, model.config.token_exit_seed) == ([2, 5], 11)
    layers = model(input_ids=torch.full((1, 60), 20)).token_layers[0]
    assert set(layers[1:].tolist()) == {2, 3, 4, 5}
    before = layers[1:].tolist()
    fit_token_exits(model, rows, labels, SPECIAL, "random_each_time", layers=(2, 5), seed=12)
    assert model(input_ids=torch.full((1, 60), 20)).token_layers[0, 1:].tolist() != before


@pytest.mark.parametrize("method", METHODS)
def test_special_and_unseen_tokens_go_to_the_last_layer(method):
    rows, labels = corpus()
    found, table = fitted(method, [*rows, [2, 4, 4, 4, 3]], np.append(labels, 1), layers=(1, 3), seed=1)
    others = set(range(VOCABULARY)) - set(found)
    assert {table[token] for token in others} == {LAYERS}
    assert set(found.values()) == ({DRAWN} if method == "random_each_time" else {1, 2, 3})


# ---- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False], ids=["whole", "adapters"])
@pytest.mark.parametrize("method", ["frequency", "random_each_time"])
@torch.no_grad()
def test_the_table_is_saved_and_loads_back(tmp_path, trained, method):
    knobs = {"token_exits": True, "train_backbone": trained, "adapter_dim": 4}
    model = PFBerxitForSequenceClassification.from_backbone(save_backbone(tmp_path / "encoder"), **knobs)
    rows, labels = corpus()
    fit_token_exits(model, rows, labels, SPECIAL, method, layers=(1, 4), seed=5)
    model.save_pretrained(tmp_path / "saved")
    loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.token_exits.depths, model.token_exits.depths)
    assert loaded.token_exits.depths.dtype == model.token_exits.depths.dtype
    batch = tiny_batch(9)
    expected, found = model(**batch), loaded(**batch)
    assert torch.equal(found.token_layers, expected.token_layers)
    assert set(expected.token_layers.flatten().tolist()) == {0, 1, 2, 3, 4, 6}
    torch.testing.assert_close(found.logits, expected.logits)


def test_tokens_added_to_the_vocabulary_go_to_the_last_layer():
    model = hashing()
    before = model.token_exits.depths.clone()
    model.resize_token_embeddings(VOCABULARY + 5)
    assert torch.equal(model.token_exits.depths[:VOCABULARY], before)
    assert model(input_ids=torch.tensor([[2, 7, VOCABULARY + 4]])).token_layers[0, 2] == LAYERS


# ---- what cannot work is refused ------------------------------------------------------------------------------------


def test_embeddings_in_place_of_tokens_are_refused():
    model = hashing()
    with pytest.raises(ValueError, match="inputs_embeds.*token_exits.*input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 32))


def test_attention_weights_are_refused():
    model = hashing(attn_implementation="eager")
    with pytest.raises(ValueError, match="output_attentions.*token_exits"):
        model(**tiny_batch(2), output_attentions=True)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions.*token_exits"):
        model(**tiny_batch(2))


@pytest.mark.parametrize(
    ("sublearner", "placement"),
    [
        *((name, place) for name in ("conv", "self_attention") for place in ("ffn", "attention", "both", "sequential")),
        ("conv", "bypass"),
    ],
)
def test_adapters_that_look_at_neighbours_are_refused(sublearner, placement):
    with pytest.raises(ValueError, match="token_exits=True.*False with this adapter_sublearner"):
        tiny_model("bert", token_exits=True, adapter_sublearner=sublearner, adapter_placement=placement)


@pytest.mark.parametrize(
    "knobs",
    [
        {"adapter_sublearner": "identity"},
        {"adapter_sublearner": "mlp", "adapter_placement": "both"},
        {"adapter_sublearner": "conv", "adapter_conv_kernel": 1},
    ],
)
def test_adapters_that_look_at_one_token_are_welcome(knobs):
    model, batch = hashing(**knobs), tiny_batch(7)
    expected = model(**batch).logits
    for row, ids in enumerate(rows_of(batch)):
        torch.testing.assert_close(model(input_ids=ids[None]).logits[0], expected[row], **CLOSE)


@pytest.mark.parametrize("value", [[1], [1, 2, 3], [0, 3], [4, 2], [1.5, 3], "13", 3])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="token_exit_range"):
        PFBerxitConfig.from_backbone(tiny_config(), token_exits=True, token_exit_range=value)


def test_a_range_beyond_the_last_layer_is_refused():
    with pytest.raises(ValueError, match=r"token_exit_range=\[2, 7\].*1 to 6"):
        tiny_model("bert", token_exits=True, token_exit_range=[2, 7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "entropy"}, "method='entropy'.*random, random_each_time, frequency, mutual_information, clustered"),
        ({"layers": (0, 3)}, r"layers=\(0, 3\).*1 to 6"),
        ({"layers": (4, 2)}, r"layers=\(4, 2\).*lowest first"),
        ({"layers": (2, 7)}, r"layers=\(2, 7\).*1 to 6"),
        ({"buckets": 7}, "buckets=7"),
        ({"layers": (2, 4), "buckets": 4}, "buckets=4"),
        ({"buckets": -1}, "buckets=-1"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_refused_and_the_old_one_kept(options, message):
    model, (rows, labels) = hashing(), corpus()
    before = model.token_exits.depths.clone()
    with pytest.raises(ValueError, match=message) as caught:
        fit_token_exits(model, rows, labels, SPECIAL, **options)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.token_exits.depths, before)


def test_a_model_without_token_exits_has_no_table_to_fit():
    with pytest.raises(ValueError, match="token_exits=False.*True before the model is made"):
        fit_token_exits(tiny_model("bert"), *corpus(), SPECIAL)
