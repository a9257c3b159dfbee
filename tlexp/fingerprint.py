"""Content keys: short digests that change where, and only where, what they stand for does."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(*parts: bytes | str) -> str:
    """Returns 32 hexadecimal digits that depend on every byte of the parts and on where each part ends."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "big"))
        state.update(content)
    return state.hexdigest()


def content_key(values: Mapping[str, Any]) -> str:
    """Returns 12 hexadecimal digits of a mapping of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
