"""Slices to batches: which slices, which anchors, which random changes, all fixed by seed, epoch and step."""

import math

import keras
import numpy as np

from utils.checks import InputError
from utils.runs import child_seed


class Batches(keras.utils.PyDataset):
    """Batches of one run, each a function of (seed, epoch, step) and of nothing else.

    Training walks through an endless sequence of permutations, so that every batch has the same size whatever the
    number of slices, and every slice is seen equally often. Validation (`shuffle=False`) is one fixed pass over all
    slices in one fixed random order, so that each batch mixes subjects.

    Args:
        arrays: Dictionary of arrays whose first axis is the slice, `(N, ...)`.
        batch_size: Slices per batch.
        seed: Seed of this set.
        steps: Batches per epoch; None: as many as cover the slices once.
        shuffle: True for training.
        finish: Function `(batch, generator) -> batch` that adds what is random, such as anchors.
    """

    def __init__(self, arrays, batch_size, seed, *, steps=None, shuffle=True, finish=None):
        super().__init__(workers=1)
        self.arrays, self.batch_size, self.seed, self.shuffle, self.finish = arrays, batch_size, seed, shuffle, finish
        self.slices = len(next(iter(arrays.values())))
        self.steps = steps or -(-self.slices // batch_size)
        self.epoch = 0

    def __len__(self):
        return self.steps

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

    def _permutation(self, number, length=None):
        return np.random.default_rng(child_seed(self.seed, "order", number)).permutation(length or self.slices)

    def __getitem__(self, step):
        batch = self.read(self.rows(step), step)
        if self.finish:
            batch = self.finish(batch, np.random.default_rng(child_seed(self.seed, "draw", self.epoch, step)))
        return (batch,)

    def read(self, rows, step):
        """The arrays of a batch, by name, before anything random is added."""
        return {name: values[rows] for name, values in self.arrays.items()}


class PartitionedBatches(Batches):
    """Batches of anatomical contrast: some volumes, and of each volume one slice of each of its parts.

    Training walks round a permutation of the volumes until a round ends with a full batch, then takes the next one:
    so every volume is seen equally often, and no batch holds a volume twice. The slice of each part is drawn anew each
    time. Validation is fixed: each part starts at a slice of its own and goes on by one slice per visit, beginning
    again where it ends, until the largest part of all volumes is through and all volumes were visited equally often.

    Args:
        arrays: As for `Batches`; `partition (N,)` of `assign_partitions` among them goes into every batch.
        batch_size: Slices per batch, a multiple of the number of partitions. With fewer volumes than that asks for, a
            batch holds all volumes.
        seed: As for `Batches`.
        subjects: Subject of each slice, `(N,)`.
        steps: Batches per epoch; None: as many as cover the slices once, in validation as described.
        shuffle: As for `Batches`.
        finish: As for `Batches`.

    Raises:
        InputError: The batch size is no multiple of the number of partitions.

    Reference:
        Chaitanya et al., NeurIPS 2020, Sec. 3.1: a batch of m volumes, one slice of each partition of each.
    """

    def __init__(self, arrays, batch_size, seed, *, subjects, steps=None, shuffle=True, finish=None):
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
        super().__init__(arrays, self.volumes_per_batch * parts, seed, steps=steps, shuffle=shuffle, finish=finish)

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


def assign_partitions(subjects, slices, n_partitions):
    """Cut every volume into parts along its slice axis.

    Args:
        subjects: Subject of each slice, `(N,)`.
        slices: Number of each slice in its volume, `(N,)`; only their order counts.
        n_partitions: Number of parts, as equal in size as possible.

    Returns:
        Part of each slice, `(N,)` int32, 0 to n_partitions - 1.

    Raises:
        InputError: A volume has fewer slices than parts.

    Reference:
        Chaitanya et al., NeurIPS 2020, Sec. 3.1; parts of the packed slices instead of the whole scan are ours.
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
    rank = np.arange(len(subjects)) - np.repeat(np.cumsum(counts) - counts, counts)
    parts = np.empty(len(subjects), "int32")
    parts[np.lexsort((slices, volumes))] = rank * n_partitions // np.repeat(counts, counts)
    return parts


def assign_patch_classes(constraint_maps, patch_px):
    """Give each patch the class that most of its pixels have.

    Args:
        constraint_maps: Integer classes, 0 background, `(N, H, W)`, or `(N, H, W, D)` of volumes.
        patch_px: Edge of a patch in pixels of the map, along every axis; must divide H, W and D.

    Returns:
        Classes `(N, P)` int32, patches in row-major order, as `models.projection.project_patches` has them. Of equally
        frequent classes the lowest wins, so a patch that is half background counts as background.

    Raises:
        InputError: For patches that do not fill the map.

    Reference:
        Majority rule and 4 x 4 patches: Umapathy et al., Med. Phys. 2024; the rule for ties is ours.
    """
    count, *sizes = constraint_maps.shape
    if any(size % patch_px for size in sizes):
        raise InputError(f"constraint maps: patches of {patch_px} pixels do not fill {tuple(sizes)}; use smaller ones")
    patches, rank = [size // patch_px for size in sizes], len(sizes)
    split = constraint_maps.reshape(count, *(part for number in patches for part in (number, patch_px)))
    pixels = split.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    pixels = pixels.reshape(count * math.prod(patches), patch_px**rank)
    best = np.zeros(len(pixels), "int32")
    best_votes = (pixels == 0).sum(1)
    for number in range(1, int(constraint_maps.max(initial=0)) + 1):
        votes = (pixels == number).sum(1)
        wins = votes > best_votes
        best[wins], best_votes[wins] = number, votes[wins]
    return best.reshape(count, math.prod(patches))


def draw_anchors(patch_classes, anchors_per_slice, generator):
    """Draw anchors among the foreground patches of each slice, without replacement.

    Args:
        patch_classes: `(B, P)` int; 0 and -1 are background.
        anchors_per_slice: A.
        generator: numpy random generator.

    Returns:
        Patch numbers `(B, A)` int32; -1 where a slice has fewer foreground patches than anchors.
    """
    order = generator.random(patch_classes.shape)
    order[patch_classes <= 0] = 2.0  # background comes after every foreground patch
    anchors = np.argsort(order, axis=1)[:, :anchors_per_slice].astype("int32")
    anchors[np.take_along_axis(patch_classes, anchors, axis=1) <= 0] = -1
    missing = anchors_per_slice - anchors.shape[1]
    return np.pad(anchors, ((0, 0), (0, max(0, missing))), constant_values=-1)
