"""The model hub: quick to say that it cannot be reached."""

import logging
import os
import socket
from urllib.parse import urlsplit

from huggingface_hub import constants

SECONDS = 3.0


def fail_fast() -> None:
    """Puts the hub's client into its offline mode where the hub cannot be reached.

    The client tries again for most of a minute; offline, it finds what is in the local cache or fails at once.
    Behind a proxy only the client knows the way, so nothing is tried then.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # the caller's error says it in one line
    if constants.HF_HUB_OFFLINE or any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), SECONDS):
            pass
    except OSError:
        constants.HF_HUB_OFFLINE = True
