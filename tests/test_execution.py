"""Short cuts: what they expect is never wrong, what they skip nobody misses, and none of them changes an answer."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_criteria import DEPTHS, EXITS, judge
from test_criteria_promises import JUDGED, RULES, clean_evidence, generous, recorded_from, setting
from test_token_first import EAGER, PLAIN, cls_model, counted, executed, run, same
from tiny import LAYERS, hooked, rows_of, tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model import execution
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, ExitState, outcomes
from modeling_pfberxit.model.execution import Execution
from modeling_pfberxit.model.loop import Loop
from modeling_pfberxit.model.rows import CallRecord
from modeling_pfberxit.model.steps import chance, start, step

ROWS = 8
EXITED = [1, 2, 4, 7, 9, 12]  # the layers that have an exit, of twelve
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

# ---- what a rule may do at the coming exit --------------------------------------------------------------------------


@cache
def deep_model():
    return tiny_model("albert", backbone_changes={"num_hidden_layers": 12}, num_labels=3, exit_layers=EXITED)


def may_leave(policy: ExitPolicy, problem_type: str) -> list[bool]:
    """Whether the loop expects that anybody could leave, after each of twelve layers."""
    loop = Loop(deep_model(), CallRecord(), policy, None, problem_type)
    return [loop.may_exit(depth) for depth in range(1, 13)]


@st.composite
def policies(draw, name: str) -> ExitPolicy:
    tau = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 1e9]), st.floats(0.0, 3.0))
    patience = draw(st.integers(1, EXITS))
    return ExitPolicy(
        **RULES[name],
        divergence=draw(st.sampled_from(["kl", "js_div"])),
        threshold=draw(st.one_of(tau, st.tuples(*[tau] * EXITS))),
        patience=patience,
        window=draw(st.integers(patience, EXITS)),
        min_layer=draw(st.integers(1, 12)),
        appointed_layer=draw(st.sampled_from(EXITED)),
        normalize=draw(st.booleans()),
    )


@st.composite
def evidences(draw, problem_type: str) -> Evidence:
    """Logits that agree or do not, often exactly, and now and then NaN."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    leaning = torch.randn(ROWS, 1, 3, generator=generator) * draw(st.sampled_from([0.0, 2.0, 30.0]))
    logits = leaning + torch.randn(ROWS, EXITS, 3, generator=generator) * draw(st.sampled_from([0.0, 0.3, 2.0]))
    logits = logits.round() if draw(st.booleans()) else logits
    broken = torch.rand(ROWS, EXITS, generator=generator) < draw(st.sampled_from([0.0, 0.2]))
    lte = torch.rand(ROWS, EXITS, generator=generator)
    distances = 3 * torch.rand(ROWS, EXITS, *outcomes(3, problem_type), generator=generator)
    nsp = torch.rand(ROWS, EXITS, generator=generator)
    return Evidence(logits.masked_fill(broken[..., None], torch.nan), lte, distances, nsp)


@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_no_row_ever_does_what_it_has_no_chance_of(problem_type, name):
    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(policies(name), evidences(problem_type))
    def holds(policy: ExitPolicy, evidence: Evidence) -> None:
        state = start(ROWS, 3, policy, EXITS, problem_type, torch.device("cpu"))
        possible = may_leave(policy, problem_type)
        for number, depth in enumerate(EXITED):
            standing, now = torch.full((ROWS,), depth), evidence.at(number)
            before = [getattr(state, field).clone() for field in ("past", "seen", "count")]
            expected = chance(state, policy, standing, EXITS)
            for field, held in zip(("past", "seen", "count"), before, strict=True):
                assert torch.equal(getattr(state, field).nan_to_num(), held.nan_to_num())
            assert expected.shape == (ROWS,) and ((0 <= expected) & (expected <= 1)).all()
            fire, _ = step(now, state, policy, standing)
            assert not fire[expected == 0].any()
            assert fire[(expected == 1) & ~now.logits.isnan().any(-1)].all()
            assert possible[depth - 1] or not (fire.any() or expected.any())
            assert depth >= policy.floor or not fire.any()

    holds()


@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_chances_are_the_same_in_mixed_company(problem_type, name):
    """Rows of different depths stand in one batch; each has the chance it would have alone."""
    policy, evidence = replace(generous(name), patience=2, appointed_layer=4), clean_evidence(problem_type)
    states, depths = [], []
    for passed in range(EXITS):
        state = start(1, 3, policy, EXITS, problem_type, torch.device("cpu"))
        for number in range(passed):
            step(evidence.at(number), state, policy, torch.tensor([EXITED[number]]))
        states.append(state)
        depths.append(EXITED[passed])
    together = chance(ExitState.cat(states), policy, torch.tensor(depths), EXITS)
    singly = [chance(state, policy, torch.tensor([depth]), EXITS) for state, depth in zip(states, depths, strict=True)]
    assert together.tolist() == torch.cat(singly).tolist()
    assert 0.0 in together.tolist() or CRITERIA[policy.criterion].earliest(policy) == 1
    assert together[-1] > 0


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_the_surest_row_leaves_at_the_first_layer_where_any_may(problem_type, name, patience):
    """What is expected is no mere caution: exits before that layer are the only ones that may be passed over."""
    policy = replace(generous(name), patience=patience, window=3, appointed_layer=4, min_layer=2)
    fired = judge(clean_evidence(problem_type), policy, problem_type, EXITED)[0][0].tolist()
    assert EXITED[fired.index(True)] == may_leave(policy, problem_type).index(True) + 1


@pytest.mark.parametrize(
    ("policy", "row", "expected"),
    [  # at each exit the row agrees with the one before ("a") or not ("b")
        ({"criterion": "patience", "patience": 1}, "aaaaaa", [0, 1 / 5, 0.5, 0.5, 0.5, 0.5]),
        ({"criterion": "patience", "patience": 2}, "aaaaaa", [0, 0, 0.5, 0.5, 0.5, 0.5]),
        ({"criterion": "patience", "patience": 2}, "aabaaa", [0, 0, 0.5, 0, 0.5, 0.5]),
        ({"criterion": "patience", "patience": 2, "min_layer": 5}, "aaaaaa", [0, 0, 0, 0, 0.5, 0.5]),
        ({"criterion": "divergence_v3", "patience": 2, "window": 3}, "abaaaa", [0, 0, 1 / 4, 1 / 3, 0.5, 0.5]),
        ({"criterion": "entropy"}, "aaaaaa", [1 / 6, 1 / 5, 1 / 4, 1 / 3, 0.5, 0.5]),
        ({"criterion": "entropy", "min_layer": 3}, "aaaaaa", [0, 0, 1 / 4, 1 / 3, 0.5, 0.5]),
        ({"criterion": "pcee", "patience": 3, "threshold": 9.0}, "aaaaaa", [0, 0, 0.5, 0.5, 0.5, 0.5]),
        ({"criterion": "voting", "patience": 2}, "aaaaaa", [0, 1 / 5, 1 / 4, 1 / 3, 0.5, 0.5]),
        ({"criterion": "appointed", "appointed_layer": 4}, "aaaaaa", [0, 0, 0, 1, 1, 1]),
        ({"criterion": "appointed", "appointed_layer": 2, "min_layer": 4}, "aaaaaa", [0, 0, 0, 1, 1, 1]),
    ],
)
def test_chances_by_hand(policy, row, expected):
    policy = ExitPolicy(**{"threshold": 0.5, **policy})
    state, label, chances = start(1, 2, policy, EXITS, SINGLE_LABEL, torch.device("cpu")), 0, []
    for depth, letter in zip(DEPTHS, row, strict=True):
        chances.append(chance(state, policy, torch.tensor([depth]), EXITS).item())
        label = label if letter == "a" else 1 - label
        step(Evidence(torch.tensor([[3.0, -3.0]]).roll(label, 1)), state, policy, torch.tensor([depth]))
    assert chances == pytest.approx(expected)


def test_the_floor_is_the_layer_below_which_no_row_leaves():
    assert ExitPolicy().floor == 1
    assert ExitPolicy("entropy", threshold=1.0, min_layer=4, appointed_layer=2).floor == 4
    assert ExitPolicy("appointed", appointed_layer=5).floor == 5
    assert ExitPolicy("appointed", appointed_layer=5, min_layer=6).floor == 6


# ---- exits that nobody has to hear ----------------------------------------------------------------------------------


def heard(model, policy: ExitPolicy, batch: dict[str, torch.Tensor]) -> list[int]:
    """How many rows each exit's classifier is asked about."""
    rows = dict.fromkeys(model.exits.classifiers, 0)

    def count(module, inputs):
        rows[module] += len(inputs[0])

    with hooked(list(rows), before=count), torch.no_grad():
        model(**batch, exit_policy=policy)
    return list(rows.values())


ALONE = ("entropy", "lte", "distance", "cap")  # rules that look at one exit


@pytest.mark.parametrize("name", ALONE)
def test_exits_that_nobody_may_leave_at_are_not_asked(name):
    model, batch = cls_model("bert"), tiny_batch(20)
    policy = replace(setting(name, SINGLE_LABEL, recorded_from(model, batch)), min_layer=4)
    asked = heard(model, policy, batch)
    assert asked[:4] == [0, 0, 0, 20] and 0 < asked[5] < 20


def test_an_appointed_layer_asks_its_exit_alone():
    model, batch = cls_model("bert"), tiny_batch(20)
    assert heard(model, ExitPolicy("appointed", appointed_layer=3), batch) == [0, 0, 20, 0, 0, 0]
    assert heard(model, ExitPolicy("appointed", appointed_layer=2, min_layer=5), batch) == [0, 0, 0, 0, 20, 0]


@pytest.mark.parametrize("name", [name for name in RULES if name not in (*ALONE, "appointed")])
def test_exits_that_the_rule_looks_back_on_are_asked_though_nobody_may_leave(name):
    model, batch = cls_model("bert"), tiny_batch(20)
    policy = replace(setting(name, SINGLE_LABEL, recorded_from(model, batch)), min_layer=4)
    assert heard(model, policy, batch)[:4] == [20, 20, 20, 20]


@pytest.mark.parametrize("exit_layers", [None, (2, 3, 5)], ids=["every exit", "some exits"])
@pytest.mark.parametrize("name", RULES)
def test_thresholds_of_single_exits_stay_with_them_when_others_are_not_asked(name, exit_layers):
    model, batch = cls_model("bert", exit_layers=exit_layers), tiny_batch(33)
    evidence, exits = recorded_from(model, batch), len(model.exit_depths)
    tau = setting(name, SINGLE_LABEL, evidence).threshold
    taus = (0.0, 3 * tau, 0.4 * tau, tau, 1.3 * tau, 0.7 * tau)[-exits:]
    policy = replace(generous(name), threshold=taus, min_layer=3, appointed_layer=5)
    same(run(model, batch, policy, EAGER), replay(evidence, policy, model.exit_depths, SINGLE_LABEL))
    same(run(model, batch, policy, Execution()), replay(evidence, policy, model.exit_depths, SINGLE_LABEL))


# ---- what pays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaving", "rows", "length", "weights", "expected"),
    [
        (1.0, 1, 25, 24.0, True),  # all leave: the weights are read once
        (1.0, 1, 1, 24.0, False),  # one token: nothing to save
        (0.0, 8, 100, 0.0, False),  # nobody leaves
        (4.0, 8, 6, 24.0, False),  # 4 * 5 = 20 positions saved, 24 * 4 / 8 + 2 * 4 = 20 to pay
        (4.0, 8, 7, 24.0, True),  # 24 against 20
        (0.5, 1, 27, 24.0, False),  # 13 against 12 + 1
        (0.5, 1, 28, 24.0, True),  # 13.5 against 13
        (0.5, 2, 8, 0.0, True),  # 3.5 against 3: reading the weights costs nothing
        (0.5, 2, 8, 1.0, False),  # 3.5 against 3.75
    ],
)
def test_the_token_comes_first_where_that_saves_more_than_reading_the_weights_again(
    leaving, rows, length, weights, expected
):
    short_cuts = Execution(weights_in_tokens=weights)
    assert short_cuts.splits(leaving, rows, length, "cpu") is expected
    for off in ("token_first", "drop_rows"):  # rows that are not dropped save nothing
        assert not replace(short_cuts, **{off: False}).splits(leaving, rows, length, "cpu")
    assert replace(short_cuts, trim=False).splits(leaving, rows, length, "cpu") is expected


@given(
    st.integers(1, 64), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(1, 300), st.floats(0.0, 1e4),
    st.sampled_from(["cpu", "cuda", "mps"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_what_pays_still_pays_with_more_to_save(rows, share, more, length, weights, device):
    short_cuts, leaving = Execution(weights_in_tokens=weights), share * rows
    if short_cuts.splits(leaving, rows, length, device):
        assert short_cuts.splits(leaving + more * (rows - leaving), rows, length, device)
        assert short_cuts.splits(leaving, rows, length + 7, device)
        assert replace(short_cuts, weights_in_tokens=weights * more).splits(leaving, rows, length, device)
    if short_cuts.feeds(length, device):
        assert short_cuts.feeds(length + 1, device)
    assert short_cuts.room(length, device) >= short_cuts.room(length + 1, device) >= 1
    gone = round(leaving)
    if short_cuts.drops(gone, rows):
        assert short_cuts.drops(gone + 1, rows + 1)


def test_what_feeds_fits_and_is_worth_a_copy_by_hand():
    by_device, own = Execution(), Execution(weights_in_tokens=3.0)
    assert (own.weights("cpu"), own.weights("cuda")) == (3.0, 3.0)
    assert [own.feeds(tokens, "cpu") for tokens in (59, 60, 61)] == [False, True, True]
    assert [by_device.feeds(tokens, "cpu") for tokens in (239, 240)] == [False, True]
    assert [by_device.feeds(tokens, "cuda") for tokens in (20479, 20480)] == [False, True]
    assert [by_device.room(length, "cpu") for length in (1, 128, 129, 1024, 2048, 5000)] == [2048, 16, 15, 2, 1, 1]
    assert by_device.room(512, "cuda") > 1_000_000  # memory is the batch size's business
    assert [by_device.drops(1, rows) for rows in (1, 50, 51)] == [True, True, False]
    assert [by_device.drops(done, 100) for done in (0, 1, 2, 100)] == [False, False, True, True]
    assert not Execution(drop_rows=False).drops(100, 100)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *product(("token_first", "drop_rows", "trim"), (None, 1, 0, "yes", [True])),
        *product(("weights_in_tokens",), (-1, -1e-9, float("nan"), float("inf"), True, "24", [24])),
    ],
)
def test_a_bad_switch_is_refused_in_one_line(field, value):
    with pytest.raises(ValueError) as refusal:
        Execution(**{field: value})
    message = str(refusal.value)
    assert message.startswith(f"{field}={value!r}: must be ") and "\n" not in message


# ---- the answers ----------------------------------------------------------------------------------------------------

SWITCHES = [
    Execution(*switches, weights_in_tokens=weights)
    for *switches, weights in product(*[(True, False)] * 3, (None, 0.0, 1e9))
]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["albert", "bert"])
def test_no_short_cut_changes_an_answer(family, pooling):
    model, batch = several_exits(family, pooling), tiny_batch(66, shortest=1)
    recorded = recorded_from(model, batch)
    for name in ("max_prob", "divergence_v2"):
        policy = setting(name, SINGLE_LABEL, recorded)
        expected = replay(recorded, policy, model.exit_depths, SINGLE_LABEL)
        assert len(set(expected[1].tolist())) >= 3
        for short_cuts in SWITCHES:
            same(run(model, batch, policy, short_cuts, 66), expected)


@cache
def several_exits(family: str, pooling: str):
    if pooling == "cls":
        return cls_model(family, "conv", "both")
    knobs = {"adapter_sublearner": "conv", "num_labels": 3, "problem_type": SINGLE_LABEL}
    model = tiny_model(family, seed=2, **knobs)
    model.backbone.embeddings.word_embeddings.weight.data.mul_(30)
    return model


@pytest.mark.parametrize("stream", [False, True], ids=["forward", "stream"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", ["albert", "bert"])
@pytest.mark.parametrize("share", [0.3, 0.9, None], ids=["few", "most", "all"])
def test_rows_that_are_done_but_not_dropped_get_one_answer_each(family, pooling, stream, share, monkeypatch):
    model, batch = several_exits(family, pooling), tiny_batch(40)
    recorded, answered = recorded_from(model, batch), []
    answer = CallRecord.answer

    def spy(walk, index, logits, layers):
        answered.extend(index.tolist())
        answer(walk, index, logits, layers)

    policy = setting("entropy", SINGLE_LABEL, recorded)
    expected = replay(recorded, policy, model.exit_depths, SINGLE_LABEL)
    monkeypatch.setattr(CallRecord, "answer", spy)
    monkeypatch.setattr(execution, "DROP_SHARE", share or 0.0)
    # In a stream rows that are done have to wait with the others, and be merged and split.
    short_cuts = Execution(weights_in_tokens=1e6 if stream else 0.0, drop_rows=share is not None)
    with counted(model, "key") as positions:
        if stream:
            with executed(model, short_cuts):
                output = model.predict([{"input_ids": ids} for ids in rows_of(batch)], policy, 7, progress=False)
            same((output.logits, output.exit_layer), expected)
        else:
            same(run(model, batch, policy, short_cuts, 40), expected)
    assert sorted(answered) == list(range(40))
    tokens = int((batch["attention_mask"].sum(1) * expected[1]).sum())
    assert sum(map(sum, positions.values())) >= tokens
    if share is None and not stream:  # all rows, until the last of them is done
        assert sum(positions["key"]) == batch["input_ids"].numel() * int(expected[1].max())


def test_without_trimming_padding_stays_and_answers_too():
    model, batch = several_exits("bert", "cls"), tiny_batch(40)
    policy, seen = setting("entropy", SINGLE_LABEL, recorded_from(model, batch)), {}
    for trim in (True, False):
        with counted(model, "key") as positions:
            seen[trim] = run(model, batch, policy, Execution(trim=trim), 40)
        left = [int((seen[trim][1] > depth).sum()) for depth in range(LAYERS)]
        untrimmed = [rows * batch["input_ids"].shape[1] for rows in left]
        assert positions["key"] == untrimmed if not trim else sum(positions["key"]) < sum(untrimmed)
    same(seen[True], seen[False])


def test_plain_runs_every_row_to_the_end():
    model, batch = several_exits("bert", "cls"), tiny_batch(20)
    policy = setting("entropy", SINGLE_LABEL, recorded_from(model, batch))
    with counted(model, "up") as positions:
        run(model, batch, policy, PLAIN)
    assert positions["up"] == [batch["input_ids"].numel()] * LAYERS
