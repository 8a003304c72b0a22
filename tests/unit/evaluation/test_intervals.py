"""Intervals of the difference of two rows: coverage on planted tables, and what counts as a win."""

import math

import numpy as np
import pytest

from tiekd.evaluation import intervals


def planted(random, effect, seeds, frames, sds=(0.02, 0.02, 0.02)):
    """A planted table: a row that is worse by `effect`, with chance from seeds, scenes, frames.

    Returns the two rows, the frames' scenes, and the effects on these seeds and on these scenes,
    which the intervals over scenes and over seeds are to cover.
    """
    seed_sd, scene_sd, frame_sd = sds
    scenes = [f"scene{place}" for place, count in enumerate(frames) for _ in range(count)]
    of_seed = random.normal(0, seed_sd, seeds)
    of_scene = random.normal(0, scene_sd, len(frames))
    theirs = random.normal(0.3, 0.1, (1, len(scenes))).repeat(seeds, 0)
    noise = random.normal(0, frame_sd, len(scenes))
    ours = theirs + effect + of_seed[:, None] + np.repeat(of_scene, frames) + noise
    return ours, theirs, scenes, effect + of_seed.mean(), of_scene, noise


def shares(tables, seeds, frames, effect=0.05, sds=(0.02, 0.02, 0.02)):
    """Shares of planted tables in which each interval covers its effect, and of wins."""
    random = np.random.default_rng(1)
    covered = {"seeds": 0, "scenes": 0, "both": 0, "wins": 0}
    for _ in range(tables):
        ours, theirs, scenes, on_seeds, of_scene, noise = planted(
            random, effect, seeds, frames, sds
        )
        found = intervals.compare(ours, theirs, scenes)
        # On the frames of this table, whose mean is fixed when only the seeds vary.
        on_frames = effect + intervals.mean_of_scene_means(
            np.repeat(of_scene, frames) + noise, scenes
        )
        covered["seeds"] += found.over_seeds.low <= on_frames <= found.over_seeds.high
        covered["scenes"] += found.over_scenes.low <= on_seeds <= found.over_scenes.high
        covered["both"] += found.over_both.low <= effect <= found.over_both.high
        covered["wins"] += found.is_significant
    return {name: count / tables for name, count in covered.items()}


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [(0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 4, 2.7764), (0.6, 9, 0.8834), (0.99, 30, 2.75)],
)
def test_t_quantile_equals_published_table(probability, freedom, value):
    """Quantiles of Student's t are those of the published tables."""
    assert intervals.t_quantile(probability, freedom) == pytest.approx(value, abs=1e-4)


def test_over_seeds_is_paired_t_interval():
    """The interval over seeds is the paired t interval, worked out by hand."""
    found = intervals.over_seeds([1.0, 2.0, 3.0])
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert intervals.over_seeds([1.0]) == intervals.NO_INTERVAL


def test_intervals_cover_planted_effect():
    """On 200 planted tables all intervals cover the effect about as often as they promise."""
    found = shares(200, seeds=4, frames=(25, 16, 10, 5, 5, 3, 2))
    for name in ("seeds", "scenes", "both"):
        # 95 % +- 3.2 standard errors of 200 tables
        assert 0.90 <= found[name] <= 0.995, (name, found)


def test_over_scenes_covers_with_few_scenes():
    """With four scenes, where an interval of 1.96 standard errors covers 85 %, this one covers."""
    assert shares(200, seeds=2, frames=(6, 6, 6, 6))["scenes"] >= 0.94


@pytest.mark.long
@pytest.mark.parametrize(
    ("seeds", "frames"),
    [(3, (25, 16, 10, 5, 5, 3, 2)), (5, (8,) * 10), (4, (40, 20, 10, 8, 6, 5, 5, 4, 3, 2, 1, 1))],
)
def test_intervals_cover_planted_effect_in_1000_tables(seeds, frames):
    """On 1,000 planted tables the intervals over seeds and scenes cover it in 93 to 97 %."""
    found = shares(1000, seeds, frames)
    assert 0.93 <= found["seeds"] <= 0.97, found
    assert 0.93 <= found["scenes"] <= 0.97, found
    assert found["both"] >= 0.93, found
    assert shares(1000, seeds, frames, effect=0.0)["wins"] <= 0.05


def test_win_that_only_frames_support_is_not_resolved():
    """One scene with many frames pulls the mean over frames, but other scenes don't agree."""
    random = np.random.default_rng(0)
    frames = (200, 5, 5, 5, 5)
    scenes = [f"scene{place}" for place, count in enumerate(frames) for _ in range(count)]
    theirs = random.normal(0.3, 0.05, (3, len(scenes)))
    effect = np.repeat([-0.05, 0.02, -0.03, 0.01, -0.02], frames)
    ours = theirs + effect + random.normal(0, 0.002, (3, 1))
    found = intervals.compare(ours, theirs, scenes)
    assert found.over_frames.high < 0
    assert found.over_seeds.high < 0
    assert not found.over_scenes.excludes_zero
    assert found.significant_over_frames_only
    assert not found.is_significant


def test_clear_win_is_resolved():
    """A difference that every seed and every scene shows is resolved."""
    random = np.random.default_rng(0)
    scenes = [f"scene{place % 6}" for place in range(30)]
    theirs = random.normal(0.3, 0.05, (3, 30))
    found = intervals.compare(theirs - 0.05 + random.normal(0, 0.005, (3, 30)), theirs, scenes)
    assert found.is_significant
    assert found.difference == pytest.approx(-0.05, abs=0.005)
    assert found.p < 0.05


def test_compare_few_scenes_has_no_interval_over_them():
    """With three scenes there is no interval over scenes, so nothing is resolved."""
    scenes = ["a", "a", "b", "b", "c", "c"]
    theirs = np.full((3, 6), 0.3)
    ours = theirs - np.array([[0.1], [0.11], [0.12]])
    found = intervals.compare(ours, theirs, scenes)
    assert found.over_seeds.excludes_zero
    assert found.over_scenes == intervals.NO_INTERVAL
    assert not found.is_significant


def test_compare_weighs_scenes_equally_and_leaves_out_frames_without_truth():
    """The difference is the mean of scene means; NaN frames count in no row."""
    scenes = ["a", "a", "a", "b"]
    theirs = np.zeros((2, 4))
    ours = np.array([[1.0, 1.0, np.nan, 3.0], [1.0, 1.0, 5.0, 3.0]])
    assert intervals.compare(ours, theirs, scenes).difference == 2.0


def test_compare_infinite_figures_resolve_nothing():
    """A network that predicts non-finite depth can't win or lose by a number."""
    scenes = [f"scene{place}" for place in range(6)]
    ours = np.full((3, 6), np.inf)
    for theirs in (np.zeros((3, 6)), ours):
        found = intervals.compare(ours, theirs, scenes)
        assert math.isnan(found.difference)
        assert not found.is_significant
        assert found.p == 1.0


def test_holm_corrects_as_published():
    """Holm's correction of four p-values, worked out by hand, in their own order."""
    corrected = intervals.holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([]) == []


def test_smallest_detectable_shrinks_with_seeds():
    """The smallest detectable difference is (t95 + t80) standard errors, and falls with seeds."""
    by_seed, by_scene = np.array([0.01, 0.02, 0.03]), np.array([0.02, 0.02, 0.02, 0.02])
    three = intervals.smallest_detectable(by_seed, by_scene, 3)
    assert three == pytest.approx((4.30265 + 1.06066) * 0.01 / math.sqrt(3), rel=1e-3)
    assert intervals.smallest_detectable(by_seed, by_scene, 12) == pytest.approx(three / 2)
    assert math.isnan(intervals.smallest_detectable(by_seed[:1], by_scene, 3))
