"""Finetuning: one compiled step, many cells of the grid contrasts x init x N x repeat."""

import collections
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from models.weights import HEADS, Pretrained, TransferReport
from training.augmentation import Changes, describe_changes, draw_changes
from training.batches import Batches, Rows, in_memory, size_of
from training.crops import Crops
from training.loop import RunOptions, fit
from training.schedules import Schedule
from training.steps import Task
from training.tasks import Segmentation, Synthesis
from utils.runs import child_seed


class Trainer:
    """Trains networks of one shape in turn; the training step is compiled once.

    Args:
        build: Function `seed -> keras.Model` of that shape.
        make_task: Function `network -> Task`.
        augmentation: Random changes of training images.
        schedule: Batches, epochs and learning rates of every cell.
        fresh_levels: How many of the last decoder levels stay random even where pretrained weights exist.
        remat: Compute activations twice instead of keeping them.

    Attributes:
        network: The `keras.Model` in training.
        fresh: Names of the layers that are not pretrained in the current cell.
        compile_s: Seconds that the last cell spent on compiling the step, see `CompileClock`.
        updates: Total number of weight updates in the last cell.
    """

    def __init__(
        self,
        build: Callable[..., keras.Model],
        make_task: Callable[[keras.Model], Task],
        *,
        augmentation: Changes,
        schedule: Schedule,
        fresh_levels: int = 0,
        remat: bool = False,
    ):
        self.augmentation, self.schedule, self.compile_s, self.updates = augmentation, schedule, 0.0, 0
        self.network = build(seed=0)
        describe_changes(self.network.input_shape[1:-1], augmentation)
        self.stay = last_decoder_levels(self.network, fresh_levels)
        self.fresh = self._never_pretrained()
        task = make_task(self.network).sparing_memory(remat)
        self.task = task.ready(schedule.learning_rate, is_layerwise=schedule.is_layerwise)
        self._random_weights = functools.lru_cache(maxsize=4)(lambda seed: build(seed=seed).get_weights())

    def start_from(
        self, seed: int, pretrained: Pretrained | None = None, contrasts: Sequence[str] | None = None
    ) -> TransferReport | None:
        """Set the weights from which a cell starts.

        Args:
            seed: Seed of the random weights; two cells that share it differ only in what is pretrained.
            pretrained: Weights of a pretrained network; None: random initialisation.
            contrasts: Names of the input channels, for the first convolution.

        Returns:
            `TransferReport`, or None for random initialisation.
        """
        self.network.set_weights(self._random_weights(seed))
        report = pretrained.move_into(self.network, contrasts, self.stay) if pretrained else None
        self.fresh = report.left if report else self._never_pretrained()
        return report

    def _never_pretrained(self):
        """Layers that no transfer moves; the head phase trains the same ones where nothing is pretrained."""
        return tuple(layer.name for layer in self.network.layers if layer.name.startswith((*HEADS, *self.stay)))

    def fit(self, batches: Batches, validation: Batches | None, run: RunOptions) -> list[dict[str, Any]]:
        """Train one cell, leaving the weights to keep in `network`.

        Args:
            batches: Training batches.
            validation: Validation batches, fixed; None if there are none.
            run: The run of this cell.

        Returns:
            History, a list with one dictionary per epoch.
        """
        clock = CompileClock(batches, validation)
        history = fit(self.task, batches, validation, self.schedule, run, self.fresh, callbacks=[clock])
        self.compile_s, self.updates = clock.compile_s(), len(history) * batches.steps
        return history

    def add_changes(self, batch: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Add the random numbers of augmentation to a batch; no warp if nothing moves: it takes time, smooths noise."""
        if not self.augmentation.are_any():
            return batch
        is_moved, (*image_size, channels) = self.augmentation.are_moving(), self.network.input_shape[1:]
        drawn = draw_changes(size_of(batch), image_size, generator, self.augmentation, channels)
        return batch | {name: values for name, values in drawn.items() if is_moved or name not in ("affine", "elastic")}


def last_decoder_levels(network: keras.Model, count: int) -> tuple[str, ...]:
    """Return the prefixes of the layer names of the last decoder levels of a network, none for a count of 0."""
    numbers = {int(layer.name.split("_")[1]) for layer in network.layers if layer.name.startswith("decoder_")}
    return tuple(f"decoder_{number}_" for number in sorted(numbers)[len(numbers) - count :])


class SegmentationTrainer(Trainer):
    """Trains segmentation networks of one shape.

    Args:
        build: As for `Trainer`.
        loss: Function `(labels, probabilities) -> cost`, such as `segmentation_loss`.
        **settings: `augmentation`, `schedule`, `fresh_levels` and `remat` of `Trainer`.

    Attributes:
        source: Which slices `use` was last given, for the caller to note.
    """

    source = None

    def __init__(self, build: Callable[..., keras.Model], loss: Callable, **settings: Any):
        super().__init__(build, lambda network: Segmentation(network, loss), **settings)

    def use(self, images: Any, labels: Any) -> None:
        """Set the slices that cells are trained on; numpy arrays go to the device once, for all these cells.

        Args:
            images: `(N, H, W, C)`, in [0, 1]; numpy array or `data.store.slices.StoredArray`.
            labels: Class index `(N, H, W)`, likewise.
        """
        self.arrays = {"image": images, "label": labels}
        held = {name: values for name, values in self.arrays.items() if isinstance(values, np.ndarray)}
        self.task.hold(held, held)

    def train(self, rows: np.ndarray, validation_rows: np.ndarray, run: RunOptions) -> list[dict[str, Any]]:
        """Train one cell, leaving the weights to keep in `network`.

        Args:
            rows: Numbers of the slices of the annotated subjects among those given to `use`, `(n,)`.
            validation_rows: The same for the validation subjects; may be empty if the schedule needs none.
            run: The run of this cell; its seed determines order and augmentation.

        Returns:
            History, a list with one dictionary per epoch.
        """
        size, steps = self.schedule.batch_size, self.schedule.steps_per_epoch
        seeds = [child_seed(run.seed, part) for part in ("training", "validation")]
        sets = [{name: Rows(values, r) for name, values in self.arrays.items()} for r in (rows, validation_rows)]
        on_device = in_memory(sets[0])
        batches = Batches(sets[0], size, seeds[0], steps=steps, finish=self.add_changes, on_device=on_device)
        validation = None  # if no validation subject is annotated
        if len(validation_rows):
            validation = Batches(sets[1], size, seeds[1], shuffle=False, on_device=on_device)
        return self.fit(batches, validation, run)


class SynthesisTrainer(Trainer):
    """Trains networks of one shape that synthesise contrasts from others.

    Args:
        build: As for `Trainer`.
        loss: Function `(targets, predictions) -> cost`, such as `synthesis_loss`.
        **settings: `augmentation`, `schedule`, `fresh_levels` and `remat` of `Trainer`.
    """

    def __init__(self, build: Callable[..., keras.Model], loss: Callable, **settings: Any):
        super().__init__(build, lambda network: Synthesis(network, loss), **settings)

    def train(self, crops: Crops, validation_crops: Crops, run: RunOptions) -> list[dict[str, Any]]:
        """Train one cell, leaving the weights to keep in `network`.

        Args:
            crops: `training.crops.Crops` of the subjects of the cell.
            validation_crops: `Crops` of the validation subjects.
            run: The run of this cell; its seed determines positions, order and augmentation.

        Returns:
            History, a list with one dictionary per epoch.
        """
        size, steps = self.schedule.batch_size, self.schedule.steps_per_epoch
        seeds = [child_seed(run.seed, part) for part in ("training", "validation")]
        batches = crops.batches(size, seeds[0], steps=steps, finish=self.add_changes)
        return self.fit(batches, validation_crops.batches(size, seeds[1], shuffle=False), run)


class CompileClock(keras.callbacks.Callback):
    """Times batches, to separate compiling from training on every backend.

    A step is traced and compiled inside its first call. The compile time is therefore how much longer the first
    training batch, the first validation batch and the first batch of another size (at the end of the validation set)
    took than the median of the later ones of their kind. It is about 0 if the step was compiled before.

    Args:
        training: `Batches`.
        validation: `Batches`, or None.
    """

    async_safe = True  # JAX continues while a step is awaited

    def __init__(self, training: Batches, validation: Batches | None):
        super().__init__()
        self.sets = (training, validation)
        self.started: dict[tuple[int, int], float] = {}
        self.seconds: dict[tuple[int, int], list[float]] = collections.defaultdict(list)

    def on_train_batch_begin(self, batch, logs=None):
        self.started[0, batch] = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._add(0, batch)

    def on_test_batch_begin(self, batch, logs=None):
        self.started[1, batch] = time.perf_counter()

    def on_test_batch_end(self, batch, logs=None):
        self._add(1, batch)

    def _add(self, part, batch):
        self.seconds[part, self.sets[part].kind(batch)].append(time.perf_counter() - self.started[part, batch])

    def compile_s(self) -> float:
        """Return the seconds spent on compiling; a kind of batch that occurred only once counts in full."""
        excess = (first - (statistics.median(later) if later else 0.0) for first, *later in self.seconds.values())
        return sum(max(0.0, seconds) for seconds in excess)
