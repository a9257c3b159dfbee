"""One job from configuration to result: build, fit, test, record, score. Only here are parts instantiated."""

import inspect
import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from filelock import FileLock
from hydra.utils import instantiate
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy

from tlexp import __version__, launch, metrics, pictures, report, tracking
from tlexp.backbones.base import Backbone
from tlexp.backbones.weights import Loaded, load_backbone, read_state
from tlexp.config import Config, content_key
from tlexp.data.pair import Domain, TransferData
from tlexp.data.splits import split
from tlexp.errors import UsageError
from tlexp.model import TransferModel
from tlexp.objective import CrossEntropy, balanced_weights
from tlexp.strategies.base import Strategy
from tlexp.streams import forked
from tlexp.task import TransferTask, parameter_groups

# Extras by the package whose absence tells that they are not installed.
EXTRAS = {"transformers": "text", "peft": "peft"}

# What the Trainer is given here; the rest is the user's.
RESERVED = ("logger", "callbacks", "default_root_dir", "num_sanity_val_steps", "use_distributed_sampler")


def run(config: Config, folder: Path) -> float:
    """Answers one configuration: the source's own run if it is needed, then training, test and record.

    Args:
        config: a checked configuration with absolute paths.
        folder: where this run's files go; `metrics.json`, written last, marks it as complete.

    Returns:
        The best validation value of `config.monitor`, that of the checkpoint kept.

    Raises:
        UsageError: for what the user can mend, before training starts.
    """
    if config.init == "source":
        ensure_source(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    with tracking.tracked(config, folder) as record:
        count = launch.processes(config.trainer)
        if count > 1:
            launch.run_ranks(folder, count, record.run_id)
        else:
            train(config, folder, record)
    return float(read_metrics(folder)["score"])


def read_metrics(folder: Path) -> dict[str, Any]:
    """Returns a complete run's `metrics.json`."""
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


# The source's own run -----------------------------------------------------------------------------------------


def source_folder(config: Config) -> Path:
    """Returns where the source's weights are kept: a name to read and a key of all they depend on."""
    task = config.source_task()
    key = content_key({"version": __version__, **task.without("tracking", "store", "recipe", "trainer")})
    return Path(config.store) / f"{task.data.target['name']}-{task.backbone['name'].replace('/', '_')}-{key}"


def ensure_source(config: Config) -> None:
    """Trains the backbone on the source unless that is done; of several processes one trains and others wait."""
    folder = source_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "metrics.json").exists():
            report.console.print(f"init=source: training the backbone on {config.source_task().data.target['name']}")
            run(config.source_task(), folder)


# Building -----------------------------------------------------------------------------------------------------


def build(group: str, node: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Instantiates a leaf of the configuration; what goes wrong there is one line that names the group.

    Raises:
        UsageError: for options the part does not take, or a package of an extra that is not installed.
    """
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, UsageError):
                raise cause from None
            if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
                extra = f"pip install 'tlexp[{EXTRAS[cause.name]}]'"
                raise UsageError(f"{group}={node.get('name')}: needs the package {cause.name}; {extra}") from None
        innermost = list(_causes(error))[-1]
        if isinstance(innermost, TypeError | ImportError | AttributeError):
            raise UsageError(f"{group}: {node.get('_target_')} cannot be built: {innermost}") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def read_domain(config: Config, role: str) -> Domain:
    """Reads and splits one role's data; the label budget is the target's."""
    samples = build("data", getattr(config.data, role))
    data = config.data
    budget = {"shots": data.shots, "fraction": data.fraction, "draw": data.draw} if role == "target" else {}
    return Domain(samples, split(samples.labels, config.split_seed, data.test_fraction, val=data.val, **budget))


def load_init(config: Config, backbone: Any) -> Loaded:
    """Sets the backbone's weights as `init` says.

    Raises:
        UsageError: where `init` names nothing that exists or that fits.
    """
    if config.init == "random":
        return Loaded("random", 0, len(backbone.state_dict()))
    origin = config.init
    if config.init == "pretrained":
        if not hasattr(backbone, "pretrained_state"):
            rule = f"backbone={backbone.name} has no published weights; use init=source or init=random"
            raise UsageError(f"init=pretrained: {rule}")
        state = backbone.pretrained_state()
    elif config.init == "source":
        origin = f"source {config.data.source and config.data.source['name']}"
        state = read_state(source_folder(config) / "best.ckpt")
    else:
        path: Path | None = Path(config.init)
        if not Path(config.init).is_file():
            path = tracking.checkpoint_of(config.init, config) if config.tracking.uri else None
        if path is None:
            rule = "neither source, random, pretrained nor an existing file or MLflow run id"
            raise UsageError(f"init={config.init}: {rule}")
        state = read_state(path)
    return load_backbone(backbone, state, origin, config.allow_partial)


def build_model(config: Config, backbone: Backbone, domains: dict[str, Domain]) -> TransferModel:
    """Puts heads on the backbone: one where both domains have the same classes and `head` does not ask for two.

    Raises:
        UsageError: where one head cannot serve both domains, or alpha = inf leaves the target's untrained.
    """
    classes = {role: domain.samples.classes for role, domain in domains.items()}
    counts = {role: len(names) for role, names in classes.items()}
    same = len(set(classes.values())) == 1
    if config.head == "one" and not same:
        raise UsageError("head=one: source and target have different classes; use head=two or head=auto")
    if same and config.head != "two":
        counts = {"target": counts["target"]}
    elif not config.has_target_loss:
        raise UsageError("alpha=inf: trains the source's head only; use head=one, which needs equal classes")
    return TransferModel(backbone, counts, config.seed)


def check_alpha(config: Config, model: TransferModel, moving: set[str]) -> str | None:
    """Makes sure that something trains and that alpha can act on it; returns a notice where it acts oddly.

    Raises:
        UsageError: where nothing moves, or the source's loss cannot reach the target.
    """
    name = config.strategy["name"]
    if not moving & {stage.name for stage in model.stages}:
        raise UsageError(f"strategy={name}: freezes every stage, so nothing trains; free at least the head")
    heads = {stage.name for stage in model.head_stages}
    if not config.has_source_loss or len(heads) == 1 or moving - heads:
        return None
    reaches_source = heads <= moving
    if reaches_source and config.objective.allow_inert_alpha:
        return "alpha reaches the source's head only: the target's result is that of alpha=0"
    rule = "with a frozen backbone and two heads it cannot reach the target; use alpha=0, head=one, "
    rule += "a strategy that moves the backbone"
    if reaches_source:
        rule += ", or objective.allow_inert_alpha=true to train the source's head beside the target's"
    raise UsageError(f"alpha={config.alpha:g}: strategy={name}: {rule}")


def check_monitor(config: Config, roles: list[str]) -> str:
    """Returns `max` or `min` for the monitored metric.

    Raises:
        UsageError: for a name that validation does not log, listing those it does.
    """
    known = {f"val/{role}/{name}": "max" if more else "min" for role in roles for name, more in metrics.NAMES.items()}
    if config.monitor not in known:
        raise UsageError(f"monitor={config.monitor}: no such metric; this run has {', '.join(known)}")
    return known[config.monitor]


def trainer_options(config: Config, count: int) -> dict[str, Any]:
    """Returns the Trainer's arguments that the configuration sets.

    Raises:
        UsageError: for an argument that Lightning does not have or that is set here.
    """
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *RESERVED}
    if unknown := sorted(set(config.trainer) - known):
        raise UsageError(f"trainer.{unknown[0]}: Lightning's Trainer has no such argument, or tlexp sets it itself")
    if config.batch_size < count:
        raise UsageError(f"batch_size={config.batch_size}: {count} processes share it; use at least {count}")
    options = {k: instantiate(v) if isinstance(v, dict) else v for k, v in config.trainer.items()}
    if count > 1 and options.get("strategy", "auto") in ("auto", "ddp"):
        # Lightning broadcasts buffers in each forward pass, which hangs where ranks evaluate uneven numbers of batches.
        options["strategy"] = DDPStrategy(broadcast_buffers=False)
    return {**options, "enable_progress_bar": False, "enable_model_summary": False}


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Lightning says of things that are meant to be so."""
    for chatty in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers",  # the arrays are in memory: a worker would only copy them
            ".*Checkpoint directory .* exists and is not empty",  # the run's own folder
            ".*GPU available but not used",  # trainer.accelerator says so
            ".*`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning's own use of torch
            ".*is smaller than the logging interval",  # metrics go out by epoch
        ):
            warnings.filterwarnings("ignore", message)
        yield


# Training -----------------------------------------------------------------------------------------------------


def train(config: Config, folder: Path, record: tracking.Record) -> None:
    """Builds, fits, tests and records one run in this process, which may be one rank of several."""
    started = time.perf_counter()
    options = trainer_options(config, count := launch.processes(config.trainer))
    roles = ["target", "source"] if config.has_source_loss else ["target"]
    mode = check_monitor(config, roles)
    domains = {role: read_domain(config, role) for role in roles}
    with forked(config.seed, "backbone"):
        backbone = build("backbone", config.backbone)
    train_on = tuple(role for role in roles if role == "source" or config.has_target_loss)
    data = TransferData(
        domains["target"], domains.get("source"), backbone.input, config.batch_size, config.seed, train_on
    )
    loaded = load_init(config, backbone)
    model = build_model(config, backbone, domains)
    strategy: Strategy = build("strategy", config.strategy)
    strategy.prepare(model, data)
    epochs = range(options["max_epochs"] or config.epochs)
    moving: set[str] = set().union(*(strategy.trainable(epoch) for epoch in epochs))
    notice = check_alpha(config, model, moving)
    task = build_task(config, model, strategy, domains)

    recorder = tracking.EpochRecorder(record, folder)
    keeper = ModelCheckpoint(
        folder, "best", config.monitor, mode=mode, auto_insert_metric_name=False, enable_version_counter=False
    )
    bar = report.ProgressBar(config.monitor, bool(config.trainer.get("enable_progress_bar", True)))
    callbacks: list[pl.Callback] = [launch.SameConfig(config.hash), recorder, bar, keeper]
    if config.patience is not None:
        callbacks.append(EarlyStopping(config.monitor, mode=mode, patience=config.patience))
    with quiet():
        trainer = pl.Trainer(
            **options,
            callbacks=callbacks,
            logger=False,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        if trainer.is_global_zero:
            groups = parameter_groups(model, strategy, config.lr, epochs)
            rates = {group["name"].removesuffix("/no_decay"): group["lr"] for group in groups}
            facts = start_facts(config, data, trainer, loaded, count, notice)
            report.show_start(facts, data, model, rates)
        fit_started = time.perf_counter()
        trainer.fit(task, datamodule=data)
        fit_seconds = time.perf_counter() - fit_started
        if not keeper.best_model_path:
            raise UsageError("no checkpoint was kept: no validation ran; check epochs= and the trainer's limits")
        best = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)
        task.load_state_dict(best["state_dict"])
        trainer.test(task, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return

    result = collect(config, trainer, best, data, recorder.history)
    result |= {"fit_seconds": fit_seconds, "mlflow_run_id": record.run_id}
    numbers = {name: value for name, value in result.items() if isinstance(value, float)}
    record.metrics({k: v for k, v in numbers.items() if k.startswith("test/") or "/" not in k}, step=best["epoch"])
    classes = domains["target"].samples.classes
    record.figure(pictures.confusion_matrix(task.confusion().numpy(), classes), "confusion_matrix.png")
    record.figure(pictures.learning_curves(recorder.history, best["epoch"]), "learning_curves.png")
    if config.tracking.log_checkpoint:
        record.artifact(folder / "best.ckpt")
    result["seconds"] = time.perf_counter() - started
    write_last(folder / "metrics.json", result)
    record.artifact(folder / "metrics.json")
    report.show_end(result, domains["target"].sizes()["test"], folder, config.tracking.uri, loaded)


def build_task(
    config: Config, model: TransferModel, strategy: Strategy, domains: dict[str, Domain]
) -> TransferTask:
    """Assembles the LightningModule from the parts."""
    classes = {role: len(domain.samples.classes) for role, domain in domains.items()}
    balanced = config.objective.class_weights == "balanced"
    criteria: dict[str, torch.nn.Module] = {
        role: CrossEntropy(
            config.objective.label_smoothing,
            balanced_weights(domain.labels("train"), classes[role]) if balanced else None,
        )
        for role, domain in domains.items()
    }
    spec = asdict(model.backbone.input)
    card = {
        "version": __version__,
        "backbone": model.backbone.name,
        "input": {key: list(value) if isinstance(value, tuple) else value for key, value in spec.items()},
        "classes": {role: list(domain.samples.classes) for role, domain in domains.items()},
        "config": asdict(config),
    }
    return TransferTask(
        model,
        strategy,
        criteria,
        classes,
        build("optimizer", {**config.optimizer, "_partial_": True}),
        build("schedule", {**config.schedule, "_partial_": True}),
        config.lr,
        config.alpha,
        config.objective.form,
        config.seed,
        card,
    )


def start_facts(
    config: Config, data: TransferData, trainer: pl.Trainer, loaded: Loaded, count: int, notice: str | None
) -> dict[str, object]:
    """Returns what a reader should know before the first step, in order."""
    epochs = trainer.max_epochs or config.epochs
    facts: dict[str, object] = {
        "strategy": config.strategy["name"],
        "objective": f"L(target) + alpha * L(source), alpha = {config.alpha:g}, form {config.objective.form}",
        "backbone": f"{config.backbone['name']}, input {data.spec.shape}, mean {data.spec.mean}, std {data.spec.std}",
        "weights": loaded,
        "batch": f"{config.batch_size} of each of {', '.join(data.train_on)}, over {count} process(es)",
        "steps": f"{epochs} epochs of {data.steps}",
        "device": f"{trainer.strategy.root_device}, precision {trainer.precision}",
        "chooses": f"{config.monitor} keeps the checkpoint",
        "seeds": f"seed {config.seed}, split_seed {config.split_seed}, config {config.hash}",
    }
    notices = [notice] if notice else []
    plain_sgd = config.optimizer["_target_"] == "torch.optim.SGD" and config.objective.form == "sum"
    if plain_sgd and 0 < config.alpha < math.inf:
        notices.append("with SGD and the form sum, alpha also scales the learning rate; see objective.form=convex")
    if config.data.val == "large":
        notices.append("data.val=large validates on labels outside the budget: an optimistic choice of checkpoint")
    return facts | ({"note": "; ".join(notices)} if notices else {})


# The result ---------------------------------------------------------------------------------------------------


def collect(
    config: Config, trainer: pl.Trainer, best: dict[str, Any], data: TransferData, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the content of `metrics.json`: validation and training values of the checkpoint kept, and the test."""
    row = next(row for row in history if row["epoch"] == best["epoch"])
    result: dict[str, Any] = {name: value for name, value in row.items() if name.startswith("train/")}
    result |= best["tlexp"]["metrics"]
    result |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    tested = data.domains["target"].sizes()["test"]
    result["test/target/accuracy_ci95"] = report.wilson_interval(result["test/target/accuracy"], tested)
    if config.init == "source" and "source" in data.domains:
        before = read_metrics(source_folder(config))["test/target/accuracy"]
        result["forgetting"] = before - result["test/source/accuracy"]
    return result | {
        "score": result[config.monitor],
        "monitor": config.monitor,
        "best_epoch": best["epoch"],
        "epochs_run": len(history),
        "config_hash": config.hash,
        "split_hashes": {role: domain.split.hash for role, domain in data.domains.items()},
        "checkpoint": str(Path(trainer.default_root_dir) / "best.ckpt"),
    }


def write_last(path: Path, content: dict[str, Any]) -> None:
    """Writes the file that marks a run as complete, in one piece."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
