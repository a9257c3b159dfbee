"""What kept predictions say, against formulas, libraries and reference values."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from tests.helpers import QUICK, compose, forked
from tlexp import run_folder
from tlexp.comparison.comparison import Comparison
from tlexp.comparison.predictions import (
    Predictions,
    by_class,
    calibration,
    class_differences,
    difference_over_examples,
    ensemble,
    fitted_temperature,
    mcnemar,
    read_predictions,
)
from tlexp.comparison.results import read_comparison
from tlexp.runs.run import run
from tlexp.runs.run_result import RunResult
from tlexp.training.task import _halved


def predictions(logits, labels):
    logits = np.asarray(logits, dtype=float)
    names = tuple(f"class {n}" for n in range(logits.shape[1]))
    return Predictions(tuple(map(str, range(len(logits)))), np.asarray(labels), logits, names)


@pytest.fixture(scope="module")
def digits():
    """The reviewer's recipe: distances to class means of half of the digits, on the other half."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    pca = PCA(16, svd_solver="full").fit(x[0::2])
    features, labels = pca.transform(x[1::2]), y[1::2] // 2
    train, classes = pca.transform(x[0::2]), y[0::2] // 2
    centres = np.stack([train[classes == k].mean(0) for k in range(5)])
    return predictions(-((features[:, None] - centres) ** 2).sum(2), labels)


def test_calibration_before_and_after_a_temperature(digits):
    assert digits.correct.mean() == pytest.approx(0.789532, abs=1e-6)
    expected = {"nll": 0.761835, "ece": 0.245648, "ece_mass": 0.245648, "brier": 0.381967}
    assert calibration(digits) == pytest.approx(expected, abs=1e-6)
    t = fitted_temperature(digits)
    assert t == pytest.approx(0.395183, abs=1e-5)
    expected = {"nll": 0.549395, "ece": 0.030694, "ece_mass": 0.034766, "brier": 0.288445}
    assert calibration(digits.scaled(t)) == pytest.approx(expected, abs=1e-5)


def test_the_error_of_equal_bins_is_torchmetrics(digits):
    for t in (0.2, 1.0, 5.0):
        p = torch.from_numpy(digits.scaled(t).logits).softmax(1)
        theirs = multiclass_calibration_error(p, torch.from_numpy(digits.labels), 5, n_bins=15, norm="l1")
        assert calibration(digits.scaled(t))["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_a_temperature_needs_examples(digits):
    few = predictions(digits.logits[:50], digits.labels[:50])
    with pytest.raises(ValueError, match="50 validation examples: a temperature needs 100"):
        fitted_temperature(few)


def test_classes_have_intervals(digits):
    table = by_class(digits)
    assert table["examples"].sum() == len(digits.labels)
    mean = balanced_accuracy_score(digits.labels, digits.logits.argmax(1))
    assert table["accuracy"].mean() == pytest.approx(mean)
    right, n = round(table["accuracy"][0] * table["examples"][0]), int(table["examples"][0])
    low, high = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (table["low"][0], table["high"][0]) == pytest.approx((low, high), abs=1e-6)
    absent = by_class(predictions([[1.0, 0.0, 0.0]], [0]))
    assert absent["accuracy"].isna().tolist() == [False, True, True]


def from_correct(rows):
    return [
        predictions(np.where(np.array(row)[:, None], [[1.0, 0.0]], [[0.0, 1.0]]), np.zeros(len(row), int))
        for row in rows
    ]


def test_mcnemar_is_a_sign_test_of_what_differs():
    (a,), (b,) = from_correct([[1, 1, 1, 1, 1, 1, 0, 1]]), from_correct([[1, 0, 0, 0, 0, 1, 1, 1]])
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(stats.binomtest(4, 5).pvalue)
    assert mcnemar(a, a) == 1
    with pytest.raises(ValueError, match="different examples"):
        mcnemar(a, predictions(a.logits[:3], a.labels[:3]))


def test_a_difference_covers_runs_and_examples():
    rng = np.random.default_rng(0)
    hard = rng.random(300) < 0.3
    runs = [[(~hard | (rng.random(300) < gain)).astype(int) for _ in range(5)] for gain in (0.6, 0.3)]
    first, second = map(from_correct, runs)
    found = difference_over_examples(first, second)
    table = np.array(runs[0]) - np.array(runs[1])
    assert found.mean == pytest.approx(table.mean())
    over_runs = table.mean(1).var(ddof=1) / 5
    over_examples = table.mean(0).var(ddof=1) / 300
    assert max(over_runs, over_examples) * (1 - 1e-9) <= found.variance <= over_runs + over_examples


def test_class_differences_are_adjusted_together(digits):
    rng = np.random.default_rng(0)
    noisy = [predictions(digits.logits + rng.normal(0, 0.3, digits.logits.shape), digits.labels) for _ in range(6)]
    worse = [predictions(p.logits + 2.0 * np.eye(5)[[0]], p.labels) for p in noisy]
    table = class_differences(worse, noisy)
    assert table["difference"][0] > 0
    assert (table["difference"][1:] < 0).any()
    assert (table["p_holm"] >= table["p"]).all()
    same = class_differences(noisy, noisy)
    assert same["p_holm"].isna().all()


def test_an_ensemble_is_the_mean_of_probabilities(digits):
    other = predictions(digits.logits[:, ::-1], digits.labels)
    joint = ensemble([digits, other])
    p = [np.exp(run.logits) / np.exp(run.logits).sum(1, keepdims=True) for run in (digits, other)]
    assert np.exp(joint.logits) == pytest.approx((p[0] + p[1]) / 2)
    assert calibration(ensemble([digits, digits])) == pytest.approx(calibration(digits))


def test_a_run_keeps_its_predictions_and_mlflow_too(tmp_path, store):
    config = compose("tracking=mlflow", f"store={store}", "init=random", "epochs=3", "alpha=0.5", root=tmp_path)
    run(config, tmp_path / "run")
    result = run_folder.read_metrics(tmp_path / "run")
    for role in ("target", "source"):
        for split in ("val", "test"):
            found = read_predictions(tmp_path / "run", role, split)
            assert found.correct.mean() == pytest.approx(result[f"{split}/{role}/accuracy"], abs=2e-3)
            assert calibration(found)["nll"] == pytest.approx(result[f"{split}/{role}/nll"], abs=2e-3)
            assert len(set(found.ids)) == len(found.ids)
    frame = RunResult(tmp_path / "run").predictions()
    assert list(frame)[:3] == ["split", "id", "label"]
    assert (tmp_path / "run/predictions_target.parquet").stat().st_size < 60_000
    client = MlflowClient(config.tracking.uri)
    names = {file.path for file in client.list_artifacts(result["mlflow_run_id"], "predictions")}
    assert names == {f"predictions/predictions_{role}.parquet" for role in ("target", "source")}


def test_a_sweeps_predictions_are_a_table_of_its_comparison(finished_sweep):
    (folder,) = (finished_sweep / "outputs/sweeps").iterdir()
    manifest, metrics = read_comparison(folder)
    comparison = Comparison(manifest, metrics)
    table = comparison.examples
    assert len(table) == len(comparison.rows)
    for line, row in zip(table.to_dict("records"), comparison.rows, strict=True):
        runs = [read_predictions(run_folder.find_job(comparison.jobs_folder, key)) for key in row.config.frame["key"]]
        assert float(line["ensemble"]) == pytest.approx(100 * ensemble(runs).correct.mean(), abs=0.06)
        assert line["worst class"].split()[0] in runs[0].classes
        if row.contrast is not None:
            mean = 100 * row.contrast.difference.interval.mean
            assert float(line["difference over examples"].split()[0]) == pytest.approx(mean, abs=0.11)
    elsewhere = Comparison({**manifest, "jobs": str(folder / "nowhere")}, metrics)
    assert elsewhere.examples is None


def test_logits_that_half_precision_has_no_room_for_keep_their_differences():
    logits = torch.tensor([[100_000.0, 100_001.0, 0.0], [-200_000.0, -199_990.0, -199_995.0]])
    kept = _halved(logits).float()
    assert kept.isfinite().all()
    assert kept[0, :2].tolist() == [-1, 0]
    assert kept[1].tolist() == [-10, 0, -5]


def test_predictions_can_be_left_out(run_job):
    result = run_job("init=random", "epochs=1", "predictions=false")
    assert not list(result["folder"].glob("*.parquet"))


@pytest.mark.slow
def test_processes_keep_what_one_keeps(tmp_path, store):
    """Each of them evaluates every other example."""
    files = []
    for trainer in ("default", "ddp"):
        folder = tmp_path / trainer
        line = (
            *QUICK,
            "tracking=none",
            "init=random",
            "epochs=1",
            f"trainer={trainer}",
            f"hydra.run.dir={folder}",
            "alpha=0",
        )
        done = forked(*line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        files.append(pd.read_parquet(folder / "predictions_target.parquet"))
    assert files[0][["split", "id", "label"]].equals(files[1][["split", "id", "label"]])
    assert np.isfinite(files[1].filter(like="logit/").to_numpy(float)).all()
    assert not math.isnan(files[1]["logit/0"].std())
