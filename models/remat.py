"""Gradient checkpointing by level: less memory per training step, at the cost of computing every level twice."""

import re
from collections.abc import Callable

import keras

from utils.checks import InputError


def rematerialised(network: keras.Model) -> Callable:
    """Make a network store only the inputs of its levels for the backward pass, and recompute the rest there.

    A level is one of the encoder, one of the decoder, or the head. All activations of the largest level
    are still in memory at once: in three dimensions the last decoder level, whose maps are as large as the image.

    Args:
        network: A model of `build_unet` or `build_encoder`. Its layers must neither draw random numbers nor change
            state, because the second computation would do so again.

    Returns:
        Function `(image, training=None) -> output` with the same values and gradients, on the same layers. With
        JAX on a CPU it saves nothing, because XLA merges the second computation with the first.

    Raises:
        InputError: For a network that does not consist of levels.

    Reference:
        Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    encoder_maps, decoder_maps = _ends_of_levels(network, "encoder"), _ends_of_levels(network, "decoder")
    if not encoder_maps:
        raise InputError(
            f"network '{network.name}' has no layer encoder_1_relu_2; rematerialisation needs a network of build_unet "
            "or build_encoder"
        )
    maps = [network.input, *encoder_maps]
    encoder = [keras.Model(before, after) for before, after in zip(maps[:-1], maps[1:], strict=True)]
    decoder = []
    for level, after in enumerate(decoder_maps, start=1):
        before = decoder_maps[level - 2] if level > 1 else encoder_maps[-1]
        decoder.append(keras.Model([before, encoder_maps[-1 - level]], after))
    last = (encoder_maps + decoder_maps)[-1]
    synthesis = _synthesis_head(network)
    head = [] if synthesis or network.output is last else [keras.Model(last, network.output)]

    def call(image, training=None):
        image = keras.ops.convert_to_tensor(image)
        maps = [image]
        for level in encoder:
            maps.append(_compute(level, training, maps[-1]))
        *skips, x = maps[1:]
        for level in decoder:
            x = _compute(level, training, x, skips.pop())
        for level in head:
            x = _compute(level, training, x)
        return _compute(synthesis, training, x, image) if synthesis else x

    return call


def _synthesis_head(network):
    """Return the head that also receives the image, layer by layer: a `keras.Model` would change the network."""
    layers = [layer for layer in network.layers if layer.name.startswith("synthesis")]

    def call(maps, training=None):
        x = layers[0](list(maps))
        for layer in layers[1:]:
            x = layer(x)
        return x

    return call if layers else None


def _compute(level, training, *maps):
    """Apply a level to feature maps and store nothing but these inputs."""

    # A new function each time: given the same one again, JAX would use the previous weights. `training` is no argument,
    # because TensorFlow accepts no keyword arguments there, and as a tensor it would not be a Python value.
    def compute(*maps):
        return level(maps if len(maps) > 1 else maps[0], training=training)

    return keras.remat(compute)(*maps)


def _ends_of_levels(network, half):
    """Return the outputs of the levels of one half of the network, in order."""
    ends = {}
    for layer in network.layers:
        if match := re.fullmatch(rf"{half}_(\d+)_relu_2", layer.name):
            ends[int(match[1])] = layer.output
    return [ends[level] for level in sorted(ends)]
