"""Guards, one at a time: what they make of an observation, and of what the policy chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from platotk.agents.guards import Guards, Memory
from platotk.errors import AgentError, ProjectError
from platotk.spaces import adapt

OBSERVATION = spaces.Dict(
    {
        "level": spaces.Box(0.0, 2.0, (1,), np.float32),
        "flows": spaces.Box(-1.0, 1.0, (3,), np.float32),
        "valve": spaces.Box(0.0, 1.0, (1,), np.float32),
        "mode": spaces.Discrete(3),
        "note": spaces.Text(5),
    }
)
ACTION = spaces.Dict(
    {
        "valve": spaces.Box(0.0, 1.0, (1,), np.float32),
        "pump": spaces.Discrete(2),
        "gear": spaces.Discrete(5, start=1),
        "jets": spaces.Tuple([spaces.Box(-5, 5, (2,), np.int64), spaces.MultiBinary(2)]),
    }
)
SAFE = {"valve": 0.5, "pump": 0, "gear": 1, "jets": [[0, 0], [0, 0]]}


def seen(**changes: Any) -> dict[str, Any]:
    whole = {
        "level": np.array([1.0], np.float32),
        "flows": np.zeros(3, np.float32),
        "valve": np.array([0.5], np.float32),
        "mode": np.int64(0),
        "note": "ok",
    }
    return {**whole, **changes}


def chosen(valve: float = 0.5, pump: int = 0, gear: int = 1, steps: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    jets = (np.array(steps, np.int64), np.zeros(2, np.int8))
    return {"valve": np.array([valve], np.float32), "pump": np.int64(pump), "gear": np.int64(gear), "jets": jets}


class Plant:
    """One episode within guards."""

    def __init__(self, controller: Any = None, mask: str | None = None, **data: Any) -> None:
        self.guards = Guards(data, adapt(OBSERVATION, ACTION, action_mask=mask))
        self.memory, self.controller = Memory(), controller

    def act(self, action: Any, observation: Any = None, *, at: float | None = None, now: float = 0.0, mask: Any = None):
        """What is sent, as (action, what guards did)."""
        look = self.guards.look(seen() if observation is None else observation, at, now)
        sent, did = self.guards.settle(
            self.memory,
            look,
            action if look.outcome is None else None,
            observed_at=at,
            mask=mask,
            controller=self.controller,
        )
        assert ACTION.contains(sent)
        return sent, did


def valve(sent: Any) -> float:
    return round(float(sent[0]["valve"][0]), 6)


# Clamp


def test_a_clamp_is_a_narrower_range():
    plant = Plant(clamp={"valve": {"low": 0.2, "high": 0.8}})
    assert valve(plant.act(chosen(0.9))) == 0.8
    assert valve(plant.act(chosen(0.1))) == 0.2
    assert plant.act(chosen(0.5)) == (plant.memory.action, [])
    assert plant.act(chosen(0.9))[1] == [("clamp", "valve")]
    assert not plant.guards.has_memory


def test_every_ordered_leaf_can_be_clamped_and_one_element_too():
    plant = Plant(clamp={"gear": {"low": 1.5, "high": 3}, "jets[0][1]": {"high": 2}})
    sent, did = plant.act(chosen(gear=5, steps=(5, 5)))
    assert (sent["gear"], sent["jets"][0].tolist()) == (3, [5, 2])
    assert did == [("clamp", "gear"), ("clamp", "jets[0][1]")]
    assert plant.act(chosen(gear=1))[0]["gear"] == 2  # whole numbers, inwards


# Slew


def test_a_slew_limit_is_a_distance_from_the_last_action_sent():
    plant = Plant(slew={"valve": {"per_step": 0.1}})
    assert [valve(plant.act(chosen(v))) for v in (0.5, 1.0, 1.0, 0.0, 0.55)] == [0.5, 0.6, 0.7, 0.6, 0.55]
    assert plant.act(chosen(1.0))[1] == [("slew", "valve")]
    assert plant.guards.has_memory


def test_per_second_counts_the_time_between_observations():
    plant = Plant(slew={"valve": {"per_second": 0.1}}, step_s=2.0)
    assert valve(plant.act(chosen(0.0), at=100.0)) == 0.0
    assert valve(plant.act(chosen(1.0), at=103.0)) == 0.3
    assert valve(plant.act(chosen(1.0), at=103.0)) == 0.3  # no time has passed
    assert valve(plant.act(chosen(1.0), at=101.0)) == 0.3  # nor does it go back
    assert valve(plant.act(chosen(1.0))) == 0.5  # no time given: a step lasts step_s


def test_both_limits_hold():
    plant = Plant(slew={"valve": {"per_second": 0.1, "per_step": 0.2}}, step_s=1.0)
    assert [valve(plant.act(chosen(v), at=t)) for v, t in ((0, 0), (1, 1), (1, 100))] == [0.0, 0.1, 0.3]


def test_whole_numbers_move_by_whole_steps():
    plant = Plant(slew={"gear": {"per_step": 1.5}})
    assert [plant.act(chosen(gear=g))[0]["gear"] for g in (1, 5, 5, 1)] == [1, 2, 3, 2]


def test_limits_hold_as_the_leaf_writes_numbers():
    """0.98 is 0.98000002 in float32, and 0.1 is 0.1 and a bit."""
    plant = Plant(clamp={"valve": {"low": 0.1, "high": 0.98}}, fallback=SAFE)
    sent, did = plant.act(chosen(1.0))
    assert did == [("clamp", "valve")]
    assert 0.98 - 1e-7 < float(sent["valve"][0]) <= 0.98
    assert 0.1 <= float(plant.act(chosen(0.0))[0]["valve"][0]) < 0.1 + 1e-7
    rule = {"when": {"mode": {"equals": 0}}, "then": {"valve": 0.98}}
    plant = Plant(clamp={"valve": {"high": 0.98}}, forbid=[rule])
    assert float(plant.act(chosen(0.5))[0]["valve"][0]) <= 0.98
    plant = Plant(clamp={"valve": {"high": 0.98}}, on_missing="fallback", fallback={**SAFE, "valve": 0.98})
    assert float(plant.act(None, seen(level=None))[0]["valve"][0]) <= 0.98


def test_clamp_and_slew_go_together():
    plant = Plant(clamp={"valve": {"high": 0.6}}, slew={"valve": {"per_step": 0.3}})
    assert [valve(plant.act(chosen(v))) for v in (0.0, 1.0, 1.0)] == [0.0, 0.3, 0.6]


# Forbidden combinations


def test_a_combination_of_action_and_observation_gets_other_values():
    plant = Plant(
        forbid=[{"name": "dry", "when": {"level": {"below": 0.2}, "pump": {"equals": 1}}, "then": {"pump": 0}}]
    )
    dry = seen(level=np.array([0.1], np.float32))
    assert plant.act(chosen(pump=1))[1] == []
    sent, did = plant.act(chosen(pump=1), dry)
    assert (sent["pump"], did) == (0, [("forbid", "dry")])
    assert plant.act(chosen(pump=0), dry)[1] == []
    assert not plant.guards.has_memory


@pytest.mark.parametrize(
    ("test", "is_met"),
    [
        ({"above": 0.5}, False),
        ({"at_least": 0.5}, True),
        ({"below": 0.5}, False),
        ({"at_most": 0.5}, True),
        ({"equals": 0.5}, True),
        ({"differs": 0.5}, False),
        ({"above": 0.4, "below": 0.6}, True),
        ({"above": 0.4, "below": 0.45}, False),
    ],
)
def test_every_comparison(test: dict[str, float], is_met: bool):
    plant = Plant(forbid=[{"when": {"observation.valve": test}, "then": {"action.valve": 0.0}}])
    assert plant.act(chosen(1.0))[1] == ([("forbid", "forbid[0]")] if is_met else [])


def test_of_an_array_any_element_counts_and_text_is_compared():
    plant = Plant(forbid=[{"when": {"flows": {"below": -0.5}, "note": {"equals": "leak"}}, "then": {"valve": 1.0}}])
    leaking = seen(flows=np.array([0, -0.9, 0], np.float32), note="leak")
    assert valve(plant.act(chosen(), leaking)) == 1.0
    assert plant.act(chosen(), {**leaking, "note": "ok"})[1] == []
    one = Plant(forbid=[{"when": {"flows[0]": {"below": -0.5}}, "then": {"valve": 1.0}}])
    assert one.act(chosen(), leaking)[1] == []


def test_the_tests_of_one_condition_are_of_one_element():
    plant = Plant(forbid=[{"when": {"flows": {"above": 0.2, "below": 0.4}}, "then": {"valve": 1.0}}])
    assert plant.act(chosen(), seen(flows=np.array([0.1, 0.5, 0.9], np.float32)))[1] == []
    assert plant.act(chosen(), seen(flows=np.array([0.1, 0.3, 0.9], np.float32)))[1] == [("forbid", "forbid[0]")]


def test_then_hold_repeats_the_last_action_and_at_first_takes_the_fallback():
    plant = Plant(forbid=[{"when": {"mode": {"equals": 2}}, "then": "hold"}], fallback=SAFE)
    odd = seen(mode=np.int64(2))
    assert plant.act(chosen(0.9), odd)[1] == [("forbid", "forbid[0]"), ("fallback", "action")]
    plant.act(chosen(0.7))
    sent, did = plant.act(chosen(0.9), odd)
    assert (round(float(sent["valve"][0]), 6), did) == (0.7, [("forbid", "forbid[0]"), ("hold", "action")])
    assert plant.guards.has_memory


def test_an_action_that_may_not_be_is_not_held_either():
    plant = Plant(
        forbid=[{"when": {"level": {"below": 0.2}, "action.valve": {"above": 0.8}}, "then": "hold"}], fallback=SAFE
    )
    plant.act(chosen(0.9))
    low = seen(level=np.array([0.1], np.float32))
    sent, did = plant.act(chosen(0.95), low)
    assert round(float(sent["valve"][0]), 6) == 0.5
    assert did == [("forbid", "forbid[0]"), ("forbid", "forbid[0]"), ("fallback", "action")]


def test_rules_see_what_clamp_and_slew_have_left():
    plant = Plant(
        clamp={"valve": {"high": 0.7}},
        forbid=[{"when": {"action.valve": {"above": 0.8}}, "then": "fallback"}],
        fallback=SAFE,
    )
    assert plant.act(chosen(1.0))[1] == [("clamp", "valve")]


def test_a_replacement_is_tried_against_the_rules_before_it():
    plant = Plant(
        forbid=[
            {"when": {"gear": {"at_least": 4}, "pump": {"equals": 0}}, "then": {"gear": 3}},
            {"when": {"action.valve": {"above": 0.8}, "pump": {"equals": 1}}, "then": {"pump": 0}},
        ]
    )
    sent, did = plant.act(chosen(0.9, pump=1, gear=5))
    assert (sent["pump"], sent["gear"]) == (0, 3)
    assert did == [("forbid", "forbid[1]"), ("forbid", "forbid[0]")]


def test_rules_that_undo_each_other_end_in_the_fallback():
    plant = Plant(
        forbid=[
            {"when": {"pump": {"equals": 1}, "mode": {"equals": 0}}, "then": {"pump": 0}},
            {"when": {"pump": {"equals": 0}, "mode": {"equals": 0}}, "then": {"pump": 1}},
        ],
        fallback=SAFE,
    )
    assert plant.act(chosen(0.9))[1][-1] == ("fallback", "action")


# Inputs


def test_a_stale_observation():
    plant = Plant(stale_s=10.0, on_stale="hold", fallback=SAFE)
    assert valve(plant.act(chosen(0.9), at=100.0, now=105.0)) == 0.9
    sent, did = plant.act(None, at=100.0, now=111.0)
    assert (round(float(sent["valve"][0]), 6), did) == (0.9, [("stale", "observation"), ("hold", "action")])
    assert plant.act(None, at=130.0, now=111.0)[1][0] == ("stale", "observation")  # from the future: a wrong clock
    assert plant.act(chosen(0.1), now=111.0)[1] == []  # no time given counts as just now


@pytest.mark.parametrize(
    ("broken", "leaf"),
    [
        ({"level": None}, "level"),
        ({"level": np.array([np.nan], np.float32)}, "level"),
        ({"flows": [0.0, None, 0.0]}, "flows"),
        ({"flows": np.array([0, np.inf, 0])}, "flows"),
        ({"mode": None}, "mode"),
    ],
)
def test_a_missing_leaf(broken: dict[str, Any], leaf: str):
    plant = Plant(on_missing="fallback", fallback=SAFE)
    sent, did = plant.act(None, seen(**broken))
    assert did == [("missing", leaf), ("fallback", "action")]
    assert valve((sent,)) == 0.5
    assert not plant.guards.has_memory
    absent = {key: value for key, value in seen().items() if key != leaf}
    assert plant.act(None, absent)[1][0] == ("missing", leaf)
    assert plant.act(None, {})[1][-1] == ("fallback", "action")


def test_an_observation_out_of_range():
    high, odd = seen(level=np.array([2.5], np.float32)), seen(mode=np.int64(7))
    plant = Plant(on_out_of_range="hold", fallback=SAFE)
    plant.act(chosen(0.9))
    assert plant.act(None, high)[1] == [("out_of_range", "level"), ("hold", "action")]
    assert plant.act(None, odd)[1] == [("out_of_range", "mode"), ("hold", "action")]
    edge = seen(level=[2.0 + 1e-9])  # 2.0 as float32
    assert plant.act(chosen(), edge)[1] == []


def test_clip_brings_an_observation_back_to_its_bounds_and_acts():
    guards = Plant(on_out_of_range="clip").guards
    look = guards.look(seen(level=np.array([2.5], np.float32), mode=np.int64(7)), None, 0.0)
    assert look.outcome is None
    assert look.did == [("out_of_range", "level"), ("out_of_range", "mode")]
    assert (look.observation["level"].tolist(), look.observation["mode"]) == ([2.0], 2)
    assert OBSERVATION.contains(look.observation)


def test_the_stronger_answer_wins():
    plant = Plant(on_missing="fallback", on_out_of_range="hold", fallback=SAFE)
    plant.act(chosen(0.9))
    assert plant.act(None, seen(level=np.array([9.0]), mode=None))[1][-1] == ("fallback", "action")


def test_after_max_holds_in_a_row_comes_the_fallback():
    plant = Plant(on_missing="hold", max_holds=2, fallback=SAFE)
    plant.act(chosen(0.9))
    ends = [plant.act(None, {})[1][-1][0] for _ in range(4)]
    assert ends == ["hold", "hold", "fallback", "fallback"]
    assert plant.act(chosen(0.9))[1] == []
    assert plant.act(None, {})[1][-1] == ("hold", "action")


def test_without_anything_to_hold_comes_the_fallback():
    assert Plant(on_missing="hold", fallback=SAFE).act(None, {})[1][-1] == ("fallback", "action")


# The fallback


def test_a_controller_is_given_the_observation_and_stays_within_the_clamps():
    given = []

    def controller(observation: Any) -> Any:
        given.append(observation)
        return {**SAFE, "valve": 1.0}

    plant = Plant(controller, on_missing="fallback", fallback="plant:controller", clamp={"valve": {"high": 0.8}})
    sent, did = plant.act(None, {"level": None})
    assert valve((sent,)) == 0.8
    assert given == [{"level": None}]
    assert did[-2:] == [("fallback", "action"), ("clamp", "valve")]


def test_a_controller_that_fails_holds_the_last_action():
    def broken(observation: Any) -> Any:
        return observation["level"] > 1  # there is no level

    plant = Plant(broken, on_missing="fallback", fallback="plant:broken")
    with pytest.raises(AgentError, match="gave no action: KeyError"):
        plant.act(None, {})
    plant.act(chosen(0.9))
    sent, did = plant.act(None, {})
    assert (valve((sent,)), did[-1]) == (0.9, ("controller_failed", "action"))


# Action masks


def test_a_choice_that_the_mask_forbids_is_not_sent_by_a_guard():
    plant = Plant(mask="info", slew={"gear": {"per_step": 1}}, fallback=SAFE)
    everything = np.ones(7 + 2 * 11 + 4)
    plant.act(chosen(gear=1), mask=everything)
    only_5 = everything.copy()
    only_5[:5] = [0, 0, 0, 0, 1]  # the keys of a Dict are sorted: gear, jets, pump, valve
    sent, did = plant.act(chosen(gear=5), mask=only_5)  # the policy obeys the mask, slew would make it 2
    assert did == [("slew", "gear"), ("mask", "action"), ("fallback", "action")]
    assert sent["gear"] == 1  # written down in the project, and sent whatever the mask says
    assert plant.act(chosen(gear=2), mask=everything)[1] == []


def test_with_masks_a_guard_of_choices_needs_a_fallback():
    with pytest.raises(ProjectError, match="may not be allowed by the action mask"):
        Plant(mask="info", clamp={"gear": {"high": 3}})
    Plant(mask="info", clamp={"valve": {"high": 0.9}})  # numbers have no mask


# What does not fit


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"clamp": {"valv": {"high": 1}}}, r"guard.clamp.valv: the action has no leaf 'valv'"),
        ({"clamp": {"level": {"high": 1}}}, "the action has no leaf 'level'"),
        ({"clamp": {"valve": {"high": 1.5}}}, "high is 1.5, outside valve's own range of 0 to 1"),
        ({"clamp": {"valve": {"low": -1}}}, "low is -1, outside"),
        ({"clamp": {"gear": {"low": 1.2, "high": 1.8}}}, "no whole number lies between"),
        ({"clamp": {"jets[1]": {"high": 0}}}, "have no order"),
        ({"clamp": {"jets[0][2]": {"high": 0}}}, r"no leaf 'jets\[0\]\[2\]'"),
        ({"slew": {"gear": {"per_step": 0.5}}}, "moves by 1 at least"),
        ({"slew": {"gear": {"per_second": 2}}, "step_s": 1}, "moves by 1 at least"),
        ({"forbid": [{"when": {"valve": {"above": 1}}, "then": {"pump": 0}}]}, "both the action and the observation"),
        ({"forbid": [{"when": {"speed": {"above": 1}}, "then": {"pump": 0}}]}, "have no leaf 'speed'"),
        ({"forbid": [{"when": {"pump": {"equals": 1}}, "then": {"pump": 2}}]}, "guard.forbid.0.then.pump"),
        ({"forbid": [{"when": {"pump": {"equals": 1}}, "then": {"pump": 1}}]}, "the combination is still there"),
        ({"forbid": [{"when": {"note": {"above": 1}}, "then": {"pump": 1}}]}, "note is text"),
        ({"forbid": [{"when": {"pump": {"equals": "on"}}, "then": {"pump": 1}}]}, "pump is a number"),
        (
            {
                "clamp": {"valve": {"high": 0.5}},
                "forbid": [{"when": {"mode": {"equals": 1}}, "then": {"action.valve": 0.9}}],
            },
            r"guard.forbid.0.then: what forbid\[0\] writes to valve lies outside its clamp",
        ),
        (
            {
                "clamp": {"jets[0][1]": {"high": 2}},
                "forbid": [{"when": {"mode": {"equals": 1}}, "then": {"jets[0]": [0, 3]}}],
            },
            "outside its clamp",
        ),
        ({"fallback": {"valve": 0.5}}, "guard.fallback: fallback"),
        ({"fallback": {**SAFE, "valve": 2.0}}, "fallback.valve"),
        ({"fallback": SAFE, "clamp": {"valve": {"low": 0.6}}}, "valve lies outside its clamp"),
        (
            {"fallback": SAFE, "forbid": [{"name": "off", "when": {"pump": {"equals": 0}}, "then": {"pump": 1}}]},
            "itself what off forbids",
        ),
    ],
)
def test_guards_that_do_not_fit_the_spaces_are_refused(data: dict[str, Any], said: str):
    with pytest.raises(ProjectError, match=said):
        Plant(**data)


def test_the_nearest_leaf_is_named():
    with pytest.raises(ProjectError) as raised:
        Plant(clamp={"action.valv": {"high": 1}})
    assert "Did you mean 'valve'?" in str(raised.value)


@pytest.mark.parametrize("name", ["action", "action[1]"])
def test_a_space_that_is_itself_a_leaf_is_called_action(name: str):
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    guards = Guards({"clamp": {name: {"high": 0.5}}}, adapt(space, space))
    sent, did = guards.settle(Memory(), guards.look(np.zeros(2), None, 0.0), np.array([1.0, 1.0], np.float32))
    assert sent.tolist() == ([0.5, 0.5] if name == "action" else [1.0, 0.5])
    assert did == [("clamp", "action" if name == "action" else "action[1]")]


def test_whatever_is_chosen_what_is_sent_lies_in_the_clamp_and_the_space():
    rng = np.random.default_rng(0)
    plant = Plant(
        clamp={"valve": {"low": 0.25, "high": 0.75}, "gear": {"low": 2, "high": 4}, "jets[0]": {"high": 3}},
        slew={"valve": {"per_step": 0.05}, "gear": {"per_step": 1}},
        forbid=[
            {"when": {"level": {"above": 1.5}, "gear": {"above": 3}}, "then": {"gear": 2}},
            {"when": {"flows": {"above": 0.99}}, "then": "hold"},
        ],
        on_missing="hold",
        on_out_of_range="hold",
        max_holds=2,
        fallback={**SAFE, "gear": 3},
    )
    ACTION.seed(0)
    OBSERVATION.seed(0)
    for _ in range(500):
        observation = OBSERVATION.sample()
        if rng.random() < 0.2:
            observation["level"] = rng.choice(np.array([None, np.array([9.0]), np.array([np.nan])], dtype=object))
        sent, _did = plant.act(ACTION.sample(), observation)
        assert 0.25 <= sent["valve"][0] <= 0.75
        assert 2 <= sent["gear"] <= 4
        assert (sent["jets"][0] <= 3).all()
