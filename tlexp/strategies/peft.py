"""Adapters of the library peft: LoRA and its relatives, inside a frozen backbone."""

import copy
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from tlexp.backbones.base import Stage, group_stages
from tlexp.backbones.weights import load_backbone
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy

# What attention's queries and values are called, BERT first; timm and Swin have one layer for all three.
ATTENTION = (("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q_proj", "v_proj"), ("qkv",))


class Peft(Strategy):
    """Trains adapters and the heads; the backbone's own weights stay the same to the bit (LoRA: Hu et al. 2022).

    A layer W becomes W + (lora_alpha / r) B A with B = 0 at first, so that the network starts as what it was. A
    checkpoint of such a run starts another one with its adapters merged into the weights.

    Args:
        name: the option's name.
        adapter: a configuration of peft for a tuner that is injected into layers, without its targets.
        targets: names of the layers, as they end; `auto` takes attention's queries and values, `all-linear` all linear
            layers (Dettmers et al. 2023).

    Raises:
        UsageError: in `prepare`, where no such layer is there or peft refuses.
    """

    def __init__(self, name: str, adapter: Any, targets: str | Sequence[str] = "auto") -> None:
        super().__init__(name)
        self.adapter, self.targets = adapter, targets

    def prepare(self, model: TransferModel) -> None:
        """Injects the adapters and splits each stage into its weights, which stay frozen, and its adapters."""
        backbone = model.backbone
        self.adapter.target_modules = self._targets(backbone)
        stages, names = inject_adapters(backbone, backbone.stages(), self.adapter, self.name)
        adapters = {f"backbone.{name}" for name in names}
        model.regroup([part for stage in stages for part in stage.inside("backbone.").split(adapters, "adapter")])
        self._trained = {stage.name for stage in model.stages if adapters & set(stage.parameters)}
        self._trained |= {stage.name for stage in model.head_stages}

    def _targets(self, backbone: nn.Module) -> list[str]:
        if self.targets == "all-linear":
            return self._linear_layers(backbone)
        if self.targets != "auto":
            return [self.targets] if isinstance(self.targets, str) else list(self.targets)
        last = {name.rpartition(".")[2] for name, child in backbone.named_modules() if isinstance(child, nn.Linear)}
        for family in ATTENTION:
            if set(family) <= last:
                return list(family)
        looked = " or ".join("+".join(family) for family in ATTENTION)
        names = ", ".join(sorted(name for name in last if name and not name.isdigit())[:8]) or "none with a name"
        remedy = f"looked for linear layers called {looked}; this backbone's linear layers: {names}"
        raise UsageError(f"strategy={self.name}: {remedy}; name layers by strategy.targets=[...]")

    def _linear_layers(self, backbone: nn.Module) -> list[str]:
        """Returns the names of all linear layers but those inside of torch's attention, which reads their weights."""
        modules = dict(backbone.named_modules())
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear) or _is_conv1d(module)]
        inside = [name for name in linear if isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention)]
        if not (names := [name for name in linear if name not in inside]):
            raise UsageError("strategy.targets=all-linear: this backbone has no linear layer; name layers instead")
        return names

    def trainable(self, epoch: int) -> Set[str]:
        """The adapters and the heads, in every epoch."""
        return self._trained

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns the configuration of the adapters in the checkpoint."""
        return {"adapters": plain(self.adapter)}


def _is_conv1d(module: nn.Module) -> bool:
    """Returns whether a module is GPT-2's linear layer, which transformers calls a convolution."""
    return type(module).__name__ == "Conv1D"


def inject_adapters(backbone: nn.Module, stages: list[Stage], adapter: Any, name: str) -> tuple[list[Stage], set[str]]:
    """Injects adapters; returns the stages under the names that tensors now have, and the names of the adapters.

    Args:
        backbone: what is changed.
        stages: of the backbone as it was.
        adapter: peft's configuration.
        name: of the strategy, for messages.

    Raises:
        UsageError: where peft refuses, or matches nothing.
    """
    from peft import inject_adapter_in_model

    before = _tensors(backbone)
    stage_of_tensor = {id(before[n]): stage.name for stage in stages for n in (*stage.parameters, *stage.buffers)}
    try:
        inject_adapter_in_model(adapter, backbone)
    except Exception as error:  # each tuner has its own ways to refuse
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"strategy={name}: peft refuses {type(adapter).__name__}: {reason}") from error
    after = _tensors(backbone)
    known = {n: stage_of_tensor[id(tensor)] for n, tensor in after.items() if id(tensor) in stage_of_tensor}
    stage_of = {n: known.get(n) or _nearest(n, known) for n in after}
    adapters = {n for n, parameter in backbone.named_parameters() if parameter.requires_grad}  # perhaps biases too
    if not adapters:
        raise UsageError(f"strategy={name}: {type(adapter).__name__} adds nothing that trains to this backbone")
    return group_stages(backbone, stage_of, [stage.name for stage in stages]), adapters


def merge_adapters(backbone: nn.Module, state: Mapping[str, Tensor], adapters: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint with its adapters merged into the weights, under a backbone's own names.

    Args:
        backbone: without adapters; it is left as it is.
        state: the checkpoint's tensors.
        adapters: their configuration, from its metadata.

    Raises:
        UsageError: where they do not fit the backbone, or cannot be merged.
    """
    from peft import get_peft_config
    from peft.tuners.tuners_utils import BaseTunerLayer

    changed: Any = copy.deepcopy(backbone)
    inject_adapters(changed, changed.stages(), get_peft_config(dict(adapters)), "peft")
    load_backbone(changed, state, "a checkpoint with adapters", allow_partial=False)
    try:
        for module in changed.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
    except Exception as error:  # as above
        raise UsageError(f"init: the adapters of the checkpoint cannot be merged ({error})") from error
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in changed.state_dict().items()}
    heads = {name: tensor for name, tensor in state.items() if ".heads." in name}
    return heads | {name: tensors[name] for name in backbone.state_dict()}


def plain(adapter: Any) -> dict[str, Any]:
    """Returns a configuration of peft as plain values."""
    content: dict[str, Any] = json.loads(json.dumps(adapter.to_dict(), default=_listed))
    return content


def _listed(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _nearest(name: str, known: Mapping[str, str]) -> str:
    """Returns the stage of the innermost module around a tensor in which there are others."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        for other, stage in known.items():
            if other.startswith(f"{path}." if path else ""):
                return stage
    raise AssertionError("a backbone has tensors")
