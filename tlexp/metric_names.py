"""The metrics of a domain and their direction, by the names under which runs log them."""

# Measured on every evaluated domain; the value says whether higher is better.
METRICS = {
    "accuracy": True,
    "balanced_accuracy": True,
    "worst_class": True,
    "macro_f1": True,
    "nll": False,
    "brier": False,
    "ece": False,
}
TEST_METRICS = [f"test/{role}/{name}" for role in ("target", "source", "shifted") for name in METRICS]


def higher_is_better(metric: str) -> bool:
    """Returns the direction of a metric such as `val/target/nll`."""
    return METRICS[metric.rsplit("/", 1)[-1]]


def validation_metrics(roles: list[str]) -> list[str]:
    """Returns the names that validation logs for the given roles."""
    return [f"val/{role}/{name}" for role in roles for name in METRICS]
