"""The section `guard` of plato.yaml: what may stand in it, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from platotk.errors import ProjectError
from platotk.project import Project

WHOLE = """\
sim: sim:Tank
guard:
  clamp:
    valve: {low: 0.1, high: 0.9}
  slew:
    valve: {per_step: 0.2, per_second: 0.05}
  step_s: 5s
  forbid:
    - name: dry pump
      when: {level: {below: 0.1}, pump: 1}
      then: {pump: 0}
    - when: {action.valve: {above: 0.8}, observation.valve: {at_least: 0.5, at_most: 0.6}}
      then: fallback
  stale_s: 10
  on_stale: hold
  on_missing: hold
  on_out_of_range: clip
  max_holds: 3
  fallback: {valve: 0.5, pump: 0}
"""


def load(folder: Path, text: str) -> Project:
    (folder / "plato.yaml").write_text(text)
    return Project.load(folder)


def test_everything_at_once(tmp_path: Path) -> None:
    guard = load(tmp_path, WHOLE).guard
    assert guard.to_data() == {
        "clamp": {"valve": {"low": 0.1, "high": 0.9}},
        "slew": {"valve": {"per_step": 0.2, "per_second": 0.05}},
        "forbid": [
            {"name": "dry pump", "when": {"level": {"below": 0.1}, "pump": {"equals": 1}}, "then": {"pump": 0}},
            {
                "when": {"action.valve": {"above": 0.8}, "observation.valve": {"at_least": 0.5, "at_most": 0.6}},
                "then": "fallback",
            },
        ],
        "stale_s": 10.0,
        "on_stale": "hold",
        "on_missing": "hold",
        "on_out_of_range": "clip",
        "max_holds": 3,
        "fallback": {"valve": 0.5, "pump": 0},
        "step_s": 5.0,
    }


def test_the_resolved_file_says_the_same(tmp_path: Path) -> None:
    project = load(tmp_path, WHOLE)
    assert load(tmp_path, project.to_yaml()).guard == project.guard


def test_without_one_there_are_no_guards(tmp_path: Path) -> None:
    assert load(tmp_path, "sim: CartPole-v1\n").guard.to_data() == {}
    assert load(tmp_path, "sim: CartPole-v1\nguard:\n").guard.to_data() == {}


def test_one_key_can_be_set(tmp_path: Path) -> None:
    project = load(tmp_path, WHOLE).override(["guard.clamp.valve.high=0.7"])
    assert project.guard.to_data()["clamp"] == {"valve": {"low": 0.1, "high": 0.7}}


def test_a_controller_may_be_a_function(tmp_path: Path) -> None:
    project = Project(sim="CartPole-v1", guard={"on_missing": "fallback", "fallback": line})
    assert project.guard.fallback is line
    assert project.to_dict()["guard"]["fallback"].endswith(":line")


def line(observation: object) -> int:
    return 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  clmp: {}", "plato.yaml:3: unknown key 'clmp' in guard. Did you mean 'clamp'?"),
        (
            "  clamp:\n    valve: {low: 0, hihg: 1}",
            "plato.yaml:4: unknown key 'hihg' in guard.clamp.valve. Did you mean 'high'?",
        ),
        (
            "  forbid:\n    - when:\n        valve: {abvoe: 1}\n      then: hold",
            "plato.yaml:5: unknown key 'abvoe' in guard.forbid.0.when.valve. Did you mean 'above'?",
        ),
        (
            "  forbid:\n    - when: {valve: 1}\n      thne: hold",
            "unknown key 'thne' in guard.forbid.0. Did you mean 'then'?",
        ),
        ("  clamp: {valve: {low: 2, high: 1}}", "plato.yaml:3: guard.clamp.valve: low (2) is above high (1)"),
        ("  clamp: {valve: {}}", "guard.clamp.valve is {}; expected low, high or both"),
        ("  clamp: {valve: {low: high}}", "guard.clamp.valve.low is 'high'; expected a number"),
        ("  slew: {valve: {per_step: 0}}", "guard.slew.valve.per_step is 0.0; expected more than 0"),
        ("  slew: {valve: {per_second: 1}}", "step_s must say how long a step of the sim lasts"),
        ("  on_missing: ignore", "guard.on_missing is 'ignore'; expected 'hold' or 'fallback'"),
        ("  on_missing: hold", "on_missing is hold, and at the first step there is nothing to hold"),
        ("  on_missing: fallback", "on_missing is fallback, and there is none"),
        ("  on_stale: hold\n  fallback: 1", "stale_s and on_stale belong together"),
        ("  max_holds: 2\n  fallback: 1", "max_holds counts inputs that were held, and none is"),
        ("  fallback: off", "expected an action such as {valve: 0.0}, or a controller module:function"),
        ("  forbid:\n    - when: {valve: 1}\n      then: stop", "expected hold, fallback, or a section"),
        ("  forbid:\n    - when: {valve: 1}\n      then: {}", "expected hold, fallback, or a section"),
        ("  forbid:\n    - when: {valve: {}}\n      then: {valve: 1}", "expected one of above, at_least"),
        ("  forbid: {when: 1}", "expected a list of rules"),
        ("  forbid:\n    - when: {valve: 1}\n      then: hold", "forbid[0].then is hold"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ProjectError) as raised:
        load(tmp_path, f"sim: CartPole-v1\nguard:\n{text}\n")
    assert said in str(raised.value)
    assert "plato.yaml:" in str(raised.value)


def test_nothing_in_it_is_evaluated(tmp_path: Path, project_folder: Callable[..., Path]) -> None:
    text = "__import__('os').system('touch ran')"
    with pytest.raises(ProjectError, match="expected an action"):
        load(tmp_path, f'sim: CartPole-v1\nguard: {{fallback: "{text}"}}\n')
    guard = load(
        tmp_path, f'sim: CartPole-v1\nguard: {{forbid: [{{when: {{a: {{equals: "{text}"}}}}, then: {{a: 1}}}}]}}\n'
    )
    assert guard.guard.forbid[0].when["a"].equals == text
    assert not (tmp_path / "ran").exists()
