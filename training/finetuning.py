"""Finetuning: one compiled step, many cells of the grid contrasts x init x N x repeat."""

import collections
import functools
import statistics
import time

import keras

from models.unet import build_unet
from models.weights import transfer
from training.augmentation import draw_changes
from training.batches import Batches
from training.checkpoints import fit
from training.tasks import Segmentation
from utils.runs import child_seed


class SegmentationTrainer:
    """Trains segmentation networks of one shape one after another; the training step is compiled once.

    Args:
        image_shape: `(H, W, C)`, or `(H, W, D, C)` for volumes.
        filters: Filters per level.
        classes: Classes K, background included.
        loss: `focal_tversky` or `dice`.
        loss_settings: Keyword arguments of that loss.
        cross_entropy_weight: Weight of the balanced cross-entropy that is added to it.
        augmentation: Keyword arguments of `augmentation.draw_changes`.
        training: Dictionary with `epochs`, `steps_per_epoch`, `batch_size`, `learning_rate`, `plateau_epochs`.
        evaluate_every: Epochs between two looks at the validation set.

    Attributes:
        network: The `keras.Model` in training.
        compile_s: Seconds that the last cell spent on compiling the step, see `CompileClock`.
    """

    def __init__(
        self,
        image_shape,
        *,
        filters,
        classes,
        loss_settings,
        augmentation,
        training,
        evaluate_every,
        loss="focal_tversky",
        cross_entropy_weight=0.0,
    ):
        self.image_shape, self.augmentation, self.training = tuple(image_shape), augmentation, training
        self.evaluate_every, self.compile_s = evaluate_every, 0.0
        rank = len(self.image_shape) - 1
        self._build = functools.partial(build_unet, self.image_shape, rank=rank, filters=filters, outputs=classes)
        self.network = self._build(seed=0)
        task = Segmentation(self.network, loss_settings, cross_entropy_weight, loss=loss)
        self.task = task.ready(training["learning_rate"])
        self._random_weights = functools.lru_cache(maxsize=4)(lambda seed: self._build(seed=seed).get_weights())

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

    def train(self, images, labels, validation_images, validation_labels, *, seed, folder, tag, name):
        """Train one cell; leaves `network` with its best weights on the validation set.

        Args:
            images: Slices of the annotated subjects `(N, H, W, C)`, in [0, 1].
            labels: Class index `(N, H, W)`.
            validation_images: Slices of the validation subjects.
            validation_labels: Their labels.
            seed: Seed of order and augmentation.
            folder: Folder of the cell.
            tag: Hash of what shapes the cell's result.
            name: What messages call the cell.

        Returns:
            History, a list with one dictionary per epoch.
        """

        def draw(rows, generator):
            return draw_changes(len(rows), self.image_shape[:-1], generator, **self.augmentation)

        size = self.training["batch_size"]
        batches = Batches(
            {"image": images, "label": labels},
            size,
            child_seed(seed, "training"),
            steps=self.training["steps_per_epoch"],
            draw=draw,
        )
        fixed = Batches(
            {"image": validation_images, "label": validation_labels},
            size,
            child_seed(seed, "validation"),
            shuffle=False,
        )
        clock = CompileClock(len(fixed))
        history = fit(
            self.task,
            batches,
            fixed,
            folder=folder,
            tag=tag,
            name=name,
            epochs=self.training["epochs"],
            learning_rate=self.training["learning_rate"],
            plateau_epochs=self.training["plateau_epochs"],
            evaluate_every=self.evaluate_every,
            callbacks=[clock],
        )
        self.compile_s = clock.compile_s()
        return history


class CompileClock(keras.callbacks.Callback):
    """Times batches, to tell compiling from training on every backend.

    A step is traced and compiled inside its first call. What the first training batch, the first validation batch and
    the first batch at the end of the validation set (which is smaller, and on JAX another shape) took longer than the
    median of the later ones is therefore what compiling cost. Where the step was compiled before, that is about 0.
    On JAX, Keras then waits for each batch before it starts the next, which cost no measurable time on a CPU.

    Args:
        validation_steps: Batches of the validation set.
    """

    def __init__(self, validation_steps):
        super().__init__()
        self.validation_steps, self.seconds = validation_steps, collections.defaultdict(list)

    def on_train_batch_begin(self, batch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds["training"].append(time.perf_counter() - self.started)

    def on_test_batch_begin(self, batch, logs=None):
        self.test_started = time.perf_counter()

    def on_test_batch_end(self, batch, logs=None):
        kind = "end of validation" if batch + 1 == self.validation_steps else "validation"
        self.seconds[kind].append(time.perf_counter() - self.test_started)

    def compile_s(self):
        """Return the seconds spent on compiling; a kind of batch that came only once counts in full."""
        excess = (first - (statistics.median(later) if later else 0.0) for first, *later in self.seconds.values())
        return sum(max(0.0, seconds) for seconds in excess)
