"""Named random streams: every source of randomness has a name and a generator of its own.

A stream depends on nothing but (seed, name), so runs that differ in strategy or alpha see the same target batches and
start from the same head, and a source pass leaves the target's randomness untouched.
"""

import hashlib
import random
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


def seed_globally(seed: int, *name: object) -> None:
    """Lets the global generators of torch, NumPy and Python draw from the named stream."""
    derived = derive_seed(seed, *name)
    torch.manual_seed(derived)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002 - what a user's transform may draw from


@contextmanager
def fork_rng(seed: int, *name: object) -> Iterator[None]:
    """Draws from the named stream inside the block and restores the global generators afterwards."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if on_gpu else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            seed_globally(seed, *name)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
