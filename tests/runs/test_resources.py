"""What a run records of its cost, against counts by hand."""

import pytest


@pytest.mark.parametrize(
    ("strategy", "trains"),
    [("linear_probe", 128 * 10 + 10), ("scratch", None)],
)
def test_parameters_are_counted_and_time_and_memory_are_measured(run_job, strategy, trains):
    result = run_job("init=random", f"strategy={strategy}", "epochs=2", "alpha=0.5")
    assert result["trainable_parameters"] == (trains or result["parameters"])
    # 40 examples of the target an epoch, in three steps of 16 of the source.
    assert result["training_examples"] == 2 * (40 + 3 * 16)
    assert result["forward_passes"] == (0 if strategy == "linear_probe" else result["training_examples"])
    assert result["steps"] == 2 * 3
    assert result["examples_per_second"] * result["fit_seconds"] == pytest.approx(result["training_examples"])
    assert 50 < result["peak_memory_mib"] < 20_000
    assert 0 < result["fit_seconds"] < result["seconds"]
