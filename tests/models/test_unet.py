import itertools

import keras
import numpy as np
import pytest
from keras import ops

from models.unet import build_encoder, build_unet, feature_levels
from models.weights import weights_of
from utils.checks import InputError
from utils.runs import child_seed

SMALL = (4, 8, 8)
SHAPES = {2: (16, 24, 2), 3: (16, 24, 8, 2)}  # not cubic, and thinner along the depth
both_ranks = pytest.mark.parametrize("rank", [2, 3])


def images(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype("float32")


def output(model, seed=0):
    return ops.convert_to_numpy(model(images(model.input_shape[1:], seed)))


def weighted_layers(model):
    return [layer.name for layer in model.layers if layer.weights]


@pytest.mark.parametrize(
    ("rank", "options", "shape"),
    [
        (2, {"head": "segmentation", "outputs": 3}, (2, 16, 24, 3)),
        (2, {"head": "synthesis", "outputs": 1}, (2, 16, 24, 1)),
        (2, {"head": "reconstruction"}, (2, 16, 24, 2)),
        (2, {"head": None}, (2, 16, 24, 4)),
        (2, {"head": None, "decoder_levels": 1}, (2, 8, 12, 8)),
        (2, {"head": "projection", "patch_size": 4, "features": 5}, (2, 4 * 6, 5)),
        (2, {"head": "projection", "decoder_levels": 1, "features": 5}, (2, 8 * 12, 5)),
        (3, {"head": "segmentation", "outputs": 3}, (2, 16, 24, 8, 3)),
        (3, {"head": "synthesis", "outputs": 1}, (2, 16, 24, 8, 1)),
        (3, {"head": "reconstruction"}, (2, 16, 24, 8, 2)),
        (3, {"head": None}, (2, 16, 24, 8, 4)),
        (3, {"head": None, "decoder_levels": 1}, (2, 8, 12, 4, 8)),
        (3, {"head": "projection", "patch_size": 4, "features": 5}, (2, 4 * 6 * 2, 5)),
        (3, {"head": "projection", "decoder_levels": 1, "features": 5}, (2, 8 * 12 * 4, 5)),
    ],
)
def test_output_shape_of_every_head(rank, options, shape):
    model = build_unet(SHAPES[rank], rank=rank, filters=SMALL, **options)
    found = output(model)
    assert found.shape == shape
    assert np.isfinite(found).all()
    if options["head"] == "segmentation":
        np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


@both_ranks
def test_encoder_gives_one_representation_per_image(rank):
    assert output(build_encoder(SHAPES[rank], rank=rank, filters=SMALL, features=6)).shape == (2, 6)
    deepest = output(build_encoder(SHAPES[rank], rank=rank, filters=SMALL, head=None))
    assert deepest.shape == (2, *(4, 6, 2)[:rank], 8)


@both_ranks
def test_every_size_of_a_volume_counts(rank):
    # A single bright pixel keeps its position in the output: no axis is swapped, cropped or reversed.
    model = build_unet(SHAPES[rank], rank=rank, filters=(4, 8), decoder_levels=1, head=None)
    image = np.zeros((1, *SHAPES[rank]), "float32")
    place = (3, 21, 6)[:rank]
    dark = ops.convert_to_numpy(model(image))
    image[(0, *place)] = 50.0
    change = np.abs(ops.convert_to_numpy(model(image)) - dark).max(axis=-1)[0]
    assert np.max(np.abs(np.subtract(np.unravel_index(change.argmax(), change.shape), place))) <= 2


def test_default_network_has_the_levels_of_the_papers_and_images_need_not_be_square():
    model = build_unet((32, 64, 1), outputs=2)
    assert model.output_shape == (None, 32, 64, 2)
    assert [model.get_layer(f"encoder_{level}_conv_2").filters for level in range(1, 7)] == [16, 32, 64, 128, 128, 128]
    assert [model.get_layer(f"decoder_{level}_conv_2").filters for level in range(1, 6)] == [128, 128, 64, 32, 16]
    assert model.get_layer("encoder_1_norm_1").groups == 4


def test_names_of_levels_and_parts():
    expected = [f"encoder_{level}_{part}_{i}" for level in (1, 2) for i in (1, 2) for part in ("conv", "norm")]
    expected += ["decoder_1_up", "decoder_1_up_norm"]
    expected += [f"decoder_1_{part}_{i}" for i in (1, 2) for part in ("conv", "norm")]
    assert weighted_layers(build_unet((4, 4, 1), filters=(4, 8), outputs=2)) == [*expected, "segmentation_conv"]


@both_ranks
def test_the_block_of_the_head_is_one_more_convolution_and_changes_nothing_else(rank):
    shape, options = (8,) * rank + (1,), {"rank": rank, "filters": (4, 8), "outputs": 3}
    plain, more = build_unet(shape, **options), build_unet(shape, head_block=True, **options)
    added = [layer for layer in more.layers if layer.name not in {one.name for one in plain.layers}]
    assert [layer.name for layer in added] == [f"segmentation_block_{part}_1" for part in ("conv", "norm", "relu")]
    assert tuple(added[0].kernel.shape) == (3,) * rank + (4, 4)
    for layer in plain.layers:
        for one, two in zip(layer.weights, more.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(one, two)


@both_ranks
def test_a_partial_decoder_is_the_deep_part_of_the_full_one(rank):
    full, partial = (
        build_unet(SHAPES[rank], rank=rank, filters=(4, 8, 8, 8), decoder_levels=levels, head=None)
        for levels in (None, 2)
    )
    names = weighted_layers(partial)
    assert set(names) < set(weighted_layers(full))
    assert [name for name in weighted_layers(full) if name not in names][0] == "decoder_3_up"
    # The same seed gives the same weights, so the partial decoder equals the first part of the full one.
    half_way = keras.Model(full.input, full.get_layer("decoder_2_relu_2").output)
    np.testing.assert_allclose(output(partial), output(half_way), rtol=1e-5, atol=1e-6)


@both_ranks
def test_patches_are_averages_in_row_major_order(rank):
    shape = (8, 4, 6)[:rank] + (1,)
    options = {"rank": rank, "filters": (4, 8)}
    features = output(build_unet(shape, head=None, **options)).astype("float64")
    model = build_unet(shape, head="projection", features=3, patch_size=2, **options)
    (kernel_1, bias_1), (kernel_2, bias_2) = (model.get_layer(f"projection_conv_{i}").get_weights() for i in (1, 2))
    pixels = np.maximum(features @ kernel_1.reshape(-1, 3) + bias_1, 0) @ kernel_2.reshape(3, 3) + bias_2
    expected = []
    for corner in np.ndindex(*(size // 2 for size in shape[:rank])):
        patch = pixels[(slice(None), *(slice(2 * i, 2 * i + 2) for i in corner))]
        expected.append(patch.reshape(2, -1, 3).mean(axis=1))
    np.testing.assert_allclose(output(model), np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)


def random_numbers(model):
    """Return the standard normal numbers from which the start of every kernel was made."""
    kernels = [array for key, array in weights_of(model).items() if key.endswith("kernel")]
    return [array.ravel()[:8] / np.sqrt(2 / np.prod(array.shape[:-1])) for array in kernels]


@pytest.mark.parametrize(
    ("build", "options", "layers"),
    [
        (build_unet, {"rank": 2, "outputs": 2}, 28),
        (build_unet, {"rank": 2, "head": "projection"}, 29),
        (build_encoder, {"rank": 2}, 14),
        (build_unet, {"rank": 3, "filters": (4, 8, 8, 8), "outputs": 2}, 18),
        (build_unet, {"rank": 3, "filters": (4, 8, 8, 8), "head": "projection"}, 19),
        (build_encoder, {"rank": 3, "filters": (4, 8, 8, 8)}, 10),
    ],
)
def test_no_two_layers_start_with_equal_kernels(build, options, layers):
    numbers = random_numbers(build((32,) * options["rank"] + (1,), **options))
    assert len(numbers) == layers
    for one, other in itertools.combinations(numbers, 2):
        # If layers of different sizes shared random numbers, they would differ only by a factor.
        assert not np.allclose(one, other, rtol=1e-3)


def test_initial_kernels_come_from_numpy_and_the_layer_name_alone():
    kernel = weights_of(build_unet((8, 8, 2), filters=SMALL, outputs=2, seed=7))["encoder_2_conv_1/kernel"]
    generator = np.random.default_rng(child_seed(7, "encoder_2_conv_1"))
    np.testing.assert_array_equal(kernel, generator.normal(scale=np.sqrt(2 / 36), size=(3, 3, 4, 8)).astype("float32"))


def test_one_seed_gives_one_network_and_another_seed_another():
    first, same, other = (weights_of(build_unet((8, 8, 1), filters=SMALL, outputs=2, seed=s)) for s in (1, 1, 2))
    for key in first:
        np.testing.assert_array_equal(first[key], same[key])
        if key.endswith("kernel"):
            assert not np.array_equal(first[key], other[key])


def test_a_saved_architecture_rebuilds_the_same_network():
    model = build_unet((8, 8, 1), filters=SMALL, outputs=2, seed=3)
    again = keras.models.model_from_json(model.to_json())
    np.testing.assert_array_equal(output(model), output(again))


@both_ranks
def test_signal_keeps_its_size_through_the_network(rank):
    model = build_unet((16,) * rank + (2,), rank=rank, filters=(16, 32, 64), head=None)
    assert 0.1 < output(model).std() < 3


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_outputs_are_float32_whatever_the_precision(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        models = [
            build_unet((8, 8, 1), filters=SMALL, outputs=3),
            build_unet((8, 8, 1), filters=SMALL, head="projection"),
            build_encoder((8, 8, 1), filters=SMALL),
            build_unet((8, 8, 4, 1), rank=3, filters=SMALL, head="projection"),
        ]
    finally:
        keras.config.set_dtype_policy(previous)
    assert [model.output.dtype for model in models] == ["float32"] * 4
    for model in models[:3]:  # TensorFlow pools volumes in float16 on GPUs only
        assert ops.dtype(model(images((8, 8, 1)))) == "float32"
    np.testing.assert_allclose(output(models[0]).sum(axis=-1), 1, rtol=1e-6)


def test_softmax_is_applied_once():
    model = build_unet((8, 8, 1), filters=SMALL, outputs=3)
    logits = output(keras.Model(model.input, model.get_layer("segmentation_conv").output)).astype("float64")
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(output(model), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((90, 96, 1), {"outputs": 2}, r"\(90, 96\) must be divisible by 32 .*use \(96, 96\)"),
        ((16, 16), {"outputs": 2}, "must have 2 sizes"),
        ((32, 32, 1), {"outputs": 2, "rank": 4}, "rank is 4"),
        ((32, 32, 1), {"outputs": 2, "decoder_levels": 6}, "decoder_levels is 6; choose from 1, 2, 3, 4, 5"),
        ((32, 32, 1), {"head": "segmentatoin"}, "choose from 'segmentation'"),
        ((32, 32, 1), {"outputs": 1}, "needs outputs of at least 2"),
        ((32, 32, 1), {"head": "synthesis"}, "needs outputs of at least 1, not None"),
        ((32, 32, 1), {"head": "projection", "patch_size": 5}, r"patch size 5 must divide .*\(32, 32\)"),
        ((32, 32, 1), {"filters": (16,), "outputs": 2}, "at least two levels"),
        ((32, 32, 20, 1), {"rank": 3, "outputs": 2}, r"\(32, 32, 20\) must be divisible by 32 .*or fewer levels"),
        ((8, 8, 1), {"rank": 3, "filters": SMALL, "outputs": 2}, "must have 3 sizes"),
        ((8, 8, 4, 1), {"rank": 3, "filters": SMALL, "head": "projection", "patch_size": 8}, r"divide .*\(8, 8, 4\)"),
    ],
)
def test_impossible_networks_are_refused(shape, options, message):
    with pytest.raises(InputError, match=message):
        build_unet(shape, **options)


def test_the_head_that_synthesises_knows_absolute_intensities():
    # Convolution and group normalisation give the same for an image and its double; a synthesis must not.
    image = np.random.default_rng(0).random((1, 16, 16, 2)).astype("float32") + 0.5
    features, synthesis = (
        build_unet((16, 16, 2), filters=(4, 8), seed=3, **head)
        for head in ({"head": None}, {"head": "synthesis", "outputs": 1})
    )
    np.testing.assert_allclose(features(image), features(2 * image), atol=1e-2)
    assert np.abs(synthesis(image) - synthesis(2 * image)).max() > 0.1


@pytest.mark.parametrize("rank", [2, 3])
def test_feature_levels_are_those_of_the_network_stopped_at_each_level(rank):
    shape = (*[8] * rank, 1)
    image = np.random.default_rng(0).random((2, *shape), dtype="float32")
    network = build_unet(shape, rank=rank, filters=(4, 8, 12), head=None, seed=3)
    levels = feature_levels(network)
    found = levels.predict(image, verbose=0)
    assert len(levels.weights) == len(network.weights)
    stopped = [build_encoder(shape, rank=rank, filters=(4, 8, 12), head=None, seed=3)]
    stopped += [build_unet(shape, rank=rank, filters=(4, 8, 12), decoder_levels=n, head=None, seed=3) for n in (1, 2)]
    for one, part in zip(found, stopped, strict=True):
        np.testing.assert_allclose(one, part.predict(image, verbose=0), rtol=1e-4, atol=1e-5)
