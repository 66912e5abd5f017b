"""Rows of an HDF5 dataset, read in any order without overhead beyond their bytes."""

import os

import h5py
import numpy as np

from utils.checks import InputError

BLOCK_BYTES = 1024 * 1024  # read at a time, so that data are converted while they are in the processor's cache
LARGEST_FINITE_HALF = 0x7BFF  # as an integer; larger values are infinity, NaN and negative numbers


class RowReader:
    """Reads rows (entries along the first axis) of one dataset.

    Rows with the same layout in the file and in memory are read directly at their addresses: HDF5 takes about 20
    microseconds per call, which for random rows is several times the cost of reading their bytes. Rows that are
    compressed or divided into several chunks, because another program has rewritten the file, are read through HDF5.

    Args:
        dataset: `h5py.Dataset` of numbers, in a file opened for reading.
    """

    def __init__(self, dataset):
        # Queried once, because each of these takes HDF5 as long as reading a row.
        self.dataset, self.shape, self.dtype = dataset, dataset.shape, dataset.dtype
        self.file = dataset.file
        self.row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        self.addresses = row_addresses(dataset)
        self._handle = None if self.addresses is None else self.file.id.get_vfd_handle()

    def __len__(self):
        return self.shape[0]

    def read(self, rows, dtype, channels=None):
        """Read rows and convert them.

        Args:
            rows: `(n,)` integers in any order, repeats allowed; None: all.
            dtype: Type of the result.
            channels: Entries of the last axis to keep, in this order; None: all.

        Returns:
            `(n, ...)`.

        Raises:
            InputError: The file has been truncated since it was opened.
        """
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        shape = self.shape[1:] if channels is None else (*self.shape[1:-1], len(channels))
        read = np.empty((len(rows), *shape), dtype)
        longest = max(1, BLOCK_BYTES // self.row_bytes)
        block = np.empty((min(longest, len(rows)), *self.shape[1:]), self.dtype)
        for start in range(0, len(rows), longest):
            wanted = rows[start : start + longest]
            self._fill(block, wanted)
            convert(pick(block[: len(wanted)], channels), read[start : start + len(wanted)])
        return read

    def _fill(self, block, rows):
        """Fill the block with the rows in their order, reading neighbours in the file together."""
        if self.addresses is None:
            for start, stop in runs(rows, 1):
                self.dataset.read_direct(block[start:stop], np.s_[int(rows[start]) : int(rows[start]) + stop - start])
            return
        places = self.addresses[rows]
        parts = [(int(places[start]), block[start:stop]) for start, stop in runs(places, self.row_bytes)]
        for place, part in parts if len(parts) > 1 and hasattr(os, "posix_fadvise") else ():
            # The disk fetches all of them at once, in half the time of reading them one after another.
            os.posix_fadvise(self._handle, place, part.nbytes, os.POSIX_FADV_WILLNEED)
        for place, part in parts:
            if os.preadv(self._handle, [part], place) != part.nbytes:
                raise InputError(f"{self.file.filename}: shorter than when it was opened; make it again")


def row_addresses(dataset):
    """Return where in the file each row begins, `(N,)` in bytes, or None if rows are not stored as in memory.

    They are stored that way if chunks consist of whole rows without a filter, in a data type of numpy.
    """
    chunk, count = dataset.chunks, len(dataset)
    if not chunk or chunk[1:] != dataset.shape[1:] or dataset.id.get_create_plist().get_nfilters():
        return None
    file, same_type = dataset.file, dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
    is_plain = file.driver == "sec2" and file.mode == "r" and not file.userblock_size
    if not same_type or not is_plain or not hasattr(os, "preadv"):
        return None
    begin = np.full(-(-count // chunk[0]), -1, np.int64)

    def note(stored):
        begin[stored.chunk_offset[0] // chunk[0]] = stored.byte_offset

    dataset.id.chunk_iter(note)
    if (begin < 0).any():  # chunks that were never written are not in the file
        return None
    rows, row_bytes = np.arange(count), int(np.prod(chunk[1:])) * dataset.dtype.itemsize
    return begin[rows // chunk[0]] + rows % chunk[0] * row_bytes


def runs(places, step):
    """Yield `(start, stop)` of the longest runs in which consecutive `places` differ by `step`."""
    ends = (np.flatnonzero(np.diff(places) != step) + 1).tolist()
    return zip([0, *ends], [*ends, len(places)], strict=True)


def pick(values, channels):
    """Return `values (..., C)` with only these channels, in this order; None: all."""
    if channels is None:
        return values
    picked = np.empty((*values.shape[:-1], len(channels)), values.dtype)
    for place, channel in enumerate(channels):  # three times as fast as indexing with a list
        picked[..., place] = values[..., channel]
    return picked


def convert(values, out):
    """Write `values` into `out`, an array of the same shape and another type; both must be contiguous.

    Valid images are float16 in [0, 1] and are converted to float32 by bit operations, six times as fast as by numpy:
    shifted left by 13 bits, exponent and fraction are where float32 has them, and the value is too small by 2**112.
    """
    halves = values.dtype == np.float16 and out.dtype == np.float32
    if halves and values.view(np.uint16).max(initial=0) <= LARGEST_FINITE_HALF:
        np.left_shift(values.view(np.uint16), 13, out=out.view(np.uint32), dtype=np.uint32)
        np.multiply(out, np.float32(2.0**112), out=out)
    else:
        out[...] = values
