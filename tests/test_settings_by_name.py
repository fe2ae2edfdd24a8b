"""Settings by name differ: whatever the rule, what is turned is what it reads, and the words say so."""

from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch
from test_criteria import DEPTHS, EXITS
from test_criteria_promises import JUDGED, RULES, random_evidence
from tiny import tiny_config

from modeling_pfberxit import ExitPolicy, PFBerxitConfig
from modeling_pfberxit.data.tasks import load_task
from modeling_pfberxit.evaluation.frontier import grid
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.criteria import CRITERIA, check_fit, rule_of
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, reads
from modeling_pfberxit.model.exit_policy import FIELDS, FULL_DEPTH, describe
from modeling_pfberxit.model.steps import start, step
from modeling_pfberxit.model.systems import SYSTEMS
from modeling_pfberxit.studies.quickstart import choice_of
from modeling_pfberxit.training.finished import POINTS, choose_policies, rounded

TASKS = {SINGLE_LABEL: "intent", MULTI_LABEL: "topics", REGRESSION: "urgency"}
IDLE = ("hashee", "late-prompt-tuning")  # no rule lets their rows leave


def recorded(problem_type: str, rows: int = 300) -> Recording:
    """Exits that lean the same way, with everything that one can emit."""
    evidence = random_evidence(rows, SINGLE_LABEL if problem_type == REGRESSION else problem_type)
    if problem_type == REGRESSION:
        evidence = Evidence(evidence.logits[..., :1], evidence.lte)
    return Recording(evidence, torch.full((rows,), 9), None, DEPTHS, problem_type)


def saved(recording: Recording, policy: ExitPolicy) -> float:
    return 1 - recording.replay(policy)[1].double().mean().item() / EXITS


@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_settings_by_name_differ_in_what_the_rule_reads(problem_type, name):
    recording, base = recorded(problem_type), ExitPolicy(**RULES[name], patience=1)
    model = SimpleNamespace(config=PFBerxitConfig(**{f"exit_{field}": value for field, value in asdict(base).items()}))
    chosen = choose_policies(model, recording)
    policies = list(chosen.values())
    assert set(chosen) <= set(POINTS) and len(policies) == len(set(policies)) == len(set(map(describe, policies)))
    knob = rule_of(base).knobs(problem_type)[0]
    assert {replace(each, **{knob: getattr(base, knob)}) for each in policies} == {base}
    shares = [saved(recording, each) for each in policies]
    assert shares == sorted(set(shares)) and shares[0] > 0
    depths = {saved(recording, each) for each in grid(recording, base.criterion, base, steps=12, patience=[1])}
    assert len(policies) == min(3, len(depths - {0.0}))  # all three names, if the rule has as many settings


@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_a_search_tries_what_fits_and_nothing_twice(problem_type, name):
    policies = list(grid(recorded(problem_type), RULES[name]["criterion"], ExitPolicy(**RULES[name]), steps=6))
    assert len(policies) == len(set(policies)) > 4
    for policy in policies:
        assert policy.is_active(problem_type)
        check_fit(policy, DEPTHS, problem_type)


class Spied:
    """A policy that remembers which of its fields were looked at."""

    def __init__(self, policy: ExitPolicy):
        self.policy, self.seen = policy, set()

    def __getattr__(self, name: str):
        self.seen.add(name)
        return getattr(self.policy, name)


@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_a_rule_reads_what_it_declares_and_nothing_else(problem_type, name):
    recording = recorded(problem_type, 50)
    policy = ExitPolicy(**RULES[name], threshold=0.5, patience=2, window=2, appointed_layer=3)
    spied, labels = Spied(policy), recording.evidence.logits.shape[-1]
    state = start(50, labels, spied, EXITS, problem_type, torch.device("cpu"))
    for number in range(EXITS):
        step(recording.evidence.at(number), state, spied, torch.tensor(number + 1))
    unset = {"label_thresholds", "answer"}  # looked at, to find nothing there
    assert spied.seen - {"criterion"} - unset == set(rule_of(policy).reads(policy))


@pytest.mark.parametrize(("problem_type", "name"), JUDGED)
def test_a_description_names_what_the_rule_reads_and_nothing_else(problem_type, name):
    policy = ExitPolicy(
        **RULES[name], threshold=0.123, patience=2, window=3, appointed_layer=4, min_layer=5, normalize=True,
        divergence="js_div", distance_weight=0.75,
    )  # fmt: skip
    words, read = describe(policy), rule_of(policy).reads(policy)
    told = {
        "divergence": "of js_div", "threshold": "threshold 0.123", "patience": "patience 2", "window": "window 3",
        "min_layer": "from layer 5", "appointed_layer": ", layer 4", "normalize": "normalised",
        "distance_weight": "distance weight 0.75",
    }  # fmt: skip
    for field, part in told.items():
        assert (part in words) == (field in read), field
    assert rule_of(policy).source in words and "\n" not in words and "None" not in words
    taus = replace(policy, threshold=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert ("thresholds 0.1 / 0.2 / 0.3 / 0.4 / 0.5 / 0.6" in describe(taus)) == ("threshold" in read)
    bare = describe(replace(policy, threshold=None))
    assert ("full depth without a threshold" in bare) == all(
        rule_of(policy).needs_threshold(each) for each in rule_of(policy).problem_types
    )


def test_descriptions_by_hand():
    assert describe(ExitPolicy(threshold=0.3)) == "divergence_v1 of kl, threshold 0.3, patience 2"
    assert describe(ExitPolicy("patience", patience=3)) == "patience 3 (PABEE)"
    assert describe(ExitPolicy("appointed", appointed_layer=4)) == "appointed, layer 4"
    assert describe(ExitPolicy("pcee", threshold=0.5, ensemble="run")) == (
        "pcee, threshold 0.5, patience 2, ensemble run (PCEE-BERT)"
    )
    assert describe(FULL_DEPTH) == "full depth"
    assert set(FIELDS) == {field.name for field in fields(ExitPolicy)}


def test_a_field_that_does_not_exist_cannot_be_declared():
    with pytest.raises(ValueError, match=r"reads=\['patiance'\]: must be fields of criterion, divergence"):
        reads("threshold", "patiance")


@pytest.mark.parametrize("problem_type", TASKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_settings_by_name_on_every_task_or_says_why_not(system, problem_type):
    task, _ = load_task("support_desk", TASKS[problem_type])
    if system in IDLE:
        with pytest.raises(ValueError, match="one whose rows leave by a rule"):
            choice_of(system, task)
        return
    config = PFBerxitConfig.from_backbone(tiny_config("bert"), **choice_of(system, task))
    own = SYSTEMS[system].criterion
    assert problem_type in CRITERIA[config.exit_criterion].problem_types
    assert config.exit_criterion == own or problem_type not in CRITERIA[own].problem_types
    chosen = choose_policies(SimpleNamespace(config=config), recorded(problem_type))
    assert chosen and len({describe(policy) for policy in chosen.values()}) == len(chosen)


def test_names_step_aside_for_each_other_and_the_careful_go_without_where_there_are_too_few():
    evidence = Evidence(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]]).expand(-1, EXITS, -1))  # all exits agree
    recording = Recording(evidence, torch.full((2,), 9), None, DEPTHS, SINGLE_LABEL)
    model = SimpleNamespace(config=PFBerxitConfig(exit_criterion="patience"))
    # patience 4, 3, 2 and 1 save 1/6, 1/3, 1/2 and 2/3: the half that is asked for as `fast` is `balanced` already
    assert {name: policy.patience for name, policy in choose_policies(model, recording).items()} == {
        "careful": 3, "balanced": 2, "fast": 1,
    }  # fmt: skip
    model = SimpleNamespace(config=PFBerxitConfig(exit_criterion="appointed"))
    for exits, kept in (([3, 6], [3]), ([2, 4, 6], [4, 2]), ([1, 2, 6], [2, 1])):
        few = replace(recording, evidence=Evidence(evidence.logits[:, : len(exits)]), exit_depths=exits)
        found = choose_policies(model, few)
        assert sorted((policy.appointed_layer for policy in found.values()), reverse=True) == kept
        assert len(found) == len(kept)


def test_one_threshold_is_rounded_and_several_stay():
    assert rounded(ExitPolicy(threshold=0.12345678)).threshold == 0.123457
    assert rounded(ExitPolicy("patience", threshold=[0.12345678, 1 / 3])).threshold == (0.12345678, 1 / 3)
