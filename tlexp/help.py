"""`--help`: examples, the options of each group, and the defaults of what is chosen, on one screen.

Hydra's own help reads every group twice and takes as long as a short run.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from tlexp.config.load import CONF, option_files, search_path, with_trainer_options
from tlexp.config.schema import redact_uri

WIDTH = 120
EXAMPLES = (
    ("One run:", "strategy=finetune alpha=0.5"),
    (
        "The same source rotated by 90 degrees, which should hurt:",
        "strategy=finetune alpha=0.5 data.source.rotation=90",
    ),
    (
        "A comparison, every combination of the values:",
        "-m strategy=scratch,finetune,linear_probe alpha=0,0.5 'seed=range(5)'",
    ),
    (
        "Your own images in folders or texts in tables (check first: tlexp-check-data data=...):",
        "data=images data.target.root=FOLDER backbone=resnet50 init=pretrained",
        "data=text_table data.target.root=FILE.csv backbone=minilm init=pretrained",
    ),
    ("A whole recipe:", "experiment=vgg16_keras data.target.root=FOLDER"),
)
OPTIONS = (
    (("alpha",), "weight of the source's loss; 0 is target only, inf is source only"),
    (("init",), "where weights come from: source, random, pretrained, a path, a run id, an MLflow URI"),
    (("head", "head_hidden"), "one head for both domains, or two; units of its hidden layer"),
    (("norm",), "per_domain, per_domain_affine, batch, concat, frozen or stochastic BatchNorm layers"),
    (("seed", "split_seed"), "of the run; of the splits"),
    (("epochs", "lr"), "the strategy's recipe unless given; lr_find=true tests learning rates first"),
    (("batch_size", "monitor"), "target images per step; metric that selects the checkpoint"),
    (("terms",), "further losses, such as [l2_sp,bss]; terms.l2_sp.weight=0.1 and so on"),
    (("data.shots", "data.fraction", "data.draw"), "label budget of the target, and which labels are drawn"),
    (("data.sampling",), "or balanced: every class equally often"),
    (("sweep.trials", "sweep.baseline", "sweep.fail_fast"), "with -m: search instead of a grid; what to compare with"),
    (("tracking.uri", "tracking.experiment"), "where MLflow stores runs"),
)
FURTHER = (
    ("Options of the chosen group:", "data.target.* data.source.* backbone.* strategy.* optimizer.* trainer.*"),
    ("Resume an interrupted run:", "{program} resume=FOLDER"),
    ("Show a configuration without running it:", "{program} ... --cfg job"),
    ("Add your own options:", "{program} --config-dir FOLDER ..."),
)


def wants_help(arguments: Sequence[str]) -> bool:
    """Returns whether a command asks for help rather than for a run."""
    return bool({"--help", "-h"} & set(arguments))


def program_name(path: str) -> str:
    """Returns how a command was called, given its first argument: `tlexp`, or `python run.py`."""
    name = Path(path).name
    return f"python {name}" if name.endswith(".py") else name


def help_text(program: str, arguments: Sequence[str]) -> str:
    """Returns the help, with the defaults of what the arguments choose.

    Args:
        program: how the command was called.
        arguments: of the command; overrides and `--config-dir` count.

    Raises:
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: for an override that cannot be composed.
    """
    own = _own_folder(arguments)
    folders = [CONF] if own is None else [CONF, own]
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if {"-m", "--multirun"} & set(arguments):  # axes have no single value to show
        overrides = [override for override in overrides if not re.search(r"[,(]", override)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=[*search_path(own), *with_trainer_options(overrides)])
    lines = ["tlexp: transfer-learning experiments.   f* = argmin L(f; target) + alpha * L(f; source)", ""]
    for title, *commands in EXAMPLES:
        lines += [title, *(f"  {program} {command}" for command in commands)]
    lines += ["", "Groups (group=option), one file per option in conf/:", *_groups(folders)]
    lines += ["", "Options and their values here:", *_options(cfg), ""]
    lines += [f"{title} {text.format(program=program)}" for title, text in FURTHER]
    return "\n".join(lines)


def _own_folder(arguments: Sequence[str]) -> Path | None:
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            return Path(value or following).absolute()
    return None


def _groups(folders: Sequence[Path]) -> Iterator[str]:
    names = {file.parent.name for folder in folders for file in folder.glob("*/*.yaml")}
    for name in sorted(names - {"hydra"}):
        options = sorted({file.stem for folder in folders for file in option_files(folder / name)})
        yield from textwrap.wrap(f"{name}: {', '.join(options)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _options(cfg: DictConfig) -> Iterator[str]:
    for keys, meaning in OPTIONS:
        values = " ".join(f"{key}={_value(cfg, key)}" for key in keys)
        yield f"  {values:32}  {meaning}"


def _value(cfg: DictConfig, key: str) -> str:
    value = OmegaConf.select(cfg, key)
    if key == "tracking.uri":
        value = redact_uri(value)
    if OmegaConf.is_config(value):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
