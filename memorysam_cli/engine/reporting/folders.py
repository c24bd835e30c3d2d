"""What a folder holds: a training run, an evaluation or a prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from memorysam_cli.engine.evaluate import folder as files
from memorysam_cli.engine.predict import files as predictions
from memorysam_cli.engine.run_folder import LATEST, RECIPE, RUNS, RunFolder
from memorysam_cli.errors import UsageError

Kind = Literal["training", "evaluation", "prediction"]


def latest() -> Path:
    """The newest run.

    Raises:
        UsageError: nothing was trained here.
    """
    folder = RUNS / LATEST
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no run here to report on; name a folder: memorysam report FOLDER")
    return folder


def kind(folder: Path) -> Kind:
    """What a folder holds, by its files.

    Raises:
        UsageError: nothing that a report can be made of; says what was looked for.
    """
    if RunFolder(folder).holds_run():
        return "training"
    if _metrics(folder).is_file() or any(folder.glob("robustness-*.json")):
        return "evaluation"
    if any((folder / name).is_file() for name in (predictions.SUCCESS, predictions.LEDGER)):
        return "prediction"
    looked = f"a run ({RECIPE}), an evaluation ({files.NAMES['metrics']}), a prediction ({predictions.LEDGER})"
    what = "holds none of these" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
    if (folder / predictions.PARTS).is_dir():
        what = "holds a prediction that is not done; run its command again first"
    raise UsageError(f"{folder}: {what}; a report is made of {looked}")


def newest_evaluation(run: Path) -> Path | None:
    """The newest evaluation inside a run's folder, of all its modalities if there is one."""
    found = [path.parent for path in (run / "evaluate").rglob(files.NAMES["metrics"])]
    # Fewer folders deep: parts of the modalities and other views lie inside the plain result.
    return min(found, key=lambda path: (len(path.parts), -_metrics(path).stat().st_mtime_ns)) if found else None


def _metrics(folder: Path) -> Path:
    return folder / files.NAMES["metrics"]
