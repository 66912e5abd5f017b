"""Pretraining: one function per method, from slices and constraint maps to the weights of a network."""

import numpy as np

from models.unet import build_encoder, build_unet
from training.augmentation import draw_changes
from training.batches import Batches, assign_patch_classes, draw_anchors
from training.checkpoints import fit
from training.tasks import ConstrainedContrast, GlobalContrast
from utils.runs import child_seed


def pretrain_global(
    images,
    validation_images,
    *,
    filters,
    features,
    temperature,
    crop_scale,
    brightness,
    contrast,
    training,
    seed,
    **run,
):
    """Train the encoder to tell slices apart (SimCLR).

    Args:
        images: Training slices `(N, H, W, C)`, in [0, 1].
        validation_images: Validation slices, whose views are fixed.
        filters: Filters per level.
        features: Size of the projected representation.
        temperature: Softmax temperature.
        crop_scale: Smallest and largest share of the field of view that a crop keeps.
        brightness: Largest shift of a view.
        contrast: Largest relative change of contrast of a view.
        training: Dictionary with `epochs`, `steps_per_epoch`, `batch_size`, `learning_rate`, `plateau_epochs`.
        seed: Seed of the stage.
        **run: `warm_start` (function that moves weights into the network), `folder`, `tag`, `name`.

    Returns:
        `(network, history)`.
    """
    size = images.shape[1:3]
    network = build_encoder(images.shape[1:], filters=filters, features=features, head="projection", seed=seed)

    def draw(rows, generator):
        def view(name):
            # The smallest crop may lie anywhere in the image; a larger one may reach beyond it, where it is black.
            changes = draw_changes(
                len(rows),
                size,
                generator,
                scale=crop_scale,
                translation=(1 - crop_scale[0]) / 2,
                brightness=brightness,
                contrast=contrast,
            )
            return {f"{key}_{name}": value for key, value in changes.items()}

        return view("a") | view("b")

    task = GlobalContrast(network, temperature)
    return _train(task, {"image": images}, {"image": validation_images}, draw, training, seed, **run)


def pretrain_constrained(
    images,
    constraint_maps,
    validation_images,
    validation_maps,
    *,
    filters,
    decoder_levels,
    patch_size,
    features,
    anchors_per_slice,
    loss_settings,
    training,
    seed,
    **run,
):
    """Train encoder and decoder so that patches of one constraint class share a representation (CCL).

    Args:
        images: Training slices `(N, H, W, C)`, in [0, 1].
        constraint_maps: Their classes, 0 background, `(N, H, W)`.
        validation_images: Validation slices.
        validation_maps: Their classes; anchors on them are drawn once.
        filters: Filters per level.
        decoder_levels: Decoder levels that are built and trained; None: all.
        patch_size: Edge of a patch, pixels of the decoder's output.
        features: Size of a patch's representation.
        anchors_per_slice: Anchors A.
        loss_settings: Keyword arguments of `constrained_contrastive_loss`.
        training: As in `pretrain_global`.
        seed: Seed of the stage.
        **run: As in `pretrain_global`.

    Returns:
        `(network, history)`.

    Reference:
        Umapathy et al., Med. Phys. 2024; 100 nearest patches and 20 anchors: authors' code.
    """
    levels = len(filters) - 1
    built = levels if decoder_levels is None else decoder_levels
    network = build_unet(
        images.shape[1:],
        filters=filters,
        decoder_levels=built,
        head="projection",
        features=features,
        patch_size=patch_size,
        seed=seed,
    )
    patch_px = patch_size * 2 ** (levels - built)

    def draw(rows, generator, classes):
        return {"anchors": draw_anchors(classes[rows], anchors_per_slice, generator)}

    sets = []
    for pictures, maps in ((images, constraint_maps), (validation_images, validation_maps)):
        classes = assign_patch_classes(maps, patch_px)
        useful = np.flatnonzero((classes > 0).sum(1) > 1)  # a slice with one foreground patch compares nothing
        sets.append({"image": pictures[useful], "patch_classes": classes[useful]})
    training_set, validation_set = sets
    task = ConstrainedContrast(network, loss_settings)
    draws = [lambda rows, generator, c=s["patch_classes"]: draw(rows, generator, c) for s in sets]
    return _train(task, training_set, validation_set, draws[0], training, seed, validation_draw=draws[1], **run)


def _train(
    task, training_set, validation_set, draw, training, seed, *, warm_start, folder, tag, name, validation_draw=None
):
    """The part that all methods share: batches, warm start, fit."""
    batches = Batches(
        training_set,
        training["batch_size"],
        child_seed(seed, "training"),
        steps=training["steps_per_epoch"],
        draw=draw,
    )
    fixed = Batches(
        validation_set,
        training["batch_size"],
        child_seed(seed, "validation"),
        shuffle=False,
        draw=validation_draw or draw,
    )
    warm_start(task.network)
    history = fit(
        task.ready(training["learning_rate"]),
        batches,
        fixed,
        folder=folder,
        tag=tag,
        name=name,
        with_bar=True,
        epochs=training["epochs"],
        learning_rate=training["learning_rate"],
        plateau_epochs=training["plateau_epochs"],
    )
    return task.network, history
