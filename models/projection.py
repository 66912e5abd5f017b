"""Projection heads: layers of the pretraining networks that finetuning throws away."""

from keras import layers

from models.blocks import HeNormal, convolution
from utils.runs import child_seed


def project_image(x, rank, features, seed):
    """Project a feature map to one representation per image: global average, then a two-layer MLP.

    Args:
        x: Feature map, `(B, h, w[, d], channels)`.
        rank: 2 or 3.
        features: Length F of a representation.
        seed: Integer seed of the network.

    Returns:
        Representations, `(B, F)` float32, not normalised: the loss does that.

    Reference:
        Chen et al., ICML 2020 (SimCLR), Sec. 2.1; the authors' code flattens the map instead of averaging it.
    """
    channels = x.shape[-1]
    x = {2: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling3D}[rank](name="projection_average")(x)
    for number, (units, activation) in enumerate(((channels, "relu"), (features, None)), start=1):
        name = f"projection_dense_{number}"
        x = layers.Dense(units, activation, kernel_initializer=HeNormal(child_seed(seed, name)), name=name)(x)
    return layers.Activation("linear", dtype="float32", name="projection")(x)


def project_patches(x, rank, features, patch_size, seed):
    """Project a feature map to one representation per patch, patches in row-major order.

    Args:
        x: Feature map, `(B, H, W[, D], channels)`.
        rank: 2 or 3.
        features: Length F of a representation.
        patch_size: Edge of a patch in pixels of the feature map; 1 makes every pixel a patch.
        seed: Integer seed of the network.

    Returns:
        Representations, `(B, P, F)` float32, not normalised: the loss does that.

    Reference:
        Umapathy et al. 2024; the authors' code concatenates the pixels of a patch where this averages them.
    """
    x = convolution(rank, features, 1, "projection_conv_1", seed, activation="relu")(x)
    if patch_size > 1:
        # Averaging before the last convolution gives what averaging after it would (both are linear), at 1/16 the cost.
        pool = {2: layers.AveragePooling2D, 3: layers.AveragePooling3D}[rank]
        x = pool(patch_size, dtype="float32", name="projection_average")(x)
    x = convolution(rank, features, 1, "projection_conv_2", seed)(x)
    return layers.Reshape((-1, features), dtype="float32", name="projection")(x)
