"""Fixtures, and the settings of every test process."""

import os

# Two test processes share two cores; with two threads each they would wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.helpers import SWEEP_18, compose, forked
from tlexp import run_folder
from tlexp.runs.run import run as run_config


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder that all test processes of a session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once for all test processes, under a lock."""
    return shared_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of source weights that all test processes share; its lock keeps them apart."""
    return shared_folder(tmp_path_factory) / "store"


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of 18 jobs that ran in one go, made once for all test processes."""
    folder = shared_folder(tmp_path_factory) / "finished_sweep"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tlexp.runs.result.save_figure", without_figure)
                done = forked("-m", *SWEEP_18, cwd=folder)
            assert done.returncode == 0, done.stderr
            (folder / "done").write_text(done.stdout)
    return folder


def without_figure(*_: Any) -> None:
    """Stands for `save_figure`."""


@pytest.fixture(autouse=True)
def without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out a run's two figures, half of the time of a short run, unless the marker `figures` asks for them.

    A fork inherits it; whole commands in processes of their own draw them.
    """
    if "figures" not in request.keywords:
        monkeypatch.setattr("tlexp.runs.result.save_figure", without_figure)


@pytest.fixture
def run_job(tmp_path: Path, store: Path) -> Callable[..., dict[str, Any]]:
    """Runs one job in this process and returns its `metrics.json`, with its folder under `folder`."""
    count = iter(range(1000))

    def run_job(*overrides: str) -> dict[str, Any]:
        folder = tmp_path / f"run{next(count)}"
        run_config(compose(f"store={store}", *overrides, root=tmp_path), folder)
        return {**run_folder.read_metrics(folder), "folder": folder}

    return run_job
