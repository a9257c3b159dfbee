"""What tests share: composing configurations, fitting in this process, and whole commands in their own."""

import os

# Two test processes share two cores; with two threads each they would wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import atexit
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import pytorch_lightning as pl
import torch
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra

from tlexp import cli, experiment
from tlexp import config as configuration
from tlexp.assemble import Parts, assemble
from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.cli import CONF, with_trainer_options
from tlexp.config import Config

ROOT = Path(__file__).parent.parent
QUICK = ("pretrain.epochs=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")

# Every test process has a cache of its own, so that no test leans on what another has left in it.
CACHE = Path(tempfile.mkdtemp(prefix="tlexp-cache-"))
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
# `TLEXP_WHOLE=1 make test` also resumes and shares out every strategy on every kind of network: eight minutes more.
WHOLE = bool(os.environ.get("TLEXP_WHOLE"))
KINDS = ("timm_resnet", "timm_vit", "bert")
# Options under which a strategy with phases goes through them in the few epochs of a test.
PHASES = {"lp_ft": ("strategy.probe_epochs=1",), "gradual_unfreezing": ("strategy.epochs_per_stage=1",)}
TERMS = sorted(path.stem for path in (CONF / "terms").glob("*.yaml"))
FILES = ROOT / "tests/files"
# A network with BatchNorm, one with dropout and one without of the image zoos, and a text encoder on texts.
BACKBONES = {
    "small_cnn": ("backbone=small_cnn",),
    "small_cnn_batchnorm": ("backbone=small_cnn", "backbone.norm=batch", "backbone.dropout=0.3"),
    "timm_resnet": ("backbone=timm", "backbone.name=resnet10t", "backbone.size=32"),
    "timm_vit": ("backbone=timm", "backbone.name=test_vit", "backbone.size=32", "backbone.drop_path_rate=0.3"),
    "torchvision_resnet": ("backbone=torchvision", "backbone.name=resnet18", "backbone.size=32"),
    "torchvision_alexnet": ("backbone=torchvision", "backbone.name=alexnet", "backbone.size=64"),
    "bert": (
        "backbone=text",
        f"backbone.name={FILES / 'tiny_bert'}",
        "data=tables",
        f"data.source.root={FILES / 'letters.csv'}",
        f"data.target.root={FILES / 'reports.csv'}",
        "data.shots=5",
    ),
}


# A sweep of 24 jobs as short as they can be.
TWENTY_FOUR = (*QUICK, "init=random", "epochs=1", f"cache={CACHE}")
TWENTY_FOUR += ("strategy=scratch,finetune,linear_probe", "alpha=0,0.5", "seed=range(4)")


# Layers for adapters where there is no attention.
TARGETS = {
    "small_cnn": "[stage1.1.0,stage2.1.0]",
    "small_cnn_batchnorm": "[stage1.1.0,stage2.1.0]",
    "timm_resnet": "[downsample.1]",
    "torchvision_resnet": "[conv1,conv2]",
    "torchvision_alexnet": "[features.3,features.6]",
}


def options_of(strategy: str, backbone: str = "small_cnn") -> tuple[str, ...]:
    """Returns what a strategy needs on a backbone so that it does in a short test what it is for."""
    adapters = strategy in ("lora", "peft") and backbone in TARGETS
    return (*PHASES.get(strategy, ()), *([f"strategy.targets={TARGETS[backbone]}"] if adapters else []))


def compose(*overrides: str, root: Path = ROOT) -> Config:
    """Composes and checks a configuration as the command line would."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        arguments = with_trainer_options(["tracking=none", f"cache={CACHE}", *QUICK, *overrides])
        cfg = hydra.compose("config", overrides=arguments)
    return configuration.load(cfg, root)


def random_inputs(spec: InputSpec | TextSpec, n: int) -> Any:
    """Returns `n` inputs that differ from each other, texts in length too."""
    if isinstance(spec, InputSpec):
        return torch.randn(n, *spec.example(1).shape[1:])
    words = [word for word in spec.tokenizer.get_vocab() if word.isalpha()]
    return spec.padded(spec.tokens([" ".join(random.choices(words, k=3 + place)) for place in range(n)])[0])


def row(inputs: Any, place: int) -> Any:
    """Returns one example as a batch of its own."""
    if isinstance(inputs, dict):
        return {name: tensor[place : place + 1] for name, tensor in inputs.items()}
    return inputs[place : place + 1]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of source weights that all test processes of a session share; its lock keeps them apart."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "store"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of 24 jobs that ran in one go, made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            done = branched("-m", *TWENTY_FOUR, cwd=folder)
            assert done.returncode == 0, done.stderr
            (folder / "done").write_text(done.stdout)
    return folder


@pytest.fixture
def answer(tmp_path: Path, store: Path) -> Callable[..., dict[str, Any]]:
    """Runs one job in this process and returns its `metrics.json`, with its folder under `folder`."""
    count = iter(range(1000))

    def answer(*overrides: str) -> dict[str, Any]:
        folder = tmp_path / f"run{next(count)}"
        experiment.run(compose(f"store={store}", *overrides, root=tmp_path), folder)
        return {**experiment.read_metrics(folder), "folder": folder}

    return answer


def fit(config: Config, *callbacks: pl.Callback) -> tuple[Parts, pl.Trainer]:
    """Assembles and fits without a record, for a look at what training leaves."""
    parts = assemble(config)
    with experiment.quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = experiment.make_trainer(config, Path(folder), list(callbacks))
        trainer.fit(parts.task, datamodule=parts.data)
    return parts, trainer


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of a module's parameters and buffers, non-persistent ones too."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    """Returns the names whose tensors are not equal to the bit."""
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a run's best checkpoint."""
    content: dict[str, torch.Tensor] = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    return content


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python run.py` as a user would, from another folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)


def branched(
    *arguments: str, cwd: Path, meanwhile: Callable[[int], None] = lambda pid: None
) -> subprocess.CompletedProcess[str]:
    """Runs `python run.py` in a branch of this process, which has imported everything already: half of a short run.

    `meanwhile` gets the branch's process id, which is that of its group too.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if (child := os.fork()) == 0:
            os.setsid()
            os.chdir(cwd)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _as_a_command([str(ROOT / "run.py"), *arguments])
        meanwhile(child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def _as_a_command(argv: list[str]) -> None:
    """Becomes the command and ends with it; nothing of the test process may go on in a branch."""
    code = 1
    try:
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        warnings.resetwarnings()
        GlobalHydra.instance().clear()
        sys.argv = argv
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
