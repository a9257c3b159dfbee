"""What validation may say, what counts as a repetition, and the sentences that a reader takes away."""

import math
from typing import Any

import numpy as np
import pytest

from tlexp.comparison.analysis import compare_methods, source_effects
from tlexp.comparison.conclusion import conclusion
from tlexp.comparison.designs import one_way, two_way
from tlexp.comparison.results import SweepResults
from tlexp.comparison.tables import explained, method_table, notes

METRIC = "test/target/accuracy"


def sweep(points: list[tuple[dict[str, str], str, float, float]], more: Any = (), **manifest: Any) -> SweepResults:
    """A sweep from points: values, split seed and draw, validation score, test accuracy."""
    asked = [{"values": values, "key": str(n), "draw": draw} for n, (values, draw, _, _) in enumerate(points)]
    made = {"name": "made", "axes": list(points[0][0]), "methods": None, "baseline": None, "metric": METRIC}
    made |= {"monitor": "val/target/nll", "points": asked, **manifest}
    measured = {
        str(n): {"score": score, METRIC: test, "test/target/nll": 1 - test, **dict(more)}
        for n, (_, _, score, test) in enumerate(points)
    }
    return SweepResults(made, measured)


def crossed(differences: Any, draws: int, seeds: int) -> list[Any]:
    """Two methods on every draw and seed: the second is better by `differences` (draws, seeds)."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.8, 0.02, (draws, seeds))
    return [
        ({"strategy": name, "data.draw": str(d), "seed": str(s)}, f"0/{d}", 0.5, base[d, s] + gain * differences[d][s])
        for gain, name in enumerate(("scratch", "finetune"))
        for d in range(draws)
        for s in range(seeds)
    ]


def test_draws_and_seeds_are_a_table_and_not_a_list():
    differences = np.random.default_rng(1).normal(0.01, 0.01, (4, 1)) + np.random.default_rng(2).normal(
        0, 0.003, (4, 3)
    )
    results = sweep(crossed(differences, 4, 3))
    (row,) = (row for row in compare_methods(results) if row.contrast)
    found, oracle = row.contrast.difference, two_way(differences)
    assert (found.p, found.estimate.df) == pytest.approx((oracle.p, oracle.df))
    assert found.interval.n == row.test.n == 4
    assert len(found.values) == 12
    assert found.independent == pytest.approx(differences.mean(1), abs=1e-6)
    (design,) = (note for note in notes(results, compare_methods(results)) if "crossed" in note)
    assert design.startswith("data.draw and seed are crossed: two-way intervals; standard deviations of the first diff")
    assert "exploratory (n = 4; use at least 10 for a claim)" in notes(results, compare_methods(results))


def test_draws_that_follow_the_seed_are_draws():
    points = [({"strategy": "scratch", "seed": str(s)}, f"0/{s}", 0.5, 0.8 + 0.01 * s) for s in range(4)]
    (config,) = sweep(points).configs
    assert config.draws == 4
    assert config.interval.n == 4
    (config,) = sweep([(values, "0/0", score, test) for values, _, score, test in points]).configs
    assert config.draws == 1
    assert config.interval.n == 4


@pytest.mark.parametrize(
    ("draws", "more", "overlap"),
    [
        (("0/0", "0/1", "0/2"), {"labels": 50, "label_pool": 1000, "test_examples": 400}, 1 / 19),
        (("0/0", "0/1", "0/2"), {"labels": 500, "label_pool": 1000, "test_examples": 400}, 1.0),
        (("0/0", "1/0", "2/0"), {"labels": 50, "label_pool": 1000, "test_examples": 400}, 0.4),
        (("0/0", "0/0", "0/0"), {"labels": 500, "label_pool": 1000, "test_examples": 400}, 0),
        (("0/0", "0/1", "0/2"), {}, 0),
    ],
)
def test_intervals_know_what_repetitions_share(draws, more, overlap):
    tests = np.array([0.8, 0.83, 0.81])
    points = [({"seed": str(s)}, draw, 0.5, tests[s]) for s, draw in enumerate(draws)]
    (config,) = sweep(points, more).configs
    assert config.overlap == pytest.approx(overlap)
    assert config.interval.high == pytest.approx(min(1, tests.mean() + one_way(tests, overlap).half_width()))


def test_seeds_that_change_nothing_are_one_repetition():
    """Ten equal seeds of two methods that have no chance in them: no p-value, no interval of width 0."""
    points = [
        ({"strategy": name, "seed": str(s)}, "0/0", 0.5, test)
        for name, test in (("closed_probe", 0.8), ("solved", 0.83))
        for s in range(10)
    ]
    results = sweep(points)
    rows = compare_methods(results)
    (contrast,) = (row.contrast for row in rows if row.contrast)
    assert math.isnan(contrast.difference.p)
    assert math.isnan(contrast.p_wilcoxon)
    assert math.isnan(contrast.difference.interval.low)
    assert contrast.difference.interval.mean == pytest.approx(0.03)
    assert contrast.verdict(0.01, True) == ""
    assert {row.test.n for row in rows} == {1}
    assert "83.0 (n=1)" in method_table(results, rows)["test"].tolist()
    by_draw = [
        ({**values, "data.draw": str(d)}, f"0/{d}", score, test + d * 0.01 * (values["strategy"] == "solved"))
        for values, _, score, test in points
        for d in range(4)
    ]
    (contrast,) = (row.contrast for row in compare_methods(sweep(by_draw)) if row.contrast)
    oracle = one_way(0.03 + 0.01 * np.arange(4))
    assert (contrast.difference.p, contrast.difference.estimate.df) == pytest.approx((oracle.p, 3))


@pytest.mark.parametrize(
    ("mean", "sd", "verdict"),
    [(0.05, 0.01, "better"), (-0.05, 0.01, "worse"), (0.001, 0.004, "equivalent"), (0.02, 0.05, "undecided")],
)
def test_verdicts(mean, sd, verdict):
    noise = np.random.default_rng(3).normal(size=10)
    values = mean + sd * (noise - noise.mean()) / noise.std()
    points = [({"strategy": "scratch", "seed": str(s)}, f"0/{s}", 0.5, 0.8) for s in range(10)]
    points += [({"strategy": "finetune", "seed": str(s)}, f"0/{s}", 0.5, 0.8 + values[s]) for s in range(10)]
    rows = compare_methods(sweep(points))
    assert next(row.contrast for row in rows if row.contrast).verdict(0.01, True) == verdict


def choosing(noise: float, draws: int = 8) -> list[Any]:
    """Three alphas; the middle one has the best validation score on average."""
    rng = np.random.default_rng(4)
    means = {"0": 0.50, "0.1": 0.40, "1": 0.45}
    return [
        ({"alpha": alpha, "data.draw": str(d)}, f"0/{d}", mean + rng.normal(0, noise), 0.8 - 0.02 * index)
        for index, (alpha, mean) in enumerate(means.items())
        for d in range(draws)
    ]


def test_a_star_needs_validation_sets_that_agree():
    clear = sweep(choosing(0.005))
    choice = clear.choice(clear.configs)
    assert choice.preferred is choice.best
    table = method_table(clear, compare_methods(clear))
    assert [name for name in table["method"] if name.endswith("*")] == ["alpha=0.1 *"]
    unclear = sweep(choosing(0.3))
    assert unclear.choice(unclear.configs).preferred is None
    assert not any(name.endswith("*") for name in method_table(unclear, compare_methods(unclear))["method"])
    one = sweep([(values, "0/0", score, test) for values, _, score, test in choosing(0.005)])
    assert one.choice(one.configs).preferred is None, "all validate on the same examples"
    assert len(one.choice(one.configs).members) == 3
    assert "Validation recommends nothing: all runs share one validation set" in said(one)


def test_the_choice_set_has_what_validation_does_not_tell_apart():
    rng = np.random.default_rng(5)
    scores = {"0": 0.40, "0.1": 0.401, "1": 0.8}
    points = [
        ({"alpha": alpha, "data.draw": str(d)}, f"0/{d}", score + rng.normal(0, 0.02), 0.8 - 0.1 * float(alpha))
        for alpha, score in scores.items()
        for d in range(8)
    ]
    results = sweep(points, {"val_examples": 10})
    assert {dict(config.method)["alpha"] for config in results.choice(results.configs).members} == {"0", "0.1"}
    assert "does not tell 2 of 3 configurations apart, on 8 validation sets of 10 examples; the tests" in said(results)
    assert "range from 79.0 to 80.0" in said(results)


def test_the_simplest_within_a_standard_error():
    rng = np.random.default_rng(6)
    noise = rng.normal(0, 0.05, 8)
    points = []
    for name, score in (("big", 0.40), ("small", 0.41), ("tiny", 0.9)):
        points += [
            ({"strategy": "finetune", "lr": name, "data.draw": str(d)}, f"0/{d}", score + noise[d], 0.8)
            for d in range(8)
        ]
    sizes = {"big": 1e6, "small": 1e3, "tiny": 10}
    made = {"axes": ["strategy", "lr", "data.draw"], "choose": "one_se"}
    results = sweep(points, **made)
    results.frame["trainable_parameters"] = results.frame["lr"].map(sizes)
    choice = results.choice(results.configs)
    assert dict(choice.best.tuned)["lr"] == "big"
    assert dict(choice.chosen.tuned)["lr"] == "small"
    assert any("within one standard error" in note for note in notes(results, compare_methods(results)))


def said(results: SweepResults) -> str:
    return conclusion(results, compare_methods(results), source_effects(results))


def test_the_first_sentence_says_that_the_source_hurts():
    """Sketch to photo, seven validation pictures: validation prefers alpha = 1, which is six points worse."""
    noise = np.random.default_rng(7).normal(0, 0.004, 10)
    points = [({"alpha": "0", "seed": str(s)}, "0/0", 0.6, 0.90) for s in range(10)]
    points += [({"alpha": "1", "seed": str(s)}, "0/0", 0.5, 0.84 + noise[s]) for s in range(10)]
    points += [({"alpha": "0.1", "seed": str(s)}, "0/0", 0.6, 0.90 + noise[s]) for s in range(10)]
    results = sweep(points, {"val_examples": 7})
    first, *rest = said(results).splitlines()
    assert first.startswith("The source hurts with alpha=1 (error +6.")
    assert ", p " in first
    assert rest[0] == "Practically without effect, within 1 point: alpha=0.1."
    assert "all runs share one validation set of 7 examples" in rest[-1]


def test_each_method_is_in_one_sentence():
    rng = np.random.default_rng(8)
    spread = {"finetune": 0.003, "lp_ft": 0.003, "surgical": 0.003, "layer_decay": 0.015}
    noise = {name: rng.normal(0, sd, 10) for name, sd in spread.items()}
    means = {"finetune": 0.05, "lp_ft": -0.04, "surgical": 0.0, "layer_decay": 0.012}
    points = [({"strategy": "scratch", "seed": str(s)}, f"0/{s}", 0.5, 0.8) for s in range(10)]
    for name, gain in means.items():
        points += [({"strategy": name, "seed": str(s)}, f"0/{s}", 0.5, 0.8 + gain + noise[name][s]) for s in range(10)]
    results = sweep(points)
    text = said(results)
    assert "Better than scratch: finetune (+4." in text
    assert "Worse than scratch: lp_ft (-3." in text
    assert "Practically equal to scratch, within 1 point: surgical." in text
    assert text.count("scratch: ") == 3
    assert "Not told apart from scratch: layer_decay (" in text
    meanings = explained(results, compare_methods(results), [])
    assert set(meanings) >= {"verdict", "p (Holm)", "difference", "validation"}
    assert "oracle gap" not in meanings


def test_columns_that_say_nothing_are_left_out():
    points = [({"strategy": name, "seed": "0"}, "0/0", 0.5, 0.8) for name in ("scratch", "finetune")]
    table = method_table(results := sweep(points), compare_methods(results))
    assert not {"p (Holm)", "d_z", "verdict", "candidates"} & set(table)


def test_ties_are_counted_and_are_no_wins():
    tests = {"scratch": [0.8, 0.8, 0.8, 0.8], "finetune": [0.8, 0.81, np.float32(0.8), 0.79]}
    points = [
        ({"strategy": name, "seed": str(s)}, f"0/{s}", 0.5, float(value))
        for name, values in tests.items()
        for s, value in enumerate(values)
    ]
    table = method_table(results := sweep(points), compare_methods(results))
    assert "1 of 4, 2 equal" in table["wins"].tolist()


def test_ways_to_use_the_same_labels_are_no_problems():
    points = [
        ({"strategy": name, "data.val": val, "data.draw": str(d)}, f"0/{d}", 0.5, 0.8 + 0.01 * d)
        for name in ("scratch", "finetune")
        for val in ("in_budget", "cv")
        for d in range(3)
    ]
    results = sweep(points)
    assert results.problems == []
    assert results.tuned == ["data.val"]
    assert sweep(points, methods=["data.val"], baseline="data.val=in_budget").baseline == {"data.val": "in_budget"}
