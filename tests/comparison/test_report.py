"""The comparison: chosen by validation, reported on the test, paired, adjusted; against SciPy and by hand."""

import csv
import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from tlexp.comparison.analysis import compare_methods, equivalent_labels, learning_curves, source_effects
from tlexp.comparison.figures import figures
from tlexp.comparison.html import render_page
from tlexp.comparison.report import report
from tlexp.comparison.results import SweepResults, side_by_side
from tlexp.comparison.statistics import holm
from tlexp.comparison.tables import method_table, notes
from tlexp.errors import UsageError

Point = tuple[dict[str, str], float, float]
MEANS = {"scratch": 0.80, "finetune": 0.83, "linear_probe": 0.815, "lp_ft": 0.80}


def sweep(
    points: list[Point], metric: str = "test/target/accuracy", **manifest: Any
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """A sweep from points with their validation loss and their test value."""
    axes = list(points[0][0])
    asked = [{"values": values, "key": str(index)} for index, (values, _, _) in enumerate(points)]
    made = {"name": "made", "axes": axes, "methods": None, "baseline": None, "metric": metric}
    made |= {"monitor": "val/target/nll", "searched": False, "points": asked, **manifest}
    cost = {"fit_seconds": 2.0, "trainable_parameters": 1000.0}
    measured = {str(index): {"score": score, metric: test, **cost} for index, (_, score, test) in enumerate(points)}
    return made, {key: result for key, result in measured.items() if result["score"] >= 0}  # below 0 stands for failed


def results_of(points: list[Point], **manifest: Any) -> SweepResults:
    return SweepResults(*sweep(points, **manifest))


RNG = np.random.default_rng(0)
NOISE = {(strategy, seed): RNG.normal(0, 0.01) for strategy in "abcd" for seed in range(6)}


def four_strategies() -> list[Point]:
    return [
        ({"strategy": name, "alpha": alpha, "seed": str(seed)}, loss, mean + NOISE["abcd"[index], seed] + gain)
        for index, (name, mean) in enumerate(MEANS.items())
        for alpha, loss, gain in (("0", 0.5, 0.0), ("0.1", 0.4, -0.01), ("1", 0.6, 0.02))
        for seed in range(6)
    ]


def test_each_method_is_reported_at_what_validation_chose_for_it():
    """alpha = 1 is better on the test, and the gap says by how much; nothing is chosen by it."""
    rows = compare_methods(results_of(four_strategies()))
    assert {row.config.tuned for row in rows} == {(("alpha", "0.1"),)}
    assert all(row.oracle_gap == pytest.approx(0.03) for row in rows)
    assert [row.candidates for row in rows] == [3] * 4
    best = next(row for row in rows if row.method == (("strategy", "finetune"),))
    values = [0.83 - 0.01 + NOISE["b", seed] for seed in range(6)]
    assert best.test.mean == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
    assert (best.test.low, best.test.high) == pytest.approx((low, high))
    assert rows[0] is best


def test_differences_are_paired_and_adjusted_as_scipy_has_them():
    effects_found = {row.method[0][1]: row for row in compare_methods(results_of(four_strategies()))}
    tests = {name: [0.0] * 6 for name in effects_found}
    for index, (name, mean) in enumerate(MEANS.items()):
        tests[name] = [mean - 0.01 + NOISE["abcd"[index], seed] for seed in range(6)]
    others = ("finetune", "linear_probe", "lp_ft")
    p = [stats.ttest_rel(tests[name], tests["scratch"]).pvalue for name in others]
    assert [effects_found[name].contrast.difference.p for name in others] == pytest.approx(p)
    assert [effects_found[name].contrast.p_holm for name in others] == pytest.approx(holm(p))
    exact = [stats.wilcoxon(tests[name], tests["scratch"], method="exact").pvalue for name in others]
    assert [effects_found[name].contrast.p_wilcoxon for name in others] == pytest.approx(exact)
    assert effects_found["scratch"].contrast is None


def test_pairs_are_those_that_both_have():
    failed = (("scratch", 0), ("finetune", 3))
    points = [
        ({"strategy": name, "seed": str(seed)}, -1.0 if (name, seed) in failed else 0.5, 0.5 + 0.01 * seed)
        for name in ("scratch", "finetune")
        for seed in range(4)
    ]
    made = results_of(points)
    row = next(row for row in compare_methods(made) if row.contrast)
    assert row.contrast.difference.interval.n == 2
    assert made.unfinished == 2
    assert "2 grid points have no result: their jobs failed or have not run yet" in notes(made, compare_methods(made))


def test_a_configuration_that_lacks_repetitions_is_not_chosen():
    points = [
        ({"alpha": alpha, "lr": lr, "seed": str(seed)}, -1.0 if (lr, seed) == ("2", 1) else 1.0 / float(lr), 0.5)
        for alpha in ("0", "1")
        for lr in ("1", "2")
        for seed in range(2)
    ]
    assert {row.config.tuned for row in compare_methods(results_of(points))} == {(("lr", "1"),)}


def test_the_gap_is_the_error_with_the_source_minus_without():
    points = [
        ({"strategy": "finetune", "alpha": alpha, "seed": str(seed)}, 0.5, accuracy + wobble * (seed - 2))
        for alpha, accuracy, wobble in (("0", 0.9, 0.001), ("0.1", 0.95, 0.002), ("1", 0.7, 0.003))
        for seed in range(5)
    ]
    by_alpha = {effect.alpha: effect for effect in source_effects(results_of(points))}
    assert by_alpha["0"].gap is None
    assert by_alpha["0.1"].gap.difference.interval.mean == pytest.approx(-0.05)
    assert by_alpha["1"].gap.difference.interval.mean == pytest.approx(0.2)
    assert [by_alpha[alpha].verdict for alpha in ("0", "0.1", "1")] == ["", "helps", "hurts"]
    adjusted = holm([by_alpha[alpha].gap.difference.p for alpha in ("0.1", "1")])
    assert [by_alpha[alpha].gap.p_holm for alpha in ("0.1", "1")] == pytest.approx(adjusted)


def test_an_interval_alone_is_no_verdict():
    """Ten alphas, each with p a little below .05: adjusted, none of them says that the source hurts."""
    rng = np.random.default_rng(1)
    points = [({"alpha": "0", "seed": str(seed)}, 0.5, 0.9) for seed in range(5)]
    for index in range(1, 11):
        wobble = stats.zscore(rng.normal(size=5), ddof=1) * 0.01
        points += [({"alpha": f"{index}", "seed": str(seed)}, 0.5, 0.9 - 0.013 + wobble[seed]) for seed in range(5)]
    effects_found = [effect for effect in source_effects(results_of(points)) if effect.gap is not None]
    assert {effect.verdict for effect in effects_found} == {"may hurt"}


def test_less_is_better_for_losses():
    points = [
        ({"strategy": name, "alpha": alpha, "seed": str(seed)}, score, test + 0.01 * seed)
        for name, alpha, score, test in (
            ("scratch", "0", 0.5, 1.0),
            ("scratch", "1", 0.6, 1.5),
            ("finetune", "0", 0.5, 0.4),
            ("finetune", "1", 0.6, 0.2),
        )
        for seed in range(3)
    ]
    made = results_of(points, metric="test/target/nll")
    rows = compare_methods(made)
    assert [row.method[0][1] for row in rows] == ["finetune", "scratch"]
    assert rows[0].oracle_gap == pytest.approx(0.2)
    assert method_table(made, rows)["wins"][0] == "3 of 3"
    gaps = {(e.method[0][1], e.alpha): e.gap.difference.interval.mean for e in source_effects(made) if e.gap}
    assert gaps == {("scratch", "1"): pytest.approx(0.5), ("finetune", "1"): pytest.approx(-0.2)}


@pytest.mark.parametrize(
    ("axes", "methods", "problems", "tuned", "baseline"),
    [
        (("strategy", "alpha", "seed"), ["strategy"], [], ["alpha"], {"strategy": "b"}),
        (("strategy", "terms", "lr"), ["strategy", "terms"], [], ["lr"], {"strategy": "b", "terms": "b"}),
        (("alpha", "lr", "seed"), ["alpha"], [], ["lr"], {"alpha": "b"}),
        (("strategy", "backbone", "data.shots"), ["strategy"], ["backbone", "data.shots"], [], {"strategy": "b"}),
        (("backbone", "alpha"), ["backbone"], [], ["alpha"], {"backbone": "b"}),
        (("batch_size", "seed", "data.draw"), ["batch_size"], [], [], {"batch_size": "b"}),
        (("seed",), [], [], [], {}),
    ],
)
def test_axes_are_methods_problems_or_tuned(axes, methods, problems, tuned, baseline):
    made = results_of(
        [
            ({axis: value if axis != "alpha" else str(index) for axis in axes}, 0.5, 0.5)
            for index, value in enumerate("ba")
        ]
    )
    assert (made.methods, made.problems, made.tuned) == (methods, problems, tuned)
    assert made.baseline == {axis: "0" if axis == "alpha" else value for axis, value in baseline.items()}
    assert compare_methods(made)


def test_scratch_is_the_baseline_unless_another_was_declared():
    points = [({"strategy": name}, 0.5, 0.5) for name in ("finetune", "linear_probe", "scratch")]
    assert results_of(points).baseline == {"strategy": "scratch"}
    assert results_of(points, baseline="strategy=finetune").baseline == {"strategy": "finetune"}
    with pytest.raises(UsageError, match="lr: not an axis of made; choose one of strategy"):
        results_of(points, methods=["lr"])


def test_one_run_of_each_has_no_intervals_and_no_tests():
    made = results_of([({"strategy": name}, 0.5, value) for name, value in (("scratch", 0.5), ("finetune", 0.6))])
    rows = compare_methods(made)
    text = method_table(made, rows).to_numpy().ravel().tolist()
    assert "60.0 (n=1)" in text
    assert "+10.0" in text
    assert not any("nan" in cell for cell in text)
    assert "exploratory (n = 1; use at least 10 for a claim)" in notes(made, rows)


def test_repetitions_that_are_one_job_are_one():
    manifest, results = sweep([({"strategy": "scratch", "pretrain.seed": str(seed)}, 0.5, 0.5) for seed in range(3)])
    for point in manifest["points"]:
        point["key"] = "0"
    (row,) = compare_methods(SweepResults(manifest, results))
    assert row.test.n == 1
    assert math.isnan(row.test.low)


def test_what_was_not_measured_or_is_no_point_is_one_line():
    manifest, results = sweep([({"strategy": name}, 0.5, 0.5) for name in ("scratch", "finetune")])
    with pytest.raises(UsageError, match="test/source/accuracy: 2 of 2 jobs did not measure it; choose another"):
        SweepResults({**manifest, "metric": "test/source/accuracy"}, results)
    with pytest.raises(UsageError, match="strategy=scrach: not in made; choose one of strategy=scratch"):
        SweepResults({**manifest, "baseline": "strategy=scrach"}, results)
    with pytest.raises(UsageError, match="made: given twice"):
        side_by_side([(manifest, results), (manifest, results)])
    other = {**manifest, "name": "other", "task": {"target": "mnist"}}
    with pytest.raises(UsageError, match="target digits and mnist: sweeps on different data cannot be compared"):
        side_by_side([({**manifest, "task": {"target": "digits"}}, results), (other, results)])


def test_methods_are_ranked_over_five_data_sets():
    scores = [[0.81, 0.79, 0.83], [0.72, 0.70, 0.71], [0.90, 0.88, 0.91], [0.65, 0.66, 0.69], [0.78, 0.75, 0.80]]
    made = results_of(
        [
            ({"strategy": name, "dataset@data.target": str(index)}, 0.5, score)
            for index, row in enumerate(scores)
            for name, score in zip("abc", row, strict=True)
        ]
    )
    order = "c 1.20, a 2.00, b 2.80; Friedman p = 0.041, critical difference 1.48 (Nemenyi, 5 %)"
    assert f"mean ranks over data sets: {order}" in notes(made, compare_methods(made))


def test_unequal_budgets_are_said():
    asked = [("scratch", "1"), ("scratch", "2"), ("scratch", "3"), ("finetune", "1")]
    made = results_of([({"strategy": name, "lr": lr}, 0.5, 0.5) for name, lr in asked])
    note = "unequal tuning budgets (configurations with different results): scratch 3, finetune 1"
    assert note in notes(made, compare_methods(made))


def test_labels_that_a_method_saves():
    points = [
        ({"strategy": name, "data.shots": str(n), "seed": str(seed)}, 0.5, base + 0.1 * math.log(n))
        for name, base in (("scratch", 0.2), ("finetune", 0.2 + 0.1 * math.log(4)))
        for n in (2, 4, 8, 16)
        for seed in range(2)
    ]
    made = results_of(points)
    note = "finetune with 2, 4 labels matches scratch with 8, 16 (log-linear interpolation)"
    assert note in notes(made, compare_methods(made))
    lines = {
        method[0][1]: line
        for (_, method), line in learning_curves(compare_methods(results_of(points)), "data.shots").items()
    }
    needed = equivalent_labels(lines["finetune"], lines["scratch"])
    assert needed[:2] == pytest.approx([8, 16])
    assert math.isnan(needed[2])


def test_sweeps_side_by_side_are_methods_with_their_budgets():
    first = sweep([({"lr": lr, "seed": str(s)}, float(lr), 0.5) for lr in ("1", "2") for s in range(3)], name="tune_a")
    second = sweep([({"decay": "3", "seed": str(s)}, 0.1, 0.7) for s in range(3)], name="tune_b")
    renamed = {f"x{key}": value for key, value in second[1].items()}
    for point in second[0]["points"]:
        point["key"] = f"x{point['key']}"
    manifest, results = side_by_side([first, (second[0], renamed)])
    rows = compare_methods(SweepResults(manifest, results))
    assert [(row.method[0][1], row.candidates, dict(row.config.tuned)) for row in rows] == [
        ("tune_b", 1, {"lr": "-", "decay": "3"}),
        ("tune_a", 2, {"lr": "1", "decay": "-"}),
    ]
    assert rows[0].contrast.difference.interval.mean == pytest.approx(0.2)
    other = ({**second[0], "monitor": "val/target/accuracy"}, renamed)
    with pytest.raises(UsageError, match="sweeps with a different monitor cannot be compared"):
        side_by_side([first, other])


def everything() -> SweepResults:
    names, networks = ("scratch", "<b>odd & $name$"), ("small_cnn", "mlp")
    points = []
    for s, b, n, a, seed in itertools.product(names, networks, ("2", "10"), ("0", "0.1", "inf"), range(3)):
        values = {"strategy": s, "backbone": b, "data.shots": n, "alpha": a, "seed": str(seed)}
        points.append((values, 0.5, 0.5 + 0.01 * len(s + b + n + a) + 0.001 * seed * len(s)))
    return results_of(points)


def test_every_figure_that_results_have_data_for_is_drawn(tmp_path):
    made = everything()
    drawn = figures(made, compare_methods(made), source_effects(made))
    assert set(drawn) == {"methods", "alpha_curve", "negative_transfer", "label_efficiency", "heat_map", "cost"}
    few = results_of([({"alpha": alpha, "seed": str(seed)}, 0.5, 0.5) for alpha in ("0", "1") for seed in range(2)])
    assert set(figures(few, compare_methods(few), source_effects(few))) == {
        "methods",
        "alpha_curve",
        "negative_transfer",
        "cost",
    }


def test_the_page_needs_nothing_beside_itself_and_shows_names_as_they_are(tmp_path):
    made = everything()
    rows, effects_found = compare_methods(made), source_effects(made)
    pictures = {}
    for name, figure in figures(made, rows, effects_found).items():
        pictures[name] = tmp_path / f"{name}.svg"
        figure.savefig(pictures[name])
    text = render_page(made, rows, effects_found, pictures)
    assert "&lt;b&gt;odd &amp; $name$" in text
    assert "<b>odd" not in text
    assert not any(outside in text for outside in ("http://", "https://", "<script", "<link"))
    assert text.count("data:image/svg+xml;base64,") == 6


def test_files_hold_the_numbers(tmp_path):
    manifest, results = sweep(four_strategies())
    console = Console(file=io.StringIO(), width=150)
    made = report(manifest, results, tmp_path, console)
    assert made.page == tmp_path / "comparison.html"
    assert made.best == {"best/test/target/accuracy": pytest.approx(0.79, abs=0.01)}
    assert all(file.is_file() for file in made.files)
    with (tmp_path / "comparison.csv").open() as file:
        lines = {line["strategy"]: line for line in csv.DictReader(file)}
    values = [0.83 - 0.01 + NOISE["b", seed] for seed in range(6)]
    line = lines["finetune"]
    assert (line["alpha"], line["n"], line["trials"], line["preferred"]) == ("0.1", "6", "3", "False")
    loss, _ = sweep(four_strategies(), metric="test/target/nll")
    report(loss, sweep(four_strategies(), metric="test/target/nll")[1], tmp_path / "loss", console)
    with (tmp_path / "loss/comparison.csv").open() as file:
        worse = {row["strategy"]: row for row in csv.DictReader(file)}["finetune"]
    assert int(line["wins"]) + int(worse["wins"]) == 6, "where more is better, and where less is"
    assert [float(line[name]) for name in ("mean", "sd", "median", "min")] == pytest.approx(
        [np.mean(values), np.std(values, ddof=1), np.median(values), min(values)]
    )
    with (tmp_path / "points.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 72


def test_nothing_finished_is_said(tmp_path, capsys):
    manifest, _ = sweep(four_strategies())
    assert report(manifest, {}, tmp_path, Console()) is None
    assert "no job has finished: there is nothing to compare" in capsys.readouterr().out


def test_what_changes_the_test_set_is_a_problem_and_no_method():
    points = [
        ({"data.target.root": root, "data.target.classes": classes, "seed": str(seed)}, 0.5, 0.8 + 0.01 * seed)
        for root in ("a", "b")
        for classes in ("[0,1]", "[2,3]")
        for seed in range(3)
    ]
    results = results_of(points)
    assert (results.methods, results.problems) == ([], ["data.target.root", "data.target.classes"])
    rows = compare_methods(results)
    assert len(rows) == 4
    assert all(row.contrast is None for row in rows)
    table = method_table(results, rows)
    assert list(table.columns) == ["data.target.root", "data.target.classes", "method", "validation", "test"]
    with pytest.raises(UsageError, match=r"data\.target\.root: its values have different test sets"):
        results_of(points, methods=["data.target.root"])


def test_sources_on_one_target_are_methods():
    points = [
        ({"dataset@data.source": name, "seed": str(seed)}, 0.5, 0.8 + 0.01 * seed)
        for name in ("mnist", "usps")
        for seed in range(3)
    ]
    assert results_of(points).methods == ["dataset@data.source"]
