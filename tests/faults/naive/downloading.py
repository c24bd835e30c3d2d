"""Files from the Hub as most programs fetch them."""

from __future__ import annotations

from pathlib import Path


def fetch(repo: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, filename))
