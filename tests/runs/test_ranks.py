"""Two processes a job: each trains the job's own values, and together they do what one process does."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient

from tests.helpers import (
    BACKBONES,
    QUICK,
    STRATEGIES,
    WHOLE,
    best_weights,
    compose,
    each_once,
    fit_components,
    forked,
    options_of,
)
from tlexp.config.load import load_file
from tlexp.errors import UsageError
from tlexp.processes import count_ranks
from tlexp.reporting.console import Output
from tlexp.runs.build import build, validate
from tlexp.runs.ranks import rank
from tlexp.runs.run import run as run_config
from tlexp.runs.train import train
from tlexp.tracking.mlflow_run import MLflowRun

# 21 test images and 12 training images: nothing divides evenly by two.
UNEVEN = ("data.target.classes=[0,1,2]", "data.test_fraction=0.039", "batch_size=5", "backbone.dropout=0")
RUN = (*UNEVEN, "optimizer=sgd", "lr=0.05", "epochs=3", "init=random", "monitor=val/target/nll")
DDP = "trainer=ddp"

pytestmark = pytest.mark.slow


def in_two_ranks(work: Callable[[], object], cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Runs a function as each of the two ranks of a group, in forks of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def as_rank(index: int) -> None:
        os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
        work()

    done: list[subprocess.CompletedProcess[str]] = []
    first = forked(
        cwd=cwd,
        main=lambda: as_rank(0),
        meanwhile=lambda _: done.append(forked(cwd=cwd, main=lambda: as_rank(1))),
    )
    return [first, *done]


def result_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def only_run(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs/runs").iterdir()
    return folder


def close(a: Path, b: Path) -> bool:
    ours, theirs = best_weights(a), best_weights(b)
    return all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


def undropped(strategy: str) -> tuple[str, ...]:
    """Returns what leaves a strategy without chance that processes draw for themselves."""
    return ("strategy.adapter.lora_dropout=0",) if strategy == "lora" else ()


# Every strategy, alone, with a shared head and, where the source can then be reached, with two.
OBJECTIVES = (("alpha=0",), ("alpha=0.5",), ("alpha=0.5", "head=two", "objective.allow_inert_alpha=true"))
CASES = {
    f"{strategy}-{'-'.join(extra)}": (f"strategy={strategy}", *options_of(strategy), *undropped(strategy), *extra)
    for strategy, extra in each_once(STRATEGIES, OBJECTIVES)
    if len(extra) < 3 or strategy not in ("linear_probe", "closed_probe", "zero_shot", "nearest_mean")
}
# Texts, whose batches differ in width over the ranks; a pooler only where it is used.
CASES |= {
    f"bert-{pooling}": (*BACKBONES["bert"], "data.test_fraction=0.07", f"backbone.pooling={pooling}", "alpha=0.5")
    for pooling in ("mean", "cls", "pooler")
}
# Every strategy on every kind of network, without what processes draw or normalise for themselves.
ALIKE = {
    "timm_resnet": ("norm=frozen",),
    "timm_vit": ("backbone.drop_path_rate=0",),
    "bert": ("data.test_fraction=0.07", "backbone.dropout=0"),
}
CASES |= {
    f"{strategy}-{kind}": (
        *BACKBONES[kind],
        f"strategy={strategy}",
        *options_of(strategy, kind),
        *undropped(strategy),
        "alpha=0.5",
        *alike,
    )
    for strategy in (STRATEGIES if WHOLE else ())
    for kind, alike in ALIKE.items()
}
# Terms that are means or sums over examples, or look at weights alone; the others compare within a process.
CASES["terms"] = ("init=source", "pretrain.batch_size=16", "alpha=0.5", "terms=[l2_sp,delta,distill,co_tuning]")
# The chance of each picture and the balance of the classes do not depend on who draws them.
CASES["averaged"] = ("alpha=0.5", "ema=0.9")
CASES["accumulated"] = ("alpha=0.5", "trainer.accumulate_grad_batches=2")
CASES["augmented"] = ("strategy=finetune", "alpha=0.5", "augment=strong", "data.sampling=balanced")


CASES = {
    case: (
        # Networks of timm have no such option.
        *(option for option in RUN if option != "backbone.dropout=0" or "backbone=timm" not in options),
        *("data.source.classes=[0,1,2]", "trainer.gradient_clip_val=1.0", *options),
    )
    for case, options in CASES.items()
}
# What is trained in two processes alone, and looked at in other ways.
BATCHNORM = (*RUN, "backbone.norm=batch", "alpha=0.5", "head=two")
COMPARING = (
    *("data.target.classes=[0,1,2]", "data.source.classes=[0,1,2]", "batch_size=12", "init=random", "epochs=2"),
    *("terms=[bss,coral,mmd,dann,cdan,mcc,bi_tuning]", "alpha=0.5"),
)


@pytest.mark.timeout(1800 if WHOLE else 600)
def test_two_processes_do_what_one_does(tmp_path, subtests):
    """One test, since a group of processes is slow to start and test processes that share it would start one each."""
    for case, options in CASES.items():  # first, since it trains the source that one of them starts from
        run_config(compose(*options, root=tmp_path), tmp_path / "one" / case)
    (tmp_path / "two").mkdir()
    for case, options in (*CASES.items(), ("batchnorm", BATCHNORM), ("comparing", COMPARING)):
        (tmp_path / "two" / case).mkdir()
        config = compose(*options, DDP, root=tmp_path)
        (tmp_path / "two" / case / "config.yaml").write_text(yaml.safe_dump(config.without()))
    done = in_two_ranks(lambda: train_all(sorted((tmp_path / "two").iterdir())), cwd=tmp_path)
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr + done[1].stderr
    for case in CASES:
        with subtests.test(msg=case):
            check_alike(tmp_path / "one" / case, tmp_path / "two" / case)
    with subtests.test(msg="batchnorm"):
        check_batchnorm(tmp_path / "two/batchnorm")
    with subtests.test(msg="comparing"):
        check_comparing(tmp_path / "two/comparing")


def train_all(folders: list[Path]) -> None:
    """Trains the jobs of some folders one after the other as a rank; of `comparing` each rank leaves its weights."""
    for folder in folders:
        config = load_file(folder)
        if folder.name != "comparing":
            train(config, folder, MLflowRun(), Output.to_screen())
            continue
        components = build(config)
        trainer = fit_components(config, components)
        torch.save(components.task.state_dict(), folder / f"rank{trainer.global_rank}.pt")


def check_alike(one: Path, two: Path) -> None:
    """Same weights and metrics with the same global batch, and each of the 21 test images counted once."""
    ours, theirs = result_in(one), result_in(two)
    assert sum(map(sum, ours["confusion_matrix"])) == sum(map(sum, theirs["confusion_matrix"])) == 21
    assert close(one, two)
    assert ours["test/target/accuracy"] == theirs["test/target/accuracy"]
    assert ours["split_hashes"] == theirs["split_hashes"]
    for name in ("test/target/nll", "train/target/loss", "val/target/nll", "val/target/ece"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5)


def check_batchnorm(folder: Path) -> None:
    """The metrics both ranks report are those of the weights and the statistics in the checkpoint."""
    components = build(compose(*BATCHNORM))
    components.task.load_state_dict(best_weights(folder))
    data = components.data.raw("target", "val")
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            components.task.model.eval()(data.inputs[range(len(data))]), data.labels
        )
    assert loss.item() == pytest.approx(result_in(folder)["val/target/nll"], abs=1e-5)


def check_comparing(folder: Path) -> None:
    """Each process compares its own part of a batch; gradients, queues and discriminators agree none the less."""
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    own = ("running_mean", "running_var", "num_batches")  # of the discriminators, which see their own part
    differ = {name for name in first if not torch.equal(first[name], second[name])}
    assert not {name for name in differ if not name.endswith(own)}
    assert {name.split(".")[1] for name in first if name.startswith("terms.")} == {"bi_tuning", "dann", "cdan"}


def test_a_sweep_of_two_processes_a_job_trains_each_jobs_own_values(tmp_path):
    """Lightning's own launcher would run the whole sweep again in the second rank, with other values."""
    alphas = ("0.25", "2")
    done = forked("-m", *QUICK, *RUN, DDP, "data.source.classes=[0,1,2]", f"alpha={','.join(alphas)}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("target test accuracy") == 2, "one report for all processes of a job"
    jobs = sorted((tmp_path / "outputs/jobs").iterdir())
    assert len(jobs) == 2
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    assert len(runs) == 3, "two jobs and the sweep"
    assert {run.data.tags["alpha"] for run in runs if "alpha" in run.data.tags} == set(alphas)
    assert {run.info.status for run in runs} == {"FINISHED"}
    for job, alpha in zip(jobs, alphas, strict=True):
        config = torch.load(job / "best.ckpt", weights_only=True)["tlexp"]["config"]
        assert config["alpha"] == float(alpha)
        assert result_in(job)["mlflow_run_id"] in {run.info.run_id for run in runs}
        alone = tmp_path / f"alone{alpha}"
        run_config(compose(*RUN, "data.source.classes=[0,1,2]", f"alpha={alpha}", root=tmp_path), alone)
        assert close(job, alone)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (
            "raise RuntimeError('it fell over')",
            r"failed \(RuntimeError: it fell over\); its traceback is in .*tlexp\.log",
        ),
        ("__import__('os').kill(__import__('os').getpid(), 9)", r"was ended by SIGKILL; perhaps memory was short"),
    ],
)
def test_a_failing_rank_fails_the_job_in_one_line(tmp_path, monkeypatch, how, line):
    """In the middle of training, while the other rank waits for its gradients."""
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone/falls_over.yaml").write_text("_target_: falls_over.FallsOver\nname: falls_over\n")
    (tmp_path / "falls_over.py").write_text(
        "import torch\n"
        "from tlexp.backbones.small_cnn import SmallCNN\n\n\n"
        "class FallsOver(SmallCNN):\n"
        "    steps = 0\n\n"
        "    def forward(self, x):\n"
        "        self.steps += self.training\n"
        "        if self.steps > 4 and torch.distributed.get_rank() == 1:\n"
        f"            {how}\n"
        "        return super().forward(x)\n"
    )
    uneven = [option for option in UNEVEN if "backbone" not in option]
    options = ("--config-dir", str(tmp_path), *QUICK, *uneven, "init=random", "epochs=3", "backbone=falls_over", DDP)
    monkeypatch.syspath_prepend(tmp_path)
    done = forked(*options, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(f"tlexp: process 1 of this job {line}", done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    log = (only_run(tmp_path) / "tlexp.log").read_text()
    assert ("Traceback (most recent call last)" in log and "it fell over" in log) == ("raise" in how)
    assert not (only_run(tmp_path) / "metrics.json").exists()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    assert run.info.status == "FAILED"


def test_ranks_with_different_configurations_refuse_to_train(tmp_path):
    for alpha in (0, 1):
        (tmp_path / str(alpha)).mkdir()
        config = compose(*RUN, DDP, f"alpha={alpha}", root=tmp_path)
        (tmp_path / str(alpha) / "config.yaml").write_text(yaml.safe_dump(config.without()))
    done = in_two_ranks(lambda: rank(tmp_path / os.environ["RANK"], ""), cwd=tmp_path)
    assert all(rank.returncode != 0 for rank in done)
    for folder in (tmp_path / "0", tmp_path / "1"):
        assert "train different configurations" in (folder / ".failure.json").read_text()


@pytest.mark.parametrize(
    ("init", "line"), [("nowhere.ckpt", "neither source, random"), ("pretrained", "small_cnn has no published weights")]
)
def test_a_start_that_is_not_there_is_said_before_processes_start(init, line):
    with pytest.raises(UsageError, match=f"init={init}: .*{line}"):
        validate(compose(*RUN[:-2], DDP, f"init={init}"))


@pytest.mark.parametrize(
    ("trainer", "count"),
    [({}, 1), ({"devices": 2}, 2), ({"devices": [0, 1, 2]}, 3), ({"devices": "auto", "accelerator": "cpu"}, 1)],
)
def test_processes_are_counted_from_devices(trainer, count):
    assert count_ranks(trainer) == count


@pytest.mark.parametrize("devices", ["all", 0, -2, []])
def test_devices_that_cannot_be_counted_are_named(devices):
    with pytest.raises(UsageError, match=r"trainer\.devices=.*: give a number above 0, a list of devices, or auto"):
        count_ranks({"devices": devices})
