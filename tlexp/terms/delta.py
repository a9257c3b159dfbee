"""DELTA: feature maps stay near those of the start, where that matters."""

import sys
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from tlexp.backbones.base import Stage
from tlexp.data.datamodule import TransferDataModule
from tlexp.errors import UsageError
from tlexp.models.logistic_regression import LogisticRegressionSolver
from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import Frozen, StepContext, Term, trained_parameters, world_size

# Names of shortcuts, gates and adapters, which are not a stage's own convolutions.
SIDE_PATHS = ("downsample", "shortcut", "se", "attn", "gate", "lora_A", "lora_B")


class Maps:
    """Records the outputs of some modules of a backbone in each of its forward passes.

    Args:
        backbone: the module to watch.
        layers: names of its modules.
        always: whether passes without gradients count too.
    """

    def __init__(self, backbone: nn.Module, layers: list[str], always: bool) -> None:
        self.passes: list[dict[str, Tensor]] = []
        self.open, self.always = False, always
        backbone.register_forward_pre_hook(self._begin)
        backbone.register_forward_hook(self._end)
        for layer in layers:
            backbone.get_submodule(layer).register_forward_hook(partial(self._keep, layer))

    def _begin(self, *_: Any) -> None:
        self.open = self.always or torch.is_grad_enabled()
        if self.open:
            self.passes.append({})

    def _end(self, *_: Any) -> None:
        self.open = False  # recomputation in the backward pass is not a pass

    def _keep(self, layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.open:  # the last use of a layer counts
            self.passes[-1][layer] = channels_first(output)

    def first(self) -> dict[str, Tensor]:
        """Returns the maps of the first pass since the last call, by layer."""
        passes, self.passes = self.passes, []
        return passes[0]


class Delta(Term):
    """`strength / 2` times the distance of feature maps from the start's, and decay of the heads (Li et al. 2019).

    The distance is the sum over layers, the examples of a batch and channels of C * W_c / positions * |map - map0|^2,
    so it grows with the batch. With `attention=uniform` C * W_c is 1. With `attention=measured` W is the softmax over
    the C channels of a layer of importance / 5, where a channel's importance is how much the loss of a linear probe
    rises without it, standardised over the layer; that takes a pass over `examples` for each channel, once.

    The layers are the last convolution of every stage after the first and, in stages without any, the output of the
    stage's blocks, which transformers have with tokens as positions. The teacher is in eval mode, so with
    BatchNorm or dropout the term is not 0 at first.

    Args:
        name: the option's name.
        weight: of both parts.
        strength: with `attention=measured` the authors use 0.01, for some data 0.1, at 64 images a batch. Their plain
            variant (their `fea_map`) does not divide by positions: it is `uniform` with 49 to 3136 times the strength
            in each layer of a ResNet at 224 pixels. They decay the heads' biases too.
        head_strength: of the heads' weights; the option sets weight decay to 0.
        attention: `uniform` or `measured`.
        layers: names of the backbone's modules; None chooses as above.
        examples: training examples that importance is measured on; None for all.

    Raises:
        UsageError: for a value outside its range, or where the layers are not found or none of them trains.
    """

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        strength: float = 0.01,
        head_strength: float = 0.01,
        attention: str = "uniform",
        layers: list[str] | None = None,
        examples: int | None = None,
    ) -> None:
        super().__init__(name, weight)
        self.require(strength >= 0, "strength", strength, "must be >= 0")
        self.require(head_strength >= 0, "head_strength", head_strength, "must be >= 0")
        self.require(attention in ("uniform", "measured"), "attention", attention, "choose one of uniform, measured")
        if examples is not None:
            self.require_int("examples", examples)
        self.strength, self.head_strength, self.attention = strength, head_strength, attention
        self.layers, self.examples = [layers] if isinstance(layers, str) else layers, examples

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Finds the layers, watches them in the backbone and in a copy of it, and makes room for the weights."""
        backbone = model.backbone
        self.names = chosen_layers(model) if self.layers is None else list(self.layers)
        known = {name for name, _ in backbone.named_modules()}
        for name in self.names:
            self.require(
                name in known, "layers", name, "the backbone has no such module; its names are as in a checkpoint"
            )
        self.require(_trains_below(model, self.names), "layers", self.names, "nothing up to any of these layers trains")
        self.heads = trained_parameters(model, [name for stage in model.head_stages for name in stage.parameters])
        self.teacher = Frozen(backbone)
        widths = _widths(self.teacher.module, self.names)
        if unused := [name for name in self.names if name not in widths]:
            self.require(self.layers is None, "layers", unused[0], "takes no part in a forward pass as a module")
            self.names = list(widths)
        for name, width in widths.items():
            self.register_buffer(_key(name), torch.full((width,), 1 / width))
        self.before = Maps(self.teacher.module, self.names, always=True)
        self.now = Maps(backbone, self.names, always=False)

    @torch.no_grad()
    def on_fit_start(self, model: TransferModel, data: TransferDataModule) -> None:
        """Measures the importance of each channel."""
        if self.attention == "uniform":
            return
        features, labels = data.features(model, "target", "train")
        n = min(self.examples or len(labels), len(labels))
        probe = LogisticRegressionSolver(features, labels, model.classes["target"]).at(1.0)
        device = next(model.parameters()).device
        batches = [batch for batch in data.plain("target", "train") if len(batch.labels)]

        def loss() -> float:
            total, seen = 0.0, 0
            for batch in batches:
                logits = probe(self.teacher(model.as_input(_moved(batch.inputs, device))).float().cpu())[: n - seen]
                self.before.passes = []  # needed in a training step only
                total += float(F.cross_entropy(logits, batch.labels[: n - seen], reduction="sum"))
                if (seen := seen + len(logits)) >= n:
                    break
            return total / n

        baseline = loss()
        channels = [(name, c) for name in self.names for c in range(len(self.get_buffer(_key(name))))]
        rises: dict[str, list[float]] = {name: [] for name in self.names}
        shown = track(channels, "importance of channels", transient=True, disable=not sys.stdout.isatty())
        for name, channel in shown:
            handle = self.teacher.module.get_submodule(name).register_forward_hook(_without(channel))
            rises[name].append(loss() - baseline)
            handle.remove()
        for name, values in rises.items():
            importance = torch.tensor(values)
            spread = importance.std(correction=0)
            standard = (importance - importance.mean()) / spread if spread > 0 else torch.zeros_like(importance)
            self.get_buffer(_key(name)).copy_((standard / 5).softmax(0))

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Compares the maps of the target's batch, which was the first to pass."""
        inputs, n = step.target.inputs, len(step.target.features)
        self.teacher(inputs)
        mask = inputs["attention_mask"] if isinstance(inputs, dict) else None
        value = torch.zeros((), device=step.target.features.device)
        now, before = self.now.first(), self.before.first()
        for name in self.names:
            student, teacher = now[name], before[name]
            # A joint pass of both domains may have padded texts further.
            student = student[:n] if mask is None else student[:n, :, : teacher.shape[2]]
            squares = (student.float() - teacher.float()).pow(2).flatten(2)  # (batch, channels, positions)
            valid = torch.ones_like(squares[:, :1]) if mask is None else mask[:, None, : squares.shape[2]].to(squares)
            distances = (squares * valid).sum(2) / valid.sum(2)
            channel_weights = self.get_buffer(_key(name))
            value = value + (distances * channel_weights * len(channel_weights)).sum()
        value = value * world_size() * (self.strength / 2)  # a sum over the batch, of which this may be a part
        if self.head_strength:
            parameters = dict(model.named_parameters())
            squares_of_heads = [
                parameters[name].float().pow(2).sum() for name in self.heads if parameters[name].ndim > 1
            ]
            value = value + sum(squares_of_heads) * (self.head_strength / 2)
        return value


def chosen_layers(model: TransferModel) -> list[str]:
    """Returns, for every stage after the first that trains, its last convolution, or else its blocks.

    Raises:
        UsageError: where there are none.
    """
    backbone = model.backbone
    modules = dict(backbone.named_modules())
    layers = []
    for stage in model.backbone_stages[1:]:
        if not trained_parameters(model, stage.parameters):
            continue
        names = [name.removeprefix("backbone.") for name in stage.modules]
        convolutions = [name for name in names if isinstance(modules[name], nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        convolutions = [name for name in convolutions if not set(SIDE_PATHS) & set(name.split("."))]
        layers += convolutions[-1:] or _largest_modules(stage, names, modules)
    if not layers:
        looked = "the last convolution or the blocks of each stage after the first"
        raise UsageError(f"terms=[delta]: found none of what it looks for, {looked}; name some by terms.delta.layers=")
    return layers


def _trains_below(model: TransferModel, layers: list[str]) -> bool:
    """Returns whether any stage up to the end of one of the layers trains."""
    stages = model.backbone_stages
    ends = [i for i, s in enumerate(stages) for layer in layers if any(_inside(name, layer) for name in s.parameters)]
    return any(trained_parameters(model, stage.parameters) for stage in stages[: max(ends, default=len(stages)) + 1])


def _inside(parameter: str, layer: str) -> bool:
    return parameter.startswith(f"backbone.{layer}.")


def _largest_modules(stage: Stage, names: list[str], modules: dict[str, Any]) -> list[str]:
    """Returns the modules at the top of a stage that are its blocks: with half of the largest one's parameters or more.

    Where a stage is one module, it is that; where the last block shares it with a final normalisation or a pooler, it
    is the block, whose outputs are tokens or positions.
    """
    outermost = [name for name in names if name and not any(name.startswith(f"{other}.") for other in names if other)]
    outermost = [name for name in outermost if not isinstance(modules[name], nn.ModuleList | nn.ModuleDict)]
    sizes = {name: sum(_inside(parameter, name) for parameter in stage.parameters) for name in outermost}
    return [name for name in outermost if sizes[name] > 0 and 2 * sizes[name] >= max(sizes.values())]


def channels_first(output: Any) -> Tensor:
    """Returns a layer's output as (batch, channels, positions...)."""
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    moved = tensor.movedim(channel_axis(tensor), 1)
    return moved[:, :, None] if moved.ndim == 2 else moved


def channel_axis(output: Tensor) -> int:
    """Returns where the channels are: last for tokens (batch, tokens, channels) and for squares that have them last."""
    last = output.ndim == 3 or (output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3])
    return output.ndim - 1 if last else 1


def _without(channel: int) -> Any:
    def hook(*of_layer: Any) -> Any:
        output = of_layer[-1]
        tensor = output if isinstance(output, Tensor) else output[0]
        changed = tensor.clone()
        changed.select(channel_axis(tensor), channel).zero_()
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    return hook


def _widths(backbone: Any, names: list[str]) -> dict[str, int]:
    """Returns the number of channels of each layer that one forward pass meets, in the order of `names`."""
    widths: dict[str, int] = {}

    def keep(name: str) -> Any:
        return lambda *of_layer: widths.update({name: channels_first(of_layer[-1]).shape[1]})

    handles = [backbone.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        backbone(backbone.input.example(2))
    for handle in handles:
        handle.remove()
    return {name: widths[name] for name in names if name in widths}


def _moved(inputs: Any, device: torch.device) -> Any:
    return (
        {name: tensor.to(device) for name, tensor in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
    )


def _key(layer: str) -> str:
    return "weights_of_" + layer.replace(".", "_")
