"""What users say about leaving early: which values are taken, which are refused and how, who has the last word."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.configuration_pfberxit import CHECKS
from modeling_pfberxit.model.criteria import CRITERIA, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from modeling_pfberxit.model.evidence import DIVERGENCE_ALIASES, DIVERGENCES
from modeling_pfberxit.model.exit_policy import FULL_DEPTH, POLICY_CHECKS, resolve_policy

LAYERS = 6
BATCH = tiny_batch(3)
FIELDS = [field.name for field in dataclasses.fields(ExitPolicy)]


class Watched:
    """A model, and how many of its layers' modules have run."""

    def __init__(self, **knobs: Any):
        self.model, self.ran = tiny_model("bert", **{"num_labels": 3, **knobs}), 0
        for part in (self.model.backbone.encoder, self.model.depths, self.model.exits):
            for module in part.modules():
                module.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.ran += 1

    def refusal(self, request: Any = None) -> str:
        """The message of the error that a call ends in, before any layer runs."""
        with pytest.raises(ValueError) as error:
            self.model(**BATCH, exit_policy=request)
        assert self.ran == 0
        return str(error.value)

    def layers(self, request: Any = None) -> list[int]:
        """The layers that a call executes for each row."""
        return self.model(**BATCH, exit_policy=request).exit_layer.tolist()


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.ran = 0
    watched.layers({"criterion": None})
    assert watched.ran > 0  # the count would have shown a layer that ran


def assert_clear(message: str, field: str, value: Any, *allowed: str) -> None:
    """One line that names the field, the value and what is allowed."""
    assert "\n" not in message
    assert message.startswith(f"{field}={value!r}: must be ")
    for words in allowed:
        assert words in message


# ---- values ---------------------------------------------------------------------------------------------------------

BAD_VALUES = [
    ("criterion", "divergence_v9", CRITERIA),
    ("criterion", "", CRITERIA),
    ("criterion", 1, CRITERIA),
    ("criterion", ["patience"], CRITERIA),
    ("divergence", "euclid", [*DIVERGENCES, *DIVERGENCE_ALIASES]),
    ("divergence", None, DIVERGENCES),
    ("threshold", -0.1, ["finite number", ">= 0"]),
    ("threshold", float("nan"), ["finite number"]),
    ("threshold", float("inf"), ["finite number"]),
    ("threshold", np.float32("nan"), ["finite number"]),
    ("threshold", "0.3", ["number"]),
    ("threshold", True, ["number"]),
    ("threshold", 1j, ["number"]),
    ("threshold", {}, ["list"]),
    ("threshold", [], ["at least one"]),
    ("patience", 0, ["whole number", ">= 1"]),
    ("patience", -1, ["whole number", ">= 1"]),
    ("patience", 2.0, ["whole number"]),
    ("patience", "2", ["whole number"]),
    ("patience", True, ["whole number"]),
    ("patience", np.bool_(True), ["whole number"]),
    ("patience", None, ["whole number"]),
    ("patience", float("nan"), ["whole number"]),
    ("window", 0, ["whole number", ">= 1"]),
    ("window", 1.5, ["whole number"]),
    ("window", False, ["whole number"]),
    ("min_layer", 0, ["whole number", ">= 1"]),
    ("min_layer", True, ["whole number"]),
    ("appointed_layer", 0, ["whole number", ">= 1"]),
    ("appointed_layer", "last", ["whole number"]),
    ("appointed_layer", True, ["whole number"]),
    ("normalize", 1, ["True or False"]),
    ("normalize", "yes", ["True or False"]),
    ("normalize", None, ["True or False"]),
]


@pytest.mark.parametrize("field, value, allowed", BAD_VALUES)
def test_bad_values_are_refused_when_the_policy_is_made(field, value, allowed):
    with pytest.raises(ValueError) as error:
        ExitPolicy(**{field: value})
    assert_clear(str(error.value), field, value, *allowed)


@pytest.mark.parametrize("field, value, allowed", BAD_VALUES)
def test_bad_values_are_refused_in_a_call_before_any_layer_runs(watched, field, value, allowed):
    assert_clear(watched.refusal({field: value}), field, value, *allowed)


@pytest.mark.parametrize("field, value, allowed", BAD_VALUES)
def test_bad_values_are_refused_when_assigned_to_a_live_config(watched, field, value, allowed):
    config = watched.model.config
    before = getattr(config, f"exit_{field}")
    with pytest.raises(ValueError) as error:
        setattr(config, f"exit_{field}", value)
    assert_clear(str(error.value), f"exit_{field}", value, *allowed)
    assert getattr(config, f"exit_{field}") == before
    with pytest.raises(ValueError) as error:
        PFBerxitConfig(**{f"exit_{field}": value})
    assert_clear(str(error.value), f"exit_{field}", value, *allowed)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), True, "0.3", None])
def test_a_bad_entry_in_a_list_of_thresholds_is_named(bad):
    with pytest.raises(ValueError) as error:
        ExitPolicy(threshold=[0.1, 0.2, bad])
    assert_clear(str(error.value), "threshold[2]", bad, "number")
    with pytest.raises(ValueError) as error:
        PFBerxitConfig(exit_threshold=(0.1, 0.2, bad))
    assert_clear(str(error.value), "exit_threshold[2]", bad, "number")


@pytest.mark.parametrize("value", [torch.tensor(0.25), np.array(0.25), np.bool_(True)])
def test_odd_thresholds_are_taken_or_refused_as_numbers(value):
    try:
        assert ExitPolicy(threshold=value).threshold == 0.25
    except ValueError as error:
        assert_clear(str(error), "threshold", value, "number")


@pytest.mark.parametrize(
    "field, given, kept",
    [
        ("threshold", 1, 1.0),
        ("threshold", 0, 0.0),
        ("threshold", np.float64(0.5), 0.5),
        ("threshold", np.float32(0.5), 0.5),
        ("threshold", np.float16(0.5), 0.5),
        ("threshold", np.int64(2), 2.0),
        ("patience", np.int64(3), 3),
        ("patience", np.int32(3), 3),
        ("window", np.uint8(4), 4),
        ("min_layer", np.int64(2), 2),
        ("appointed_layer", np.int16(5), 5),
        ("normalize", np.bool_(True), True),
    ],
)
def test_integers_and_numpy_scalars_become_plain_values(watched, field, given, kept):
    value = getattr(ExitPolicy(**{field: given}), field)
    assert value == kept and type(value) is type(kept)
    setattr(watched.model.config, f"exit_{field}", given)
    value = getattr(watched.model.config, f"exit_{field}")
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize("given", [[0.5, 1, np.float32(2.0)], (0.5, 1, 2), np.array([0.5, 1.0, 2.0])])
def test_one_threshold_for_each_exit_may_be_any_sequence(given):
    policy, config = ExitPolicy(threshold=given), PFBerxitConfig(exit_threshold=given)
    assert policy.threshold == (0.5, 1.0, 2.0)
    assert config.exit_threshold == [0.5, 1.0, 2.0]
    assert {type(value) for value in (*policy.threshold, *config.exit_threshold)} == {float}


def test_a_policy_cannot_be_changed_and_can_be_a_key():
    policy = ExitPolicy(threshold=[0.1, 0.2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.patience = 1
    assert {policy: "found"}[ExitPolicy(threshold=(0.1, 0.2))] == "found"


# ---- values that do not fit each other, or the model ----------------------------------------------------------------

V2, V3, APPOINTED = {"criterion": "divergence_v2"}, {"criterion": "divergence_v3"}, {"criterion": "appointed"}
BAD_FITS = [
    ({"threshold": 0.3, "patience": 7}, {}, "patience", 7, ["number of exits, 6"]),
    ({"criterion": "patience", "patience": 7}, {}, "patience", 7, ["number of exits, 6"]),
    ({"threshold": 0.3, "patience": 4}, {"exit_layers": [2, 4]}, "patience", 4, ["number of exits, 3"]),
    ({**V2, "threshold": 0.3, "window": 7}, {}, "window", 7, ["number of exits, 6"]),
    ({**V3, "threshold": 0.3, "window": 7}, {}, "window", 7, ["number of exits, 6"]),
    ({**V3, "threshold": 0.3, "patience": 3, "window": 2}, {}, "patience", 3, ["exit_window=2"]),
    ({"threshold": [0.3, 0.4]}, {}, "threshold", [0.3, 0.4], ["one number", "6"]),
    ({"threshold": [0.3] * 7}, {}, "threshold", [0.3] * 7, ["one number", "6"]),
    ({"threshold": [0.3] * 6}, {"exit_layers": [2, 4]}, "threshold", [0.3] * 6, ["one number", "3"]),
    ({"threshold": 0.3, "min_layer": 7}, {}, "min_layer", 7, ["number of layers, 6"]),
    (APPOINTED, {}, "appointed_layer", None, ["[1, 2, 3, 4, 5, 6]"]),
    ({**APPOINTED, "appointed_layer": 7}, {}, "appointed_layer", 7, ["[1, 2, 3, 4, 5, 6]"]),
    ({**APPOINTED, "appointed_layer": 3}, {"exit_layers": [2, 4]}, "appointed_layer", 3, ["[2, 4, 6]"]),
    ({"threshold": 0.3}, {"num_labels": 1}, "criterion", "divergence_v1", ["patience", "appointed", REGRESSION]),
]


@pytest.mark.parametrize("wish, knobs, field, value, allowed", BAD_FITS)
@pytest.mark.parametrize("way", ["dict", "policy", "config", "operating point"])
def test_what_does_not_fit_the_model_is_refused_before_any_layer_runs(way, wish, knobs, field, value, allowed):
    watched, request = Watched(**knobs), wish
    if way == "policy":
        request = ExitPolicy(**wish)
    elif way == "config":
        for name, setting in wish.items():
            setattr(watched.model.config, f"exit_{name}", setting)  # alone, each may be right
        request = None
    elif way == "operating point":
        watched.model.config.operating_points, request = {"mine": wish}, "mine"
    assert_clear(watched.refusal(request), f"exit_{field}", value, *allowed)


@pytest.mark.parametrize(
    "wish",
    [
        {"threshold": 0.3, "patience": 6},
        {**V2, "threshold": 0.3, "window": 6},
        {**V3, "threshold": 0.3, "patience": 2, "window": 2},
        {"threshold": 0.3, "window": 7},  # v1 has no window
        {"threshold": [0.3] * 6},
        {"threshold": 0.3, "min_layer": 6},
        {**APPOINTED, "appointed_layer": 6},
    ],
)
def test_what_just_fits_is_taken(watched, wish):
    assert watched.layers(wish) == watched.layers(ExitPolicy(**wish))


def test_appointed_needs_no_patience():
    assert Watched(exit_layers=[LAYERS]).layers({**APPOINTED, "appointed_layer": LAYERS}) == [LAYERS] * 3


@pytest.mark.parametrize("wish", [3, 0.3, True, ["divergence_v1"], ("threshold", 0.3), ExitPolicy])
def test_anything_but_a_policy_is_refused(watched, wish):
    assert_clear(watched.refusal(wish), "exit_policy", wish, "an ExitPolicy", "a dict", "operating point")


@pytest.mark.parametrize("unknown", ["tau", "exit_threshold", "treshold"])
def test_unknown_fields_are_refused_with_the_known_ones(watched, unknown):
    assert_clear(watched.refusal({unknown: 0.3, "patience": 1}), "exit_policy", [unknown], *FIELDS)


def test_unknown_operating_points_are_refused_with_the_known_ones(watched):
    assert_clear(watched.refusal("fast"), "exit_policy", "fast", "none")
    watched.model.config.operating_points = {"slow": {"threshold": 0.1}, "brisk": {"threshold": 0.5}}
    assert_clear(watched.refusal("fast"), "exit_policy", "fast", "brisk", "slow")


def test_training_runs_every_exit_whatever_the_policy(watched):
    assert watched.layers({**APPOINTED, "appointed_layer": 2}) == [2] * 3
    watched.model.train()
    output = watched.model(**BATCH, exit_policy={**APPOINTED, "appointed_layer": 2})
    assert output.exit_layer.tolist() == [LAYERS] * 3 and output.exit_logits.shape == (3, LAYERS, 3)


# ---- who has the last word ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved model that stops at layer 2 unless told otherwise."""
    folder = tmp_path_factory.mktemp("checkpoint")
    wish = {"exit_criterion": "appointed", "exit_appointed_layer": 2, "exit_patience": 1}
    tiny_model("bert", num_labels=3, adapter_only=False, **wish).save_pretrained(folder)
    return str(folder)


def test_a_call_outranks_load_time_arguments_and_they_the_config(checkpoint):
    def layers(model: PFBerxitForSequenceClassification, request: Any = None) -> set[int]:
        return set(model(**BATCH, exit_policy=request).exit_layer.tolist())

    as_saved = PFBerxitForSequenceClassification.from_pretrained(checkpoint)
    assert layers(as_saved) == {2}
    loaded = PFBerxitForSequenceClassification.from_pretrained(checkpoint, exit_appointed_layer=3)
    assert layers(loaded) == {3}
    assert layers(loaded, {"appointed_layer": 4}) == {4}
    assert layers(loaded) == {3}  # a call leaves nothing behind
    loaded.config.exit_appointed_layer = 5
    assert layers(loaded) == {5}
    assert layers(as_saved) == {2}


def test_bad_load_time_arguments_are_refused(checkpoint):
    with pytest.raises(ValueError) as error:
        PFBerxitForSequenceClassification.from_pretrained(checkpoint, exit_patience=0)
    assert_clear(str(error.value), "exit_patience", 0, "whole number", ">= 1")


def test_a_dict_changes_its_fields_and_a_policy_replaces_all():
    config = PFBerxitConfig(exit_criterion="patience", exit_patience=3, exit_min_layer=2, exit_divergence="js_div")
    depths = list(range(1, LAYERS + 1))
    assert resolve_policy(None, config, depths, SINGLE_LABEL) == ExitPolicy("patience", "js_div", None, 3, min_layer=2)
    changed = resolve_policy({"patience": 4}, config, depths, SINGLE_LABEL)
    assert changed == ExitPolicy("patience", "js_div", None, 4, min_layer=2)
    assert resolve_policy({}, config, depths, SINGLE_LABEL) == resolve_policy(None, config, depths, SINGLE_LABEL)
    whole = ExitPolicy(threshold=0.3)
    assert resolve_policy(whole, config, depths, SINGLE_LABEL) == whole
    assert config.exit_patience == 3 and config.exit_criterion == "patience"


def test_a_policy_of_a_model_s_own_code_is_as_good():
    theirs = dataclasses.make_dataclass("ExitPolicy", FIELDS, frozen=True)
    policy = theirs(**dataclasses.asdict(ExitPolicy("appointed", appointed_layer=4)))
    assert not isinstance(policy, ExitPolicy)
    assert Watched().layers(policy) == [4] * 3


def test_an_operating_point_is_used_by_its_name(watched):
    watched.model.config.operating_points = {
        "fast": {**APPOINTED, "appointed_layer": 2, "accuracy": 0.9, "layers_saved": 0.67, "dataset": "acme/letters"},
        "careful": {**APPOINTED, "appointed_layer": 5},
    }
    assert watched.layers("fast") == [2] * 3
    assert watched.layers("careful") == [5] * 3
    assert watched.layers() == [LAYERS] * 3


LATER = {
    "answer": {"answer": "abstain", "unsure_below": 1.0, "window": 1},
    "labels": {"label_thresholds": {"0": None, "1": None}},
    "threshold": {"threshold": 5.0, "min_layer": 3},
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("measured", [
    ExitPolicy("entropy", threshold=0.8), ExitPolicy("entropy", label_thresholds={"1": 0.8}), FULL_DEPTH,
], ids=["threshold", "label", "full depth"])  # fmt: skip
def test_a_measured_point_stays_what_was_measured_whatever_the_config_says_later(later, measured):
    model = tiny_model("bert", num_labels=3)
    model.config.operating_points = json.loads(json.dumps({"point": measured.stated()}))
    model.config.exit_policy = {"criterion": "entropy", "threshold": 0.3, **LATER[later]}
    batch = tiny_batch(24)
    asked, by_name = model(**batch, exit_policy=measured), model(**batch, exit_policy="point")
    assert torch.equal(by_name.exit_layer, asked.exit_layer) and torch.equal(by_name.logits, asked.logits)
    model.config.exit_policy = "point"
    assert torch.equal(model(**batch).exit_layer, asked.exit_layer)


def test_a_point_without_a_criterion_changes_the_config_s_policy_as_a_dict_does():
    point, knobs = (
        {"threshold": 0.2, "patience": 1},
        {"exit_criterion": "pcee", "exit_ensemble": "run", "num_labels": 3},
    )
    config = PFBerxitConfig(operating_points={"mine": {**point, "score": 0.9}}, exit_patience=3, **knobs)
    depths = list(range(1, LAYERS + 1))
    by_name = resolve_policy("mine", config, depths, SINGLE_LABEL)
    assert by_name == resolve_policy(point, config, depths, SINGLE_LABEL)
    assert by_name == ExitPolicy("pcee", threshold=0.2, patience=1, ensemble="run")


# ---- off ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem_type, outputs", [(SINGLE_LABEL, 3), (MULTI_LABEL, 3), (REGRESSION, 1)])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.3])
@pytest.mark.parametrize("criterion", [None, *CRITERIA])
def test_early_exit_is_off_exactly_without_a_criterion_or_a_needed_threshold(
    criterion, threshold, problem_type, outputs
):
    needs_threshold = criterion != "appointed" and (criterion != "patience" or problem_type == REGRESSION)
    off = criterion is None or (needs_threshold and threshold is None)
    policy = ExitPolicy(criterion, threshold=threshold, appointed_layer=3)
    assert policy.is_active(problem_type) is not off
    emitted = {"use_lte": True, "use_prototypes": problem_type != REGRESSION, "use_nsp": True}
    watched = Watched(num_labels=outputs, problem_type=problem_type, **emitted)
    if criterion is not None and problem_type not in CRITERIA[criterion].problem_types and not off:
        watched.refusal(policy)
        return
    output = watched.model(**BATCH, exit_policy=policy)
    assert (output.exit_logits is not None) is off
    if off:
        assert output.exit_layer.tolist() == [LAYERS] * 3


def test_a_policy_that_is_off_is_not_held_against_the_model(watched):
    assert watched.layers({"criterion": None, "patience": 99}) == [LAYERS] * 3
    assert watched.layers({"patience": 99, "threshold": None}) == [LAYERS] * 3


def test_a_new_model_runs_to_its_last_layer(watched):
    assert watched.layers() == [LAYERS] * 3
    assert watched.layers({"threshold": 9.0, "patience": 1}) == [2] * 3


# ---- the lists agree ------------------------------------------------------------------------------------------------


def test_policy_and_config_have_the_same_fields_and_defaults():
    config, policy = PFBerxitConfig(), ExitPolicy()
    assert set(FIELDS) == set(POLICY_CHECKS)
    for name in FIELDS:
        assert getattr(config, f"exit_{name}") == getattr(policy, name)
        assert CHECKS[f"exit_{name}"] is POLICY_CHECKS[name]


def test_the_config_accepts_exactly_the_registered_names():
    for name in CRITERIA:
        assert PFBerxitConfig(exit_criterion=name).exit_criterion == name
    for name in DIVERGENCES:
        assert PFBerxitConfig(exit_divergence=name).exit_divergence == name
    assert PFBerxitConfig(exit_criterion=None).exit_criterion is None
    with pytest.raises(ValueError) as error:
        PFBerxitConfig(exit_criterion="?")
    assert str(error.value) == f"exit_criterion='?': must be one of {', '.join(CRITERIA)}."
    with pytest.raises(ValueError) as error:
        PFBerxitConfig(exit_divergence="?")
    assert str(error.value) == f"exit_divergence='?': must be one of {', '.join([*DIVERGENCES, *DIVERGENCE_ALIASES])}."


def test_promised_names_are_registered():
    assert {"divergence_v1", "divergence_v2", "divergence_v3", "patience", "appointed"} <= set(CRITERIA)
    assert {"kl", "rekl", "bikl", "jskd", "kl_div", "rekl_div", "symkl_div", "js_div"} <= set(DIVERGENCES)
    assert set(DIVERGENCE_ALIASES.values()) <= set(DIVERGENCES)


def test_an_unknown_problem_is_refused_when_it_is_assigned():
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="problem_type='foo': must be one of single_label_classification"):
        model.config.problem_type = "foo"


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="must be a finite number"):
        ExitPolicy(threshold=10**400)


def test_unknown_fields_of_any_type_are_refused(watched):
    assert "fields" in watched.refusal({3: 1, "tau": 0.3})
