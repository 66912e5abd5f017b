"""Gradient checkpointing by levels: less memory per training step, for computing every level twice."""

import re

import keras

from utils.checks import InputError


def rematerialised(network):
    """Let a network keep only the inputs of its levels for the backward pass, and compute the rest again there.

    A level is one of the encoder, one of the decoder, or the head. The values of the largest one still exist at once:
    in three dimensions that is the last decoder level, whose maps are as large as the image.

    Args:
        network: A model of `build_unet` or `build_encoder`. Its layers must neither draw random numbers nor change
            state, which the second computation would repeat.

    Returns:
        Function `(image, training=None) -> output` of the same values and gradients, on the network's own layers. On
        JAX it saves nothing on a CPU, where XLA merges the second computation with the first.

    Raises:
        InputError: For a network that is not built of levels.

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
    """Return the head that sees the image as well, layer by layer: as a `keras.Model` it would change the network."""
    layers = [layer for layer in network.layers if layer.name.startswith("synthesis")]

    def call(maps, training=None):
        x = layers[0](list(maps))
        for layer in layers[1:]:
            x = layer(x)
        return x

    return call if layers else None


def _compute(level, training, *maps):
    """Apply a level to feature maps and remember these alone."""

    # A new function each time: JAX would answer for a known one with the weights that it had before. `training` is no
    # argument of it: TensorFlow takes no keyword arguments there, and as a tensor it would be no Python value.
    def compute(*maps):
        return level(maps if len(maps) > 1 else maps[0], training=training)

    return keras.remat(compute)(*maps)


def _ends_of_levels(network, half):
    """Return the outputs of the levels of one half of the network, in the order of their numbers."""
    ends = {}
    for layer in network.layers:
        if match := re.fullmatch(rf"{half}_(\d+)_relu_2", layer.name):
            ends[int(match[1])] = layer.output
    return [ends[level] for level in sorted(ends)]
