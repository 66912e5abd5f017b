"""Batches of slices with anchors and random changes, all determined by seed, epoch and step."""

import collections
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from training.devices import steps_per_dispatch
from utils.checks import InputError
from utils.environment import tensorflow
from utils.runs import child_seed

READERS = 4  # threads that read slices ahead of the training step
Batch = dict[str, np.ndarray]
Finish = Callable[[Batch, np.random.Generator], Batch]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an array: `rows[places]` is `values[index[places]]`.

    Attributes:
        values: numpy array, or `data.store.slices.StoredArray`, `(N, ...)`.
        index: Row numbers `(n,)`; None: all.
    """

    values: Any
    index: np.ndarray | None = None

    def __len__(self):
        return len(self.values if self.index is None else self.index)

    def __getitem__(self, places):
        return self.values[self.numbers(places)]

    def numbers(self, places):
        """Row numbers in `values`."""
        return places if self.index is None else self.index[places]


class Batches(keras.utils.PyDataset):
    """Batches of one run, each a function of (seed, epoch, step) only.

    Training follows an endless sequence of permutations, so that every batch has the same size for any number of
    slices, and every slice is used equally often. Validation (`shuffle=False`) is one fixed pass over all slices in a
    fixed random order, so that each batch mixes subjects.

    Arrays already on the device (`on_device`) are not sent: the batch refers to slices by `rows (B,)` instead, and
    `steps.Task` reads them there.

    Args:
        arrays: Dictionary of arrays whose first axis is the slice, `(N, ...)`; numpy, or `Rows`.
        batch_size: Slices per batch.
        seed: Seed of this set.
        steps: Batches per epoch; None: as many as cover the slices once.
        shuffle: True for training.
        finish: Function `(batch, generator) -> batch` that adds random parts, such as anchors.
        on_device: Names of arrays that the task holds on the device; all are `Rows` with the same index.

    Attributes:
        per_dispatch: Batches dispatched at a time, see `Task.train_step`: one if they carry their images, otherwise as
            many as suit the device.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        batch_size: int,
        seed: int,
        *,
        steps: int | None = None,
        shuffle: bool = True,
        finish: Finish | None = None,
        on_device: Sequence[str] = (),
    ):
        is_streamed = any(isinstance(v, Rows) and name not in on_device for name, v in arrays.items())
        super().__init__(workers=READERS if is_streamed else 1)
        self.arrays: dict[str, Any] = dict(arrays)
        self.batch_size, self.seed, self.shuffle, self.finish = batch_size, seed, shuffle, finish
        self.on_device, self.epoch = tuple(on_device), 0
        self.slices = len(next(iter(arrays.values())))
        self.steps = steps or -(-self.slices // batch_size)
        last_is_smaller = not shuffle and self.steps * batch_size != self.slices
        self.per_dispatch = steps_per_dispatch(self.steps, last_is_smaller) if on_device else 1
        self._permutation = functools.lru_cache(maxsize=2)(self._draw_permutation)

    def __len__(self):
        return len(self.dispatches)

    @functools.cached_property
    def dispatches(self):
        """Steps that are dispatched together, a list of ranges; a smaller last batch is dispatched alone."""
        full, number = self.full, self.per_dispatch
        groups = [range(first, min(first + number, full)) for first in range(0, full, number)]
        return groups + [range(step, step + 1) for step in range(full, self.steps)]

    @property
    def full(self):
        """Number of full batches; all training batches are full."""
        return self.steps if self.shuffle else min(self.steps, self.slices // self.batch_size)

    def kind(self, number):
        """What distinguishes dispatches of different sizes, each of which is a separate compiled program."""
        steps = self.dispatches[number]
        return len(steps), steps[0] < self.full

    def on_epoch_end(self):
        if self.shuffle:
            self.epoch += 1

    def rows(self, step):
        """Slice numbers of a step of the current epoch, `(B,)`."""
        if not self.shuffle:
            return self._permutation(0)[step * self.batch_size : (step + 1) * self.batch_size]
        places = (self.epoch * self.steps + step) * self.batch_size + np.arange(self.batch_size)
        rounds, offsets = np.divmod(places, self.slices)
        return np.concatenate([self._permutation(r)[offsets[rounds == r]] for r in np.unique(rounds)])

    def _draw_permutation(self, number, length=None):
        return np.random.default_rng(child_seed(self.seed, "order", number)).permutation(length or self.slices)

    def __getitem__(self, number):
        batches = [self.batch(step) for step in self.dispatches[number]]
        if self.per_dispatch == 1:
            return (batches[0],)
        return ({"steps": {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}},)

    def walk(self):
        """Yield the dispatches of one epoch, reading ahead in threads if batches hold images; advance the epoch."""
        with ThreadPoolExecutor(self.workers) as pool:
            ahead = collections.deque()
            for number in range(len(self)):
                while self.workers > 1 and len(ahead) < 2 * self.workers and number + len(ahead) < len(self):
                    ahead.append(pool.submit(self.__getitem__, number + len(ahead)))
                dispatch = ahead.popleft().result() if ahead else self[number]
                if number == len(self) - 1:  # no further item is requested, so code after the loop would never run
                    self.on_epoch_end()
                yield dispatch

    def batch(self, step: int) -> Batch:
        """One batch, a dictionary of arrays `(B, ...)`."""
        batch = self.read(self.rows(step), step)
        if self.finish:
            batch = self.finish(batch, np.random.default_rng(child_seed(self.seed, "draw", self.epoch, step)))
        return batch

    def sources(self, step: int) -> np.ndarray:
        """Rows of the images of a step in the array that they come from, `(B,)`."""
        return self.arrays["image"].numbers(self.rows(step))

    def read(self, rows, step):
        """Return the arrays of a batch, by name, before random parts are added."""
        sent = {name: values[rows] for name, values in self.arrays.items() if name not in self.on_device}
        if not self.on_device:
            return sent
        return sent | {"rows": self.arrays[self.on_device[0]].numbers(rows).astype("int32")}


def fed(batches: Batches) -> Any:
    """Return what `fit` reads `Batches` from, epoch after epoch, without taking time from the training step.

    On TensorFlow, this is a dataset with its own thread. The one that Keras builds from a `PyDataset` either competes
    with the step for threads, which costs a third of the throughput of small networks on two cores, or waits a tenth of
    a second at the end of each epoch. As with Keras' own, `fit` begins at the epoch after the current one of `batches`.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    tf, first = tensorflow(), keras.tree.map_structure(np.asarray, batches[0])
    batches.on_epoch_end()
    # Batch sizes differ: the last validation batch, and the number of batches per dispatch.
    signature = keras.tree.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), first)
    options = tf.data.Options()
    options.autotune.enabled, options.threading.private_threadpool_size = False, 1
    dataset = tf.data.Dataset.from_generator(batches.walk, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches))).with_options(options)


def in_memory(arrays: Mapping[str, Any]) -> list[str]:
    """Names of the `Rows` among arrays whose values are in memory and can go to the device unchanged."""
    return [name for name, rows in arrays.items() if isinstance(rows, Rows) and isinstance(rows.values, np.ndarray)]


def size_of(batch: Batch) -> int:
    """Number of slices in a batch."""
    return len(next(iter(batch.values())))


class PartitionedBatches(Batches):
    """Batches for anatomical contrast: some volumes, with one slice from each part of each volume.

    Training cycles through a permutation of the volumes until a cycle ends with a full batch, then takes the next
    permutation: every volume is used equally often, and no batch holds a volume twice. The slice of each part is drawn
    each time. Validation is fixed: each part starts at a given slice and advances by one slice per visit, cyclically,
    until the largest part of all volumes is covered and all volumes have been visited equally often.

    Args:
        arrays: As for `Batches`, including `partition (N,)` from `assign_partitions`, which goes into every batch.
        batch_size: Slices per batch, a multiple of the number of partitions. With fewer volumes than that requires, a
            batch holds all volumes.
        seed: As for `Batches`.
        subjects: Subject of each slice, `(N,)`.
        steps: Batches per epoch; None: as many as cover the slices once, in validation as described.
        shuffle: As for `Batches`.
        **options: As for `Batches`.

    Raises:
        InputError: The batch size is not a multiple of the number of partitions.

    Reference:
        Chaitanya et al., NeurIPS 2020, Sec. 3.1: a batch of m volumes, one slice from each partition of each.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        batch_size: int,
        seed: int,
        *,
        subjects: Sequence[str],
        steps: int | None = None,
        shuffle: bool = True,
        **options: Any,
    ):
        partitions = np.asarray(arrays["partition"])
        names, volumes = np.unique(subjects, return_inverse=True)
        parts = int(partitions.max()) + 1
        if batch_size % parts:
            raise InputError(
                f"training.batch_size: {batch_size} must be a multiple of n_partitions ({parts}), because a batch "
                "holds one slice of each part of each volume"
            )
        self.counts = np.bincount(volumes * parts + partitions, minlength=len(names) * parts).reshape(-1, parts)
        self.by_part = np.lexsort((partitions, volumes))  # slice numbers, part after part, volume after volume
        self.first = np.cumsum(self.counts).reshape(-1, parts) - self.counts
        self.volumes_per_batch = min(batch_size // parts, len(names))
        common = math.gcd(self.volumes_per_batch, len(names))
        self.batches_per_round, visits_per_round = len(names) // common, self.volumes_per_batch // common
        if not shuffle:
            steps = steps or -(-self.counts.max() // visits_per_round) * self.batches_per_round
        super().__init__(arrays, self.volumes_per_batch * parts, seed, steps=steps, shuffle=shuffle, **options)

    def rows(self, step):
        """Slice numbers of a step of the current epoch, volume after volume, part after part, `(B,)`."""
        number, volumes = self.epoch * self.steps + step, len(self.counts)
        places = number * self.volumes_per_batch + np.arange(self.volumes_per_batch)
        chosen = self._permutation(number // self.batches_per_round, volumes)[places % volumes]
        if self.shuffle:
            generator = np.random.default_rng(child_seed(self.seed, "slices", number))
            slices = generator.integers(self.counts[chosen])
        else:
            starts = np.random.default_rng(child_seed(self.seed, "slices")).integers(self.counts)
            slices = (starts[chosen] + (places // volumes)[:, None]) % self.counts[chosen]
        return self.by_part[self.first[chosen] + slices].ravel()


def assign_partitions(subjects: ArrayLike, slices: ArrayLike, n_partitions: int) -> np.ndarray:
    """Cut every volume into parts along its slice axis.

    Args:
        subjects: Subject of each slice, `(N,)`.
        slices: Number of each slice in its volume, `(N,)`; only their order matters.
        n_partitions: Number of parts, as equal in size as possible.

    Returns:
        Part of each slice, `(N,)` int32, 0 to n_partitions - 1.

    Raises:
        InputError: A volume has fewer slices than parts.

    Reference:
        Chaitanya et al., NeurIPS 2020, Sec. 3.1; cutting the packed slices rather than the whole scan is ours.
    """
    names, volumes, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    lines = [
        f"{name}: {count} packed slices, fewer than n_partitions ({n_partitions}); "
        "use fewer partitions or a smaller slices.min_foreground"
        for name, count in zip(names, counts, strict=True)
        if count < n_partitions
    ]
    if lines:
        raise InputError(lines)
    rank = np.arange(len(volumes)) - np.repeat(np.cumsum(counts) - counts, counts)
    parts = np.empty(len(volumes), "int32")
    parts[np.lexsort((np.asarray(slices), volumes))] = rank * n_partitions // np.repeat(counts, counts)
    return parts
