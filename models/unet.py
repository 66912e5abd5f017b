"""The U-Net by levels: encoder, full or partial decoder, and one head.

Layers are named by floor, level and part (`encoder_3_conv_1`, `decoder_1_up`). `decoder_1` is the deepest level, so a
partial decoder has the first few levels of the full one, under the same names.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from models.blocks import conv_norm_relu, convolution, decoder_level, encoder_level
from models.projection import project_image, project_patches
from utils.checks import InputError

FILTERS = (16, 32, 64, 128, 128, 128)  # authors' code
SYNTHESIS_FILTERS = 16  # ours
OUTPUT_ACTIVATIONS = {"segmentation": "softmax", "reconstruction": "linear", "synthesis": "linear"}


def build_encoder(
    image_shape: Sequence[int],
    *,
    rank: int = 2,
    filters: Sequence[int] = FILTERS,
    head: str | None = "projection",
    features: int = 128,
    seed: int = 0,
    name: str = "encoder",
) -> keras.Model:
    """Build the contracting half of the U-Net.

    Args:
        image_shape: `(H, W, C)` for rank 2, `(H, W, D, C)` for rank 3; sizes divisible by 2**(levels - 1).
        rank: 2 for images, 3 for volumes.
        filters: Channels of each level, finest first.
        head: `"projection"` (global average, two-layer MLP) or None.
        features: Length F of the projected representation.
        seed: Integer; determines every initial weight, on every backend.
        name: Name of the model.

    Returns:
        A `keras.Model` from images `(B, *image_shape)` to representations `(B, F)`; without a head, to the features
        of the deepest level.

    Raises:
        InputError: For sizes that the levels cannot halve, or an unknown head.
    """
    _check(image_shape, rank, filters)
    _check_choice("head", head, ("projection", None))
    image = keras.Input(image_shape, name="image")
    x = _encode(image, rank, filters, seed)[-1]
    if head == "projection":
        x = project_image(x, features, seed)
    return keras.Model(image, x, name=name)


def build_unet(
    image_shape: Sequence[int],
    *,
    rank: int = 2,
    filters: Sequence[int] = FILTERS,
    decoder_levels: int | None = None,
    head: str | None = "segmentation",
    outputs: int | None = None,
    features: int = 64,
    patch_size: int = 1,
    head_block: bool = False,
    seed: int = 0,
    name: str = "unet",
    **projection: Any,
) -> keras.Model:
    """Build a U-Net with a full or partial decoder and one head.

    Args:
        image_shape: `(H, W, C)` for rank 2, `(H, W, D, C)` for rank 3; sizes divisible by 2**(levels - 1).
        rank: 2 for images, 3 for volumes.
        filters: Channels of each level, finest first.
        decoder_levels: How many decoder levels to build, deepest first; None for all. With n of `levels - 1` the
            feature map is smaller than the image by 2**(levels - 1 - n) along each axis.
        head: `"segmentation"` (softmax), `"reconstruction"` (linear), `"synthesis"` (one hidden 1 x 1 convolution that
            also sees the image, then linear; ours), `"projection"` (patch representations) or None (features of the
            last decoder level).
        outputs: Channels of the first three heads: classes including background, or contrasts. For a reconstruction,
            None means the contrasts of the image.
        features: Length F of a patch representation.
        patch_size: Edge of a patch in pixels of the decoder's feature map.
        head_block: Give a segmentation one more 3 x 3 convolution with normalisation and ReLU before its last
            convolution (authors' code).
        seed: Integer; determines every initial weight, on every backend.
        name: Name of the model.
        **projection: Further options of `project_patches`, for the projection head only.

    Returns:
        A `keras.Model` from images `(B, *image_shape)` to `(B, H, W[, D], outputs)` float32 (probabilities for a
        segmentation), or representations `(B, P, F)` float32 of patches in row-major order.

    Raises:
        InputError: For sizes that the levels or patches do not divide, or an invalid choice.
    """
    _check(image_shape, rank, filters)
    _check_choice("head", head, (*OUTPUT_ACTIVATIONS, "projection", None))
    if projection and head != "projection":
        raise InputError(f"network: {', '.join(projection)}: for the head 'projection' only, not {head!r}")
    decoder_levels = len(filters) - 1 if decoder_levels is None else decoder_levels
    _check_choice("decoder_levels", decoder_levels, range(1, len(filters)))
    image = keras.Input(image_shape, name="image")
    *skips, x = _encode(image, rank, filters, seed)
    for level in range(1, decoder_levels + 1):
        x = decoder_level(x, skips[-level], rank, filters[-level - 1], level, seed)
    if head == "projection":
        _check_patches(x.shape[1:-1], patch_size)
        x = project_patches(x, features, patch_size, seed, **projection)
    elif head is not None:
        if head == "synthesis":
            x = _join_image(x, image, rank, seed)
        if head_block:
            _check_choice("head with head_block", head, ("segmentation",))
            x = conv_norm_relu(x, rank, x.shape[-1], 3, f"{head}_block", seed, number=1)
        x = _output(x, rank, head, _output_channels(head, outputs, image_shape), seed)
    return keras.Model(image, x, name=name)


def feature_levels(network: keras.Model) -> keras.Model:
    """Return the same network with different outputs: features of the deepest encoder level and each decoder level.

    Args:
        network: From `build_unet`; layers and weights are shared with it.

    Returns:
        A `keras.Model` from images to a list of maps `(B, h, w[, d], F)`, from the coarsest to the finest.
    """
    ends = [layer for layer in network.layers if layer.name.endswith("_relu_2")]
    deepest = [layer for layer in ends if layer.name.startswith("encoder_")][-1:]
    outputs = [layer.output for layer in deepest + [layer for layer in ends if layer.name.startswith("decoder_")]]
    return keras.Model(network.input, outputs, name="feature_levels")


def _encode(image, rank, filters, seed):
    """Return the feature maps of all levels, finest first."""
    maps = [image]
    for level, level_filters in enumerate(filters, start=1):
        maps.append(encoder_level(maps[-1], rank, level_filters, level, seed))
    return maps[1:]


def _join_image(x, image, rank, seed):
    """Give the synthesis head the image itself, because normalisation removes absolute intensities."""
    x = layers.Concatenate(name="synthesis_skip")([x, image])
    return convolution(rank, SYNTHESIS_FILTERS, 1, "synthesis_hidden", seed, activation="relu")(x)


def _output(x, rank, head, channels, seed):
    # float32 even under mixed precision: half-precision probabilities would round the loss and its gradient.
    x = convolution(rank, channels, 1, f"{head}_conv", seed, dtype="float32")(x)
    return layers.Activation(OUTPUT_ACTIVATIONS[head], dtype="float32", name=head)(x)


def _output_channels(head, outputs, image_shape):
    if outputs is None and head == "reconstruction":
        return image_shape[-1]
    smallest = 2 if head == "segmentation" else 1
    if outputs is None or outputs < smallest:
        raise InputError(f"network: head '{head}' needs outputs of at least {smallest}, not {outputs}")
    return outputs


def _check(image_shape, rank, filters):
    _check_choice("rank", rank, (2, 3))
    if len(image_shape) != rank + 1:
        raise InputError(f"network: image shape {tuple(image_shape)} must have {rank} sizes and the contrasts")
    if len(filters) < 2:
        raise InputError(f"network.filters: {tuple(filters)} must name at least two levels")
    divisor = 2 ** (len(filters) - 1)
    sizes = tuple(image_shape[:-1])
    if any(size is None or size % divisor for size in sizes):
        nearest = tuple(divisor * max(1, round((size or divisor) / divisor)) for size in sizes)
        raise InputError(
            f"network: image size {sizes} must be divisible by {divisor} ({len(filters)} levels in network.filters); "
            f"use {nearest} or fewer levels"
        )


def _check_patches(sizes, patch_size):
    if patch_size < 1 or any(size % patch_size for size in sizes):
        raise InputError(f"network: patch size {patch_size} must divide the feature map {tuple(sizes)} of the decoder")


def _check_choice(what, value, choices):
    if value not in choices:
        raise InputError(f"network: {what} is {value!r}; choose from {', '.join(map(repr, choices))}")
