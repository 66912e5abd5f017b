"""Tasks: network and loss combined in one `keras.Model` per training method, the same on every backend.

A task's `forward` turns a batch into what its loss compares; `cost` computes the loss, a function of `losses/` whose
settings are already bound (`functools.partial`). Keras supplies gradients, optimiser and compilation for TensorFlow,
JAX and PyTorch alike; `training.devices` splits a batch across several devices.
"""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from losses.constrained_contrastive import Selection, anchor_health
from losses.health import feature_spread, view_health
from losses.local_contrastive import regions_of
from losses.regression import masked_l1
from training.devices import gathered
from training.intensity_changes import change_intensities, changed_intensities
from training.steps import Task
from training.warping import sampling_positions, warp, warp_labels

VIEW_HEALTH = ("alignment", "uniformity", "feature_spread")
ANCHOR_HEALTH = ("share_without_positive", "share_without_negative", "mean_positives", *VIEW_HEALTH)


class Regression(Task):
    """Restore pixels that were replaced by noise.

    Batches hold `image (B, H, W[, D], C)`, `corrupted (B, H, W[, D], 1)` (0 or 1) and `noise`, shaped like the image.

    Reference:
        arXiv 2205.13109, Sec. II.B.
    """

    def forward(self, batch, training):
        image, corrupted = self.read(batch, "image", training), ops.cast(batch["corrupted"], "float32")
        return self.run((1 - corrupted) * image + corrupted * batch["noise"], training), image

    def cost(self, batch, outputs, training):
        return masked_l1(*outputs, batch["corrupted"])


class GlobalContrast(Task):
    """Global contrast on the encoder: two random views of a slice attract, views of other slices repel.

    Batches hold `image (B, H, W[, D], C)` and, for each view `a` and `b`, the changes of `augmentation.draw_changes`.
    With `partition (B,)` in the batch, the loss is told from which part of its volume each slice comes.

    Args:
        network: As for `Task`.
        loss: `simclr_loss`, or `anatomical_contrastive_loss` where batches hold `partition`.

    Reference:
        Chen et al., ICML 2020, Eq. 1; with partitions Chaitanya et al., NeurIPS 2020, G^{D-} and G^D. Crop, brightness
        and contrast as in arXiv 2205.13109, Sec. II.C.
    """

    def __init__(self, network: keras.Model, loss: Callable):
        super().__init__(network, VIEW_HEALTH)
        self.compare = loss

    def forward(self, batch, training):
        image = self.read(batch, "image", training)
        views = [augmented(image, batch, view) for view in ("a", "b")]
        both = self.run(ops.concatenate(views, axis=0), training)
        return ops.split(both, 2, axis=0)

    def cost(self, batch, views, training):
        self.watch(training, view_health, *views)
        views = gathered(*views)
        if "partition" in batch:
            (partitions,) = gathered(batch["partition"])
            return self.compare(ops.stack(views), partitions)
        return self.compare(*views)


class LocalContrast(Task):
    """Local contrast on the decoder: the same region in two intensity-augmented views attracts, others repel.

    Batches hold `image (B, H, W[, D], C)`, for each view `a` and `b` its `brightness_<view> (B,)` and
    `contrast_<view> (B,)`, and the regions of `local_contrastive.draw_regions`.

    Args:
        network: As for `Task`.
        loss: `region_contrast`.
        map_size: Size of the decoder's output, pixels.
        region_size: Edge of a region, pixels of that output.
        freeze_encoder: Keep the weights of the encoder unchanged.

    Reference:
        Chaitanya et al., NeurIPS 2020, L^R.
    """

    def __init__(
        self, network: keras.Model, loss: Callable, map_size: Sequence[int], region_size: int, freeze_encoder: bool
    ):
        super().__init__(network, VIEW_HEALTH)
        self.compare, self.map_size, self.region_size = loss, map_size, region_size
        for layer in network.layers:
            if freeze_encoder and layer.name.startswith("encoder_"):
                layer.trainable = False

    def forward(self, batch, training):
        image = self.read(batch, "image", training)
        views = [change_intensities(image, batch[f"brightness_{v}"], batch[f"contrast_{v}"]) for v in ("a", "b")]
        both = self.run(ops.concatenate(views, axis=0), training)
        both = ops.reshape(both, (-1, *self.map_size, both.shape[-1]))
        return ops.split(both, 2, axis=0)

    def cost(self, batch, maps, training):
        self.watch(training, self._region_health, batch["corners"], *maps)
        return self.compare(*maps, batch["corners"], batch["is_negative"], region_size=self.region_size)

    def _region_health(self, corners, *maps):
        regions = (regions_of(values, corners, self.region_size) for values in maps)
        return view_health(*regions, corners[..., 0] >= 0)


class ConstrainedContrast(Task):
    """Constrained contrastive learning: patches of one class of the constraint map attract, others repel.

    Batches hold `image (B, H, W[, D], C)`, `patch_classes (B, P)` and `anchors (B, A)`; also `nearest_patches (B,)`
    where each image has its own number, which then replaces the one in the selection.

    Args:
        network: As for `Task`.
        loss: `constrained_contrastive_loss`, without the settings in `selection`.
        selection: Which patches are compared, for the loss and for the health of the anchors.

    Reference:
        Umapathy et al., Med. Phys. 2024;51:2707.
    """

    def __init__(self, network: keras.Model, loss: Callable, selection: Selection):
        super().__init__(network, ANCHOR_HEALTH)
        self.compare, self.selection = loss, selection

    def forward(self, batch, training):
        return self.run(self.read(batch, "image", training), training)

    def cost(self, batch, representations, training):
        compared = (representations, batch["patch_classes"], batch["anchors"])
        own = [batch["nearest_patches"]] if "nearest_patches" in batch else []
        self.watch(training, self._anchor_health, *compared, *own)
        return self.compare(*compared, **self._with(own))

    def _anchor_health(self, representations, classes, anchors, *own):
        return anchor_health(representations, classes, anchors, **self._with(own)) | {
            "feature_spread": feature_spread(representations, classes > 0)
        }

    def _with(self, own):
        """The selection, with the images' own numbers of nearest patches if the batch has them."""
        return self.selection._asdict() | ({"nearest_patches": own[0]} if own else {})


class Segmentation(Task):
    """Supervised segmentation of augmented slices.

    Batches hold `image (B, H, W, C)` and `label (B, H, W)`; training batches also the changes of
    `augmentation.draw_changes`.

    Args:
        network: As for `Task`.
        loss: `segmentation_loss`.
    """

    def __init__(self, network: keras.Model, loss: Callable):
        super().__init__(network)
        self.compare = loss

    def forward(self, batch, training):
        image, label = (self.read(batch, name, training) for name in ("image", "label"))
        if "affine" in batch:
            positions = sampling_positions(batch["affine"], batch["elastic"], image.shape[1:-1])
            image, label = warp(image, positions), warp_labels(label, positions)
        return self.run(changed_intensities(image, batch), training), label

    def cost(self, batch, outputs, training):
        probabilities, label = gathered(*outputs)  # the sums of the loss run over the whole batch
        return self.compare(label, probabilities)


class Synthesis(Task):
    """Supervised synthesis of contrasts from others.

    Batches hold `image (B, H, W[, D], C)` and `target (B, H, W[, D], K)`; training batches also the changes of
    `augmentation.draw_changes`, which move image and target alike and change the intensities of the image only.

    Args:
        network: As for `Task`.
        loss: `synthesis_loss`.
    """

    def __init__(self, network: keras.Model, loss: Callable):
        super().__init__(network)
        self.compare = loss

    def forward(self, batch, training):
        image, target = batch["image"], batch["target"]
        if "affine" in batch:
            positions = sampling_positions(batch["affine"], batch["elastic"], image.shape[1:-1])
            inputs = image.shape[-1]
            both = warp(ops.concatenate([image, target], axis=-1), positions)  # one field for all contrasts
            image, target = both[..., :inputs], both[..., inputs:]
        return self.run(changed_intensities(image, batch), training), target

    def cost(self, batch, outputs, training):
        prediction, target = outputs
        return self.compare(target, prediction)


def augmented(image, batch, view):
    """Return the images of a batch after the changes whose names end in `_<view>`."""
    positions = sampling_positions(batch[f"affine_{view}"], batch[f"elastic_{view}"], image.shape[1:-1])
    return change_intensities(warp(image, positions), batch[f"brightness_{view}"], batch[f"contrast_{view}"])
