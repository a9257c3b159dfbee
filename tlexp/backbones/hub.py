"""The model hub: quick to say that it cannot be reached."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

SECONDS = 3.0


@contextmanager
def failing_fast() -> Iterator[None]:
    """Keeps the hub's client in its offline mode inside the block where the hub cannot be reached.

    The client tries again for most of a minute; offline, it finds what is in the local cache or fails at once.
    Behind a proxy only the client knows the way, so nothing is tried then.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # the caller's error says it in one line
    before = constants.HF_HUB_OFFLINE
    proxy = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))
    constants.HF_HUB_OFFLINE = before or not (proxy or _reachable(constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), SECONDS):
            return True
    except OSError:
        return False
