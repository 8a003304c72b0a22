"""Sends values from a data worker to the main process, with large tensors in shared memory.

A worker stacks a batch directly into anonymous memory (`memfd_create`), whose file descriptor is
sent over the worker's connection after the pickled rest of the batch. So a batch is written once,
needs one descriptor while it exists, and doesn't use /dev/shm, of which a container has 64 MB by
default. If the kernel doesn't support memfd, an unlinked file in the temporary folder (TMPDIR)
replaces it. The file's space is reserved before it is written, since a full disk would otherwise
kill the worker by SIGBUS. Not covered: sharing of storage (tensors that share storage arrive as
separate copies), and shared memory for other tensors than dense CPU tensors without gradients,
which are pickled.
"""

import contextlib
import errno
import io
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

import torch
from torch import Tensor

from tiekd.errors import DataError

_SHARED_BYTES = 16 * 1024  # tensors of at least this size are sent in shared memory
# Largest size of a pickle that is sent over the connection itself. A larger one could fill the
# connection's buffer and block while the main process is busy.
_PICKLE_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 2**20  # size of a block of shared memory; unwritten pages take no memory
_ALIGNMENT = 64
_NO_EXECUTION = 8  # MFD_NOEXEC_SEAL, a flag that some systems require


class _Piece:
    """A block of shared memory with its own file descriptor.

    Args:
        size: Bytes of the block.

    Attributes:
        descriptor: The block's file descriptor; -1 once it is closed.
        size: Bytes of the block, all of which are mapped.
        used: Bytes from the start of the block that are allocated to tensors.
        start: Address of the block's first byte.
    """

    def __init__(self, size: int):
        self.descriptor, self._is_file = _open_anonymous()
        self.size = size
        self.used = 0
        os.ftruncate(self.descriptor, size)
        self._mapped = mmap.mmap(self.descriptor, size)
        self.start = torch.frombuffer(self._mapped, dtype=torch.uint8, count=1).data_ptr()

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor that is allocated in this block of shared memory.

        Args:
            shape: The tensor's shape. The block must have room for the tensor.
            dtype: The tensor's dtype.

        Raises:
            DataError: The block is a file and its disk is full.
        """
        count = torch.Size(shape).numel()
        offset = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        if self._is_file:
            _take_room(self.descriptor, offset, count * dtype.itemsize)
        self.used = offset + count * dtype.itemsize
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=offset).view(
            torch.Size(shape)
        )

    def close(self) -> None:
        """Closes the block's file descriptor; its memory is freed with the last tensor in it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


class _Outbox:
    """Blocks of shared memory that hold the large tensors of the next message.

    Attributes:
        pieces: The blocks; a new one is added when a tensor doesn't fit into the last one.
    """

    def __init__(self):
        self.pieces: list[_Piece] = []

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        needed = torch.Size(shape).numel() * dtype.itemsize + _ALIGNMENT
        if not self.pieces or self.pieces[-1].used + needed > self.pieces[-1].size:
            self.pieces.append(_Piece(max(_PIECE_BYTES, needed)))
        return self.pieces[-1].take(shape, dtype)

    def place(self, tensor: Tensor) -> tuple[int, int] | None:
        """Returns (block index, byte offset) of a tensor that `take` allocated; None for any other.

        Args:
            tensor: The tensor.
        """
        for number, piece in enumerate(self.pieces):
            offset = tensor.data_ptr() - piece.start
            if 0 <= offset < piece.used:
                return number, offset
        return None

    def empty(self) -> None:
        for piece in self.pieces:
            piece.close()
        self.pieces = []


# The shared memory for this worker's next message; None in the main process.
_outbox: _Outbox | None = None


def open_outbox() -> None:
    """Makes this process a data worker.

    From then on, `stack` puts large tensors into shared memory, and `send` can be called.
    """
    global _outbox
    _outbox = _Outbox()


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Returns tensors of one shape and dtype, stacked along a new first dimension.

    In a data worker, a large result is written directly to the shared memory that `send` sends.

    Args:
        tensors: One tensor or more.
    """
    shape = (len(tensors), *tensors[0].shape)
    dtype = tensors[0].dtype
    if _outbox is None or torch.Size(shape).numel() * dtype.itemsize < _SHARED_BYTES:
        return torch.stack(list(tensors))
    return torch.stack(list(tensors), out=_outbox.take(shape, dtype))


def discard() -> None:
    """Frees the shared memory of tensors that this worker has stacked but not sent."""
    _outbox.empty()


def send(connection: Connection, value) -> None:
    """Sends a value to the main process, with its large tensors in shared memory.

    Afterwards the worker's own file descriptors of this memory are closed. If pickling or
    allocating memory fails, nothing is sent.

    Args:
        connection: The connection to the main process.
        value: Any value that can be pickled; large tensors in it are copied to shared memory if
            they aren't there yet.
    """
    try:
        # Pickle the value without its large tensors, which are sent in shared memory.
        pickled = io.BytesIO()
        _Pickler(pickled, _outbox).dump(value)
        content = pickled.getvalue()
        # Send a large pickle through shared memory, too.
        if len(content) > _PICKLE_BYTES:
            place = _outbox.take((len(content),), torch.uint8)
            place.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            content = (*_outbox.place(place), len(content))
        # Send the sizes and the pickle, then the file descriptor of each block of shared memory.
        message = pickle.dumps(([piece.used for piece in _outbox.pieces], content))
        for piece in _outbox.pieces:
            os.ftruncate(piece.descriptor, piece.used)
        connection.send_bytes(message)
        for piece in _outbox.pieces:
            send_handle(connection, piece.descriptor, None)
    finally:
        _outbox.empty()


def receive(connection: Connection, pin_memory: bool = False):
    """Receives the next value that a worker sent by `send`, and returns it.

    Args:
        connection: The connection to the worker.
        pin_memory: True to copy large tensors to pinned memory.

    Raises:
        EOFError: The worker has ended.
        OSError: The worker has ended; or EMFILE, this process may open no more files.
    """
    sizes, content = pickle.loads(connection.recv_bytes())
    pieces = [_map(_descriptor(connection), size, pin_memory) for size in sizes]
    if not isinstance(content, bytes):
        number, offset, size = content
        content = pieces[number][offset : offset + size].numpy().tobytes()
    return _Unpickler(io.BytesIO(content), pieces).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file, outbox: _Outbox):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._outbox = outbox

    def persistent_id(self, value):
        if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
            return None
        if value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg():
            return None
        value = value.contiguous()
        # Pickle a small tensor's content, but for a large tensor only its position in shared
        # memory, (block index, byte offset). Copy the large tensor to shared memory unless `stack`
        # has written it there.
        if value.nbytes < _SHARED_BYTES:
            return (
                value.dtype,
                tuple(value.shape),
                value.view(-1).view(torch.uint8).numpy().tobytes(),
            )
        if (place := self._outbox.place(value)) is None:
            copy = self._outbox.take(value.shape, value.dtype).copy_(value)
            place = self._outbox.place(copy)
        return value.dtype, tuple(value.shape), place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, pieces: list[Tensor]):
        super().__init__(file)
        self._pieces = pieces

    def persistent_load(self, tensor_id: tuple) -> Tensor:
        dtype, shape, place = tensor_id
        if isinstance(place, bytes):
            if not place:  # frombuffer raises an error for an empty buffer
                return torch.empty(shape, dtype=dtype)
            values = torch.frombuffer(bytearray(place), dtype=torch.uint8)
            return values.view(dtype).view(shape)
        number, offset = place
        size = torch.Size(shape).numel() * dtype.itemsize
        return self._pieces[number][offset : offset + size].view(dtype).view(shape)


def _open_anonymous() -> tuple[int, bool]:
    """Opens anonymous memory, or an unlinked file on disk if the kernel doesn't support it.

    Returns:
        The file descriptor, and True if it belongs to a file on disk.
    """
    # Try without and with the flag MFD_NOEXEC_SEAL, which some systems require but older kernels
    # reject.
    for flags in (0, _NO_EXECUTION) if hasattr(os, "memfd_create") else ():
        with contextlib.suppress(OSError):
            return os.memfd_create("tiekd-batch", os.MFD_CLOEXEC | flags), False
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno()), True


def _take_room(descriptor: int, offset: int, size: int) -> None:
    """Reserves disk space in a file; raises DataError if the disk or the quota is full.

    Args:
        descriptor: The file's descriptor.
        offset: First byte to reserve.
        size: Number of bytes to reserve.
    """
    try:
        os.posix_fallocate(descriptor, offset, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{tempfile.gettempdir()}: no room for a batch of {size / 1e6:.0f} MB "
            f"({error.strerror}); give another folder as TMPDIR, or set data.workers=0"
        ) from None


def _descriptor(connection: Connection) -> int:
    """Receives a file descriptor from a worker and returns it.

    Args:
        connection: The connection to the worker.

    Raises:
        OSError: EMFILE, if this process may open no more files.
    """
    try:
        return recv_handle(connection)
    # The kernel drops the descriptor if this process has reached its limit of open files; then
    # `recv_handle` raises RuntimeError.
    except RuntimeError:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None


def _map(descriptor: int, size: int, pin_memory: bool) -> Tensor:
    """Returns a received block of shared memory as (size,) uint8, and closes its descriptor.

    Args:
        descriptor: The block's file descriptor.
        size: Bytes of the block.
        pin_memory: True to return a copy in pinned memory, False to map the block.
    """
    try:
        mapped = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
    finally:
        os.close(descriptor)
    if not pin_memory:
        return mapped
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).copy_(mapped)
