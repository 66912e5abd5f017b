import pickle
import re

import keras
import numpy as np
import pytest
from keras import ops

from models.unet import build_encoder, build_unet
from models.weights import TransferReport, load_weights, read_weights, save_weights, transfer, weights_of
from utils.checks import InputError

FILTERS = (4, 8, 8)
STEM = "encoder_1_conv_1"


def unet(contrasts=1, *, filters=FILTERS, head="segmentation", seed=0, **options):
    outputs = {"segmentation": 3}.get(head)
    return build_unet((8, 8, contrasts), filters=filters, head=head, outputs=outputs, features=4, seed=seed, **options)


def stem(model):
    return weights_of(model)[f"{STEM}/kernel"]


@pytest.fixture(scope="module")
def model():
    return unet()


def test_a_file_gives_back_every_weight_and_the_metadata(model, tmp_path):
    save_weights(model, tmp_path / "weights.npz", contrasts="flair", config_hash="ab12")
    arrays, metadata = read_weights(tmp_path / "weights.npz")
    assert metadata == {"contrasts": "flair", "config_hash": "ab12"}
    assert list(arrays) == list(weights_of(model))
    other = unet(seed=1)
    assert load_weights(other, tmp_path / "weights.npz") == metadata
    for key, array in weights_of(other).items():
        np.testing.assert_array_equal(array, weights_of(model)[key])


@pytest.mark.parametrize(
    ("value", "half", "what"),
    [
        (7e4, True, "reaches 7e+04, beyond float16"),
        (-7e4, True, "reaches 7e+04, beyond float16"),
        (np.inf, True, "holds NaN or infinite weights"),
        (np.nan, True, "holds NaN or infinite weights"),
        (-np.inf, False, "holds NaN or infinite weights"),
        (7e4, False, None),
        (65504, True, None),
    ],
)
def test_weights_of_a_training_that_diverged_are_not_written(model, tmp_path, value, half, what):
    path, before = tmp_path / "weights.npz", model.get_weights()
    key = next(iter(weights_of(model)))
    try:
        model.set_weights([np.full_like(before[0], value), *before[1:]])
        if what is None:
            save_weights(model, path, half=half)
            assert read_weights(path)[0][key].max() == np.float32(value)
            return
        with pytest.raises(InputError, match=re.escape(f"{path}: not written, because {key} {what}: the training has")):
            save_weights(model, path, half=half)
        assert not list(tmp_path.iterdir())
    finally:
        model.set_weights(before)


def test_half_precision_halves_the_file_and_is_read_as_float32(model, tmp_path):
    save_weights(model, tmp_path / "full.npz")
    save_weights(model, tmp_path / "half.npz", half=True)
    with np.load(tmp_path / "half.npz", allow_pickle=False) as content:
        assert content[f"{STEM}/kernel"].dtype == np.float16
    arrays, _ = read_weights(tmp_path / "half.npz")
    for key, array in weights_of(model).items():
        assert arrays[key].dtype == np.float32
        np.testing.assert_allclose(arrays[key], array, rtol=1e-3, atol=1e-6)
    assert (tmp_path / "half.npz").stat().st_size < 0.8 * (tmp_path / "full.npz").stat().st_size


def test_equal_weights_give_equal_bytes(model, tmp_path):
    for name in ("a.npz", "b.npz"):
        save_weights(model, tmp_path / name, b="2", a="1")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_failed_write_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "weights.npz"
    save_weights(model, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_weights(model, path, contrasts=object())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["weights.npz"]


def write_keras_weights(path, model):
    model.save_weights(path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def write_keras_h5(path, model):
    model.save(path.with_suffix(".h5"))
    path.with_suffix(".h5").rename(path)


def write_keras_archive(path, model):
    model.save(path.with_suffix(".keras"))
    path.with_suffix(".keras").rename(path)


def write_pickle(path, model):
    path.write_bytes(pickle.dumps({"a": 1}))


def write_object_array(path, model):
    np.savez(path, metadata=np.array("{}"), a=np.array([{}], dtype=object))


def write_truncated(path, model):
    save_weights(model, path)
    path.write_bytes(path.read_bytes()[:2000])


def write_flipped_bits(path, model):
    save_weights(model, path)
    content = bytearray(path.read_bytes())
    content[1500:1510] = bytes(255 - byte for byte in content[1500:1510])
    path.write_bytes(content)


def write_other_npz(path, model):
    np.savez(path, a=np.ones(3))


def write_text(path, model):
    path.write_text("weights")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_keras_weights, r"Keras HDF5 file \(.h5\); expected an .npz .*; give the weights.npz of a stage"),
        (write_keras_h5, r"Keras HDF5 file \(.h5\); .* write that with models.weights.save_weights"),
        (write_keras_archive, "a .keras archive; expected an .npz"),
        (write_pickle, "a pickle file"),
        (write_object_array, "damaged weight file"),
        (write_truncated, "damaged weight file"),
        (write_flipped_bits, "damaged weight file"),
        (write_other_npz, "without 'metadata'"),
        (write_text, "damaged weight file"),
        (lambda path, model: None, "no such weight file"),
    ],
)
def test_other_and_damaged_files_are_named(write, message, model, tmp_path):
    path = tmp_path / "weights.npz"
    write(path, model)
    with pytest.raises(InputError, match=f"weights.npz: .*{message}"):
        read_weights(path)


def test_loading_into_another_network_lists_every_difference_and_changes_nothing(model, tmp_path):
    path = tmp_path / "weights.npz"
    save_weights(model, path)
    other = unet(contrasts=2, head="projection", seed=1)
    before = weights_of(other)
    with pytest.raises(InputError) as caught:
        load_weights(other, path)
    text = "\n".join(caught.value.lines)
    assert "projection_conv_1/kernel is missing" in text
    assert "segmentation_conv/kernel has no place" in text
    assert "encoder_1_conv_1/kernel is (3, 3, 1, 4), the network needs (3, 3, 2, 4)" in text
    for key, array in weights_of(other).items():
        np.testing.assert_array_equal(array, before[key])


SHAPES = {2: (16, 24), 3: (16, 24, 8)}  # not cubic, and thinner along the depth
LEVELS = (4, 8, 8, 8)
both_ranks = pytest.mark.parametrize("rank", [2, 3])


def network(rank, contrasts=1, **options):
    return build_unet((*SHAPES[rank], contrasts), rank=rank, filters=LEVELS, **({"features": 4} | options))


@both_ranks
@pytest.mark.parametrize("decoder_levels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["model", "dict", "path"])
def test_a_partial_decoder_reaches_its_levels_of_the_full_network(rank, kind, decoder_levels, tmp_path):
    source = network(rank, head="projection", decoder_levels=decoder_levels, seed=1)
    target = network(rank, outputs=3, seed=2)
    initial, trained = weights_of(target), weights_of(source)
    save_weights(source, tmp_path / "w.npz")
    report = transfer({"model": source, "dict": trained, "path": tmp_path / "w.npz"}[kind], target)
    moved_levels = {name[:9] for name in report.moved if name.startswith("decoder")}
    assert moved_levels == {f"decoder_{level}" for level in range(1, decoder_levels + 1)}
    assert report.adapted == ()
    assert "segmentation_conv" in report.left
    assert set(report.moved) | set(report.left) == {key.split("/")[0] for key in initial}
    for key, array in weights_of(target).items():
        np.testing.assert_array_equal(array, (trained if key.split("/")[0] in report.moved else initial)[key])


@both_ranks
@pytest.mark.parametrize("decoder_levels", [1, 2])
def test_the_full_network_computes_the_features_of_the_partial_one_that_it_started_from(rank, decoder_levels):
    source = network(rank, head="projection", decoder_levels=decoder_levels, seed=1)
    target = network(rank, outputs=3, seed=2)
    image = np.random.default_rng(0).normal(size=(2, *SHAPES[rank], 1)).astype("float32")

    def features(model, layer):
        return ops.convert_to_numpy(keras.Model(model.input, model.get_layer(layer).output)(image))

    layers = [f"encoder_{level}_relu_2" for level in range(1, 5)]
    layers += [f"decoder_{level}_relu_2" for level in range(1, decoder_levels + 1)]
    before = [features(target, layer) for layer in layers]
    transfer(source, target)
    for layer, old in zip(layers, before, strict=True):
        found = features(target, layer)
        np.testing.assert_allclose(found, features(source, layer), rtol=1e-5, atol=1e-6)
        assert np.abs(found - old).max() > 0.1


def test_an_encoder_moves_without_its_head_and_the_report_says_so():
    report = transfer(build_encoder((8, 8, 1), filters=FILTERS, seed=1), unet())
    assert len(report.moved) == 12
    assert all(name.startswith(("decoder", "segmentation")) for name in report.left)
    whole = "12 layers moved; left as initialised: decoder_1 (6 layers), decoder_2 (6 layers)"
    assert report.summary().startswith(whole) and report.summary().endswith(", segmentation_conv")
    partly = TransferReport(("decoder_1_up",), (), ("decoder_1_conv_1", "decoder_1_conv_2"))
    assert partly.summary() == "1 layer moved; left as initialised: decoder_1_conv_1, decoder_1_conv_2"


def test_levels_named_as_fresh_keep_their_random_weights():
    source, target, random = unet(seed=1), unet(seed=2, head_block=True), weights_of(unet(seed=2, head_block=True))
    report = transfer(source, target, stay=("decoder_2_",))
    for key, array in weights_of(target).items():
        stays = key.startswith(("decoder_2_", "segmentation_"))
        np.testing.assert_array_equal(array, random[key] if stays else weights_of(source)[key])
    assert {name.split("_conv")[0] for name in report.left} >= {"decoder_2", "segmentation_block", "segmentation"}
    assert "decoder_1_conv_1" in report.moved and "decoder_2_conv_1" not in report.moved


def test_a_head_never_moves_even_between_equal_networks():
    source, target = unet(seed=1), unet(seed=2)
    before = weights_of(target)["segmentation_conv/kernel"]
    report = transfer(source, target)
    assert report.left == ("segmentation_conv",)
    np.testing.assert_array_equal(weights_of(target)["segmentation_conv/kernel"], before)


@both_ranks
def test_the_stem_adapts_by_contrast_name(rank):
    source, target = (network(rank, contrasts, outputs=3, seed=contrasts) for contrasts in (3, 2))
    report = transfer(source, target, source_contrasts=["t1", "t2", "flair"], target_contrasts=["flair", "t1"])
    assert report.adapted == (STEM,)
    assert STEM not in report.moved
    assert "adapted to other contrasts: encoder_1_conv_1" in report.summary()
    np.testing.assert_allclose(stem(target), stem(source)[..., [2, 0], :] * 3 / 2, rtol=1e-6)


def test_equal_numbers_of_other_contrasts_are_still_matched_by_name():
    source, target = unet(contrasts=2, seed=1), unet(contrasts=2, seed=2)
    transfer(source, target, source_contrasts=["t1", "t2"], target_contrasts=["t2", "t1"])
    np.testing.assert_allclose(stem(target), stem(source)[:, :, ::-1], rtol=1e-6)
    report = transfer(source, target, source_contrasts=["t1", "t2"], target_contrasts=["t1", "t2"])
    assert report.adapted == ()
    np.testing.assert_array_equal(stem(target), stem(source))


def test_a_new_contrast_starts_from_the_mean_of_the_known_ones():
    source, target = unet(contrasts=2, seed=1), unet(contrasts=2, seed=2)
    transfer(source, target, source_contrasts=["t1", "t2"], target_contrasts=["t2", "dwi"])
    np.testing.assert_allclose(stem(target)[:, :, 0], stem(source)[:, :, 1], rtol=1e-6)
    np.testing.assert_allclose(stem(target)[:, :, 1], stem(source).mean(axis=2), rtol=1e-5)


@both_ranks
@pytest.mark.parametrize("contrasts", [1, 4])
def test_without_names_the_mean_is_repeated_and_the_response_keeps_its_size(rank, contrasts):
    source, target = (network(rank, number, outputs=3, seed=number) for number in (2, contrasts))
    transfer(source, target)
    for channel in range(contrasts):
        np.testing.assert_allclose(stem(target)[..., channel, :], stem(source).mean(-2) * 2 / contrasts, rtol=1e-5)
    image = np.random.default_rng(0).normal(size=(1, *SHAPES[rank], 1)).astype("float32")
    responses = [
        ops.convert_to_numpy(one.get_layer(STEM)(np.repeat(image, one.input_shape[-1], axis=-1)))
        for one in (source, target)
    ]
    np.testing.assert_allclose(*responses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("contrasts", [["t1"], ["t1", "flair"]])
def test_a_network_of_no_particular_contrast_moves_into_any(tmp_path, contrasts):
    """A network shown contrasts one by one has one unnamed channel, recorded as None in its weight file."""
    source, target = unet(seed=1), unet(contrasts=len(contrasts), seed=2)
    save_weights(source, tmp_path / "w.npz", contrasts=None)
    arrays, metadata = read_weights(tmp_path / "w.npz")
    report = transfer(arrays, target, source_contrasts=metadata["contrasts"], target_contrasts=contrasts)
    for channel in range(len(contrasts)):
        np.testing.assert_array_equal(stem(target)[:, :, channel], stem(source)[:, :, 0] / len(contrasts))
    assert report.adapted == (() if len(contrasts) == 1 else (STEM,))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"conv2d/kernel": np.ones((3, 3, 1, 4))}, {}, "no layer of the network has a name .*found conv2d"),
        ({}, {}, "found nothing"),
        (lambda: unet(filters=(4, 8, 16)), {}, r"encoder_3_conv_1/kernel is \(3, 3, 8, 16\) .*\(3, 3, 8, 8\)"),
        (lambda: unet(filters=(4, 8)), {}, "the pretrained network has 2 levels, this one 3"),
        (lambda: unet(), {"source_contrasts": ["a", "b"], "target_contrasts": ["a"]}, "1 input channels, but 2"),
        (lambda: build_unet((8, 8, 8, 1), rank=3, filters=FILTERS, outputs=3), {}, r"has rank 3, this one 2 \(2:"),
        (
            lambda: build_unet((8, 8, 8, 2), rank=3, filters=(4, 8), decoder_levels=1, head="projection"),
            {"source_contrasts": ["t1", "t2"], "target_contrasts": ["t2"]},
            "pretrained on the same kind of image",
        ),
    ],
)
def test_a_transfer_that_cannot_be_meant_is_refused_and_changes_nothing(source, options, message):
    target = unet(seed=2)
    before = weights_of(target)
    with pytest.raises(InputError, match=message):
        transfer(source() if callable(source) else source, target, **options)
    for key, array in weights_of(target).items():
        np.testing.assert_array_equal(array, before[key])


def test_weights_of_slices_are_refused_by_a_network_for_volumes():
    target = network(3, outputs=3)
    before = weights_of(target)
    with pytest.raises(InputError, match="the pretrained network has rank 2, this one 3 .*start from a network"):
        transfer(network(2, outputs=3), target)
    for key, array in weights_of(target).items():
        np.testing.assert_array_equal(array, before[key])
