"""Building blocks of the U-Net, for images (rank 2) and volumes (rank 3) alike."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers

from utils.runs import child_seed

CHANNELS_PER_GROUP = 4  # authors' code: filters // 4 groups; keeps several groups even with 16 filters


@keras.saving.register_keras_serializable(package="mrccl")
class HeNormal(keras.initializers.Initializer):
    """Normal weights of variance 2 / fan-in, drawn by numpy and therefore the same on every Keras backend.

    Args:
        seed: Integer; every layer needs its own seed.

    Reference:
        He et al., ICCV 2015, Eq. 10. Not truncated, unlike the Keras initializer of that name (ours).
    """

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        """Draw a kernel whose last axis counts the filters, `(..., inputs, filters)`."""
        deviation = math.sqrt(2 / math.prod(shape[:-1]))
        values = np.random.default_rng(self.seed).normal(scale=deviation, size=shape)
        return keras.ops.convert_to_tensor(values.astype("float32"), dtype=dtype)

    def get_config(self):
        """Return the arguments that rebuild this initializer."""
        return {"seed": self.seed}


def convolution(rank: int, filters: int, kernel_size: int, name: str, seed: int, **options: Any) -> layers.Layer:
    """Build a convolution that keeps the image size and has its own initial weights.

    Args:
        rank: 2 for images, 3 for volumes.
        filters: Number of output channels.
        kernel_size: Edge of the kernel in pixels.
        name: Layer name; with `seed` it determines the initial kernel.
        seed: Integer seed of the network.
        **options: Further arguments of the Keras layer.
    """
    layer = {2: layers.Conv2D, 3: layers.Conv3D}[rank]
    initializer = HeNormal(child_seed(seed, name))
    return layer(filters, kernel_size, padding="same", kernel_initializer=initializer, name=name, **options)


def groups_of(filters: int) -> int:
    """Return the number of normalisation groups: four channels each, if four divides the number of filters."""
    return math.gcd(filters, max(1, filters // CHANNELS_PER_GROUP))


def conv_norm_relu(
    x: keras.KerasTensor, rank: int, filters: int, kernel_size: int, part: str, seed: int, number: int | None = None
) -> keras.KerasTensor:
    """Apply convolution, group normalisation and ReLU.

    Groups hold four channels each as in the authors' code: group statistics do not depend on the batch size (Wu and
    He, ECCV 2018), and the usual 32 groups would leave the 16 filters of the first level without any.

    Args:
        x: Feature map, `(B, H, W[, D], channels)`.
        rank: 2 or 3.
        filters: Number of output channels.
        kernel_size: Edge of the kernel in pixels.
        part: Prefix of the layer names, such as `encoder_3`.
        seed: Integer seed of the network.
        number: Which convolution of its level this is; None for the one after upsampling, named `<part>_up`.

    Returns:
        Feature map, `(B, H, W[, D], filters)`.
    """
    conv, norm, relu = (
        (f"{part}_conv_{number}", f"{part}_norm_{number}", f"{part}_relu_{number}")
        if number
        else (f"{part}_up", f"{part}_up_norm", f"{part}_up_relu")
    )
    x = convolution(rank, filters, kernel_size, conv, seed)(x)
    x = layers.GroupNormalization(groups_of(filters), name=norm)(x)
    return layers.ReLU(name=relu)(x)


def encoder_level(x: keras.KerasTensor, rank: int, filters: int, level: int, seed: int) -> keras.KerasTensor:
    """Apply one level of the encoder: halve the size (not at level 1), then two 3 x 3 convolutions."""
    part = f"encoder_{level}"
    if level > 1:
        x = {2: layers.MaxPooling2D, 3: layers.MaxPooling3D}[rank](2, name=f"{part}_pool")(x)
    for number in (1, 2):
        x = conv_norm_relu(x, rank, filters, 3, part, seed, number)
    return x


def decoder_level(
    x: keras.KerasTensor, skip: keras.KerasTensor, rank: int, filters: int, level: int, seed: int
) -> keras.KerasTensor:
    """Apply one level of the decoder: double the size, append the encoder's features of that size, convolve twice.

    The convolution after upsampling is 2 x 2 (Ronneberger et al., MICCAI 2015; authors' code).
    """
    part = f"decoder_{level}"
    x = {2: layers.UpSampling2D, 3: layers.UpSampling3D}[rank](2, name=f"{part}_upsample")(x)
    x = conv_norm_relu(x, rank, filters, 2, part, seed)
    x = layers.Concatenate(name=f"{part}_skip")([x, skip])
    for number in (1, 2):
        x = conv_norm_relu(x, rank, filters, 3, part, seed, number)
    return x
