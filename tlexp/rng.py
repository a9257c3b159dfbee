"""Named random streams: every source of randomness has a name and a generator of its own.

A stream depends on nothing but (seed, name), so runs that differ in strategy or alpha see the same target batches and
start from the same head, and a source pass leaves the target's randomness untouched.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *name: object) -> int:
    """Returns the 63-bit seed of the stream called `name` under `seed`."""
    text = "/".join(str(part) for part in (seed, *name))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def permutation(n: int, seed: int, *name: object) -> np.ndarray:
    """Returns a permutation of range(n), shape (n,), drawn from the named stream."""
    return np.random.default_rng(derive_seed(seed, *name)).permutation(n)


@contextmanager
def fork_rng(seed: int, *name: object) -> Iterator[None]:
    """Draws from the named stream inside the block and restores the global generators afterwards."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if on_gpu else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, *name))
        yield
