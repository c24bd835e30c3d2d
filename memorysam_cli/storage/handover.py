"""How an item gets from a data worker to its parent: in one block of memory that both see, or through their pipe.

The block is a file that has no name (``memfd_create``): it takes no room in ``/dev/shm``, of which a container has
64 MB, it costs one descriptor, however many tensors lie in it, and a kill leaves nothing of it behind, in no folder.
Where the system gives no such block, and for what is small, the bytes go through the pipe: slower, and just as right.
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
"""Less than this goes through the pipe: a block would cost more than it saves."""
_HAS_BLOCKS = hasattr(os, "memfd_create")
_AS_BLOCK, _IN_PIPE = b"b", b"p"
_ALIGNED = 64
"""Where the parts of a block begin, in bytes: as torch's own tensors do."""


def send(connection: Connection, value: Any) -> None:
    """Send anything that pickle knows; numbers of tensors and arrays are copied once, and never pickled.

    Raises:
        Exception: the value cannot be pickled; then nothing was sent.
        OSError: nobody is there any more.
    """
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [buffer.raw() for buffer in buffers]
    is_block = _HAS_BLOCKS and _send_block(connection, parts)
    connection.send_bytes(pickle.dumps((stream.getvalue(), [part.nbytes for part in parts])))
    for part in () if is_block else parts:
        connection.send_bytes(part)


def receive(connection: Connection) -> Any:
    """What :func:`send` was given; its tensors may be written to.

    Raises:
        EOFError, OSError: the sender is gone; or this process has no descriptor or memory left, by ``errno``.
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
    """Say how the parts come, and whether they came as a block."""
    block = _filled(parts) if sum(part.nbytes for part in parts) >= LEAST_BYTES else None
    with _socket(connection) as channel:
        if block is not None and _is_sent(channel, block):
            return True
        channel.sendall(_IN_PIPE)
    return False


def _is_sent(channel: socket.socket, block: int) -> bool:
    """Hand a descriptor over; False where too many are on their way."""
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
    """The memory that holds the parts; None where they come through the pipe."""
    with _socket(connection) as channel:
        way, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not way:
        raise EOFError
    if not descriptors:
        if way == _AS_BLOCK:  # the kernel drops what the table of descriptors has no place for
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return None
    try:
        return memoryview(mmap.mmap(descriptors[0], 0))  # it lives as long as the tensors that lie in it
    finally:
        os.close(descriptors[0])


class _Pickler(pickle.Pickler):
    """Leaves the numbers of tensors beside the pickle."""

    def reducer_override(self, value: Any) -> Any:
        """How a tensor is made again; everything else is pickle's."""
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return NotImplemented
        if value.untyped_storage().nbytes() != value.nbytes:  # a part of another one, or repeated
            value = value.clone(memory_format=torch.preserve_format)
        numbers = value.detach().as_strided((value.numel(),), (1,), 0).view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(numbers), value.dtype, tuple(value.shape), value.stride())


def _tensor(numbers: Any, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor over memory that is there; also its strides are what they were, for kernels choose by them."""
    if not memoryview(numbers).nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(numbers, dtype=dtype).as_strided(shape, stride)


def _filled(parts: Sequence[memoryview]) -> int | None:
    """The descriptor of a block with all parts; None where the system gives none, or none that large."""
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
    """Where each part of a block begins."""
    return itertools.accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0)


@contextlib.contextmanager
def _socket(connection: Connection) -> Iterator[socket.socket]:
    """A connection as the socket that it is; takes no descriptor of its own."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=connection.fileno())
    try:
        yield channel
    finally:
        channel.detach()
