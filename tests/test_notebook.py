"""docs/quickstart.ipynb runs from its first cell to the picture at its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_to_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell but the installation, with this Python's own memorysam."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("MPLBACKEND")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = "\n".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))
    assert "error [" not in said and "mean" in said, said
    picture = book.cells[-1].outputs[-1]["data"]["image/png"]
    assert len(picture) > 10_000
    assert (tmp_path / "runs/latest/checkpoints/best.safetensors").is_file()


def test_the_notebook_is_stored_without_outputs_of_a_machine() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in book.cells)
    (skipped,) = [cell for cell in book.cells if "skip-execution" in cell.metadata.get("tags", [])]
    assert "%pip install" in skipped.source
