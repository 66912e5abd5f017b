"""Networks as files: reading from a model folder, and plain Keras models that load without this suite.

The suite's networks differ from plain Keras only in how initial weights are drawn (`models.blocks.HeNormal`), which
is irrelevant once they have trained weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from models.unet import build_encoder, build_unet
from models.weights import DAMAGE, load_weights, transfer
from utils.checks import InputError
from utils.model_description import ModelDescription
from utils.runs import atomic_path
from utils.work_dir import WEIGHTS

NETWORK = "model.keras"
AGAIN = "export the model again"
UNREADABLE: tuple[type[Exception], ...] = (*DAMAGE, KeyError, ImportError)


def load_network(folder: Path, model: ModelDescription) -> keras.Model:
    """Load the finetuned network of a model folder: model.keras if it was exported, otherwise weights.npz of a cell.

    Args:
        folder: The model folder.
        model: Description of the network.

    Returns:
        A `keras.Model` from images `(B, H, W[, D], C)` to `(B, H, W[, D], K)`: probabilities of background and
        classes, or synthesised contrasts.

    Raises:
        InputError: The file is missing or corrupt, would run code of its own, or holds a different network.
    """
    size, head = model.input_size, model.head()
    shape = (*size, len(model.contrasts))
    if (folder / NETWORK).is_file():
        network = read_keras(folder / NETWORK)
        _check_shapes(folder / NETWORK, network, (None, *shape), (None, *size, head["outputs"]))
        return network
    network = build_unet(shape, filters=model.filters, **head)
    load_weights(network, folder / WEIGHTS)
    return network


def read_keras(path: Path) -> keras.Model:
    """Read a .keras file without running code from it (Keras' `safe_mode`)."""
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except UNREADABLE as error:
        # Keras states the error in the first line, and what it was reading in the others.
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(f"{path}: cannot be read as a Keras model ({reason[:200]}); {AGAIN}") from None


def write_keras(network: keras.Model, path: Path) -> None:
    """Write a .keras file atomically."""
    with atomic_path(path) as temporary:
        network.save(temporary)


def portable(network: keras.Model, image_shape: Sequence[int | None] | None = None) -> keras.Model:
    """Copy a network into layers that Keras alone can load, keeping layer names and weights.

    Args:
        network: A `keras.Model` of `models.unet` with one input.
        image_shape: Shape of the images, `(H, W[, D], C)`; None keeps that of the network. Sizes may be None where the
            network is to accept any that its levels can halve.

    Returns:
        A `keras.Model`.
    """
    image = keras.Input(image_shape or network.input_shape[1:], name="image")
    copy = keras.models.clone_model(network, input_tensors=image, clone_function=_plain_layer)
    copy.set_weights(network.get_weights())
    return copy


def mean_of(networks: Sequence[keras.Model]) -> keras.Model:
    """Combine networks of the same shape into one that averages their outputs.

    Args:
        networks: `keras.Model`s with the same input and output shape; from `portable` if the mean is to be portable.

    Returns:
        A `keras.Model`, with each network as a layer `member_<number>`; the network itself if there is only one.
    """
    if len(networks) == 1:
        return networks[0]
    image = keras.Input(networks[0].input_shape[1:], name="image")
    members = [keras.Model(n.input, n.output, name=f"member_{number}") for number, n in enumerate(networks, start=1)]
    return keras.Model(image, keras.layers.Average(name="mean")([member(image) for member in members]), name="ensemble")


def pretrained_encoder(
    arrays: Mapping[str, np.ndarray], channels: int, *, rank: int, filters: Sequence[int]
) -> keras.Model:
    """Build an encoder from pretrained weights, for use in networks of any kind.

    Args:
        arrays: Dict from `layer/variable` to array, from `models.weights.read_weights`.
        channels: Number C of input channels it was pretrained with.
        rank: 2 for images, 3 for volumes.
        filters: Channels of each level, finest first.

    Returns:
        A plain `keras.Model` from images `(B, H, W[, D], C)` of any size that its levels can halve to the list of the
        feature maps of all levels, finest first: level n is smaller than the image by 2**(n - 1) along each axis.

    Raises:
        InputError: The weights belong to a different network.
    """
    size = 2 ** (len(filters) - 1)
    network = build_encoder((*[size] * rank, channels), rank=rank, filters=filters, head=None)
    transfer(arrays, network)
    levels = [network.get_layer(f"encoder_{level}_relu_2").output for level in range(1, len(filters) + 1)]
    encoder = keras.Model(network.input, levels, name="encoder")
    return portable(encoder, (*(None,) * rank, channels))


def _plain_layer(layer):
    settings = layer.get_config()
    if "kernel_initializer" in settings:
        settings["kernel_initializer"] = "zeros"  # known to Keras, and fast
    return type(layer).from_config(settings)


def _check_shapes(path, network, image_shape, output_shape):
    for what, found, expected in (
        ("takes", network.input_shape, image_shape),
        ("gives", network.output_shape, output_shape),
    ):
        if tuple(found) != tuple(expected):
            raise InputError(f"{path}: the network {what} {found}, but model.json describes {expected}; {AGAIN}")
