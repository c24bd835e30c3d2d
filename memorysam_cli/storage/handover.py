"""How a data worker passes an item to its parent: in a block of shared memory, or through their pipe.

The block is an anonymous file (``memfd_create``). It uses no space in ``/dev/shm``, which has 64 MB in a container. It
needs one descriptor for any number of tensors, and after a kill nothing remains in any folder. Small items, and all
items on systems without such blocks, go through the pipe, which is slower.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import mmap
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

LEAST_BYTES = 1 << 16
"""Bytes below which an item goes through the pipe, because a block would cost more than it saves."""
_HAS_BLOCKS = hasattr(os, "memfd_create")
_AS_BLOCK, _IN_PIPE = b"b", b"p"
_ALIGNED = 64
"""Alignment of the parts of a block in bytes, as for torch's own tensors."""


def send(connection: Connection, value: Any) -> None:
    """Send any value that pickle supports; the data of tensors and arrays are copied once, and never pickled.

    Raises:
        Exception: the value cannot be pickled; then nothing was sent.
        OSError: the receiver has ended.
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [buffer.raw() for buffer in buffers]
    is_block = _HAS_BLOCKS and _send_block(connection, parts)
    connection.send_bytes(pickle.dumps((stream.getvalue(), [part.nbytes for part in parts])))
    for part in () if is_block else parts:
        connection.send_bytes(part)


def receive(connection: Connection) -> Any:
    """The value from :func:`send`; its tensors are writable.

    Raises:
        EOFError, OSError: the sender has ended; or this process has no descriptor or memory left, by ``errno``.
    """
    block = _receive_block(connection) if _HAS_BLOCKS else None
    pickled, sizes = pickle.loads(connection.recv_bytes())
    if block is not None:
        views = [block[place : place + size] for place, size in zip(_places(sizes), sizes, strict=False)]
        return pickle.loads(pickled, buffers=views)
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        connection.recv_bytes_into(buffer)
    return pickle.loads(pickled, buffers=buffers)


def _send_block(connection: Connection, parts: Sequence[memoryview]) -> bool:
    """Announce how the parts are sent; returns whether they were sent as a block."""
    block = _filled(parts) if sum(part.nbytes for part in parts) >= LEAST_BYTES else None
    with _socket(connection) as channel:
        if block is not None and _is_sent(channel, block):
            return True
        channel.sendall(_IN_PIPE)
    return False


def _is_sent(channel: socket.socket, block: int) -> bool:
    """Send a descriptor; False if too many are in transit."""
    try:
        socket.send_fds(channel, [_AS_BLOCK], [block])
    except ConnectionError:
        raise
    except OSError:
        return False
    finally:
        os.close(block)
    return True


def _receive_block(connection: Connection) -> memoryview | None:
    """The memory with the parts; None if they come through the pipe."""
    with _socket(connection) as channel:
        way, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not way:
        raise EOFError
    if not descriptors:
        if way == _AS_BLOCK:  # the kernel drops descriptors for which the table has no space
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return None
    try:
        return memoryview(mmap.mmap(descriptors[0], 0))  # it lives as long as the tensors in it
    finally:
        os.close(descriptors[0])


class _Pickler(pickle.Pickler):
    """Leaves the data of tensors out of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        """How to rebuild a tensor; pickle handles everything else."""
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return NotImplemented
        if value.untyped_storage().nbytes() != value.nbytes:  # a part of another one, or repeated
            value = value.clone(memory_format=torch.preserve_format)
        numbers = value.detach().as_strided((value.numel(),), (1,), 0).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(numbers), value.dtype, tuple(value.shape), value.stride())


def _tensor(numbers: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor over existing memory, with its original strides, because kernels depend on them."""
    if not memoryview(numbers).nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(numbers, dtype=dtype).as_strided(shape, stride)


def _filled(parts: Sequence[memoryview]) -> int | None:
    """The descriptor of a block with all parts; None if the system provides none, or none of this size."""
    try:
        block = os.memfd_create("memorysam")
    except OSError:
        return None
    try:
        # Written, not mapped: without memory that is an error here instead of a signal.
        for part, place in zip(parts, _places([part.nbytes for part in parts]), strict=False):
            done = 0
            while done < part.nbytes:
                done += os.pwrite(block, part[done:], place + done)
    except OSError:
        os.close(block)
        return None
    return block


def _places(sizes: Sequence[int]) -> Iterator[int]:
    """The offset of each part of a block."""
    return itertools.accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0)


@contextlib.contextmanager
def _socket(connection: Connection) -> Iterator[socket.socket]:
    """A connection as a socket, without another descriptor."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=connection.fileno())
    try:
        yield channel
    finally:
        channel.detach()
