"""Where the weights of a run start: at random, from the source's own run, published, or from a file."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from tlexp import __version__, tracking
from tlexp.backbones.weights import Loaded, load_backbone, read_checkpoint
from tlexp.cache import digest
from tlexp.config import WHEREABOUTS, Config, content_key
from tlexp.errors import UsageError

# Where a source run takes place does not change what it learns; everything else of the trainer may.
PLACE = ("accelerator", "devices", "strategy", "num_nodes", "enable_progress_bar")


def source_folder(config: Config) -> Path:
    """Returns where the source's weights are kept: a name to read and a key of all they depend on."""
    task = config.source_task()
    trainer = {key: value for key, value in task.trainer.items() if key not in PLACE}
    data = task.data.target
    files = [*data_files(data), files_key(task.init), files_key(task.backbone["name"])]
    rest = task.without(*WHEREABOUTS)
    key = content_key({"version": __version__, **rest, "trainer": trainer, "files": files})
    return Path(config.store) / f"{task.data.target['name']}-{Path(task.backbone['name']).name}-{key}"


def data_files(node: dict[str, Any]) -> list[str | None]:
    """Returns keys of the files that a data set consists of; none of a folder that the program itself fills."""
    if node.get("download"):
        return []
    listed = [listed_key(node)] if "images" in node else []
    return [files_key(node.get("root")), files_key(node.get("folder")), *listed]


def files_key(place: str | None) -> str | None:
    """Returns a key of a file or of all in a folder, by name, size and time of change; None where there is none."""
    if place is None or not Path(place).is_absolute():  # the name of an option or a network, not a path
        return None
    root = Path(place)
    paths = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    facts = ((path, path.stat()) for path in paths if path.exists())
    return content_key({str(path): [stat.st_size, stat.st_mtime_ns] for path, stat in facts})


def listed_key(node: dict[str, Any]) -> str | None:
    """Returns a key of the pictures that a table lists, which may lie anywhere; None where it cannot be read."""
    try:
        samples = instantiate(node, _convert_="all")
    except InstantiationException:
        return None  # said where the data are read
    return digest(*samples.inputs.names())


def read_start(config: Config) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors and the card of the checkpoint that `init` means; both empty where it means none.

    Raises:
        UsageError: where `init` names nothing that exists or can be read.
    """
    if config.init in ("random", "pretrained"):
        return {}, {}
    return read_checkpoint(source_folder(config) / "best.ckpt" if config.init == "source" else checkpoint_path(config))


def checkpoint_path(config: Config) -> Path:
    """Returns the file that `init` means: a path, the best checkpoint of an MLflow run, or what an MLflow URI names.

    Raises:
        UsageError: where it is none of them.
    """
    if (path := Path(config.init)).is_file():
        return path
    tracked = config.tracking.backend == "mlflow"
    found = None
    if re.match("(runs|models|mlflow-artifacts):/", config.init):
        if not tracked:
            raise UsageError(f"init={config.init}: only tracking=mlflow knows where that is; or give a file")
        found = tracking.checkpoint_at(config.init, config)
    elif re.fullmatch("[0-9a-f]{32}", config.init) and tracked:
        found = tracking.checkpoint_of(config.init, config)
    if found is None:
        rule = "neither source, random, pretrained nor an existing file, a known MLflow run's id or an MLflow URI"
        raise UsageError(f"init={config.init}: {rule}")
    return found


def load_init(
    config: Config, backbone: Any, state: dict[str, torch.Tensor], card: dict[str, Any]
) -> tuple[Loaded, nn.Module | None]:
    """Sets the backbone's weights as `init` says.

    Args:
        config: the run's configuration.
        backbone: what is changed.
        state: the tensors of the checkpoint that `init` means, if it means one.
        card: what it says of itself.

    Returns:
        What was loaded, and the output layer that came along, if one did.

    Raises:
        UsageError: where they do not fit, or there are no published ones.
    """
    if config.init == "random":
        return Loaded("random", 0, len(backbone.state_dict())), None
    origin, notes = config.init, []
    if config.init == "pretrained":
        if not hasattr(backbone, "pretrained_state"):
            rule = f"backbone={backbone.name} has no published weights; use init=source or init=random"
            raise UsageError(f"init=pretrained: {rule}")
        state, notes = backbone.pretrained_state()
    elif config.init == "source":
        origin = f"source {config.data.source and config.data.source['name']}"
    if "adapters" in card:
        from tlexp.strategies.peft import merged

        state, notes = merged(backbone, state, card["adapters"]), [f"{card['adapters']['peft_type']} merged"]
    loaded = load_backbone(backbone, state, origin, config.allow_partial, notes)
    return loaded, output_layer(state, loaded.left_out, backbone.num_features)


def output_layer(state: dict[str, torch.Tensor], left_out: Collection[str], width: int) -> nn.Module | None:
    """Returns the layers on top of the features that a checkpoint holds: ours, or a published classifier.

    Args:
        state: the checkpoint's tensors.
        left_out: the names of those that are not the backbone's.
        width: of the features.
    """
    own = [name for name in left_out if name.startswith("model.heads.target.")]
    matrices = [name for name in own or left_out if name.endswith("weight") and state[name].ndim > 1]
    if not own:  # a published one is a single layer on the features, whatever it is called there
        matrices = [
            name
            for name in matrices
            if state[name][0].numel() == state[name].shape[1] == width and _bias(name) in state
        ]
        matrices = matrices if len(matrices) == 1 else []
    layers: list[nn.Module] = []
    for name in matrices:
        weight, bias = state[name].flatten(1), state[_bias(name)]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    if not layers:
        return None
    return layers[0] if len(layers) == 2 else nn.Sequential(*layers[:-1])


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"
