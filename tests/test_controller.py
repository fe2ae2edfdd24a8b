"""The ladder of certified points, and what moves along it."""

import pytest

from modeling_pfberxit.serving.controller import Controller, Fixed, Reaction, State, step
from modeling_pfberxit.serving.ladder import FULL_RUNG, Ladder, Rung, ladder_of

LADDER = Ladder((FULL_RUNG, Rung("1%", 0.01, 4.0), Rung("2%", 0.02, 3.0), Rung("5%", 0.05, 2.0)))
REACTION = Reaction(step=0.05, calm=0.5, rest=2.0)


def point(epsilon: float, layers: float | None, **about) -> dict:
    certificate = {"claim": "differ", "epsilon": epsilon, "dtype": "float32", "max_length": 64, **about}
    return {"criterion": "entropy", "threshold": epsilon, "layers": layers, "certificate": certificate}


# ---- ladder ----------------------------------------------------------------------------------------------------------


def test_rungs_are_the_certified_points_from_careful_to_fast_behind_full_depth():
    ladder = ladder_of({"b": point(0.02, 3.0), "c": point(0.05, 2.0), "a": point(0.01, 4.0, tolerance=0.3)})
    assert [(rung.name, rung.epsilon, rung.layers) for rung in ladder] == [
        ("full-depth", 0.0, None), ("a", 0.01, 4.0), ("b", 0.02, 3.0), ("c", 0.05, 2.0),
    ]  # fmt: skip
    assert ladder[1].tolerance == 0.3 and ladder.left_out == {}


@pytest.mark.parametrize(
    ("other", "facts", "said"),
    [
        ({"criterion": "entropy", "threshold": 0.1, "layers": 2.0}, {}, "no certificate"),
        (point(0.02, 2.0, claim="newly_wrong"), {}, "does not speak of all answers"),
        (point(0.02, 2.0, whole=False), {}, "does not speak of all answers"),
        (point(0.02, 4.5), {}, "no faster than a"),
        (point(0.02, 2.0, dtype="bfloat16"), {"dtype": "float32"}, "made under dtype bfloat16"),
        (point(0.02, 2.0, max_length=128), {"max_length": 64}, "made under max_length 128"),
    ],
)
def test_a_point_that_is_no_rung_is_named_with_the_reason(other, facts, said):
    ladder = ladder_of({"a": point(0.01, 4.0), "other": other}, facts)
    assert [rung.name for rung in ladder] == ["full-depth", "a"] and said in ladder.left_out["other"]


def test_without_certificates_there_is_full_depth():
    assert [rung.name for rung in ladder_of({})] == ["full-depth"]
    assert Controller(ladder_of({})).rung(0.0, 9.0) == "full-depth"


# ---- the state machine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "rung"), [(0.0, 0), (0.049, 0), (0.05, 1), (0.099, 1), (0.1, 2), (0.19, 2), (9.0, 2)])
def test_the_age_of_the_queue_leads_up_at_once(age, rung):
    assert step(State(), 10.0, age, 3, REACTION).rung == rung


def test_it_steps_back_one_rung_at_a_time_once_the_queue_has_been_calm_for_long_enough():
    state, rungs = State(2), {}
    for tick in range(60):
        state = step(state, tick / 10, 0.01, 3, REACTION)
        rungs[tick / 10] = state.rung
    assert rungs[1.9] == 2 and rungs[2.0] == 1 and rungs[3.9] == 1 and rungs[4.0] == 0


def test_between_calm_and_step_nothing_moves():
    state = State(1)
    for tick in range(1000):
        state = step(state, tick / 10, 0.025 if tick % 2 else 0.049, 3, REACTION)
        assert state.rung == 1


def test_a_moment_that_is_not_calm_begins_the_rest_anew():
    state = State(1)
    for now, age in [(0.0, 0.0), (1.9, 0.03), (2.0, 0.0), (3.9, 0.0)]:
        state = step(state, now, age, 3, REACTION)
        assert state.rung == 1
    assert step(state, 4.0, 0.0, 3, REACTION).rung == 0


def test_a_step_back_that_had_to_be_taken_again_makes_the_next_rest_longer():
    state, now, rests = State(1), 0.0, []
    for _ in range(6):
        began = now
        while state.rung:
            state, now = step(state, now, 0.0, 2, REACTION), now + 0.1
        rests.append(round(now - began))
        state = step(state, now, 0.06, 2, REACTION)
    assert rests == [2, 4, 8, 16, 32, 32]
    calm = step(State(), 1000.0, 0.06, 2, REACTION)
    assert calm.failed == 0


@pytest.mark.parametrize(("silence", "rung"), [(1.9, 2), (2.1, 1), (3.9, 1), (4.1, 0), (3600.0, 0)])
def test_silence_is_calm_although_nobody_asks_meanwhile(silence, rung):
    state = step(State(), 10.0, 0.2, 3, REACTION)
    assert state.rung == 2
    after = step(state, 10.0 + silence + 0.03, 0.03, 3, REACTION)  # the first request after it has waited for 0.03 s
    assert after.rung == rung


def test_a_burst_after_a_long_silence_is_no_step_taken_too_early():
    state = step(step(State(), 10.0, 0.2, 3, REACTION), 100.0, 0.2, 3, REACTION)
    assert state.rung == 2 and state.failed == 0


def test_requests_that_never_let_the_queue_run_empty_are_no_silence():
    state = step(State(), 10.0, 0.2, 3, REACTION)
    assert step(state, 15.0, 5.0, 3, REACTION).rung == 2


# ---- the controller --------------------------------------------------------------------------------------------------


def test_it_moves_between_the_most_careful_certified_rung_and_the_floor():
    controller = Controller(LADDER, floor=0.02, reaction=REACTION)
    assert [controller.rung(0.0, 0.0), controller.rung(0.1, 0.06), controller.rung(0.2, 9.0)] == ["1%", "2%", "2%"]
    assert controller.within() == ["full-depth", "1%", "2%"] and controller.number == 2


def test_a_floor_below_every_certificate_leaves_full_depth():
    controller = Controller(LADDER, floor=0.005, reaction=REACTION)
    assert controller.rung(0.0, 9.0) == "full-depth" and controller.within() == ["full-depth"]


def test_a_request_may_bring_its_own_floor():
    controller = Controller(LADDER, floor=0.02, reaction=REACTION)
    assert controller.rung(0.0, 0.0, differ=0.001) == "full-depth" and controller.within(0.01) == ["full-depth", "1%"]
    assert controller.rung(0.1, 0.0, differ=0.05) == "1%"  # nothing waits: no need to be faster
    assert controller.rung(0.2, 9.0, differ=0.05) == "5%" and controller.rung(0.2, 9.0) == "2%"
    assert controller.rung(0.3, 9.0, differ=0.01) == "1%"


def test_a_fixed_rung_stays_unless_a_request_asks_for_care():
    fixed = Fixed(LADDER, "2%")
    assert fixed.rung(0.0, 9.0) == "2%" and fixed.rung(0.0, 9.0, differ=0.01) == "1%"
    assert fixed.rung(0.0, 0.0, differ=0.05) == "2%" and fixed.within(0.01) == ["full-depth", "1%"]


@pytest.mark.parametrize("floor", [1.5, -1.0, float("nan")])
def test_a_floor_out_of_range_is_refused(floor):
    with pytest.raises(ValueError, match="differ="):
        Controller(LADDER, floor=floor)


def test_times_of_a_reaction_are_checked():
    with pytest.raises(ValueError, match="rest=0"):
        Reaction(rest=0.0)
