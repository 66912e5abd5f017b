"""Packed slices as arrays that stay in their file and are read on demand, or all at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK = 256  # slices read at a time


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a file; `array[rows]` reads these rows, in any order, as numpy would return them.

    Attributes:
        read: Function from row numbers `(n,)` to `(n, ...)`.
        shape: `(N, ...)`.
        dtype: Type in which `whole` keeps the array in memory.
    """

    read: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        numbers = np.arange(len(self))[rows]
        return self.read(numbers) if np.ndim(numbers) else self.read(numbers[None])[0]

    @property
    def nbytes(self):
        """Size in bytes of the result of `whole`."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def whole(self):
        """Read the whole array, block by block."""
        values = np.empty(self.shape, self.dtype)
        for start in range(0, len(self), BLOCK):
            values[start : start + BLOCK] = self[start : start + BLOCK]
        return values


def stored_images(store, contrasts, *, one_by_one=False):
    """Images of all slices of a store, `(N, H, W, C)`; float32 when rows are read, float16 (as stored) as a whole.

    Args:
        store: `data.store.store.SliceStore`.
        contrasts: Channels, in order; C names.
        one_by_one: Show each contrast separately: `(C N, H, W, 1)`, all slices of the first, all of the second, ...

    Raises:
        InputError: Names every contrast that the store lacks.
    """
    store.images(contrasts, rows=[])
    slices = len(store)

    def read_one_by_one(rows):
        channels, rows = np.divmod(rows, slices)
        images = np.empty((len(rows), *store.image_size, 1), np.float32)
        for channel in np.unique(channels):
            chosen = channels == channel
            images[chosen] = store.images([contrasts[channel]], rows[chosen])
        return images

    if one_by_one:
        return StoredArray(read_one_by_one, (slices * len(contrasts), *store.image_size, 1), np.float16)
    shape = (slices, *store.image_size, len(contrasts))
    return StoredArray(lambda rows: store.images(contrasts, rows), shape, np.float16)


def stored_maps(store, space=None):
    """Constraint maps of all slices of a store, `(N, H, W)` integer; `space` as in `SliceStore`."""
    shape = (len(store), *store.image_size)
    return StoredArray(lambda rows: store.constraint_maps(rows, space), shape, np.int32)


def stored_labels(store):
    """Labels of all slices of a store, class indices `(N, H, W)`, uint8."""
    return StoredArray(store.labels, (len(store), *store.image_size), np.uint8)


def some_rows(array, rows):
    """Return some rows of a `StoredArray`, `(n,)` numbers, as a `StoredArray`; the others are never read."""
    return StoredArray(lambda places: array.read(rows[places]), (len(rows), *array.shape[1:]), array.dtype)


def in_memory_if(arrays, resident, limit):
    """Read arrays into memory, from which training moves them to its device, or leave them in their files.

    Args:
        arrays: List of `StoredArray`.
        resident: `"always"`, `"never"`, or `"auto"`: only if all arrays together fit into `limit`.
        limit: Bytes.

    Returns:
        List of numpy arrays, or the arrays unchanged.
    """
    fits = sum(array.nbytes for array in arrays) <= limit
    return [array.whole() for array in arrays] if resident == "always" or resident == "auto" and fits else arrays
