"""The engine's replay buffer: what is drawn is what happened, whatever ends, is cut, or is overwritten."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from platotk.learning.engine.fragments import FragmentBuilder
from platotk.learning.engine.priorities import Priorities
from platotk.learning.engine.replay import FIRST_ROWS, Drawn, ReplayColumns

GAMMA = 0.9


class Story:
    """Sims whose every observation is a number of its own, and all that has happened to them."""

    def __init__(self, num_sims: int, seed: int, *, end: float = 0.15) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_sims, self._end, self._next = num_sims, end, 0
        self.observations = self._new(np.ones(num_sims, dtype=bool))
        self.is_done = np.zeros(num_sims, dtype=bool)
        self.steps: dict[float, dict[str, Any]] = {}

    def _new(self, where: Any) -> Any:
        numbers = np.zeros((self.num_sims, 1), dtype=np.float32)
        numbers[:, 0] = self._next + np.arange(self.num_sims)
        self._next += self.num_sims
        return numbers

    def step(self) -> tuple[Any, ...]:
        """One vector step: was_step, actions, rewards, terminated, truncated, observations."""
        was_step = ~self.is_done
        actions = self.rng.integers(0, 5, self.num_sims)
        rewards = self.rng.normal(size=self.num_sims).astype(np.float32)
        terminated = (self.rng.random(self.num_sims) < self._end) & was_step
        truncated = (self.rng.random(self.num_sims) < self._end) & was_step & ~terminated
        observations = self._new(was_step)
        for sim in np.flatnonzero(was_step):
            self.steps[float(self.observations[sim, 0])] = {
                "action": int(actions[sim]),
                "reward": float(rewards[sim]),
                "terminated": bool(terminated[sim]),
                "truncated": bool(truncated[sim]),
                "next": float(observations[sim, 0]),
            }
        self.is_done = terminated | truncated
        self.observations = observations
        return was_step, actions, rewards, terminated, truncated, observations

    def assert_happened(self, drawn: Drawn) -> None:
        """Every row is a step that was taken, and what followed it within its episode."""
        columns = drawn.columns
        for row in range(len(drawn.rows)):
            number = float(columns["obs"][row, 0])
            step, total = self.steps[number], 0.0
            assert columns["actions"][row] == step["action"]
            for ahead in range(int(columns["n_step"][row])):
                step = self.steps[number]
                total += GAMMA**ahead * step["reward"]
                number = step["next"]
                is_last = ahead + 1 == columns["n_step"][row]
                assert is_last or not (step["terminated"] or step["truncated"]), "an episode is never crossed"
            assert columns["rewards"][row] == pytest.approx(total, abs=1e-5)
            assert columns["new_obs"][row, 0] == step["next"]
            assert columns["terminateds"][row] == step["terminated"]
            assert columns["truncateds"][row] == step["truncated"]


def streamed(replay: ReplayColumns, story: Story, num_steps: int) -> None:
    replay.begin(story.observations)
    for _ in range(num_steps):
        replay.add_step(*story.step())


@settings(max_examples=60, deadline=None)
@given(
    num_sims=st.integers(1, 5),
    num_steps=st.integers(8, 80),
    capacity=st.integers(12, 200),
    n_step=st.sampled_from([1, 2, 3, (1, 4)]),
    alpha=st.sampled_from([None, 0.6]),
    seed=st.integers(0, 10_000),
)
def test_what_is_drawn_has_happened(
    num_sims: int, num_steps: int, capacity: int, n_step: Any, alpha: float | None, seed: int
) -> None:
    story = Story(num_sims, seed, end=0.1)
    replay = ReplayColumns(capacity, alpha=alpha, seed=seed, num_streams=num_sims)
    streamed(replay, story, num_steps)
    kept = {float(number) for number in replay._data["observations"][replay._data["is_step"], 0]}
    assert len(kept) == replay.get_num_timesteps() <= min(len(story.steps), capacity)
    if not any(is_long_enough(story, kept, number, n_step) for number in kept):
        with pytest.raises(ValueError, match="n_step"):
            replay.draw(5, n_step=n_step, gamma=GAMMA)
        return
    drawn = replay.draw(50, n_step=n_step, gamma=GAMMA, beta=0.4)
    story.assert_happened(drawn)
    replay.update_rows(drawn.rows, story.rng.normal(size=50))
    story.assert_happened(replay.draw(50, n_step=n_step, gamma=GAMMA, beta=0.4))


def is_long_enough(story: Story, kept: set[float], number: float, n_step: int | tuple[int, int]) -> bool:
    """Whether as many steps as asked for follow one another from here."""
    for _ in range((n_step if isinstance(n_step, int) else n_step[0]) - 1):
        step = story.steps[number]
        if step["terminated"] or step["truncated"] or step["next"] not in kept:
            return False
        number = step["next"]
    return True


def test_steps_are_drawn_alike_and_the_oldest_go_first() -> None:
    story = Story(3, seed=1)
    replay = ReplayColumns(90, seed=0, num_streams=3)
    streamed(replay, story, 100)
    counts = Counter(float(number) for number in replay.draw(40_000, gamma=GAMMA).columns["obs"][:, 0])
    newest = sorted(story.steps)[-len(counts) :]
    assert sorted(counts) == newest
    assert replay.get_num_timesteps() == len(counts) > 60
    expected = 40_000 / len(counts)
    # Five standard deviations of a Poisson count.
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_fragments_of_env_runners_are_put_in_like_single_steps() -> None:
    story = Story(4, seed=2)
    builder = FragmentBuilder(4, story.observations, 30, np.zeros(4, dtype=bool))
    for _ in range(30):
        _, actions, rewards, terminated, truncated, observations = story.step()
        builder.add({"actions": actions}, rewards, terminated, truncated, observations)
    fragment = builder.fragment(0)
    replay = ReplayColumns(1_000, seed=0)
    replay.add([fragment])
    assert replay.get_num_timesteps() == len(story.steps) == len(fragment)
    story.assert_happened(replay.draw(500, n_step=3, gamma=GAMMA))
    small = ReplayColumns(20, seed=0)
    small.add([fragment])  # larger than the buffer: the newest of it stay
    assert 0 < small.get_num_timesteps() <= 20
    story.assert_happened(small.draw(100, gamma=GAMMA))


def test_surprising_steps_are_drawn_more_often_and_count_less() -> None:
    story = Story(1, seed=3, end=0.0)
    replay = ReplayColumns(100, alpha=0.5, seed=0)
    streamed(replay, story, 100)
    rows = np.flatnonzero(replay._data["is_step"])
    errors = np.where(np.arange(len(rows)) % 2, 4.0, 1.0)
    replay.update_rows(rows, errors)
    drawn = replay.draw(30_000, gamma=GAMMA, beta=1.0)
    is_surprising = np.isin(drawn.rows, rows[errors == 4.0])
    assert is_surprising.mean() == pytest.approx(2 / 3, abs=0.02)  # 4 ** 0.5 to 1
    weights = drawn.columns["weights"]
    assert np.allclose(weights[is_surprising], 0.5)
    assert np.allclose(weights[~is_surprising], 1.0)
    replay.update_rows(rows[:2], np.array([np.nan, np.inf]))  # what is not finite changes nothing
    assert np.isfinite(replay.draw(100, gamma=GAMMA, beta=1.0).columns["weights"]).all()


@settings(max_examples=50, deadline=None)
@given(capacity=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_priorities_are_a_sum_tree(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, plain = Priorities(capacity), np.zeros(capacity)
    for _ in range(4):
        rows = rng.integers(0, capacity, 50)
        values = rng.random(50) * (rng.random(50) < 0.8)
        tree.set(rows, values)
        for row, value in zip(rows, values, strict=True):
            plain[row] = value
    assert tree.total == pytest.approx(plain.sum())
    assert np.array_equal(tree.of(np.arange(capacity)), plain)
    positive = plain[plain > 0]
    assert tree.smallest == (positive.min() if len(positive) else np.inf)
    if len(positive):
        points = np.append(rng.random(200), [0.0, np.nextafter(1.0, 0.0)])
        found = tree.draw(points)
        assert (plain[found] > 0).all()
        starts = np.cumsum(plain) - plain
        assert (points * plain.sum() >= starts[found] - 1e-9).all()
        assert (points * plain.sum() <= (starts + plain)[found] + 1e-9).all()


@pytest.mark.parametrize("alpha", [None, 0.6])
def test_its_state_is_plain_and_goes_on_with_the_same_draws(alpha: float | None) -> None:
    story = Story(2, seed=4)
    one = ReplayColumns(500, alpha=alpha, seed=7, num_streams=2)
    streamed(one, story, 60)
    one.update_rows(one.draw(64, gamma=GAMMA, beta=0.4).rows, story.rng.normal(size=64))
    other = ReplayColumns(500, alpha=alpha, seed=8, num_streams=2)
    other.set_state(one.get_state())
    other.rng.bit_generator.state = one.rng.bit_generator.state
    assert len(other) == len(one)
    assert other.num_bytes() == one.num_bytes() > 0
    first, second = (replay.draw(200, n_step=2, gamma=GAMMA, beta=0.4) for replay in (one, other))
    assert np.array_equal(first.rows, second.rows)
    for name, column in first.columns.items():
        assert np.array_equal(column, second.columns[name]), name
    streamed(other, story, 40)
    story.assert_happened(other.draw(200, n_step=2, gamma=GAMMA, beta=0.4))
    for changed in (ReplayColumns(100, alpha=alpha), ReplayColumns(499, alpha=0.5 if alpha is None else None)):
        with pytest.raises(ValueError, match=r"capacity|priorities"):
            changed.set_state(one.get_state())


def test_room_is_made_as_steps_come_in_and_what_was_stored_stays() -> None:
    replay, story = ReplayColumns(1_000_000, seed=1, num_streams=3), Story(3, seed=1)
    replay.begin(story.observations)
    replay.add_step(*story.step())
    each = replay.num_bytes()
    assert len(replay._data["observations"]) == len(replay._data["actions"]) == FIRST_ROWS
    for _ in range(FIRST_ROWS):
        replay.add_step(*story.step())
    assert len(replay._data["observations"]) == len(replay._data["actions"]) == 4 * FIRST_ROWS
    story.assert_happened(replay.draw(3000, n_step=3, gamma=GAMMA))
    assert replay.num_bytes() > each
    full, story = ReplayColumns(FIRST_ROWS + 100, seed=1, num_streams=3), Story(3, seed=1)
    streamed(full, story, 2 * FIRST_ROWS)
    assert len(full._data["observations"]) == FIRST_ROWS + 103
    story.assert_happened(full.draw(3000, n_step=3, gamma=GAMMA))


def test_pictures_for_a_million_steps_take_what_is_stored_of_them() -> None:
    replay = ReplayColumns(1_000_000)
    picture = np.zeros((1, 3, 210, 160), dtype=np.uint8)
    replay.begin(picture)
    yes, no = np.ones(1, dtype=bool), np.zeros(1, dtype=bool)
    replay.add_step(yes, np.zeros((1, 2), np.float32), np.zeros(1), no, no, picture + 7)
    drawn = replay.draw(4, gamma=GAMMA).columns
    assert (drawn["obs"] == 0).all()
    assert (drawn["new_obs"] == 7).all()


def test_a_state_goes_into_a_buffer_of_another_size_while_neither_is_full() -> None:
    story = Story(2, seed=4)
    one = ReplayColumns(500, seed=7, num_streams=2)
    streamed(one, story, 60)
    other = ReplayColumns(5000, seed=7, num_streams=2)
    other.set_state(one.get_state())
    assert len(other) == len(one) > 0
    streamed(other, story, 1000)
    story.assert_happened(other.draw(200, n_step=2, gamma=GAMMA))


def test_an_empty_buffer_says_so() -> None:
    with pytest.raises(ValueError, match="empty"):
        ReplayColumns(10).draw(1, gamma=GAMMA)
    with pytest.raises(RuntimeError, match="begin"):
        ReplayColumns(10).add_step(*Story(1, 0).step())
