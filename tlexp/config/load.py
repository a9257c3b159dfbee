"""Loading a configuration: from what Hydra composed to checked plain values with absolute paths."""

import logging
import re
from collections.abc import Iterable
from functools import cache
from os.path import normpath
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from tlexp import run_folder
from tlexp.config.schema import INITS, Config, DataConfig
from tlexp.errors import UsageError
from tlexp.overrides import quoted
from tlexp.sqlite_address import absolute, sqlite_address

log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).parent.parent
# In a wheel the options lie inside the package, in a checkout beside it.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


def _basename(*paths: str | None) -> str:
    """Names a data set after the last part of its location, unless it is given a name; a table without its ending."""
    name = next((Path(normpath(Path(str(path)).absolute())).name for path in paths if path), "none")
    return re.sub(r"\.(csv|tsv|jsonl|parquet)$", "", name, flags=re.IGNORECASE)


def _folder_of_run(resume: str | None, new: str) -> str:
    """A resumed run continues in its own folder."""
    return resume if resume and Path(resume, run_folder.CONFIG).is_file() else new


@cache  # once for all jobs of a sweep
def renamed(old: str, new: str) -> str:
    """Returns the new name of an option in `conf/data`, and says that the old one will not last."""
    log.warning("data=%s is now called data=%s; the next version will not know the old name", old, new)
    return new


OmegaConf.register_new_resolver("renamed", renamed, replace=True)
OmegaConf.register_new_resolver("basename", _basename, replace=True)
OmegaConf.register_new_resolver("folder_of_run", _folder_of_run, replace=True)
ConfigStore.instance().store("schema", Config)


def with_trainer_options(arguments: Iterable[str]) -> list[str]:
    """Lets any argument of the Trainer be given, listed in conf/trainer or not; Hydra wants ++ for the latter."""
    return [f"++{argument}" if re.match(r"trainer\.\w", argument) else argument for argument in arguments]


def search_path(config_dir: str | Path | None) -> list[str]:
    """Returns the override with which Hydra finds options in a folder of the user's own; none without one.

    Raises:
        UsageError: for a folder that does not exist.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise UsageError(f"{config_dir}: no such folder; give one with options of your own, such as strategy/mine.yaml")
    return [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).absolute()}')}]"]


def option_files(group: Path) -> list[Path]:
    """Returns the files of a group's options, less those that only stand for an old name."""
    return [file for file in sorted(group.glob("*.yaml")) if not file.read_text().startswith("# Old name")]


def load_file(folder: Path) -> Config:
    """Loads the resolved configuration that a run keeps in its folder."""
    return load(OmegaConf.load(folder / run_folder.CONFIG), root=folder)  # type: ignore[arg-type]


def load(cfg: DictConfig, root: Path) -> Config:
    """Checks a composed configuration and returns it as plain values, its paths made absolute against `root`.

    Raises:
        UsageError: for a value outside its range.
        omegaconf.errors.OmegaConfBaseException: for a value of the wrong type or an unknown key.
    """
    # Merged as plain values, since a key that Hydra was told to add with + would pass as part of a typed node.
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    _drop_source_without_location(plain["data"])
    if plain["strategy"].get("name") == "scratch" and plain["init"] != "random":
        _say_scratch_is_random(plain["init"])
        plain["init"] = "random"  # or a sweep with pretrained weights would have a baseline that is none
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(config, Config)
    config.store, config.cache = str(root / config.store), str(root / config.cache)
    for holder in (config, config.pretrain):
        if holder.init not in INITS and (root / holder.init).exists():
            holder.init = str(root / holder.init)
    # Data are where they are said to be, also where they do not exist; an encoder's name may be its folder.
    for node in (config.data.target, config.data.source or {}, config.data.shifted or {}):
        for key in ("root", "folder", "images"):
            if node.get(key) is not None and not isinstance(node[key], str):
                remedy = "one file or folder; several data sets at once are not supported"
                raise UsageError(f"{key}={node[key]} of a data set: {remedy}")
        node |= {key: normpath(root / node[key]) for key in ("root", "folder", "images") if node.get(key)}
    _name_apart(config.data)
    if (root / config.backbone["name"] / "config.json").is_file():
        config.backbone["name"] = str(root / config.backbone["name"])
    if config.tracking.backend == "mlflow":
        uri = config.tracking.uri
        config.tracking.uri = absolute(uri, root) if uri else sqlite_address(root / "mlflow.db")
    return config


@cache  # once for all jobs of a sweep
def _say_scratch_is_random(init: str) -> None:
    log.warning("init=%s does not apply to strategy=scratch, which starts from random weights", init)


def _drop_source_without_location(data: dict[str, Any]) -> None:
    """Makes no source of one that has no location, as `data=images` has it at first.

    Raises:
        UsageError: where options are given to it, which would have no effect.
    """
    source = data.get("source")
    if not isinstance(source, dict) or "root" not in source or source["root"] or source.get("hub"):
        return
    file = CONF / "dataset" / f"{str(source.get('_target_')).rsplit('.', 1)[-1]}.yaml"
    for key, default in yaml.safe_load(file.read_text()).items() if file.exists() else ():
        if key != "name" and source.get(key) != default:
            raise UsageError(f"data.source.{key}={source.get(key)}: there is no source; give data.source.root= as well")
    data["source"] = None


def _name_apart(data: DataConfig) -> None:
    """Gives the domains of a run different names; the target keeps its own."""
    known: list[dict[str, Any]] = []
    for role, node in (("target", data.target), ("source", data.source), ("shifted", data.shifted)):
        if node is None:
            continue
        if node.get("name") in [other.get("name") for other in known]:
            node["name"] = _distinct_name(node, known, role)
        known.append(node)


def _distinct_name(node: dict[str, Any], others: list[dict[str, Any]], role: str) -> str:
    """Returns the name with what tells its location from those of the others, a file or folders, or else its role."""
    name, taken = str(node["name"]), [other.get("name") for other in others]
    train = Path(str(node.get("train") or ""))
    if train.suffix and (of_file := f"{name}-{train.stem}") not in taken:  # tables of one folder
        return of_file
    parts, theirs = _parts(node), [_parts(other) for other in others]
    for count in range(2, len(parts)):
        longer = "-".join([*parts[-count:-1], name])
        if longer not in taken and all(parts[-count:] != other[-count:] for other in theirs):
            return longer
    while name in taken:
        name = f"{name}-{role}"
    return name


def _parts(node: dict[str, Any]) -> tuple[str, ...]:
    return Path(str(node.get("root"))).parts
