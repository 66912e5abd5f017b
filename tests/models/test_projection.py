"""Projection heads of patches against numpy: mean or concatenation, group normalisation, position."""

import keras
import numpy as np
import pytest
from keras import ops

from models.projection import project_patches
from models.unet import build_unet
from models.weights import transfer, weights_of
from utils.checks import InputError


def normalised_by_hand(x, groups, gamma, beta, epsilon=1e-3):
    """Group normalisation of `(B, ..., F)` over all pixels of an image and the channels of a group."""
    result = np.empty_like(x)
    size = x.shape[-1] // groups
    for image in range(len(x)):
        for first in range(0, x.shape[-1], size):
            part = x[image, ..., first : first + size]
            result[image, ..., first : first + size] = (part - part.mean()) / np.sqrt(part.var() + epsilon)
    return result * gamma + beta


def projected_by_hand(x, model, patch_size, representation, is_normalised):
    x = x.astype("float64")
    sizes = x.shape[1:-1]
    (kernel_1, *bias_1), (kernel_2, *bias_2) = (
        model.get_layer(f"projection_conv_{number}").get_weights() for number in (1, 2)
    )
    assert bool(bias_1) == bool(bias_2) == (not is_normalised)
    x = x @ kernel_1.reshape(x.shape[-1], -1) + (bias_1 or [0])[0]
    if is_normalised:
        x = normalised_by_hand(x, x.shape[-1] // 4, *model.get_layer("projection_norm_1").get_weights())
    x = np.maximum(x, 0) @ kernel_2.reshape(x.shape[-1], -1) + (bias_2 or [0])[0]
    patches = []
    for corner in np.ndindex(*(size // patch_size for size in sizes)):
        patch = x[(slice(None), *(slice(patch_size * i, patch_size * (i + 1)) for i in corner))]
        pixels = patch.reshape(len(x), -1, x.shape[-1])
        patches.append(pixels.mean(axis=1) if representation == "mean" else pixels.reshape(len(x), -1))
    return np.stack(patches, axis=1)


@pytest.mark.parametrize("size", [(4, 6), (4, 2, 6)])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("representation", ["mean", "concatenation"])
@pytest.mark.parametrize("is_normalised", [False, True])
def test_representations_equal_the_reference(size, patch_size, representation, is_normalised):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, *size, 3)).astype("float32")
    image = keras.Input((*size, 3))
    options = {"patch_representation": representation, "head_normalization": is_normalised}
    model = keras.Model(image, project_patches(image, 8, patch_size, 5, **options))
    for layer in model.layers:  # biases, scales and shifts start at 0 and 1, which would hide mistakes
        layer.set_weights([w + generator.normal(scale=0.3, size=w.shape) for w in layer.get_weights()])
    expected = projected_by_hand(x, model, patch_size, representation, is_normalised)
    found = ops.convert_to_numpy(model(x))
    assert found.dtype == np.float32 and model.output_shape == (None, *expected.shape[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_head_of_the_authors_leaves_the_rest_of_the_network_as_it_is():
    plain = build_unet((16, 16, 1), filters=(4, 8), head="projection", patch_size=4, features=8, seed=3)
    options = {"patch_representation": "concatenation", "head_normalization": True}
    other = build_unet((16, 16, 1), filters=(4, 8), head="projection", patch_size=4, features=8, seed=3, **options)
    arrays = weights_of(other)
    assert other.output_shape == (None, 16, 128)
    for name, values in weights_of(plain).items():
        assert name.startswith("projection_") or np.array_equal(arrays[name], values)
    target = build_unet((16, 16, 1), filters=(4, 8), outputs=2, seed=9)
    assert not [name for name in transfer(arrays, target).left if not name.startswith("segmentation_")]


def test_impossible_heads_are_refused():
    with pytest.raises(InputError, match="choose 'mean' or 'concatenation'"):
        build_unet((16, 16, 1), filters=(4, 8), head="projection", patch_representation="sum")
    with pytest.raises(InputError, match="head_normalization: for the head 'projection' only, not 'segmentation'"):
        build_unet((16, 16, 1), filters=(4, 8), outputs=2, head_normalization=True)
