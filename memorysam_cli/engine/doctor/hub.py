"""Whether the Hugging Face Hub can be reached, or is not wanted."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from memorysam_cli.engine.doctor.findings import Finding, ok, warning

PATIENCE_S = 4.0
NAME = "Hugging Face Hub"
AHEAD = "fetch weights ahead where there is a network (memorysam weights fetch --all) and carry HF_HOME over"


def reachable() -> Iterator[Finding]:
    """One request for the Hub's front page, without a token; none in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield ok(NAME, "offline mode (HF_HUB_OFFLINE): only cached weights are used")
        return
    address = constants.ENDPOINT
    if urlsplit(address).scheme not in {"http", "https"}:
        yield warning(NAME, f"HF_ENDPOINT={address} is no address", "unset HF_ENDPOINT, or give https://…")
        return
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            yield ok(NAME, f"{address} answers ({reply.status})")
    except urllib.error.HTTPError as reply:  # it answers: a page that is not there is no fault of the network's
        if reply.code < 500:
            yield ok(NAME, f"{address} answers ({reply.code})")
        else:
            yield warning(NAME, f"{address} answers {reply.code}", "try again later")
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        yield warning(
            NAME,
            f"{address} cannot be reached ({reason})",
            f"check the network, HTTPS_PROXY and HF_ENDPOINT; without any: {AHEAD}",
        )
