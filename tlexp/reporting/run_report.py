"""What a person sees of a run: a report before training and the result at its end."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.markup import escape
from rich.table import Table

from tlexp.config.schema import Config, ui_command
from tlexp.data.datamodule import TransferDataModule
from tlexp.models.transfer_model import TransferModel
from tlexp.reporting.console import Output, print_table
from tlexp.reporting.data_report import facts_table
from tlexp.training.setup import RunComponents


class StartReport(pl.Callback):
    """Prints what will happen, once everything that decides it exists and before the first step."""

    def __init__(self, config: Config, components: RunComponents, output: Output) -> None:
        self.config, self.components, self.output = config, components, output

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the run, its data, and every stage with its mode and learning rate, on the first process."""
        if not trainer.is_global_zero:
            return
        pl_module.train()
        console, task = self.output.report, self.components.task
        console.print(facts_table("Run", start_facts(self.config, self.components, trainer)))
        print_table(console, data_table(self.components.data))
        groups = trainer.optimizers[0].param_groups
        rates = {g["name"].removesuffix("/no_decay"): g["initial_lr"] for g in groups}
        decays = {g["name"].removesuffix("/no_decay"): g.get("weight_decay", 0.0) for g in reversed(groups)}
        trained = [task.strategy.trainable(epoch) for epoch in task.optimization.epochs]
        print_table(console, stage_table(task.model, rates, decays, trained, _sizes_of_terms(groups)))


class Announcement(pl.Callback):
    """Prints a line before the first step, on the first process."""

    def __init__(self, text: str, output: Output) -> None:
        self.text, self.output = text, output

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints it."""
        if trainer.is_global_zero:
            self.output.report.print(self.text)


def start_facts(config: Config, components: RunComponents, trainer: pl.Trainer) -> dict[str, object]:
    """Returns what a reader should know before the first step, in order."""
    data, task = components.data, components.task
    notices = [*components.notices, *data.notices()]
    if config.data.val == "large":
        notices.append("data.val=large validates on labels outside the budget: an optimistic choice of checkpoint")
    limits = {name: getattr(trainer, name) for name in ("limit_val_batches", "limit_test_batches")}
    # An integer counts batches, so that 1 is one batch and 1.0 is all of them.
    cut = {name: value for name, value in limits.items() if isinstance(value, int) or value != 1.0}
    notices += [f"trainer.{name}={value}: only a part of that split is used" for name, value in cut.items()]
    cycled = data.steps * data.batch_size
    seen = {data.counted: data.domains[data.counted].sizes()["train"]}
    examples = ", ".join(f"{seen.get(role, cycled)} of the {role}" for role in data.train_roles)
    steps, batches = int(trainer.estimated_stepping_batches), trainer.num_training_batches
    facts: dict[str, object] = {
        "strategy": config.strategy["name"],
        "objective": config.weights,
        "terms": " + ".join(f"{term.weight:g} * {name}" for name, term in task.terms.items()),
        "backbone": config.backbone["name"],
        "input": data.spec,
        "weights": components.start.weights,
        "augmentation": _augmentation(config),
        "heads": ", ".join(
            f"{role}: {count} classes" + ", pretrained" * (role in task.model.pretrained_heads)
            for role, count in task.model.classes.items()
        ),
        "batch": f"at most {data.batch_size} of each of {', '.join(data.train_roles)}, {_processes(trainer)}"
        + _accumulation(trainer, data.batch_size),
        "steps": f"{steps} in {trainer.max_epochs} epochs of {batches} batches, {examples}",
        "resumed": f"after epoch {trainer.current_epoch}" if trainer.current_epoch else "",
        "device": f"{trainer.strategy.root_device}, precision {trainer.precision}",
        "learning rate": f"{task.lr:g}, from lr_find (lr_find.png)" if config.lr_find else "",
        "checkpoint": _checkpoint(config, task.last_phase),
        "seeds": f"seed {config.seed}, split_seed {config.split_seed}, config {config.hash}",
    }
    facts = {key: value for key, value in facts.items() if value}
    return facts | ({"note": "\n".join(notices)} if notices else {})


def _checkpoint(config: Config, last_phase: int) -> str:
    """Returns what selects the checkpoint that is kept."""
    averaged = f", of averaged weights (ema {config.ema:g})" if config.ema else ""
    only = f", from epoch {last_phase + 1} on, when the last phase begins"
    return f"best {config.monitor}" + only * (last_phase > 0 and config.choose_from == "last_phase") + averaged


def _accumulation(trainer: pl.Trainer, batch_size: int) -> str:
    batches = min(trainer.accumulate_grad_batches, int(trainer.num_training_batches))
    return "" if batches == 1 else f"; a step accumulates {batches} of them, at most {batches * batch_size} examples"


def _processes(trainer: pl.Trainer) -> str:
    return "1 process" if trainer.world_size == 1 else f"{trainer.world_size} processes"


def _augmentation(config: Config) -> str:
    """Returns the random augmentation of training inputs; empty for none."""
    parts = [f"augment {config.augment['name']}"] if config.augment["name"] != "none" else []
    mixing = {"mixup": config.objective.mixup, "cutmix": config.objective.cutmix}
    parts += [f"{name} {value:g}" for name, value in mixing.items() if value]
    parts += ["every class equally often"] if config.data.sampling == "balanced" else []
    return ", ".join(parts)


def data_table(data: TransferDataModule) -> Table:
    """Returns counts, classes and the hash of the split for each role."""
    columns = ("role", "data", "classes", "train", "val", "test", "split")
    truncated = {role: data.truncated(role) for role in data.domains}
    lines = (f"{count:,} texts of the {role} are truncated" for role, count in truncated.items() if count)
    caption = ", ".join(lines)
    table = Table(*columns, title="Data", title_justify="left", caption=caption or None, caption_justify="left")
    for role, domain in [*data.domains.items(), *([("shifted", data.shifted)] if data.shifted else [])]:
        sizes = [str(size) if role != "shifted" or split == "test" else "-" for split, size in domain.sizes().items()]
        classes = domain.samples.classes
        names = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        cells = (domain.samples.name, f"{len(classes)}: {names}")
        table.add_row(role, *map(escape, cells), *sizes, domain.split_hash)
    return table


def stage_table(
    model: TransferModel,
    rates: Mapping[str, float],
    decays: Mapping[str, float],
    trained: Sequence[Set[str]],
    terms: Mapping[str, int],
) -> Table:
    """Returns each stage's parameters, when it trains, its mode in the first epoch, its learning rate and weight decay.

    Args:
        model: as it is in the first epoch.
        rates: of the stages that ever train.
        decays: of the same, for weights; biases and other vectors have none.
        trained: the names of the stages that train, by epoch.
        terms: numbers of parameters that terms train themselves, by what trains at one rate.
    """
    table = Table("stage", "parameters", "trains", "mode", "lr", "decay", title="Stages", title_justify="left")
    parameters = dict(model.named_parameters())
    for stage in model.stages:
        modes = {"train" if model.get_submodule(name).training else "eval" for name in stage.modules}
        count = sum(parameters[name].numel() for name in stage.parameters)
        rate, decay = (f"{known[stage.name]:g}" if stage.name in known else "-" for known in (rates, decays))
        when = epochs_in_words([stage.name in names for names in trained])
        table.add_row(stage.name, f"{count:,}", when, " and ".join(sorted(modes)) or "-", rate, decay)
    for name, count in terms.items():
        table.add_row(name, f"{count:,}", "yes", "train", f"{rates[name]:g}", f"{decays[name]:g}")
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    suffix = "" if len(set(map(frozenset, trained))) == 1 else " in epoch 1"
    table.add_row("all", f"{total:,}", f"{trainable:,}{suffix}", "", "", "")
    return table


def _sizes_of_terms(groups: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns how many parameters of terms the optimizer's groups have, by the group's name."""
    counts: dict[str, int] = {}
    for group in groups:
        if (name := group["name"].removesuffix("/no_decay")).startswith("terms."):
            counts[name] = counts.get(name, 0) + sum(p.numel() for p in group["params"])
    return counts


def epochs_in_words(by_epoch: Sequence[bool]) -> str:
    """Returns in words in which epochs a stage trains, counted from 1."""
    if all(by_epoch):
        return "yes"
    if not any(by_epoch):
        return "frozen"
    changes = [epoch for epoch in range(1, len(by_epoch)) if by_epoch[epoch] != by_epoch[epoch - 1]]
    starts = ([0] if by_epoch[0] else []) + [epoch for epoch in changes if by_epoch[epoch]]
    stops = [epoch for epoch in changes if not by_epoch[epoch]] + ([len(by_epoch)] if by_epoch[-1] else [])
    spans = zip(starts, stops, strict=True)
    return ", ".join(f"epochs {start + 1} to {stop}" if stop > start + 1 else f"epoch {stop}" for start, stop in spans)


def print_result(
    config: Config, components: RunComponents, metrics: Mapping[str, Any], folder: Path, output: Output
) -> None:
    """Prints the result, what it rests on and where it is stored."""
    console = output.report
    table = Table("metric", "validation", "test", title="Result of the kept checkpoint", title_justify="left")
    floats = (name for name, value in metrics.items() if isinstance(value, float))
    names = sorted({name.split("/", 1)[1] for name in floats if name.startswith(("val/", "test/"))}, key=_order)
    for name in names:
        val, test = (metrics.get(f"{split}/{name}") for split in ("val", "test"))
        table.add_row(name, "-" if val is None else f"{val:.4f}", "-" if test is None else f"{test:.4f}")
    console.print(table)
    low, high = metrics["test/target/accuracy_ci95"]
    accuracy, tested = metrics["test/target/accuracy"], metrics["test_examples"]
    interval = f"95 % interval {low:.4f} to {high:.4f}, {tested} {components.data.spec.kind}"
    console.print(f"target test accuracy [bold]{accuracy:.4f}[/], {interval}")
    if "forgetting" in metrics:
        after, change = metrics["test/source/accuracy"], -metrics["forgetting"]
        console.print(f"source test accuracy {after:.4f}, {change:+.4f} since its own training")
    if metrics["best_epoch"] < metrics["last_phase"]:
        rest = f"before the last phase, which begins with epoch {metrics['last_phase'] + 1}"
        console.print(f"the kept checkpoint is that of epoch {metrics['best_epoch'] + 1}, {rest}")
    for name, value in components.task.strategy.selected().items():
        console.print(f"selected by validation: {name} = {value:g}")
    lines = [f"weights: {components.start.weights}", f"folder: {folder}"]
    if config.tracking.uri is not None:
        lines.append(f"compare: {ui_command(config.tracking.uri)}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if not output.report_is_shown:
        line = f"{config.tracking.run_name or config.label}: target test accuracy {accuracy:.4f}, "
        line += f"{config.monitor} {metrics['score']:.4f}, {metrics['fit_seconds']:.1f} s"
        output.screen.print(line, soft_wrap=True, markup=False)


def _order(name: str) -> tuple[bool, str]:
    return not name.startswith("target"), name
