"""Where a backbone's weights come from, and how many of them really arrived."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tlexp.errors import UsageError

PREFIXES = ("model.", "module.", "backbone.", "_orig_mod.", "body.")


@dataclass(frozen=True)
class Loaded:
    """What happened to a backbone's weights.

    Attributes:
        origin: where they come from, for people.
        loaded: number of the backbone's tensors that were set.
        total: number of tensors the backbone has.
        missing: names of those that were not set.
        left_out: names of tensors that have no place in the backbone, such as the old head.
    """

    origin: str
    loaded: int
    total: int
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.origin}: {self.loaded} of {self.total} tensors"
        if self.missing:
            text += f", missing {_some(self.missing)}"
        return text + (f", left out {_some(self.left_out)}" if self.left_out else "")


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], origin: str, allow_partial: bool) -> Loaded:
    """Copies weights into a backbone by name, whatever wrappers have put in front of the names.

    Raises:
        UsageError: if less than the whole backbone is covered and `allow_partial` is false.
    """
    own = backbone.state_dict()
    given = {_bare(name): (name, tensor) for name, tensor in state.items()}
    found = {
        name: given[_bare(name)][1]
        for name, tensor in own.items()
        if _bare(name) in given and given[_bare(name)][1].shape == tensor.shape
    }
    missing = tuple(name for name in own if name not in found)
    used = {_bare(name) for name in found}
    left_out = tuple(name for bare, (name, _) in given.items() if bare not in used)
    result = Loaded(origin, len(found), len(own), missing, left_out)
    if missing and not allow_partial:
        rule = "the whole backbone must be covered; check backbone=, or accept it with allow_partial=true"
        raise UsageError(f"init={origin}: loads {len(found)} of {len(own)} tensors, missing {_some(missing)}: {rule}")
    backbone.load_state_dict(found, strict=False)
    return result


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint: ours, Lightning's, a bare state dict, or safetensors.

    Raises:
        UsageError: where the file cannot be read or holds no tensors.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn, empty and foreign files fail in as many ways as there are files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"init={path}: not a readable checkpoint ({reason}); give a file saved by torch") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UsageError(f"init={path}: holds no tensors by name; give a checkpoint or a state dict")
    return tensors


def _bare(name: str) -> str:
    """Drops the prefixes that wrappers add, `model.backbone.stem.0.weight` becoming `stem.0.weight`."""
    return re.sub(rf"^(?:{'|'.join(map(re.escape, PREFIXES))})+", "", name)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
