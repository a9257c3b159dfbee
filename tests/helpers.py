"""What tests share: composing configurations, fitting in this process, whole commands, and small data."""

import atexit
import gc
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from pytorch_lightning.utilities.combined_loader import CombinedLoader

import tlexp
from tlexp import cli, run_folder
from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.config.load import CONF
from tlexp.config.schema import Config
from tlexp.data.batches import CycledBatches
from tlexp.runs.build import build
from tlexp.runs.resume import LastCheckpoint
from tlexp.runs.run import run as run_config
from tlexp.runs.trainer import make_trainer, quiet
from tlexp.training.setup import RunComponents

ROOT = Path(__file__).parent.parent
FILES = ROOT / "tests/files"
QUICK = ("pretrain.epochs=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")

# Every test process has its own cache, so that no test depends on what another has left in it.
CACHE = Path(tempfile.mkdtemp(prefix="tlexp-cache-"))
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# `TLEXP_WHOLE=1 make test` runs every combination where the default run takes a pairwise selection.
WHOLE = bool(os.environ.get("TLEXP_WHOLE"))
STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
TERMS = sorted(path.stem for path in (CONF / "terms").glob("*.yaml"))
SWEEPS = ("alpha_curve", "backbone_heatmap", "label_efficiency", "strategy_shootout")  # of conf/experiment
# Options under which a strategy with phases goes through them in the few epochs of a test.
PHASES = {"lp_ft": ("strategy.probe_epochs=1",), "gradual_unfreezing": ("strategy.epochs_per_stage=1",)}
# Networks with BatchNorm, with dropout and without, from both image libraries, and a text encoder on texts.
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
        "data=text_table",
        f"data.source.root={FILES / 'letters.csv'}",
        f"data.target.root={FILES / 'reports.csv'}",
        "data.shots=5",
    ),
}
# Layers for adapters where there is no attention.
TARGETS = {
    "small_cnn": "[stage1.1.0,stage2.1.0]",
    "small_cnn_batchnorm": "[stage1.1.0,stage2.1.0]",
    "timm_resnet": "[downsample.1]",
    "torchvision_resnet": "[conv1,conv2]",
    "torchvision_alexnet": "[features.3,features.6]",
}


# Configurations -----------------------------------------------------------------------------------------------


def compose(*overrides: str, root: Path = ROOT) -> Config:
    """Composes and checks a configuration as the command line would."""
    return tlexp.compose(["tracking=none", f"cache={CACHE}", *QUICK, *overrides], root=root)


def options_of(strategy: str, backbone: str = "small_cnn") -> tuple[str, ...]:
    """Returns what a strategy needs on a backbone so that it does in a short test what it is for."""
    adapters = strategy in ("lora", "peft") and backbone in TARGETS
    own_head = ["head_init=new"] if strategy == "zero_shot" else []  # weights of a test bring none
    return (*PHASES.get(strategy, ()), *own_head, *([f"strategy.targets={TARGETS[backbone]}"] if adapters else []))


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Returns combinations in which each pair of values of two factors occurs; all combinations under TLEXP_WHOLE=1."""
    from itertools import product

    every = list(product(*factors))
    if WHOLE or len(factors) < 3:
        return every
    open_pairs = {pair for row in every for pair in _pairs(row)}
    chosen = []
    while open_pairs:
        best = max(every, key=lambda row: len(open_pairs & set(_pairs(row))))
        chosen.append(best)
        open_pairs -= set(_pairs(best))
    return chosen


def _pairs(row: tuple[Any, ...]) -> list[Any]:
    return list(combinations(enumerate(row), 2))


def each_once(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Returns pairs in which each value of both factors occurs at least once; all pairs under TLEXP_WHOLE=1."""
    if WHOLE:
        return [(a, b) for a in first for b in second]
    n = max(len(first), len(second))
    return [(first[i % len(first)], second[i % len(second)]) for i in range(n)]


def every_third(values: Sequence[Any]) -> list[Any]:
    """Returns every third value; all under TLEXP_WHOLE=1."""
    return list(values if WHOLE else values[::3])


# Training in this process -------------------------------------------------------------------------------------


def fit(config: Config, *callbacks: pl.Callback) -> tuple[RunComponents, pl.Trainer]:
    """Builds and fits without a record, for a look at what training leaves."""
    components = build(config)
    return components, fit_components(config, components, *callbacks)


def fit_components(
    config: Config, components: RunComponents, *callbacks: pl.Callback, validates: bool = True
) -> pl.Trainer:
    """Fits what was built."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(config, Path(folder), list(callbacks), [], components.task.has_phases, validates)
        trainer.fit(components.task, datamodule=components.data)
    return trainer


def fit_full_batches(components: RunComponents, epochs: int, steps: int) -> None:
    """Trains with all of both domains in every step, so that descent is deterministic."""
    data = components.data
    sizes = {role: domain.sizes()["train"] for role, domain in data.domains.items()}
    batches = {role: CycledBatches(size, size, steps, seed=0) for role, size in sizes.items()}
    loaders = {role: data._loader(data.dataset(role, "train"), order) for role, order in batches.items()}
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with quiet():
        trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, check_val_every_n_epoch=epochs, **off)
        trainer.fit(components.task, CombinedLoader(loaders, "min_size"), data.val_dataloader())


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of a module's parameters and buffers, non-persistent ones too."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    """Returns the names whose tensors are not equal to the bit."""
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def best_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a run's best checkpoint."""
    content: dict[str, torch.Tensor] = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    return content


# Three classes, few examples of each.
FEW_CLASSES = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=6")
RESUMABLE = (*FEW_CLASSES, "init=random", "epochs=4", "checkpoint_minutes=0", "alpha=0.5")


def untimed_result(folder: Path) -> dict[str, Any]:
    """Returns what does not depend on the clock or on where a run's folder is."""
    other = ("seconds", "fit_seconds", "examples_per_second", "peak_memory_mib", "checkpoint", "mlflow_run_id")
    return {name: value for name, value in run_folder.read_metrics(folder).items() if name not in other}


def stopped_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next run raise once so many epochs are on disk."""
    original = LastCheckpoint.on_train_epoch_end

    def stop(self: LastCheckpoint, trainer: Any, task: Any) -> None:
        original(self, trainer, task)
        if trainer.current_epoch + 1 == epochs:
            raise RuntimeError("the power went out")

    monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", stop)


def interrupted_and_not(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, epochs: int = 2
) -> tuple[Path, Path]:
    """Runs a configuration in one go, and once more interrupted and resumed; returns both folders."""
    straight, broken = folder / "straight", folder / "broken"
    run_config(config, straight)
    with monkeypatch.context() as patch:
        stopped_after(epochs, patch)
        with pytest.raises(RuntimeError, match="the power went out"):
            run_config(config, broken)
    assert (broken / "last.ckpt").exists()
    run_config(config, broken)
    return straight, broken


# Inputs and data sets -----------------------------------------------------------------------------------------


def random_inputs(spec: InputSpec | TextSpec, n: int) -> Any:
    """Returns `n` inputs that differ from each other, texts in length too."""
    if isinstance(spec, InputSpec):
        return torch.randn(n, *spec.example(1).shape[1:])
    words = [word for word in spec.tokenizer.get_vocab() if word.isalpha()]
    return spec.padded(spec.tokens([" ".join(random.choices(words, k=3 + index)) for index in range(n)])[0])


def example(inputs: Any, index: int) -> Any:
    """Returns one example as a batch of its own."""
    if isinstance(inputs, dict):
        return {name: tensor[index : index + 1] for name, tensor in inputs.items()}
    return inputs[index : index + 1]


def tree(folder: Path, **counts: Any) -> Path:
    """Makes `n` small images for each class, or for each split and class."""
    for name, content in counts.items():
        if isinstance(content, dict):
            tree(folder / name, **content)
        else:
            (folder / name).mkdir(parents=True)
            for index in range(content):
                Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name / f"{index}.png")
    return folder


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    """Returns a JPEG of noise."""
    stream = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG that promises more pixels than anyone should unpack."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# Files with the suffix of an image that are none.
BAD = {
    "corrupt.jpg": b"\xff\xd8\xff\xe0" + os.urandom(200),
    "truncated.jpg": jpeg()[:700],
    "truncated.png": header_of(64, 64),
    "empty.png": b"",
    "text.png": b"this is no picture",
    "page.jpg": b"<html><body>404</body></html>",
    "gigantic.png": header_of(60000, 60000),
    "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


# Whole commands -----------------------------------------------------------------------------------------------


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python run.py` as a user would, from another folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)


def forked(
    *arguments: str,
    cwd: Path,
    meanwhile: Callable[[int], None] = lambda pid: None,
    main: Callable[[], object] = cli.main,
    script: str = "run.py",
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a fork of this process, which has imported everything already: half of a short run.

    `meanwhile` gets the fork's process id, which is that of its group too.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if (child := os.fork()) == 0:
            gc.freeze()  # or collecting garbage would copy what this process has imported
            os.setsid()
            os.chdir(cwd)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _become_command([str(ROOT / script), *arguments], main)
        meanwhile(child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def _become_command(argv: Iterable[str], main: Callable[[], object]) -> None:
    """Becomes the command and ends with it; nothing of the test process may go on in a fork."""
    code = 1
    try:
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        warnings.resetwarnings()
        GlobalHydra.instance().clear()
        sys.argv = list(argv)
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# A sweep of 18 jobs as short as they can be.
SWEEP_18 = (*QUICK, "init=random", "epochs=1", f"cache={CACHE}")
SWEEP_18 += ("strategy=scratch,finetune,linear_probe", "alpha=0,0.5", "seed=range(3)")
