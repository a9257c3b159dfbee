"""Loading a configuration: from what Hydra composed to checked plain values with absolute paths."""

import logging
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from tlexp import run_folder
from tlexp.config.schema import INITS, Config
from tlexp.errors import UsageError

log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).parent.parent
# In a wheel the options lie inside the package, in a checkout beside it.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())


def _basename(*paths: str | None) -> str:
    """Names a data set after the last part of its location, unless it is given a name."""
    return next((Path(path).stem for path in paths if path), "none")


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
    folder = str(Path(config_dir).absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.searchpath=['file://{folder}']"]


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
    _settle_domains(plain["data"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(config, Config)
    config.store, config.cache = str(root / config.store), str(root / config.cache)
    for holder in (config, config.pretrain):
        if holder.init not in INITS and (root / holder.init).exists():
            holder.init = str(root / holder.init)
    # Data are where they are said to be, also where they do not exist; an encoder's name may be its folder.
    for node in (config.data.target, config.data.source or {}, config.data.shifted or {}):
        node |= {key: str(root / node[key]) for key in ("root", "folder", "images") if node.get(key)}
    if (root / config.backbone["name"] / "config.json").is_file():
        config.backbone["name"] = str(root / config.backbone["name"])
    if config.tracking.backend == "mlflow":
        uri = config.tracking.uri or "sqlite:///mlflow.db"
        local = uri.startswith("sqlite:///")
        config.tracking.uri = f"sqlite:///{root / uri.removeprefix('sqlite:///')}" if local else uri
    return config


def _settle_domains(data: dict[str, Any]) -> None:
    """Drops a source that was given no location, and names the domains apart."""
    source = data["source"]
    if source and "root" in source and not (source["root"] or source.get("hub")):
        data["source"] = None
    names: dict[str, str] = {}  # by role
    for role in ("target", "source", "shifted"):
        node = data[role]
        if node and node["name"] in names.values():
            other = next(data[earlier] for earlier, name in names.items() if name == node["name"])
            node["name"] = _distinct_name(node, other, role)
        if node:
            names[role] = node["name"]


def _distinct_name(node: dict[str, Any], other: dict[str, Any], role: str) -> str:
    """Returns the name with as many folders before it as tell it from the other's, or else with its role."""
    name = str(node["name"])
    if node.get("root") and other.get("root"):
        for mine, theirs in zip(Path(node["root"]).parents, Path(other["root"]).parents, strict=False):
            if mine.name:
                name = f"{mine.name}-{name}"
            if mine.name != theirs.name:
                return name
    return f"{name}-{role}"
