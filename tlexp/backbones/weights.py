"""Where a backbone's weights come from, and how many of them really arrived."""

import re
from collections.abc import Iterable, Mapping
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
        notes: what was changed to fit, such as resampled position embeddings.
    """

    origin: str
    loaded: int
    total: int
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.origin}: {self.loaded} of {self.total} tensors"
        if self.missing:
            text += f", missing {_some(self.missing)}"
        text += f", left out {_some(self.left_out)}" if self.left_out else ""
        more = [f"and {len(self.notes) - 3} more adapted"] if len(self.notes) > 3 else []
        return "; ".join([text, *self.notes[:3], *more])


def load_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], origin: str, allow_partial: bool, notes: Iterable[str] = ()
) -> Loaded:
    """Copies weights into a backbone by name, whatever wrappers have put in front of the names.

    A tensor of another shape is left out unless the backbone's `adapted(name, tensor)`, if it has one, makes it fit.

    Raises:
        UsageError: if less than the whole backbone is covered and `allow_partial` is false.
    """
    own = backbone.state_dict()
    prefixes = (*PREFIXES, *getattr(backbone, "prefixes", ()))
    given: dict[str, tuple[str, Tensor]] = {}
    wanted = {_bare(name, prefixes) for name in own}
    for name, tensor in state.items():
        other, twin = given.setdefault(bare := _bare(name, prefixes), (name, tensor))
        if bare in wanted and not _equal(tensor, twin):
            rule = "keep the tensors of one of the networks"
            raise UsageError(f"init={origin}: holds two networks, {other} and {name} are the same tensor: {rule}")
    adapt = getattr(backbone, "adapted", lambda *_: None)
    found, notes, misfits = {}, list(notes), []
    for name, tensor in own.items():
        if (bare := _bare(name, prefixes)) not in given:
            continue
        value: Tensor = given[bare][1]
        if value.shape != tensor.shape:
            try:
                fitting = adapt(name, value)
            except (AssertionError, NotImplementedError, RuntimeError):  # a layout that the library cannot adapt
                fitting = None
            if fitting is None or fitting.shape != tensor.shape:
                misfits.append(f"{name} is {_shape(value)}, not {_shape(tensor)}")
                continue
            notes.append(f"{bare} adapted from {_shape(value)} to {_shape(tensor)}")
            value = fitting
        found[name] = value
    # Files older than BatchNorm's count of batches lack it; nothing is computed from it.
    found |= {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in found}
    missing = tuple(name for name in own if name not in found)
    used = {_bare(name, prefixes) for name in found}
    left_out = tuple(name for bare, (name, _) in given.items() if bare not in used)
    result = Loaded(origin, len(found), len(own), missing, left_out, tuple(notes))
    if missing and not allow_partial:
        rule = "the whole backbone must be covered; check backbone=, or accept it with allow_partial=true"
        why = f" ({misfits[0]})" if misfits else ""
        raise UsageError(
            f"init={origin}: loads {len(found)} of {len(own)} tensors, missing {_some(missing)}{why}: {rule}"
        )
    # Some modules read the version of their own layout, which a plain dict of tensors does not tell.
    complete = backbone.state_dict()
    complete.update(found)
    backbone.load_state_dict(complete)
    return result


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint: ours, Lightning's, a bare state dict, or safetensors.

    Returns:
        The tensors by name, and the card that our own checkpoints have; empty for others.

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
    card = content.get("tlexp", {}) if isinstance(content, dict) else {}
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UsageError(f"init={path}: holds no tensors by name; give a checkpoint or a state dict")
    return tensors, card


def _bare(name: str, prefixes: Iterable[str]) -> str:
    """Drops the prefixes that wrappers add, `model.backbone.stem.0.weight` becoming `stem.0.weight`."""
    return re.sub(rf"^(?:{'|'.join(map(re.escape, prefixes))})+", "", name)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
