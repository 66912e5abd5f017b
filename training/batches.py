"""Slices to batches: which slices, which anchors, which random changes, all fixed by seed, epoch and step."""

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
        draw: Function `(rows, generator) -> dict` of further arrays for a batch, such as anchors.
    """

    def __init__(self, arrays, batch_size, seed, *, steps=None, shuffle=True, draw=None):
        super().__init__(workers=1)
        self.arrays, self.batch_size, self.seed, self.shuffle, self.draw = arrays, batch_size, seed, shuffle, draw
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

    def _permutation(self, number):
        return np.random.default_rng(child_seed(self.seed, "order", number)).permutation(self.slices)

    def __getitem__(self, step):
        rows = self.rows(step)
        batch = {name: values[rows] for name, values in self.arrays.items()}
        if self.draw:
            generator = np.random.default_rng(child_seed(self.seed, "draw", self.epoch, step))
            batch |= self.draw(rows, generator)
        return (batch,)


class PartitionedBatches(Batches):
    """Batches of anatomical contrast: some volumes, and of each volume one slice of each of its parts.

    Training walks through permutations of the volumes, as `Batches` through slices; the slice of each part is drawn
    anew each time. Validation is one fixed pass in which every volume occurs equally often, as often as its part with
    the most slices has slices, counted in the largest volume.

    Args:
        arrays: As for `Batches`; `partition (N,)` among them goes into every batch.
        batch_size: Slices per batch, a multiple of the number of partitions. With fewer volumes than that asks for, a
            batch holds all volumes.
        seed: As for `Batches`.
        subjects: Subject of each slice, `(N,)`.
        **options: As for `Batches`.
    """

    def __init__(self, arrays, batch_size, seed, *, subjects, steps=None, **options):
        partitions = np.asarray(arrays["partition"])
        parts, names = int(partitions.max()) + 1, np.unique(subjects)
        self.members = [
            [np.flatnonzero((subjects == name) & (partitions == part)) for part in range(parts)] for name in names
        ]
        self.volumes_per_batch = min(batch_size // parts, len(names))
        super().__init__(arrays, self.volumes_per_batch * parts, seed, steps=steps, **options)
        if not self.shuffle:
            rounds = max(len(rows) for volume in self.members for rows in volume)
            self.steps = -(-rounds * len(names) // self.volumes_per_batch)

    def rows(self, step):
        """Slice numbers of a step of the current epoch, volume after volume, `(B,)`."""
        number, volumes = self.epoch * self.steps + step, len(self.members)
        rounds, offsets = np.divmod(number * self.volumes_per_batch + np.arange(self.volumes_per_batch), volumes)
        orders = {r: np.random.default_rng(child_seed(self.seed, "order", r)).permutation(volumes) for r in set(rounds)}
        generator = np.random.default_rng(child_seed(self.seed, "slices", number))
        chosen = [self.members[orders[r][offset]] for r, offset in zip(rounds, offsets, strict=True)]
        return np.array([generator.choice(rows) for volume in chosen for rows in volume])


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
    parts = np.empty(len(subjects), "int32")
    for subject in np.unique(subjects):
        rows = np.flatnonzero(subjects == subject)
        if len(rows) < n_partitions:
            raise InputError(
                f"{subject}: {len(rows)} packed slices, fewer than n_partitions ({n_partitions}); "
                "use fewer partitions or a smaller slices.min_foreground"
            )
        rows = rows[np.argsort(slices[rows], kind="stable")]
        parts[rows] = np.arange(len(rows)) * n_partitions // len(rows)
    return parts


def assign_patch_classes(constraint_maps, patch_px):
    """Give each patch the class that most of its pixels have.

    Args:
        constraint_maps: Integer classes, 0 background, `(N, H, W)`.
        patch_px: Edge of a patch in pixels of the map; must divide H and W.

    Returns:
        Classes `(N, P)` int32, patches in row-major order. Of equally frequent classes the lowest wins, so a patch
        that is half background counts as background.

    Reference:
        Majority rule and 4 x 4 patches: Umapathy et al., Med. Phys. 2024; the rule for ties is ours.
    """
    count, height, width = constraint_maps.shape
    rows, columns = height // patch_px, width // patch_px
    pixels = constraint_maps.reshape(count, rows, patch_px, columns, patch_px).transpose(0, 1, 3, 2, 4)
    pixels = pixels.reshape(count * rows * columns, patch_px**2)
    best = np.zeros(len(pixels), "int32")
    best_votes = (pixels == 0).sum(1)
    for number in range(1, int(constraint_maps.max(initial=0)) + 1):
        votes = (pixels == number).sum(1)
        wins = votes > best_votes
        best[wins], best_votes[wins] = number, votes[wins]
    return best.reshape(count, rows * columns)


def draw_anchors(patch_classes, anchors_per_slice, generator):
    """Draw anchors among the foreground patches of each slice, without replacement.

    Args:
        patch_classes: `(B, P)` int, 0 background.
        anchors_per_slice: A.
        generator: numpy random generator.

    Returns:
        Patch numbers `(B, A)` int32; -1 where a slice has fewer foreground patches than anchors.
    """
    order = generator.random(patch_classes.shape)
    order[patch_classes == 0] = 2.0  # background comes after every foreground patch
    anchors = np.argsort(order, axis=1)[:, :anchors_per_slice].astype("int32")
    anchors[np.take_along_axis(patch_classes, anchors, axis=1) == 0] = -1
    missing = anchors_per_slice - anchors.shape[1]
    return np.pad(anchors, ((0, 0), (0, max(0, missing))), constant_values=-1)
