"""Loading a backbone's weights, and a report of how many of them were really loaded."""

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
class LoadedWeights:
    """What was loaded into a backbone.

    Attributes:
        origin: where the weights come from, for reports.
        loaded: number of the backbone's tensors that were loaded.
        total: number of tensors the backbone has.
        missing: names of those that were not.
        unexpected: names of the checkpoint's tensors that the backbone does not have, such as a head.
        notes: what was adapted, such as resampled position embeddings.
    """

    origin: str
    loaded: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.origin}: {self.loaded} of {self.total} tensors"
        if self.missing:
            text += f", missing {_some(self.missing)}"
        text += f", unused {_some(self.unexpected)}" if self.unexpected else ""
        more = [f"and {len(self.notes) - 3} more adapted"] if len(self.notes) > 3 else []
        return "; ".join([text, *self.notes[:3], *more])


def load_backbone(
    backbone: nn.Module, state: Mapping[str, Tensor], origin: str, allow_partial: bool, notes: Iterable[str] = ()
) -> LoadedWeights:
    """Copies weights into a backbone by name, whatever wrappers have put in front of the names.

    A tensor of another shape is not loaded unless the backbone's `adapted(name, tensor)`, if it has one, makes it fit.

    Raises:
        UsageError: if weights for a part of the backbone are missing and `allow_partial` is false.
    """
    expected = backbone.state_dict()
    prefixes = (*PREFIXES, *getattr(backbone, "prefixes", ()))
    given: dict[str, tuple[str, Tensor]] = {}
    wanted = {_bare(name, prefixes) for name in expected}
    for name, tensor in state.items():
        other, twin = given.setdefault(bare := _bare(name, prefixes), (name, tensor))
        if bare in wanted and not _equal(tensor, twin):
            remedy = "keep the tensors of one of the networks"
            raise UsageError(f"init={origin}: holds two networks, {other} and {name} are the same tensor: {remedy}")
    adapt = getattr(backbone, "adapted", lambda *_: None)
    matched, notes, misfits = {}, list(notes), []
    for name, tensor in expected.items():
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
        matched[name] = value
    # Files older than BatchNorm's batch counter lack it; nothing is computed from it.
    matched |= {
        name: expected[name] for name in expected if name.endswith("num_batches_tracked") and name not in matched
    }
    missing = tuple(name for name in expected if name not in matched)
    used = {_bare(name, prefixes) for name in matched}
    unexpected = tuple(name for bare, (name, _) in given.items() if bare not in used)
    result = LoadedWeights(origin, len(matched), len(expected), missing, unexpected, tuple(notes))
    if missing and not allow_partial:
        remedy = "the whole backbone must be covered; check backbone=, or set allow_partial=true"
        why = f" ({misfits[0]})" if misfits else ""
        raise UsageError(
            f"init={origin}: loads {len(matched)} of {len(expected)} tensors, missing {_some(missing)}{why}: {remedy}"
        )
    # Some modules read the version of their own layout, which a plain dict of tensors does not tell.
    complete = backbone.state_dict()
    complete.update(matched)
    backbone.load_state_dict(complete)
    return result


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint: ours, Lightning's, a bare state dict, or safetensors.

    Returns:
        The tensors by name, and the metadata that our own checkpoints have; empty for others.

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
    except Exception as error:  # corrupt, empty and foreign files fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"init={path}: not a readable checkpoint ({reason}); give a file saved by torch") from error
    metadata = content.get("tlexp", {}) if isinstance(content, dict) else {}
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UsageError(f"init={path}: holds no tensors by name; give a checkpoint or a state dict")
    return tensors, metadata


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
