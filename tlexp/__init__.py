"""Transfer-learning experiments: f* = argmin L(f; target) + alpha * L(f; source).

import tlexp

config = tlexp.compose(["strategy=finetune", "alpha=0.5"])
result = tlexp.run(config)
results = tlexp.sweep(["strategy=scratch,finetune", "alpha=0,0.5", "seed=range(5)"])
results.table()
"""

from typing import TYPE_CHECKING, Any

from tlexp.errors import JobsFailedError, TrainingDivergedError, UsageError
from tlexp.version import __version__

if TYPE_CHECKING:
    from tlexp.api import compare, compose, run, sweep

__all__ = [
    "JobsFailedError",
    "TrainingDivergedError",
    "UsageError",
    "__version__",
    "compare",
    "compose",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Imports the functions at their first use: `import tlexp` takes no time, and what needs no torch imports none."""
    if name in __all__:
        from tlexp import api

        return getattr(api, name)
    raise AttributeError(f"module 'tlexp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
