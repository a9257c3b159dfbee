"""Resolves `init=`: random weights, those of the source's run, published ones, or a checkpoint."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlexp import run_folder
from tlexp.backbones.weights import LoadedWeights, load_backbone, read_checkpoint
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.runs.source_weights import source_folder
from tlexp.strategies.peft import merge_adapters
from tlexp.tracking import checkpoints

MLFLOW_URI = re.compile("(runs|models|mlflow-artifacts):/")
MLFLOW_RUN_ID = re.compile("[0-9a-f]{32}")


def read_init(config: Config) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the metadata of the checkpoint that `init` refers to; both empty where it is none.

    Raises:
        UsageError: where `init` names nothing that exists or can be read.
    """
    if config.init in ("random", "pretrained"):
        return {}, {}
    if config.init == "source":
        return read_checkpoint(source_folder(config) / run_folder.BEST_CHECKPOINT)
    return read_checkpoint(checkpoint_path(config))


def checkpoint_path(config: Config) -> Path:
    """Returns the file that `init` refers to: a path, the best checkpoint of an MLflow run, or an MLflow URI.

    Raises:
        UsageError: where it is none of them.
    """
    if (path := Path(config.init)).is_file():
        return path
    tracked = config.tracking.backend == "mlflow"
    checkpoint = None
    if MLFLOW_URI.match(config.init):
        if not tracked:
            raise UsageError(f"init={config.init}: only tracking=mlflow knows where that is; or give a file")
        checkpoint = checkpoints.of_uri(config.init, config.tracking.uri)
    elif MLFLOW_RUN_ID.fullmatch(config.init) and tracked:
        checkpoint = checkpoints.of_run(config.init, config.tracking.uri)
    if checkpoint is None:
        choices = "neither source, random, pretrained nor an existing file, a known MLflow run's id or an MLflow URI"
        raise UsageError(f"init={config.init}: {choices}")
    return checkpoint


def load_weights(
    config: Config, backbone: Any, state: dict[str, Tensor], metadata: dict[str, Any]
) -> tuple[LoadedWeights, nn.Module | None]:
    """Loads the backbone's weights according to `init`.

    Args:
        config: the run's configuration.
        backbone: what is changed.
        state: the tensors of the checkpoint that `init` refers to, if it is one.
        metadata: of the checkpoint.

    Returns:
        What was loaded, and the output layer that came with it, if one did.

    Raises:
        UsageError: where weights do not fit, or there are no published ones.
    """
    if config.init == "random":
        return LoadedWeights("random", 0, len(backbone.state_dict())), None
    origin, notes = config.init, []
    if config.init == "pretrained":
        if not hasattr(backbone, "pretrained_state"):
            remedy = f"backbone={backbone.name} has no published weights; use init=source or init=random"
            raise UsageError(f"init=pretrained: {remedy}")
        state, notes = backbone.pretrained_state()
    elif config.init == "source":
        origin = f"source {config.data.source and config.data.source['name']}"
    if "adapters" in metadata:
        adapters = metadata["adapters"]
        state, notes = merge_adapters(backbone, state, adapters), [f"{adapters['peft_type']} merged"]
    loaded = load_backbone(backbone, state, origin, config.allow_partial, notes)
    return loaded, pretrained_head(state, loaded.unexpected, backbone.num_features)


def pretrained_head(state: dict[str, Tensor], unexpected: Collection[str], num_features: int) -> nn.Module | None:
    """Returns the layers on top of the features that a checkpoint holds: one of our heads, or a published classifier.

    Args:
        state: the checkpoint's tensors.
        unexpected: the names of those that are not the backbone's.
        num_features: width of the features.
    """
    ours = [name for name in unexpected if name.startswith("model.heads.target.")]
    weights = [name for name in ours or unexpected if name.endswith("weight") and state[name].ndim > 1]
    if not ours:  # a published classifier is a single layer on the features, whatever its name
        weights = [name for name in weights if _is_classifier(state, name, num_features)]
        weights = weights if len(weights) == 1 else []
    layers: list[nn.Module] = []
    for name in weights:
        weight, bias = state[name].flatten(1), state[_bias(name)]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    if not layers:
        return None
    return layers[0] if len(layers) == 2 else nn.Sequential(*layers[:-1])


def _is_classifier(state: dict[str, torch.Tensor], name: str, num_features: int) -> bool:
    weight = state[name]
    return weight[0].numel() == weight.shape[1] == num_features and _bias(name) in state


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"
