"""Finetuning: one compiled step, many cells of the grid contrasts x init x N x repeat."""

import collections
import functools
import statistics
import time
from collections.abc import Sequence

import keras
import numpy as np

from models.unet import build_unet
from models.weights import HEADS, Pretrained
from training.augmentation import describe_changes, draw_changes, moves
from training.batches import Batches, Rows, in_memory, size_of
from training.checkpoints import fit
from training.schedules import Schedule
from training.tasks import Segmentation, Synthesis
from utils.runs import child_seed


class Trainer:
    """Trains networks of one shape one after another; the training step is compiled once.

    Args:
        build: Function `seed -> keras.Model` of that shape.
        make_task: Function `network -> Task`.
        augmentation: Keyword arguments of `augmentation.draw_changes`.
        training: Dictionary with `steps_per_epoch`, `batch_size` and what `training.schedules.Schedule` takes.
        evaluate_every: Epochs between two looks at the validation set.
        fresh_levels: So many of the last decoder levels stay random where pretrained weights have them, too.
        remat: Compute activations twice instead of keeping them.

    Attributes:
        network: The `keras.Model` in training.
        fresh: Names of the layers that are not pretrained in the current cell.
        compile_s: Seconds that the last cell spent on compiling the step, see `CompileClock`.
        updates: Updates of its weights that the last cell has had in all.
    """

    def __init__(self, build, make_task, *, augmentation, training, evaluate_every, fresh_levels=0, remat=False):
        self.augmentation, self.training = augmentation, training
        self.evaluate_every, self.compile_s, self.updates = evaluate_every, 0.0, 0
        self.network = build(seed=0)
        describe_changes(self.network.input_shape[1:-1], augmentation)
        self.stay = last_decoder_levels(self.network, fresh_levels)
        self.schedule, self.fresh = Schedule.of(training), self._never_pretrained()
        is_layerwise = self.schedule.is_layerwise
        task = make_task(self.network).sparing_memory(remat)
        self.task = task.ready(training["learning_rate"], is_layerwise=is_layerwise)
        self._random_weights = functools.lru_cache(maxsize=4)(lambda seed: build(seed=seed).get_weights())

    def start_from(self, seed: int, pretrained: Pretrained | None = None, contrasts: Sequence[str] | None = None):
        """Set the weights at which a cell starts.

        Args:
            seed: Seed of the random weights; two cells that share it differ only by what is pretrained.
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
        """Layers that no transfer moves: what the head phase trains where nothing is pretrained, to treat it alike."""
        return tuple(layer.name for layer in self.network.layers if layer.name.startswith((*HEADS, *self.stay)))

    def fit(self, batches, validation, **run):
        """Train one cell; leaves `network` with the weights to keep.

        Args:
            batches: Training batches.
            validation: Validation batches, fixed; None where there are none.
            **run: `folder`, `tag` (hash of what shapes the result), `name` and what else `checkpoints.fit` takes.

        Returns:
            History, a list with one dictionary per epoch.
        """
        clock = CompileClock(batches, validation)
        history = fit(
            self.task,
            batches,
            validation,
            schedule=self.schedule,
            fresh=self.fresh,
            evaluate_every=self.evaluate_every,
            callbacks=[clock],
            **run,
        )
        self.compile_s, self.updates = clock.compile_s(), len(history) * batches.steps
        return history

    def add_changes(self, batch, generator):
        """Add the random numbers of augmentation to a batch, if there is any: warping takes time and smooths noise."""
        is_moved = moves(self.augmentation)
        if not is_moved and not any(self.augmentation.get(key) for key in ("brightness", "contrast", "intensities")):
            return batch
        *image_size, channels = self.network.input_shape[1:]
        drawn = draw_changes(size_of(batch), image_size, generator, channels=channels, **self.augmentation)
        return batch | {name: values for name, values in drawn.items() if is_moved or name not in ("affine", "elastic")}


def last_decoder_levels(network, count):
    """Return the beginnings of the layer names of the last decoder levels of a network, none for a count of 0."""
    numbers = {int(layer.name.split("_")[1]) for layer in network.layers if layer.name.startswith("decoder_")}
    return tuple(f"decoder_{number}_" for number in sorted(numbers)[len(numbers) - count :])


class SegmentationTrainer(Trainer):
    """Trains segmentation networks of one shape.

    Args:
        image_shape: `(H, W, C)`, or `(H, W, D, C)` for volumes.
        filters: Filters per level.
        classes: Classes K, background included.
        loss: `focal_tversky`, `dice` or `cross_entropy`.
        loss_settings: Keyword arguments of that loss.
        cross_entropy_weight: Weight of the cross-entropy that is added to it.
        cross_entropy: `balanced` or `plain`, the kind of cross-entropy.
        head_block: Give the network one more convolution before its last one.
        **settings: `augmentation`, `training`, `evaluate_every`, `fresh_levels` and `remat` of `Trainer`.

    Attributes:
        source: What the slices of `use` are, for the caller to remember.
    """

    source = None

    def __init__(
        self,
        image_shape,
        *,
        filters,
        classes,
        loss_settings,
        loss="focal_tversky",
        cross_entropy_weight=0.0,
        cross_entropy="balanced",
        head_block=False,
        **settings,
    ):
        shape = {"rank": len(image_shape) - 1, "filters": filters, "outputs": classes, "head_block": head_block}
        super().__init__(
            functools.partial(build_unet, tuple(image_shape), **shape),
            lambda network: Segmentation(network, loss_settings, cross_entropy_weight, loss, cross_entropy),
            **settings,
        )

    def use(self, images, labels):
        """Take over the slices that cells are trained on; numpy arrays go to the device once, for all these cells.

        Args:
            images: `(N, H, W, C)`, in [0, 1]; numpy array or `data.slices.StoredArray`.
            labels: Class index `(N, H, W)`, likewise.
        """
        self.arrays = {"image": images, "label": labels}
        held = {name: values for name, values in self.arrays.items() if isinstance(values, np.ndarray)}
        self.task.hold(held, held)

    def train(self, rows, validation_rows, *, seed, **run):
        """Train one cell; leaves `network` with the weights to keep.

        Args:
            rows: Numbers of the slices of the annotated subjects among those of `use`, `(n,)`.
            validation_rows: The same of the validation subjects; may be empty where the schedule needs none.
            seed: Seed of order and augmentation.
            **run: `folder`, `tag`, `name` and `subjects` of `fit`.

        Returns:
            History, a list with one dictionary per epoch.
        """
        size, steps = self.training["batch_size"], self.training["steps_per_epoch"]
        sets = [{name: Rows(values, r) for name, values in self.arrays.items()} for r in (rows, validation_rows)]
        options = {"on_device": in_memory(sets[0])}
        batches = Batches(sets[0], size, child_seed(seed, "training"), steps=steps, finish=self.add_changes, **options)
        validation = None  # where no subject is annotated for it
        if len(validation_rows):
            validation = Batches(sets[1], size, child_seed(seed, "validation"), shuffle=False, **options)
        return self.fit(batches, validation, **run)


class SynthesisTrainer(Trainer):
    """Trains networks of one shape that synthesise contrasts from others.

    Args:
        image_shape: `(h, w, C)` of crops of slices, or `(h, w, d, C)` of volumes.
        filters: Filters per level.
        outputs: Number of contrasts K that are synthesised.
        loss_settings: Keyword arguments `name` and `ssim_weight` of `synthesis_loss`.
        **settings: `augmentation`, `training`, `evaluate_every`, `fresh_levels` and `remat` of `Trainer`.
    """

    def __init__(self, image_shape, *, filters, outputs, loss_settings, **settings):
        shape = {"rank": len(image_shape) - 1, "filters": filters, "head": "synthesis", "outputs": outputs}
        super().__init__(
            functools.partial(build_unet, tuple(image_shape), **shape),
            lambda network: Synthesis(network, loss_settings),
            **settings,
        )

    def train(self, crops, validation_crops, *, seed, **run):
        """Train one cell; leaves `network` with the weights to keep.

        Args:
            crops: `training.crops.Crops` of the subjects of the cell.
            validation_crops: `Crops` of the validation subjects.
            seed: Seed of places, order and augmentation.
            **run: `folder`, `tag`, `name` and `subjects` of `fit`.

        Returns:
            History, a list with one dictionary per epoch.
        """
        size, steps = self.training["batch_size"], self.training["steps_per_epoch"]
        batches = crops.batches(size, child_seed(seed, "training"), steps=steps, finish=self.add_changes)
        return self.fit(batches, validation_crops.batches(size, child_seed(seed, "validation"), shuffle=False), **run)


class CompileClock(keras.callbacks.Callback):
    """Times batches, to tell compiling from training on every backend.

    A step is traced and compiled inside its first call. What the first training batch, the first validation batch and
    the first batch of another size (at the end of the validation set) took longer than the median of the later ones of
    their kind is therefore what compiling cost. Where the step was compiled before, that is about 0.

    Args:
        training: `Batches`.
        validation: `Batches`, or None.
    """

    async_safe = True  # JAX goes on while a step is awaited

    def __init__(self, training, validation):
        super().__init__()
        self.sets, self.started, self.seconds = (training, validation), {}, collections.defaultdict(list)

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

    def compile_s(self):
        """Return the seconds spent on compiling; a kind of batch that came only once counts in full."""
        excess = (first - (statistics.median(later) if later else 0.0) for first, *later in self.seconds.values())
        return sum(max(0.0, seconds) for seconds in excess)
