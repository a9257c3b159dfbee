"""The model hub: asked only where published weights are wanted, and quick to say that it cannot be reached."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

SECONDS = 3.0


@contextmanager
def offline(unless: bool = False) -> Iterator[None]:
    """Keeps the hub's client from the network inside the block: it finds what is in the local cache, or fails.

    Args:
        unless: lets it try where the hub answers. The client alone would try again for most of a minute. Behind a
            proxy only the client knows the way, so it may try without having been checked.
    """
    # The caller's error says it in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    before = constants.HF_HUB_OFFLINE
    proxy = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))
    constants.HF_HUB_OFFLINE = before or not (unless and (proxy or _reachable(constants.ENDPOINT)))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def first_sentence(error: BaseException) -> str:
    """Returns as much of an error's message as fits into one of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")


def _reachable(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), SECONDS):
            return True
    except OSError:
        return False
