"""Networks as plain PyTorch: the weights in its layout, and the file that computes with them without Keras."""

import importlib.util
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from models.blocks import groups_of
from utils.checks import InputError
from utils.runs import atomic_path

SOURCE = Path(__file__).with_name("unet_torch.py")  # exported unchanged
MODULE = "unet.py"
EPSILON = 1e-3  # of group normalisation in that file
WITHOUT_WEIGHTS = (
    layers.InputLayer, layers.ReLU, layers.Activation, layers.Concatenate, layers.Average,
    layers.MaxPooling2D, layers.MaxPooling3D, layers.UpSampling2D, layers.UpSampling3D,
)  # fmt: skip


def torch_weights(network: keras.Model) -> dict[str, np.ndarray]:
    """Return the weights of a network as PyTorch names and orders them.

    Kernels `(height, width[, depth], inputs, filters)` become `(filters, inputs, height, width[, depth])`.

    Args:
        network: From `models.unet`, with the head `segmentation`, `reconstruction`, `synthesis` or none; or from
            `models.portable`: a copy, an encoder with all its levels, or several networks averaged.

    Returns:
        Dict from `<layer>.weight` or `<layer>.bias` to float32 array, in the order of the layers; names in an ensemble
        begin with `member_<number>.`.

    Raises:
        InputError: The network has a layer that `unet_torch.py` does not have, such as a projection head.
    """
    found: dict[str, np.ndarray] = {}
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            found |= {f"{layer.name}.{name}": array for name, array in torch_weights(layer).items()}
        elif isinstance(layer, layers.Conv2D | layers.Conv3D) and not layer.name.startswith("projection"):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            found[f"{layer.name}.weight"] = np.moveaxis(kernel, (-1, -2), (0, 1))
            found[f"{layer.name}.bias"] = keras.ops.convert_to_numpy(layer.bias)
        elif isinstance(layer, layers.GroupNormalization) and _is_known_norm(layer):
            found[f"{layer.name}.weight"] = keras.ops.convert_to_numpy(layer.gamma)
            found[f"{layer.name}.bias"] = keras.ops.convert_to_numpy(layer.beta)
        elif not isinstance(layer, WITHOUT_WEIGHTS):
            raise InputError(f"--formats torch: {MODULE} has no layer like '{layer.name}' ({type(layer).__name__})")
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def _is_known_norm(layer):
    return (layer.groups, layer.epsilon) == (groups_of(layer.gamma.shape[0]), EPSILON)


def write_torch(network: keras.Model, path: Path) -> None:
    """Write the state dict of a network, and beside it `unet.py`, which loads it. Needs torch.

    Args:
        network: As for `torch_weights`.
        path: The .pt file.
    """
    import torch

    state = {name: torch.from_numpy(array) for name, array in torch_weights(network).items()}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
    with atomic_path(path.with_name(MODULE)) as temporary:
        temporary.write_text(SOURCE.read_text(encoding="utf-8"), encoding="utf-8")


def run_torch(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """Run an exported network from its files alone. Needs torch.

    Args:
        path: The .pt file, with `unet.py` beside it.
        images: `(B, H, W[, D], C)` float32, as for Keras.

    Returns:
        List of outputs with the channels last: one, or the features of all levels of an encoder.
    """
    import torch

    with torch.no_grad():
        outputs = module_beside(path).load(path)(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
    return [np.moveaxis(one.numpy(), 1, -1) for one in (outputs if isinstance(outputs, list) else [outputs])]


def module_beside(path: Path) -> Any:
    """Import the `unet.py` beside a .pt file, under a name that no other module has."""
    spec = importlib.util.spec_from_file_location(f"unet_beside_{path.stem}", path.with_name(MODULE))
    if spec is None or spec.loader is None:
        raise InputError(f"{path.with_name(MODULE)}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
