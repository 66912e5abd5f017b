"""Weights in PyTorch's layout against plain loops; the exported file; and its outputs if PyTorch is installed."""

import ast
import sys

import keras
import numpy as np
import pytest

from models import to_torch
from models.blocks import CHANNELS_PER_GROUP
from models.portable import mean_of, portable
from models.to_torch import module_beside, run_torch, torch_weights, write_torch
from models.unet import OUTPUT_ACTIVATIONS, SYNTHESIS_FILTERS, build_encoder, build_unet
from utils.checks import InputError

SHAPES = {2: (16, 24, 2), 3: (8, 16, 8, 2)}
FILTERS = [6, 8, 12]
HEADS = {
    "segmentation": {"head": "segmentation", "outputs": 3},
    "head_block": {"head": "segmentation", "outputs": 3, "head_block": True},
    "synthesis": {"head": "synthesis", "outputs": 2},
    "reconstruction": {"head": "reconstruction"},
    "features": {"head": None},
    "partial": {"head": None, "decoder_levels": 1},
}
SAME = 1e-5  # of the largest value, or of 1


def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch==2.13.0)")


def drawn(network, seed=0):
    """Give a network weights that differ from the initial ones, including biases and normalisation."""
    rng = np.random.default_rng(seed)
    network.set_weights([w + rng.normal(0, 0.1, w.shape).astype("float32") for w in network.get_weights()])
    return network


def build(rank, name):
    if name == "encoder":
        network = build_encoder(SHAPES[rank], rank=rank, filters=FILTERS, head=None)
        maps = [network.get_layer(f"encoder_{level}_relu_2").output for level in range(1, len(FILTERS) + 1)]
        return drawn(keras.Model(network.input, maps))
    return drawn(build_unet(SHAPES[rank], rank=rank, filters=FILTERS, **HEADS[name]))


def images_for(rank, number=2):
    return np.random.default_rng(1).random((number, *SHAPES[rank])).astype("float32")


@pytest.mark.parametrize("rank", [2, 3])
def test_every_weight_is_there_once_and_at_its_place(rank):
    network = build(rank, "synthesis")
    found = torch_weights(network)
    assert sum(array.size for array in found.values()) == network.count_params()
    for layer in network.layers:
        if not layer.weights:
            continue
        first, bias = map(np.asarray, layer.get_weights())
        np.testing.assert_array_equal(found[f"{layer.name}.bias"], bias)
        weight = found[f"{layer.name}.weight"]
        assert weight.dtype == np.float32 and weight.flags["C_CONTIGUOUS"]
        if first.ndim == 1:
            np.testing.assert_array_equal(weight, first)
            continue
        for place in np.ndindex(first.shape):
            *pixel, channel, output = place
            assert weight[output, channel, *pixel] == first[place]


def convolved_by_hand(image, weight, bias):
    """Return a same-size convolution, channels first; a 2 x 2 kernel uses the next pixel, not the previous one."""
    edge, (_, rows, columns) = weight.shape[-1], image.shape
    before = (edge - 1) // 2
    padded = np.pad(image, ((0, 0), (before, edge - 1 - before), (before, edge - 1 - before)))
    result = np.zeros((weight.shape[0], rows, columns))
    for output, row, column in np.ndindex(result.shape):
        result[output, row, column] = bias[output] + sum(
            weight[output, c, i, j] * padded[c, row + i, column + j] for c, i, j in np.ndindex(weight.shape[1:])
        )
    return result


@pytest.mark.parametrize("edge", [1, 2, 3])
def test_the_layout_computes_what_keras_computes(edge):
    """Without PyTorch, check what unet.py relies on: the order of axes and the padded side of a 2 x 2 kernel."""
    image = keras.Input((4, 6, 2))
    layer = keras.layers.Conv2D(3, edge, padding="same", name="conv")
    network = drawn(keras.Model(image, layer(image)))
    weights, images = torch_weights(network), np.random.default_rng(2).random((1, 4, 6, 2)).astype("float32")
    by_hand = convolved_by_hand(np.moveaxis(images[0], -1, 0), weights["conv.weight"], weights["conv.bias"])
    np.testing.assert_allclose(np.moveaxis(by_hand, 0, -1), network.predict_on_batch(images)[0], atol=1e-6)


def test_members_of_an_ensemble_have_names_of_their_own():
    members = [portable(drawn(build_unet(SHAPES[2], filters=FILTERS, outputs=3), seed)) for seed in (1, 2)]
    found = torch_weights(mean_of(members))
    for number, member in enumerate(members, start=1):
        for name, array in torch_weights(member).items():
            np.testing.assert_array_equal(found[f"member_{number}.{name}"], array)
    assert len(found) == 2 * len(torch_weights(members[0]))


def test_layers_that_the_exported_file_lacks_are_refused():
    for network in (
        build_unet(SHAPES[2], filters=FILTERS, head="projection"),
        build_encoder(SHAPES[2], filters=FILTERS),
    ):
        with pytest.raises(InputError, match="--formats torch: unet.py has no layer like 'projection_"):
            torch_weights(network)
    image = keras.Input(SHAPES[2])
    with pytest.raises(InputError, match="no layer like 'other' .GroupNormalization"):
        torch_weights(keras.Model(image, keras.layers.GroupNormalization(1, epsilon=1e-5, name="other")(image)))


def constants_of(tree):
    pairs = [(node.targets[0].id, node.value) for node in tree.body if isinstance(node, ast.Assign)]
    return {name: ast.literal_eval(value) for name, value in pairs}


def test_the_exported_file_needs_torch_alone_and_states_the_numbers_of_the_network():
    source = to_torch.SOURCE.read_text()
    compile(source, "unet.py", "exec")
    tree = ast.parse(source)
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in named} - set(sys.stdlib_module_names) == {"torch"}
    constants = constants_of(tree)
    assert constants["CHANNELS_PER_GROUP"] == CHANNELS_PER_GROUP and constants["EPSILON"] == to_torch.EPSILON
    assert constants["SYNTHESIS_FILTERS"] == SYNTHESIS_FILTERS and set(constants["HEADS"]) == set(OUTPUT_ACTIVATIONS)
    assert keras.layers.GroupNormalization(2).epsilon == to_torch.EPSILON


def test_without_torch_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError):
        write_torch(build(2, "segmentation"), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def agree(found, network, images):
    expected = [keras.ops.convert_to_numpy(one) for one in keras.tree.flatten(network(images))]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= SAME * max(1, np.abs(other).max())
    assert all(np.ptp(one) > 1e-3 for one in expected), "nothing to compare"


@pytest.mark.parametrize("name", [*HEADS, "encoder"])
@pytest.mark.parametrize("rank", [2, 3])
def test_torch_computes_the_same(tmp_path, rank, name):
    torch()
    network, images = build(rank, name), images_for(rank)
    write_torch(network, tmp_path / "model.pt")
    agree(run_torch(tmp_path / "model.pt", images), network, images)


def test_an_ensemble_is_the_mean_of_its_members_in_the_order_of_their_numbers(tmp_path):
    torch()
    members = [portable(drawn(build_unet(SHAPES[2], filters=[4, 4], outputs=2), seed)) for seed in range(11)]
    network, images = mean_of(members), images_for(2)
    write_torch(network, tmp_path / "model.pt")
    agree(run_torch(tmp_path / "model.pt", images), network, images)
    loaded = module_beside(tmp_path / "model.pt").load(tmp_path / "model.pt")
    assert [name for name, _ in loaded.named_children()] == [f"member_{number}" for number in range(1, 12)]
    state = loaded.member_11.state_dict()
    np.testing.assert_array_equal(state["segmentation_conv.bias"], torch_weights(members[10])["segmentation_conv.bias"])


@pytest.mark.parametrize("rank", [2, 3])
def test_another_size_of_images_is_taken_too(tmp_path, rank):
    torch()
    network, images = build(rank, "segmentation"), images_for(rank)
    write_torch(network, tmp_path / "model.pt")
    larger = np.pad(images, [(0, 0), *[(0, 8)] * rank, (0, 0)])
    other = build_unet(larger.shape[1:], rank=rank, filters=FILTERS, **HEADS["segmentation"])
    other.set_weights(network.get_weights())
    agree(run_torch(tmp_path / "model.pt", larger), other, larger)


def test_it_is_finetuned_in_torch_for_two_steps(tmp_path):
    """Logits are passed to a PyTorch loss; every weight changes, and the loss decreases."""
    library = torch()
    write_torch(build(2, "segmentation"), tmp_path / "model.pt")
    network = module_beside(tmp_path / "model.pt").load(tmp_path / "model.pt").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = library.from_numpy(np.moveaxis(images_for(2, 4), -1, 1).copy())
    target = (images[:, 0] > 0.5).long() + (images[:, 1] > 0.8).long()
    optimiser, losses = library.optim.Adam(network.parameters(), lr=1e-2), []
    for _ in range(3):
        loss = library.nn.functional.cross_entropy(network.logits(images), target)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] > losses[1] > losses[2]
    assert all(not library.equal(value, before[name]) for name, value in network.state_dict().items())
    probabilities = library.softmax(network.logits(images), dim=1)
    library.testing.assert_close(network(images), probabilities)


def test_an_encoder_starts_another_unet_in_torch(tmp_path):
    """As in the docstring of the file: the encoder's weights, the rest random, finetuned for two steps."""
    library = torch()
    write_torch(build(2, "encoder"), tmp_path / "encoder.pt")
    module = module_beside(tmp_path / "encoder.pt")
    encoder = module.load(tmp_path / "encoder.pt")
    network = module.UNet(2, contrasts=2, filters=FILTERS, decoder_levels=2, head="segmentation", outputs=3)
    state = library.load(tmp_path / "encoder.pt", weights_only=True)
    report = network.load_state_dict(state, strict=False)
    assert not report.unexpected_keys and all(not name.startswith("encoder") for name in report.missing_keys)
    images = library.from_numpy(np.moveaxis(images_for(2), -1, 1).copy())
    for one, other in zip(network.encode(images), encoder(images), strict=True):
        library.testing.assert_close(one, other)
    optimiser, target = library.optim.SGD(network.parameters(), lr=0.1), (images[:, 0] > 0.5).long()
    losses = []
    for _ in range(2):
        loss = library.nn.functional.cross_entropy(network.logits(images), target)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", [*HEADS, "encoder"])
def test_the_shapes_of_the_weights_say_which_network_they_are_of(tmp_path, name):
    torch()
    write_torch(build(3, name), tmp_path / "model.pt")
    module = module_beside(tmp_path / "model.pt")
    asked = {"decoder_levels": 0} if name == "encoder" else HEADS[name]
    expected = {"rank": 3, "contrasts": 2, "filters": FILTERS, "decoder_levels": 2, "head": None, "outputs": None}
    expected |= {"head_block": False} | asked | ({"outputs": 2} if name == "reconstruction" else {})
    assert module.settings_of(module.load(tmp_path / "model.pt").state_dict()) == expected
