"""Projection heads: layers of the pretraining networks that finetuning discards."""

import keras
from keras import layers

from models.blocks import HeNormal, convolution, groups_of
from utils.checks import InputError
from utils.runs import child_seed


def project_image(x: keras.KerasTensor, features: int, seed: int) -> keras.KerasTensor:
    """Project a feature map to one representation per image: global average, then a two-layer MLP.

    Args:
        x: Feature map, `(B, h, w[, d], channels)`.
        features: Length F of a representation.
        seed: Integer seed of the network.

    Returns:
        Representations, `(B, F)` float32, not normalised: the loss does that.

    Reference:
        Chen et al., ICML 2020 (SimCLR), Sec. 2.1; the authors' code flattens the map instead of averaging it.
    """
    rank, channels = len(x.shape) - 2, x.shape[-1]
    x = {2: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling3D}[rank](name="projection_average")(x)
    for number, (units, activation) in enumerate(((channels, "relu"), (features, None)), start=1):
        name = f"projection_dense_{number}"
        x = layers.Dense(units, activation, kernel_initializer=HeNormal(child_seed(seed, name)), name=name)(x)
    return layers.Activation("linear", dtype="float32", name="projection")(x)


def project_patches(
    x: keras.KerasTensor,
    features: int,
    patch_size: int,
    seed: int,
    *,
    patch_representation: str = "mean",
    head_normalization: bool = False,
) -> keras.KerasTensor:
    """Project a feature map to one representation per patch, patches in row-major order.

    Args:
        x: Feature map, `(B, H, W[, D], channels)`.
        features: Length F of the representation of a pixel.
        patch_size: Edge of a patch in pixels of the feature map; 1 makes every pixel a patch.
        seed: Integer seed of the network.
        patch_representation: `"mean"` over the pixels of a patch, or their `"concatenation"` in row-major order.
        head_normalization: Normalise in groups between the two convolutions, which then have no bias.

    Returns:
        Representations, `(B, P, F)` float32, not normalised: the loss does that. Concatenated, a patch of n pixels has
        n F values.

    Raises:
        InputError: An unknown representation.

    Reference:
        Umapathy et al. 2024; the authors' code concatenates and normalises.
    """
    if patch_representation not in ("mean", "concatenation"):
        raise InputError(f"patch_representation is {patch_representation!r}; choose 'mean' or 'concatenation'")
    rank = len(x.shape) - 2
    if head_normalization:
        x = convolution(rank, features, 1, "projection_conv_1", seed, use_bias=False)(x)
        x = layers.GroupNormalization(groups_of(features), name="projection_norm_1")(x)
        x = layers.ReLU(name="projection_relu_1")(x)
    else:
        x = convolution(rank, features, 1, "projection_conv_1", seed, activation="relu")(x)
    if patch_size > 1 and patch_representation == "mean":
        # Averaging before the last convolution equals averaging after it (both are linear), at 1/16 of the cost.
        pool = {2: layers.AveragePooling2D, 3: layers.AveragePooling3D}[rank]
        x = pool(patch_size, dtype="float32", name="projection_average")(x)
    x = convolution(rank, features, 1, "projection_conv_2", seed, use_bias=not head_normalization)(x)
    if patch_size > 1 and patch_representation == "concatenation":
        x, features = _side_by_side(x, rank, patch_size), features * patch_size**rank
    return layers.Reshape((-1, features), dtype="float32", name="projection")(x)


def _side_by_side(x, rank, patch_size):
    """Gather the pixels of each patch, `(B, h, w[, d], edge, edge[, edge], F)`."""
    *sizes, features = x.shape[1:]
    split = [part for size in sizes for part in (size // patch_size, patch_size)]
    x = layers.Reshape((*split, features), name="projection_split")(x)
    order = (*range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)  # patches first, then their pixels
    return layers.Permute(order, name="projection_concatenation")(x)
