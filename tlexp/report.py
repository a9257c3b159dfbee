"""What people see of a run: a report before training, a bar during it, a table at the end."""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from tlexp.config import Config, without_password
from tlexp.data.domain import Domain
from tlexp.data.pair import TransferData
from tlexp.data.samples import PARTS, Samples
from tlexp.data.scan import Facts
from tlexp.model import TransferModel

if TYPE_CHECKING:
    from tlexp.assemble import Parts

SHOWN = 15  # lines of a list that may be long

screen = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
console = screen  # what reports are printed to: a job of a sweep keeps its own beside its result


@contextmanager
def kept_in(file: Path) -> Iterator[None]:
    """Writes reports to a file instead, all but the bar and one line at the end."""
    global console
    with file.open("a") as kept:
        console = Console(file=kept, width=120, highlight=False)
        try:
            yield
        finally:
            console = screen


def callbacks(config: Config, parts: "Parts") -> list[pl.Callback]:
    """Returns what shows a run while it trains."""
    bar = ProgressBar(config.monitor, bool(config.trainer.get("enable_progress_bar", True)))
    return [StartReport(config, parts), bar]


class StartReport(pl.Callback):
    """Prints what will happen, once everything that decides it exists and before the first step."""

    def __init__(self, config: Config, parts: "Parts") -> None:
        self.config, self.parts = config, parts

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the facts of the run, its data, and every stage with its mode and rate, on the first process."""
        if not trainer.is_global_zero:
            return
        pl_module.train()
        console.print(_facts("Run", start_facts(self.config, self.parts, trainer)))
        console.print(data_table(self.parts.data))
        groups = trainer.optimizers[0].param_groups
        rates = {group["name"].removesuffix("/no_decay"): group["initial_lr"] for group in groups}
        task = self.parts.task
        moving = [task.strategy.trainable(epoch) for epoch in task.epochs]
        console.print(stage_table(task.model, rates, moving, dict(task.terms)))


def start_facts(config: Config, parts: "Parts", trainer: pl.Trainer) -> dict[str, object]:
    """Returns what a reader should know before the first step, in order."""
    spec, data = parts.data.spec, parts.data
    notices = [*parts.notices, *data.notices()]
    if config.data.val == "large":
        notices.append("data.val=large validates on labels outside the budget: an optimistic choice of checkpoint")
    others = data.steps * data.batch_size
    seen = {"target": data.domains["target"].sizes()["train"], "source": others, "unlabelled": others}
    images = ", ".join(f"{seen[role]} of the {role}" for role in data.train_on)
    steps, batches = int(trainer.estimated_stepping_batches), trainer.num_training_batches
    facts: dict[str, object] = {
        "strategy": config.strategy["name"],
        "objective": f"L(target) + alpha * L(source), alpha = {config.alpha:g}, form {config.objective.form}",
        "terms": " + ".join(f"{term.weight:g} * {name}" for name, term in parts.task.terms.items()),
        "backbone": config.backbone["name"],
        "input": spec,
        "weights": parts.loaded,
        "training pictures": _varied(config),
        "heads": ", ".join(f"{role}: {count} classes" for role, count in parts.task.model.classes.items()),
        "batch": f"at most {config.batch_size} of each of {', '.join(data.train_on)}, {trainer.world_size} process(es)",
        "steps": f"{steps} in {trainer.max_epochs} epochs of {batches} batches, {images}",
        "resumed": f"after epoch {trainer.current_epoch}" if trainer.current_epoch else "",
        "device": f"{trainer.strategy.root_device}, precision {trainer.precision}",
        "rate": f"{parts.task.lr:g}, found by a trial (lr_find.png)" if config.lr_find else "",
        "chooses": f"{config.monitor} keeps the checkpoint",
        "seeds": f"seed {config.seed}, split_seed {config.split_seed}, config {config.hash}",
    }
    facts = {key: value for key, value in facts.items() if value}
    return facts | ({"note": "\n".join(notices)} if notices else {})


def _varied(config: Config) -> str:
    """Returns what chance does to training pictures; empty for nothing."""
    parts = [f"augment {config.augment['name']}"] if config.augment["name"] != "none" else []
    mixes = {"mixup": config.objective.mixup, "cutmix": config.objective.cutmix}
    parts += [f"{name} {value:g}" for name, value in mixes.items() if value]
    parts += ["every class equally often"] if config.data.sampling == "balanced" else []
    return ", ".join(parts)


def _facts(title: str, facts: dict[str, object]) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    for key, value in facts.items():
        table.add_row(key, escape(str(value)))
    return table


def data_table(data: TransferData) -> Table:
    """Returns counts, classes and the hash of the split for each role."""
    columns = ("role", "data", "classes", "train", "val", "test", "split")
    cut = {role: data.truncated(role) for role in data.domains}
    said = (f"{count:,} texts of the {role} are cut to the encoder's length" for role, count in cut.items() if count)
    caption = ", ".join(said)
    table = Table(*columns, title="Data", title_justify="left", caption=caption or None, caption_justify="left")
    for role, domain in [*data.domains.items(), *([("shifted", data.shifted)] if data.shifted else [])]:
        sizes = [str(size) if role != "shifted" or part == "test" else "-" for part, size in domain.sizes().items()]
        classes = domain.samples.classes
        names = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        shown = (domain.samples.name, f"{len(classes)}: {names}")
        table.add_row(role, *map(escape, shown), *sizes, domain.split_hash)
    return table


def show_data(domains: Mapping[str, Domain], facts: Mapping[str, Sequence[Facts]], warnings: Sequence[str]) -> None:
    """Prints what is in each domain, class by class, what was left out of it, and what to look at."""
    for role, domain in domains.items():
        samples, sizes = domain.samples, domain.sizes()
        left = len(samples.labels) - sum(sizes.values())
        shown = {
            "examples": f"{len(samples.labels):,} {samples.inputs.kind} of {len(samples.classes)} classes",
            "splits": ", ".join(f"{part} {size:,}" for part, size in sizes.items()) + f", unused {left:,}",
            "hash of the splits": domain.split_hash,
            "sizes": _sizes(facts[role], samples.inputs.kind),
            "skipped": _skipped(samples),
        }
        title = f"{role}: {samples.name}" + (f", {len(samples.skipped):,} skipped" if samples.skipped else "")
        console.print(_facts(title, {key: value for key, value in shown.items() if value}))
        console.print(class_table(domain))
    console.print(*warnings or ["nothing to warn of"], sep="\n", markup=False)


def _skipped(samples: Samples) -> str:
    """Returns what was left out, a line each, by its path below the data set's folder."""
    root = f"{getattr(samples.inputs, 'root', '')}/"
    lines = [f"{where.removeprefix(root)}: {reason}" for where, reason in samples.skipped[:SHOWN]]
    return "\n".join(lines + ["..."] * (len(samples.skipped) > SHOWN))


def _sizes(facts: Sequence[Facts], kind: str) -> str:
    measured = {"letters": [fact.width for fact in facts]}
    if kind == "images":
        measured = {"width": measured["letters"], "height": [fact.height for fact in facts]}
    lines = [f"{what} {min(v):,} to {max(v):,}, median {np.median(v):,.0f}" for what, v in measured.items() if v]
    modes = Counter(fact.mode for fact in facts if fact.mode)
    return "; ".join(lines + [", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())] * bool(modes))


def class_table(domain: Domain) -> Table:
    """Returns the number of examples of each class in each split; of many classes the largest and the smallest."""
    table = Table("class", *PARTS, "unused")
    classes = domain.samples.classes
    all_of_it = np.bincount(domain.samples.labels, minlength=len(classes))
    counts = np.stack([np.bincount(domain.labels(part), minlength=len(classes)) for part in PARTS], 1)
    order = np.argsort(-all_of_it, kind="stable") if len(classes) > 2 * SHOWN else np.arange(len(classes))
    for place, label in enumerate(order):
        if len(classes) > 2 * SHOWN and SHOWN <= place < len(classes) - SHOWN:
            if place == SHOWN:
                table.add_row("...", *[""] * 4)
            continue
        row = [*counts[label], all_of_it[label] - counts[label].sum()]
        table.add_row(escape(classes[label]), *(f"{count:,}" for count in row))
    return table


def stage_table(
    model: TransferModel, rates: dict[str, float], moving: Sequence[Set[str]], terms: Mapping[str, nn.Module]
) -> Table:
    """Returns each stage's parameters, when it moves, its mode in the first epoch and its rate.

    Args:
        model: as it is in the first epoch.
        rates: of the stages that ever move.
        moving: the names of the stages that move, by epoch.
        terms: those that train something themselves have a row each.
    """
    table = Table("stage", "parameters", "moves", "mode", "lr", title="Stages", title_justify="left")
    parameters = dict(model.named_parameters())
    for stage in model.stages:
        modes = {"train" if model.get_submodule(name).training else "eval" for name in stage.modules}
        count = sum(parameters[name].numel() for name in stage.parameters)
        rate = f"{rates[stage.name]:g}" if stage.name in rates else "-"
        when = moves([stage.name in names for names in moving])
        table.add_row(stage.name, f"{count:,}", when, " and ".join(sorted(modes)) or "-", rate)
    for name, term in terms.items():
        if count := sum(p.numel() for p in term.parameters() if p.requires_grad):
            table.add_row(f"terms.{name}", f"{count:,}", "yes", "train", f"{rates[f'terms.{name}']:g}")
    total = sum(p.numel() for p in model.parameters())
    now = sum(p.numel() for p in model.parameters() if p.requires_grad)
    later = "" if len(set(map(frozenset, moving))) == 1 else " in epoch 1"
    table.add_row("all", f"{total:,}", f"{now:,}{later}", "", "")
    return table


def moves(by_epoch: Sequence[bool]) -> str:
    """Returns in words when a stage moves, epochs counted from 1."""
    if all(by_epoch):
        return "yes"
    if not any(by_epoch):
        return "frozen"
    changes = [epoch for epoch in range(1, len(by_epoch)) if by_epoch[epoch] != by_epoch[epoch - 1]]
    starts = ([0] if by_epoch[0] else []) + [epoch for epoch in changes if by_epoch[epoch]]
    stops = [epoch for epoch in changes if not by_epoch[epoch]] + ([len(by_epoch)] if by_epoch[-1] else [])
    spans = zip(starts, stops, strict=True)
    return ", ".join(f"epochs {start + 1} to {stop}" if stop > start + 1 else f"epoch {stop}" for start, stop in spans)


def show_end(config: Config, parts: "Parts", metrics: dict[str, Any], folder: Path) -> None:
    """Prints the result, what it rests on and where it is kept."""
    table = Table("metric", "validation", "test", title="Result (of the checkpoint kept)", title_justify="left")
    shown = (name for name, value in metrics.items() if isinstance(value, float))
    names = sorted({name.split("/", 1)[1] for name in shown if name.startswith(("val/", "test/"))}, key=_order)
    for name in names:
        val, test = (metrics.get(f"{split}/{name}") for split in ("val", "test"))
        table.add_row(name, "-" if val is None else f"{val:.4f}", "-" if test is None else f"{test:.4f}")
    console.print(table)
    low, high = metrics["test/target/accuracy_ci95"]
    accuracy, tested = metrics["test/target/accuracy"], metrics["test_examples"]
    interval = f"95 % interval {low:.4f} to {high:.4f}, {tested} {parts.data.spec.kind}"
    console.print(f"target test accuracy [bold]{accuracy:.4f}[/], {interval}")
    if "forgetting" in metrics:
        after, change = metrics["test/source/accuracy"], -metrics["forgetting"]
        console.print(f"source test accuracy {after:.4f}, {change:+.4f} since its own training")
    for name, value in parts.task.strategy.found().items():
        console.print(f"chosen by validation: {name} = {value:g}")
    uri = without_password(config.tracking.uri)
    lines = [f"weights: {parts.loaded}", f"folder: {folder}"]
    if uri is not None:
        lines.append(f"compare: {'mlflow ui --backend-store-uri ' if uri.startswith('sqlite:') else ''}{uri}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if console is not screen:
        line = f"{config.tracking.run_name or config.label}: target test accuracy {accuracy:.4f}, "
        line += f"{config.monitor} {metrics['score']:.4f}, {metrics['fit_seconds']:.1f} s"
        screen.print(line, soft_wrap=True, markup=False)


def _order(name: str) -> tuple[bool, str]:
    return not name.startswith("target"), name


def wilson_interval(accuracy: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns Wilson's 95 % score interval of a share measured on `n` examples (Wilson 1927).

    It speaks of the finite test set alone; chance between seeds is another matter.
    """
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


class ProgressBar(pl.Callback):
    """One bar over all optimizer steps; where there is no terminal, a line for each tenth of the way."""

    def __init__(self, monitor: str, enabled: bool = True) -> None:
        self.monitor, self.enabled = monitor, enabled

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar on the first process."""
        self.enabled = self.enabled and trainer.is_global_zero
        if self.enabled and screen.is_terminal:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[value]}"), console=screen)
            self.bar.start()
            total = int(trainer.estimated_stepping_batches)
            self.line = self.bar.add_task("train", total=total, epoch=0, value="")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object, **kwargs: object) -> None:
        """Moves the bar, which a thread of its own draws."""
        if self.enabled and screen.is_terminal:
            self.bar.update(self.line, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        """Shows the monitored value."""
        if not self.enabled:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        value = trainer.callback_metrics.get(self.monitor)
        text = f"{self.monitor} {float(value):.4f}" if value is not None else ""
        if screen.is_terminal:
            self.bar.update(self.line, epoch=f"{epoch}/{epochs}", value=text)
        elif epoch * 10 // max(1, epochs) > (epoch - 1) * 10 // max(1, epochs):
            console.print(f"epoch {epoch}/{epochs}  {text}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        """Closes the bar."""
        if self.enabled and screen.is_terminal:
            self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Closes the bar before the error is shown."""
        if hasattr(self, "bar"):
            self.bar.stop()
