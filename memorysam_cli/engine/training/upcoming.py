"""The batches that come next, fetched while the device is busy with those before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from memorysam_cli.data.loader import Batch
from memorysam_cli.errors import MemorySamError


class BatchGroups:
    """Groups of batches, each for one update; iterate over it, and call :meth:`fetch` whenever there is time.

    Args:
        batches: of an epoch.
        size: batches of a group; what is left over at the end is dropped.
        device: where the first batch of a group is sent ahead; the others wait in pinned memory for their turn.
    """

    def __init__(self, batches: Iterable[Batch], *, size: int, device: torch.device) -> None:
        self._batches, self._size, self._device = iter(batches), size, device
        self._ready: list[Batch] | None = None
        self._error: MemorySamError | None = None
        self._waited = 0.0

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            self.fetch()
            group, self._ready = self._ready, None
            if self._error is not None:
                raise self._error
            if not group:
                return
            yield group

    def fetch(self) -> None:
        """Have the next group ready. A scene that cannot be read is told of when its turn has come."""
        if self._ready is not None or self._error is not None:
            return
        begun = time.monotonic()
        try:
            group = list(islice(self._batches, self._size))
        except MemorySamError as error:
            group, self._error = [], error
        self._waited += time.monotonic() - begun
        self._ready = [] if len(group) < self._size else [group[0].to(self._device), *group[1:]]

    def waited(self) -> float:
        """Seconds that fetching has taken since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited
