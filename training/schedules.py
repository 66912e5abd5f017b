"""How one network is trained: batches, phases and learning rates by epoch, and how fast each weight trains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from utils.checks import whole_epochs

POWER = 0.9  # of the polynomial schedule: nnU-Net (Isensee et al., Nat. Methods 2021)


@dataclass(frozen=True)
class Schedule:
    """The schedule of a training; every value depends on the epoch alone, so that a resumed run follows it too.

    A training has up to three phases: the head phase, which trains only layers that are not pretrained; the warm-up, in
    which the learning rate increases linearly; and the rest, in which it decays. Both shares are of all epochs.

    Attributes:
        epochs: Total number of epochs.
        learning_rate: The rate after the warm-up.
        batch_size: Slices per step.
        steps_per_epoch: None: as many as cover the slices once.
        evaluate_every: Epochs between two evaluations of the validation set.
        plateau_epochs: Epochs without a better validation loss after which the rate is halved; for `plateau` only.
        schedule: `plateau`, `cosine` (down to 0) or `poly`, (1 - t)^0.9 as in nnU-Net.
        warm_up: Share of the epochs in which the rate increases.
        keep: `best`, the weights with the lowest validation loss, or `last`.
        head_first: Share of the epochs in the head phase (Kumar et al., ICLR 2022).
        head_learning_rate: Constant rate of the head phase; None: `learning_rate`.
        layer_decay: Factor of the rate per level, from the output back to the stem.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    steps_per_epoch: int | None = None
    evaluate_every: int = 1
    plateau_epochs: int = 10
    schedule: str = "plateau"
    warm_up: float = 0.0
    keep: str = "best"
    head_first: float = 0.0
    head_learning_rate: float | None = None
    layer_decay: float = 1.0

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> "Schedule":
        """Take the fields of this class from the `training` section of a config; others keep their defaults."""
        return cls(**{field.name: training[field.name] for field in fields(cls) if field.name in training})

    @property
    def head_epochs(self) -> int:
        """Epochs of the head phase."""
        return whole_epochs(self.head_first, self.epochs)

    @property
    def full_from(self) -> int:
        """The first epoch, counted from 0, at the full rate: head phase and warm-up are over."""
        return self.head_epochs + whole_epochs(self.warm_up, self.epochs)

    @property
    def is_layerwise(self) -> bool:
        """Whether weights train at different rates in any epoch."""
        return self.head_first > 0 or self.layer_decay < 1

    @property
    def needs_validation(self) -> bool:
        """Whether a validation set chooses the weights or the learning rates."""
        return self.keep == "best" or self.schedule == "plateau"

    def rate(self, epoch: int) -> float | None:
        """Return the learning rate at which an epoch begins.

        Args:
            epoch: Counted from 0.

        Returns:
            Float; None after the first full epoch of `plateau`, where the validation loss decides.
        """
        if epoch < self.head_epochs:
            return self.head_learning_rate or self.learning_rate
        if epoch < self.full_from:  # the epoch after the warm-up is the first one at the full rate
            return self.learning_rate * (epoch - self.head_epochs + 1) / (self.full_from - self.head_epochs + 1)
        if self.schedule == "plateau":
            return self.learning_rate if epoch == self.full_from else None
        t = (epoch - self.full_from) / (self.epochs - self.full_from)
        return self.learning_rate * ((1 + math.cos(math.pi * t)) / 2 if self.schedule == "cosine" else (1 - t) ** POWER)

    def scales(self, epoch: int, levels: Sequence[int], fresh: Sequence[bool]) -> np.ndarray:
        """Return the factors of the rate in an epoch.

        Args:
            epoch: Counted from 0.
            levels: Levels from the output, integer, one for each weight, `(V,)`.
            fresh: Whether each weight is not pretrained, `(V,)`.

        Returns:
            `(V,)` float32.
        """
        if epoch < self.head_epochs:
            return np.asarray(fresh, "float32")
        return (self.layer_decay ** np.asarray(levels, "float64")).astype("float32")

    def halves_after(self, epoch: int, last_better: int) -> bool:
        """True if a plateau halves the rate: `plateau_epochs` without a better loss, counted at the full rate.

        Args:
            epoch: The epoch that has ended, counted from 1.
            last_better: The epoch of the best loss, or of the last halving.
        """
        waited = epoch - max(last_better, self.full_from)
        return self.schedule == "plateau" and waited >= self.plateau_epochs
