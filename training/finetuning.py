"""Finetuning: one compiled step, many cells of the grid contrasts x init x N x repeat."""

import collections
import functools
import statistics
import time

import keras
import numpy as np

from models.unet import build_unet
from models.weights import transfer
from training.augmentation import describe_changes, draw_changes, moves
from training.batches import Batches, Rows, in_memory, size_of
from training.checkpoints import fit
from training.tasks import Segmentation, Synthesis
from utils.runs import child_seed


class Trainer:
    """Trains networks of one shape one after another; the training step is compiled once.

    Args:
        build: Function `seed -> keras.Model` of that shape.
        make_task: Function `network -> Task`.
        augmentation: Keyword arguments of `augmentation.draw_changes`.
        training: Dictionary with `epochs`, `steps_per_epoch`, `batch_size`, `learning_rate`, `plateau_epochs`.
        evaluate_every: Epochs between two looks at the validation set.

    Attributes:
        network: The `keras.Model` in training.
        compile_s: Seconds that the last cell spent on compiling the step, see `CompileClock`.
        updates: Updates of its weights that the last cell has had in all.
    """

    def __init__(self, build, make_task, *, augmentation, training, evaluate_every):
        self.augmentation, self.training = augmentation, training
        self.evaluate_every, self.compile_s, self.updates = evaluate_every, 0.0, 0
        self.network = build(seed=0)
        describe_changes(self.network.input_shape[1:-1], augmentation)
        self.task = make_task(self.network).ready(training["learning_rate"])
        self._random_weights = functools.lru_cache(maxsize=4)(lambda seed: build(seed=seed).get_weights())

    def start_from(self, seed, pretrained=None, **contrasts):
        """Set the weights at which a cell starts.

        Args:
            seed: Seed of the random weights; two cells that share it differ only by what is pretrained.
            pretrained: Weights file of a pretrained network; None: random initialisation.
            **contrasts: `source_contrasts` and `target_contrasts` for the first convolution.

        Returns:
            `TransferReport`, or None for random initialisation.
        """
        self.network.set_weights(self._random_weights(seed))
        return transfer(pretrained, self.network, **contrasts) if pretrained else None

    def fit(self, batches, validation, **run):
        """Train one cell; leaves `network` with its best weights on the validation set.

        Args:
            batches: Training batches.
            validation: Validation batches, fixed.
            **run: `folder`, `tag` (hash of what shapes the result), `name` and what else `checkpoints.fit` takes.

        Returns:
            History, a list with one dictionary per epoch.
        """
        clock = CompileClock(batches, validation)
        history = fit(
            self.task,
            batches,
            validation,
            epochs=self.training["epochs"],
            learning_rate=self.training["learning_rate"],
            plateau_epochs=self.training["plateau_epochs"],
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


class SegmentationTrainer(Trainer):
    """Trains segmentation networks of one shape.

    Args:
        image_shape: `(H, W, C)`, or `(H, W, D, C)` for volumes.
        filters: Filters per level.
        classes: Classes K, background included.
        loss: `focal_tversky` or `dice`.
        loss_settings: Keyword arguments of that loss.
        cross_entropy_weight: Weight of the balanced cross-entropy that is added to it.
        **settings: `augmentation`, `training` and `evaluate_every` of `Trainer`.

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
        **settings,
    ):
        rank = len(image_shape) - 1
        super().__init__(
            functools.partial(build_unet, tuple(image_shape), rank=rank, filters=filters, outputs=classes),
            lambda network: Segmentation(network, loss_settings, cross_entropy_weight, loss=loss),
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
        """Train one cell; leaves `network` with its best weights on the validation set.

        Args:
            rows: Numbers of the slices of the annotated subjects among those of `use`, `(n,)`.
            validation_rows: The same of the validation subjects.
            seed: Seed of order and augmentation.
            **run: `folder`, `tag`, `name` and `subjects` of `fit`.

        Returns:
            History, a list with one dictionary per epoch.
        """
        size, steps = self.training["batch_size"], self.training["steps_per_epoch"]
        sets = [{name: Rows(values, r) for name, values in self.arrays.items()} for r in (rows, validation_rows)]
        options = {"on_device": in_memory(sets[0])}
        batches = Batches(sets[0], size, child_seed(seed, "training"), steps=steps, finish=self.add_changes, **options)
        return self.fit(
            batches, Batches(sets[1], size, child_seed(seed, "validation"), shuffle=False, **options), **run
        )


class SynthesisTrainer(Trainer):
    """Trains networks of one shape that synthesise contrasts from others.

    Args:
        image_shape: `(h, w, C)` of crops of slices, or `(h, w, d, C)` of volumes.
        filters: Filters per level.
        outputs: Number of contrasts K that are synthesised.
        loss_settings: Keyword arguments `name` and `ssim_weight` of `synthesis_loss`.
        remat: Compute activations twice instead of keeping them.
        **settings: `augmentation`, `training` and `evaluate_every` of `Trainer`.
    """

    def __init__(self, image_shape, *, filters, outputs, loss_settings, remat=False, **settings):
        shape = {"rank": len(image_shape) - 1, "filters": filters, "head": "synthesis", "outputs": outputs}
        super().__init__(
            functools.partial(build_unet, tuple(image_shape), **shape),
            lambda network: Synthesis(network, loss_settings).sparing_memory(remat),
            **settings,
        )

    def train(self, crops, validation_crops, *, seed, **run):
        """Train one cell; leaves `network` with its best weights on the validation crops.

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
        validation: `Batches`.
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
