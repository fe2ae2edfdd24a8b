"""What every exit criterion promises, whatever its rule: rows are on their own, NaN stays, online equals replay."""

from dataclasses import replace

import pytest
import torch
from test_criteria import DEPTHS, EXITS, first_exit, judge, random_logits, three_classes, thresholds_between
from tiny import tiny_batch, tiny_model
from torch import Tensor

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, outcomes, predictions
from modeling_pfberxit.model.steps import start, step

RULES = {
    **{name: {"criterion": name} for name in CRITERIA},
    "pcee-run": {"criterion": "pcee", "ensemble": "run"},
    "pcee-all": {"criterion": "pcee", "ensemble": "all"},
    "window-monotone": {"criterion": "window", "window_rule": "monotone"},
    "window-narrow": {"criterion": "window", "window_rule": "narrow", "window_range": 0.2},
}  # every criterion, and the faces that some of them have
JUDGED = [(problem, name) for name, rule in RULES.items() for problem in CRITERIA[rule["criterion"]].problem_types]


def in_turn(*values) -> list[tuple]:
    """Every rule with every problem, and with each one of these values, which have nothing to do with the rule."""
    return [(*case, values[number % len(values)]) for number, case in enumerate(JUDGED)]


BY_CERTAINTY = ("max_prob", "voting", "beem")  # their rows leave at tau or above, those of all others below
COMPARING = ("divergence_v1", "divergence_v2", "divergence_v3", "patience", "dge")  # mute at the first exit
OF_SEVERAL_EXITS = ("max_prob", "pcee-run", "pcee-all", "voting")  # what their answers are made of
TAU_ALONE = [
    (problem, name)
    for problem, name in JUDGED
    if name not in (*BY_CERTAINTY, "patience", "appointed") and not name.startswith("window")  # its 2nd stage has none
]


def random_evidence(rows: int, problem_type: str, seed: int = 0) -> Evidence:
    """Everything an exit can emit, for rows (B, E, ...) whose exits lean the same way, more or less."""
    generator, logits = torch.Generator().manual_seed(seed + 100), random_logits(rows, seed=seed)
    lte = torch.rand(rows, EXITS, generator=generator)
    distances = 3 * torch.rand(rows, EXITS, *outcomes(logits.shape[-1], problem_type), generator=generator)
    return Evidence(logits, lte, distances, torch.rand(rows, EXITS, generator=generator))


def of_rows(evidence: Evidence, rows: Tensor | slice, exits: int | slice = slice(None)) -> Evidence:
    """The evidence of some rows, at some exits."""
    return Evidence(*(part[rows, exits] for part in evidence))


def joined(*parts: Evidence) -> Evidence:
    return Evidence(*(torch.cat(same) for same in zip(*parts)))


def generous(name: str) -> ExitPolicy:
    """A policy under which every row leaves as early as the rule ever lets one."""
    tau = 0.0 if name in BY_CERTAINTY else 1e9
    return ExitPolicy(**RULES[name], threshold=tau, patience=1, window=2, appointed_layer=1)


def scores(evidence: Evidence, policy: ExitPolicy, problem_type: str) -> list[float]:
    """The finite scores that occur."""
    rows, exits, labels = evidence.logits.shape
    state, found = start(rows, labels, policy, exits, problem_type, evidence.logits.device), []
    for number in range(exits):
        now = predictions(evidence.logits[:, number], problem_type)
        found.append(CRITERIA[policy.criterion].score(now, evidence.at(number), state, policy).flatten())
        state.remember(now)
    found = torch.cat(found)
    return found[found.isfinite()].tolist()


def setting(name: str, problem_type: str, evidence: Evidence, share: float = 0.4) -> ExitPolicy:
    """A policy under which the rows of this evidence part."""
    patience = 2 if name.startswith(("pcee", "voting")) else 1
    policy = ExitPolicy(**RULES[name], threshold=0.5, patience=patience, window=2, appointed_layer=3)
    occurring = scores(evidence, policy, problem_type)
    if len(set(occurring)) < 2:  # it only agrees or disagrees, or does not look
        return policy
    return replace(policy, threshold=thresholds_between(occurring, (share,))[0])


def same_answers(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ---- rows are on their own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_rows_never_see_each_other(name, problem_type):
    evidence = random_evidence(40, problem_type)
    policy = setting(name, problem_type, evidence)
    whole, answers = judge(evidence, policy, problem_type)
    assert whole.any() and not whole.all()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = judge(of_rows(evidence, order), policy, problem_type)
    assert torch.equal(shuffled[0], whole[order])
    same_answers(shuffled[1], answers[order])
    for size in (1, 7):
        parts = torch.arange(40).split(size)
        pieces = [judge(of_rows(evidence, part), policy, problem_type) for part in parts]
        assert torch.equal(torch.cat([fired for fired, _ in pieces]), whole)
        same_answers(torch.cat([answer for _, answer in pieces]), answers)


@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_rows_that_leave_change_nothing_for_those_that_stay(name, problem_type):
    evidence = random_evidence(40, problem_type, seed=2)
    policy = setting(name, problem_type, evidence)
    whole, answers = judge(evidence, policy, problem_type)
    state = start(40, 3, policy, EXITS, problem_type, evidence.logits.device)
    rows, stay = torch.arange(40), torch.arange(39, -1, -3)
    for number, depth in enumerate(DEPTHS):
        if depth == 4:
            rows, state = rows[stay], state.select(stay)
        fired, answer = step(of_rows(evidence, rows, number), state, policy, torch.full_like(rows, depth))
        assert torch.equal(fired, whole[rows, number])
        same_answers(answer, answers[rows, number])


@pytest.mark.parametrize("own_thresholds", [False, True])
@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_rows_of_different_depths_can_stand_in_one_batch(name, problem_type, own_thresholds):
    evidence = random_evidence(40, problem_type, seed=3)
    policy = setting(name, problem_type, evidence)
    if own_thresholds:
        tau = policy.threshold
        policy = replace(policy, threshold=(tau, 0.2 * tau, 2 * tau, tau, 0.5 * tau, 2 * tau))
    whole, answers = judge(evidence, policy, problem_type)
    late, first, second = 2, slice(0, 20), slice(20, 40)  # the second half stands two exits behind the first
    ahead, behind = (start(20, 3, policy, EXITS, problem_type, evidence.logits.device) for _ in range(2))
    for number in range(late):
        step(of_rows(evidence, first, number), ahead, policy, torch.full((20,), number + 1))
    memory = {name: torch.cat([getattr(ahead, name), getattr(behind, name)]) for name in ("past", "seen", "count")}
    state = replace(ahead, **memory)
    for number in range(EXITS - late):
        depth = torch.tensor([number + late + 1] * 20 + [number + 1] * 20)
        now = joined(of_rows(evidence, first, number + late), of_rows(evidence, second, number))
        fired, answer = step(now, state, policy, depth)
        assert torch.equal(fired, torch.cat([whole[first, number + late], whole[second, number]]))
        same_answers(answer, torch.cat([answers[first, number + late], answers[second, number]]))


@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_no_rule_lets_rows_leave_before_min_layer(name, problem_type):
    evidence = random_evidence(40, problem_type, seed=4)
    policy = setting(name, problem_type, evidence)
    whole, answers = judge(evidence, policy, problem_type)
    later, same = judge(evidence, replace(policy, min_layer=4), problem_type)
    assert whole[:, :3].any() and not later[:, :3].any()
    assert torch.equal(later[:, 3:], whole[:, 3:])  # what was seen before that layer still counts
    same_answers(same[:, 3:], answers[:, 3:])


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type, name", [case for case in JUDGED if case[1] not in OF_SEVERAL_EXITS])
def test_the_answer_is_the_exit_s_own(name, problem_type):
    evidence = random_evidence(40, problem_type)
    assert torch.equal(judge(evidence, setting(name, problem_type, evidence), problem_type)[1], evidence.logits)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("name", OF_SEVERAL_EXITS)
def test_an_answer_of_several_exits_lies_between_them(name, problem_type):
    evidence = random_evidence(60, problem_type)
    fired, answers = judge(evidence, setting(name, problem_type, evidence), problem_type)
    own = torch.stack([predictions(logits, problem_type).exp() for logits in evidence.logits.unbind(1)], dim=1)
    for number in range(EXITS):
        answer, so_far = predictions(answers[:, number], problem_type).exp(), own[:, : number + 1]
        assert (answer <= so_far.amax(1) + 1e-6).all() and (answer >= so_far.amin(1) - 1e-6).all()
    torch.testing.assert_close(answers[:, 0].softmax(-1), evidence.logits[:, 0].softmax(-1))
    assert not torch.allclose(answers.softmax(-1), evidence.logits.softmax(-1), atol=1e-2)
    if name == "max_prob":  # a sure exit speaks for itself
        assert fired.any() and torch.equal(answers[fired], evidence.logits[fired])


# ---- thresholds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type, name", TAU_ALONE)
def test_a_threshold_of_zero_lets_no_row_leave_that_must_be_below_it(name, problem_type):
    sure = Evidence(torch.tensor([200.0, -200.0, -200.0]), torch.tensor(0.0), torch.zeros(outcomes(3, problem_type)),
                    torch.tensor(0.0))  # fmt: skip
    sure = Evidence(*(part.expand(1, EXITS, *part.shape) for part in sure))  # nothing can be below its scores
    for evidence in (sure, random_evidence(100, problem_type)):
        assert not judge(evidence, replace(generous(name), threshold=0.0), problem_type)[0].any()
    assert judge(sure, generous(name), problem_type)[0][:, 1:].all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("problem_type, name", [each for each in JUDGED if each[1] in BY_CERTAINTY])
def test_a_threshold_of_zero_lets_every_row_leave_that_must_reach_it(name, problem_type, normalize):
    policy = replace(generous(name), normalize=normalize)
    clueless = torch.zeros(1, EXITS, 3)
    for logits in (clueless, random_logits(100)):
        assert judge(Evidence(logits), policy, problem_type)[0].all()
        beyond = replace(policy, threshold=2.01)  # no probability is, no share, nor 0.2 + 0.3 ... + 0.6
        assert not judge(Evidence(logits), beyond, problem_type)[0].any()


def test_at_the_threshold_only_certainty_leaves():
    sure, half = torch.tensor([[[200.0, -200.0, -200.0]] * EXITS]), torch.full((1, EXITS), 0.5)
    for name in ("max_prob", "voting"):  # probability 1, all votes
        assert judge(Evidence(sure), replace(generous(name), threshold=1.0), SINGLE_LABEL)[0].all()
    policy = ExitPolicy("lte", threshold=0.5)
    assert not judge(Evidence(sure, half), policy, SINGLE_LABEL)[0].any()
    assert judge(Evidence(sure, half - 1e-4), policy, SINGLE_LABEL)[0].all()


# ---- NaN and precision ----------------------------------------------------------------------------------------------


def clean_evidence(problem_type: str) -> Evidence:
    """One row, of which all exits say the same."""
    return Evidence(
        torch.ones(1, EXITS, 3), torch.full((1, EXITS), 0.5), torch.ones(1, EXITS, *outcomes(3, problem_type)),
        torch.full((1, EXITS), 0.5),
    )  # fmt: skip


@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_nan_never_exits_early(name, problem_type):
    policy, clean = generous(name), clean_evidence(problem_type)
    mute = 1 if name in COMPARING else 0
    expected = judge(clean, policy, problem_type)[0]
    assert expected.tolist() == [[False] * mute + [True] * (EXITS - mute)]
    assert not judge(clean._replace(logits=clean.logits * torch.nan), policy, problem_type)[0].any()
    for number in range(EXITS):
        for label in range(3):
            spoilt = clean.logits.clone()
            spoilt[0, number, label] = torch.nan
            beside = judge(joined(clean, clean._replace(logits=spoilt)), policy, problem_type)[0]
            assert not beside[1, number]
            assert torch.equal(beside[:1], expected)


@pytest.mark.parametrize("problem_type, name", [case for case in JUDGED if case[1] in ("lte", "distance")])
def test_nan_beside_the_logits_never_exits_early_where_it_is_judged(name, problem_type):
    policy, spoilt = generous(name), clean_evidence(problem_type)
    (spoilt.lte if name == "lte" else spoilt.distances)[0, 2] = torch.nan
    fired = judge(spoilt, policy, problem_type)[0]
    assert fired.tolist() == [[number != 2 for number in range(EXITS)]]


@pytest.mark.parametrize(
    "policy, expected",
    [
        ({"criterion": "divergence_v1", "patience": 2}, 6),  # A A nan A A A: passes 1 0 0 1 1
        ({"criterion": "divergence_v2", "patience": 2, "window": 2}, None),  # 1 0 0 0 1
        ({"criterion": "divergence_v3", "patience": 2, "window": 3}, 4),  # A on (nan, A, A)
        ({"criterion": "divergence_v3", "patience": 2, "window": 2}, 6),  # A on (nan, A), (A, nan), (A, A)
        ({"criterion": "patience", "patience": 2}, 6),
        ({"criterion": "patience", "patience": 3}, None),
        ({"criterion": "entropy", "min_layer": 3}, 4),  # A scores 0.639
        ({"criterion": "max_prob", "threshold": 0.7, "min_layer": 3}, 4),
        ({"criterion": "window", "threshold": 0.0, "window": 3}, 6),
        ({"criterion": "window", "threshold": 0.0, "window": 2, "min_layer": 3}, 5),
        ({"criterion": "pcee", "patience": 3}, 6),  # the run starts again
        ({"criterion": "dge", "patience": 1, "window": 2, "min_layer": 3}, 6),
        ({"criterion": "dge", "patience": 1, "window": 1, "min_layer": 3}, 5),
        ({"criterion": "voting", "threshold": 0.0, "patience": 4}, 5),  # it has no vote
    ],
)
def test_nan_agrees_with_nothing(policy, expected):
    row = three_classes("AAAAAA")
    row[2] = torch.nan
    assert first_exit(row, **{"threshold": 1.0, **policy}) == expected


@pytest.mark.parametrize("name", OF_SEVERAL_EXITS)
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_an_exit_that_emits_nan_has_no_part_in_later_answers(name, problem_type):
    logits = random_logits(20)
    whole = judge(Evidence(logits), generous(name), problem_type)[1]
    logits[:, 1] = torch.nan
    answers = judge(Evidence(logits), generous(name), problem_type)[1]
    assert torch.equal(answers[:, 0], whole[:, 0])
    assert answers[:, 2:].isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_a_model_whose_exits_emit_nan_runs_to_its_last_layer(name):
    model = tiny_model("bert", num_labels=3, use_lte=True, use_prototypes=True, use_nsp=True)
    policy, batch = generous(name), tiny_batch(6)
    assert model(**batch, exit_policy=policy).exit_layer.max() < 6
    with torch.no_grad():
        for classifier in model.exits.classifiers[:-1]:
            classifier.bias.fill_(torch.nan)
    output = model(**batch, exit_policy=policy)
    assert output.exit_layer.tolist() == [6] * 6
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("problem_type, name", JUDGED)
def test_scores_are_single_precision_whatever_the_logits_are(name, problem_type):
    evidence = random_evidence(100, problem_type)
    halves = evidence._replace(logits=evidence.logits.bfloat16())
    singles = evidence._replace(logits=halves.logits.float())
    policy = setting(name, problem_type, singles)
    assert predictions(halves.logits[:, 0], problem_type).dtype == torch.float32
    fired, answers = judge(halves, policy, problem_type)
    expected, wider = judge(singles, policy, problem_type)
    assert torch.equal(fired, expected)
    assert answers.dtype == torch.bfloat16  # the answer is rounded once, at the end
    assert torch.equal(answers, wider.bfloat16())


# ---- online and replayed --------------------------------------------------------------------------------------------

OUTPUTS = {SINGLE_LABEL: 3, MULTI_LABEL: 2, REGRESSION: 1}


def model_with_varied_rows(family: str, name: str, problem_type: str, **knobs) -> PFBerxitForSequenceClassification:
    """A tiny model whose answers depend on the tokens enough for rows to part, and that emits what the rule needs."""
    if needed := CRITERIA[RULES[name]["criterion"]].needs_evidence:
        knobs[needed] = True
    model = tiny_model(family, seed=2, num_labels=OUTPUTS[problem_type], problem_type=problem_type, **knobs)
    model.backbone.embeddings.word_embeddings.weight.mul_(30)
    return model


@torch.no_grad()
def recorded_from(model: PFBerxitForSequenceClassification, batch: dict[str, Tensor]) -> Evidence:
    """What all exits of a model emit for a batch."""
    output = model(**batch, exit_policy={"criterion": None})
    return Evidence(*(getattr(output, f"exit_{part}") for part in Evidence._fields))


def compare_with_replay(
    model: PFBerxitForSequenceClassification,
    policies: list[ExitPolicy],
    recorded: Evidence,
    batch: dict[str, Tensor],
    own_answers: bool,
) -> set[int]:
    """Run every policy online and from the record; returns the layers at which rows left."""
    left = set()
    for policy in policies:
        online = model(**batch, exit_policy=policy)
        answers, layers = replay(recorded, policy, model.exit_depths, model.config.problem_type)
        assert online.exit_layer.tolist() == layers.tolist(), policy
        looked_at = model(**batch, exit_policy=policy, output_hidden_states=True)  # no row leaves the batch
        assert looked_at.exit_layer.tolist() == layers.tolist(), policy
        torch.testing.assert_close(looked_at.logits, answers, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(online.logits, answers, rtol=1e-4, atol=1e-4)
        exits = torch.tensor([model.exit_depths.index(layer) for layer in layers.tolist()])
        if own_answers:
            assert torch.equal(answers, recorded.logits[torch.arange(len(exits)), exits])
        left |= set(layers.tolist())
    return left


@pytest.mark.parametrize("problem_type, name, family", in_turn("albert", "bert"))
@torch.no_grad()
def test_online_equals_replay(name, problem_type, family):
    model, batch = model_with_varied_rows(family, name, problem_type), tiny_batch(40)
    recorded = recorded_from(model, batch)
    assert recorded.logits.shape == (40, EXITS, OUTPUTS[problem_type])
    base = setting(name, problem_type, recorded)
    taus = [base.threshold, setting(name, problem_type, recorded, share=0.7).threshold]
    policies = [
        replace(base, appointed_layer=2),
        replace(base, threshold=taus[1], window=3, appointed_layer=3, min_layer=3),
        replace(base, threshold=taus[1], patience=base.patience + 1, window=3, appointed_layer=5),
        replace(base, threshold=tuple(taus * EXITS)[:EXITS], appointed_layer=6),
    ]
    left = compare_with_replay(model, policies, recorded, batch, own_answers=name not in OF_SEVERAL_EXITS)
    assert len(left) >= 3


@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_online_equals_replay_where_only_some_layers_have_exits(name):
    model = model_with_varied_rows("albert-groups", name, SINGLE_LABEL, exit_layers=[2, 3, 5, 8, 10])
    batch = tiny_batch(40, seed=1)
    recorded = recorded_from(model, batch)
    assert model.exit_depths == [2, 3, 5, 8, 10, 12]
    base = setting(name, SINGLE_LABEL, recorded)
    tau = base.threshold
    policies = [
        replace(base, appointed_layer=3),
        replace(base, window=3, min_layer=6, appointed_layer=10),
        replace(base, threshold=(tau, 0.1 * tau, 2 * tau, tau, 9.0, 0.1 * tau), appointed_layer=5),
    ]
    left = compare_with_replay(model, policies, recorded, batch, own_answers=name not in OF_SEVERAL_EXITS)
    assert left <= set(model.exit_depths) and len(left) >= 3
