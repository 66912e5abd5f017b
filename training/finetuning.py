"""Finetuning: one compiled step, many cells of the grid contrasts x init x N x repeat."""

import functools

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
        loss_settings: Keyword arguments of `focal_tversky_loss`.
        cross_entropy_weight: Weight of the balanced cross-entropy that is added to it.
        augmentation: Keyword arguments of `augmentation.draw_changes`.
        training: Dictionary with `epochs`, `steps_per_epoch`, `batch_size`, `learning_rate`, `plateau_epochs`.
        evaluate_every: Epochs between two looks at the validation set.
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
        cross_entropy_weight=0.0,
    ):
        self.image_shape, self.augmentation, self.training = tuple(image_shape), augmentation, training
        self.evaluate_every = evaluate_every
        rank = len(self.image_shape) - 1
        self._build = functools.partial(build_unet, self.image_shape, rank=rank, filters=filters, outputs=classes)
        self.network = self._build(seed=0)
        self.task = Segmentation(self.network, loss_settings, cross_entropy_weight).ready(training["learning_rate"])
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
        return fit(
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
        )
