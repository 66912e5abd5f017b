"""Batches of crops: volumes, positions and random changes, all determined by seed, epoch and step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.store.crops import SubjectVolume, draw_crops, region_of
from training.batches import Batches, Finish
from utils.checks import InputError
from utils.runs import child_seed


@dataclass(frozen=True, eq=False)
class Crops:
    """Volumes to draw crops from; takes the place of an array of images in pretraining.

    Attributes:
        volumes: One per subject, all with the same contrasts.
        size: `(h, w, d)`, or `(h, w)` for crops of single slices.
        inputs: Contrasts shown, in order.
        targets: Contrasts to be synthesised, in order.
        min_foreground: Share of foreground that a crop should have, see `draw_crops`.
        per_volume: Crops of each volume in validation.
        space: Contrast space of the constraint maps; None: the default one.
    """

    volumes: Sequence[SubjectVolume]
    size: tuple[int, ...]
    inputs: Sequence[str]
    targets: Sequence[str] = ()
    min_foreground: float = 0.25
    per_volume: int = 1
    space: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(volumes, h, w[, d], C)`, as an array of crops would have."""
        return (len(self.volumes), *self.size, len(self.inputs))

    def batches(self, batch_size: int, seed: int, **options: Any) -> "CropBatches":
        """Return `CropBatches`; `options` are its `steps`, `shuffle`, `with_maps` and `finish`."""
        return CropBatches(self, batch_size, seed, **options)


class CropBatches(Batches):
    """Batches of crops of volumes, read from the slice store when needed.

    Training draws the positions of crops in each step and uses every volume equally often. Validation
    (`shuffle=False`) is one fixed pass over crops whose positions are drawn once, the same number for each volume. As
    with `Batches`, a batch is a function of (seed, epoch, step) only.

    Args:
        crops: What is shown: inputs become `image`, targets, if any, `target`.
        batch_size: Crops per batch.
        seed: Seed of this set.
        steps: Batches per epoch; None: as many as show one crop of each volume (validation: all crops).
        shuffle: True for training.
        with_maps: Add `constraint_map` to the batch.
        finish: Function `(batch, generator) -> batch` that adds random changes, or turns maps into what a loss needs.

    A batch is a dictionary of `image (B, h, w[, d], C)` and `target (B, h, w[, d], C')` float32, `constraint_map
    (B, h, w[, d])` int32 if requested, processed by `finish`.

    Raises:
        InputError: A contrast is both input and target, named twice or not among those of the volumes; there are no
            volumes; or a crop does not fit (one line for each such subject).
    """

    def __init__(
        self,
        crops: Crops,
        batch_size: int,
        seed: int,
        *,
        steps: int | None = None,
        shuffle: bool = True,
        with_maps: bool = False,
        finish: Finish | None = None,
    ):
        self.is_flat, self.min_foreground = len(crops.size) == 2, crops.min_foreground
        self.crop_size = (*crops.size, 1) if self.is_flat else tuple(crops.size)
        self.volumes, self.with_maps, self.space = list(crops.volumes), with_maps, crops.space
        self._check(crops.inputs, crops.targets)
        contrasts = self.volumes[0].contrasts
        shown = {"image": crops.inputs, "target": crops.targets}
        self.parts = {part: [contrasts.index(name) for name in names] for part, names in shown.items() if names}
        numbers = np.repeat(np.arange(len(self.volumes)), 1 if shuffle else crops.per_volume)
        super().__init__({"volume": numbers}, batch_size, seed, steps=steps, shuffle=shuffle, finish=finish)
        if not shuffle:
            fixed = [self._draw(number, "crops", number, count=crops.per_volume) for number in range(len(self.volumes))]
            self.arrays["corner"] = np.concatenate(fixed)

    def sources(self, step):
        """Numbers of the volumes of a step, `(B,)`."""
        return self.arrays["volume"][self.rows(step)]

    def read(self, rows, step):
        """The parts of a batch of crops, by name."""
        numbers = self.arrays["volume"][rows]
        if self.shuffle:
            places = (("crops", self.epoch, step, place) for place in range(len(rows)))
            corners = [self._draw(number, *place)[0] for number, place in zip(numbers, places, strict=True)]
        else:
            corners = self.arrays["corner"][rows]
        crops = [self._read(self.volumes[n], corner) for n, corner in zip(numbers, corners, strict=True)]
        return {name: np.stack([crop[name] for crop in crops]) for name in crops[0]}

    def _draw(self, number, *names, count=1):
        """Return positions of crops of one volume, `(count, 3)`."""
        generator = np.random.default_rng(child_seed(self.seed, *names))
        volume = self.volumes[number]
        return draw_crops(volume, self.crop_size, count, generator, min_foreground=self.min_foreground)

    def _read(self, volume, corner):
        """The parts of one crop, by name."""
        region = region_of(corner, self.crop_size)
        images = volume[region]
        crop = {part: images[..., channels] for part, channels in self.parts.items()}
        if self.with_maps:
            crop["constraint_map"] = volume.constraint_map(region, self.space)
        return {name: values[:, :, 0] for name, values in crop.items()} if self.is_flat else crop

    def _check(self, inputs, targets):
        if not self.volumes:
            raise InputError("crops: there are no subjects to draw them from")
        named, lines = [*inputs, *targets], []
        for name in dict.fromkeys(named):
            if name in inputs and name in targets:
                lines.append(f"synthesis: '{name}' is input and target; a contrast can be only one of them")
            elif named.count(name) > 1:
                lines.append(f"synthesis: '{name}' is named twice; name each contrast once")
            if name not in self.volumes[0].contrasts:
                lines.append(f"synthesis: there is no contrast '{name}'; known: {', '.join(self.volumes[0].contrasts)}")
        for volume in self.volumes:
            try:
                volume.check_crop(self.crop_size)
            except InputError as error:
                lines += error.lines
        if lines:
            raise InputError(lines)
