"""Jobs side by side on a machine with GPUs, which the locks alone decide: no GPU is needed to see who gets which."""

import multiprocessing
import os
from typing import Any

import pytest

from tlexp.processes import CONCURRENT_JOBS, SWEEP_OWNER, available_cores
from tlexp.sweeps import devices


def _worker(count: int, pipe: Any) -> None:
    devices.claim_device(count)
    devices.claim_device(count)  # the next job of the same worker
    pipe.send(os.environ.get(devices.VISIBLE))
    pipe.recv()


def seen(workers: int, gpus: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each of several workers sees that live at the same time."""
    monkeypatch.setenv(SWEEP_OWNER, f"test-{os.getpid()}-{workers}-{gpus}")
    monkeypatch.setenv(CONCURRENT_JOBS, str(workers))
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(workers)]
    processes = [fork.Process(target=_worker, args=(gpus, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    visible = [ours.recv() for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send("end")
    for process in processes:
        process.join()
    return visible


@pytest.mark.parametrize(
    ("workers", "gpus", "visible", "expected"),
    [
        (3, 4, None, ["0", "1", "2"]),
        (4, 2, None, ["0", "0", "1", "1"]),
        (2, 2, "5,7", ["5", "7"]),
        (2, 1, None, [None, None]),
        (2, 0, None, [None, None]),
    ],
)
def test_each_worker_has_a_gpu_of_its_own(workers, gpus, visible, expected, monkeypatch):
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    assert sorted(seen(workers, gpus, monkeypatch), key=str) == expected


def test_cores_are_shared_with_the_jobs_beside(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setenv(CONCURRENT_JOBS, "4")
    assert available_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_cores() == 1
