"""Training scenes that cannot be read: each told once, listed in the run's folder, and no more than were allowed."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.processes import agree
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import DataError
from memorysam_cli.report import console
from memorysam_cli.storage import documents
from memorysam_cli.text import few, shown

_SHOWN = 10


class Quarantine:
    """The scenes that others stand in for (``data.max_bad``), over all processes and resumes of a run.

    Args:
        run: whose ``quarantine.jsonl`` lists them.
        share: of the training scenes that may be listed.
        scenes: of the training split.
        accelerator: the processes; each reads scenes of its own.
    """

    def __init__(self, run: RunFolder, *, share: float, scenes: int, accelerator: Accelerator) -> None:
        self.run, self.share, self.scenes, self.accelerator = run, share, scenes, accelerator
        rows = documents.read_json_lines(run.quarantine) if run.quarantine.exists() else []
        self.listed: dict[str, str] = {row["scene"]: row["why"] for row in rows}

    def admit(self, batches: Sequence[Batch], *, step: int) -> None:
        """List what these batches had to do without; every process must call this.

        Args:
            batches: of one update of this process.
            step: the update, from 1.

        Raises:
            DataError: more scenes are listed than may be.
        """
        if not self.share:  # then the loader ends the run by itself
            return
        own = {left.scene: left.why for batch in batches for left in batch.left_out if left.scene not in self.listed}
        if not agree(bool(own), self.accelerator):
            return
        found = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        for scene, why in sorted({scene: why for each in found for scene, why in each.items()}.items()):
            self.listed[scene] = why
            if self.accelerator.is_main_process:
                documents.append_json_line(self.run.quarantine, {"scene": scene, "why": why, "step": step}, fsync=True)
                console.warn(f"scene {shown(scene)}: cannot be read and others stand in for it: {why}")
        if len(self.listed) > self.share * self.scenes:
            raise self._too_many()

    def __len__(self) -> int:
        return len(self.listed)

    def _too_many(self) -> DataError:
        some = few(list(self.listed.values()), _SHOWN, separator="; ")
        return DataError(
            f"{len(self)} of {self.scenes} training scenes cannot be read, more than data.max_bad={self.share:g} "
            f"allows: {some}; {self.run.quarantine} lists them: mend the files, or raise --max-bad"
        )
