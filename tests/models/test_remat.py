"""A rematerialised network computes and learns the same as the plain one, but stores less.

`tests/test_backend_trainings.py` compares the two on the other backends.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from losses.synthesis import synthesis_loss
from models.remat import rematerialised
from models.unet import build_encoder, build_unet
from models.weights import load_weights, save_weights, weights_of
from training.tasks import Synthesis
from utils.checks import InputError

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {2: (16, 24, 2), 3: (16, 8, 8, 2)}
BUILDS = {
    "full": functools.partial(build_unet, head="synthesis", outputs=2),
    "partial": functools.partial(build_unet, head="projection", features=5, decoder_levels=1),
    "patches": functools.partial(build_unet, head="projection", features=5, patch_size=4),
    "no head": functools.partial(build_unet, head=None),
    "encoder": functools.partial(build_encoder, features=6),
    "encoder, no head": functools.partial(build_encoder, head=None),
}
PEAKS = "from tests.models.test_remat import peaks; print(*peaks())"
STATUS = Path("/proc/self/status")


def built(name, rank, **options):
    network = BUILDS[name](SHAPES[rank], rank=rank, **({"filters": (4, 8, 8), "seed": 1} | options))
    return network, np.random.default_rng(rank).normal(size=(2, *SHAPES[rank])).astype("float32")


def outcome():
    """Return results for `test_backend_trainings`: `plain/...` and `remat/...` should agree."""
    result = {}
    for name, rank in (("full", 3), ("encoder", 2)):
        network, image = built(name, rank)
        functions = {"plain": network, "remat": rematerialised(network)}
        for when in ("first", "changed"):
            for way, function in functions.items():
                for key, values in output_and_gradients(network, function, image).items():
                    result[f"{way}/{name}/{when}/{key}"] = values
            change_weights(network)
    for way in ("plain", "remat"):
        losses, weights = trained(way == "remat", jit_compile=keras.backend.backend() == "jax")
        result |= {f"{way}/loss": losses} | {f"{way}/trained/{key}": values for key, values in weights.items()}
    return result | kept_bytes()


def change_weights(network):
    for variable in network.trainable_variables:
        variable.assign(ops.convert_to_numpy(variable) * 1.5 + 0.1)


def output_and_gradients(network, function, image):
    """Return the output, and gradients of half its sum of squares for the image and every weight."""
    ways = {"tensorflow": by_tensorflow, "jax": by_jax, "torch": by_torch}
    values, gradients = ways[keras.backend.backend()](network, function, image)
    names = ["image", *(variable.path for variable in network.trainable_variables)]
    pairs = zip(["output", *names], [values, *gradients], strict=True)
    return {name: ops.convert_to_numpy(values) for name, values in pairs}


def by_tensorflow(network, function, image):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(image := tf.constant(image))
        values = function(image, training=True)
        loss = ops.sum(values**2) / 2
    return values, tape.gradient(loss, [image, *(variable.value for variable in network.trainable_variables)])


def by_jax(network, function, image):
    import jax

    def loss(weights, image):
        values = stateless(network, function, weights, image)
        return ops.sum(values**2) / 2, values

    weights = [variable.value for variable in network.trainable_variables]
    (by_weights, by_image), values = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(weights, image)
    return values, [by_image, *by_weights]


def stateless(network, function, weights, image):
    with keras.StatelessScope(state_mapping=list(zip(network.trainable_variables, weights, strict=True))):
        return function(image, training=True)


def by_torch(network, function, image):
    import torch

    image = ops.convert_to_tensor(image).requires_grad_()
    values = function(image, training=True)
    weights = [variable.value for variable in network.trainable_variables]
    return values.detach(), torch.autograd.grad(ops.sum(values**2) / 2, [image, *weights])


def trained(remat, *, rank=3, jit_compile=False, frozen=()):
    """Return the losses of five steps `(5,)` and the weights after them."""
    network, image = built("full", rank, filters=(4, 8))
    for layer in network.layers:
        layer.trainable = not layer.name.startswith(frozen) if frozen else True
    task = Synthesis(network, synthesis_loss).sparing_memory(remat)
    task.compile(keras.optimizers.Adam(1e-2), jit_compile=jit_compile)
    task.optimizer.build(task.trainable_variables)
    batch = {name: ops.convert_to_tensor(values) for name, values in (("image", image), ("target", image[::-1].copy()))}
    losses = [float(task.train_on_batch(batch)) for _ in range(5)]
    return np.array(losses), weights_of(network)


def kept_bytes():
    """Return the bytes kept for the backward pass, and those of the weights and of the inputs of levels."""
    network, image = built("full", 3)
    counts = {"jax": kept_by_jax, "torch": kept_by_torch}[keras.backend.backend()]
    maps = [image.nbytes]
    for layer in network.layers:
        if layer.name.endswith("relu_2"):
            maps.append(4 * len(image) * int(np.prod(layer.output.shape[1:])))
    return {
        "kept/plain": counts(network, network, image),
        "kept/remat": counts(network, rematerialised(network), image),
        "kept/inputs": sum(maps),
        "kept/weights": sum(values.nbytes for values in weights_of(network).values()),
    }


def kept_by_jax(network, function, image):
    import jax

    weights = [variable.value for variable in network.trainable_variables]
    call = functools.partial(stateless, network, function)
    kept = jax.eval_shape(lambda *arguments: jax.vjp(call, *arguments)[1], weights, image)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def kept_by_torch(network, function, image):
    import torch

    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _values = function(ops.convert_to_tensor(image), training=True)
    return sum(kept.values())


def peaks():
    """Return the peak resident set in kB after a compiled step on one image, and on twelve with and without remat."""
    network = build_unet((256, 256, 1), filters=(8, 32, 64), head="synthesis", outputs=1)
    found = []
    # The first holds what does not depend on the batch, such as graphs. The largest is last: a peak never falls.
    for remat, count in ((False, 1), (True, 12), (False, 12)):
        task = Synthesis(network, synthesis_loss).sparing_memory(remat).ready(1e-3)
        task.train_on_batch({name: ops.ones((count, 256, 256, 1)) for name in ("image", "target")})
        found.append(peak())
    return found


def peak():
    # Of this program alone: `getrusage` would start from the parent's peak.
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def assert_close(found, expected, name=""):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", BUILDS)
def test_output_and_gradients_are_those_of_the_plain_network(name, rank):
    network, image = built(name, rank, filters=(4, 8, 8) if name == "partial" else (4, 8))
    again = rematerialised(network)
    for _ in range(2):  # with other weights the second time
        expected = output_and_gradients(network, network, image)
        found = output_and_gradients(network, again, image)
        assert len(found) == 2 + len(network.trainable_variables)
        for key, values in expected.items():
            assert_close(found[key], values, key)
        assert sum(np.any(values != 0) for values in expected.values()) > len(expected) / 2
        change_weights(network)


def test_steps_compiled_by_xla_train_the_same_weights():
    """Without XLA, see below and `tests/training/test_synthesis.py`; volumes with XLA are tested on JAX."""
    losses, expected = trained(False, rank=2, jit_compile=True)
    again, found = trained(True, rank=2, jit_compile=True)
    assert losses[-1] < 0.9 * losses[0]
    assert_close(again, losses)
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert_close(found[key], values, key)


def test_frozen_layers_stay_and_the_others_learn_the_same():
    start = weights_of(built("full", 3, filters=(4, 8))[0])
    (losses, expected), (again, found) = (trained(remat, frozen=("encoder_",)) for remat in (False, True))
    assert losses[-1] < losses[0]
    assert_close(again, losses)
    for key, values in expected.items():
        assert_close(found[key], values, key)
        assert np.array_equal(found[key], start[key]) == key.startswith("encoder_"), key


@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from Linux's /proc")
def test_a_compiled_step_needs_less_memory():
    """Without remat, the ratio would be above 0.9. With it, TensorFlow's order of operations makes it 0.5 to 0.8."""
    ratios = []
    while len(ratios) < 3 and min(ratios, default=1) >= 0.8:
        command = [sys.executable, "-c", PEAKS]
        environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        one, remat, plain = (int(word) for word in ended.stdout.split()[-3:])
        ratios.append((remat - one) / (plain - one))
    assert min(ratios) < 0.8, ratios


def test_names_files_and_architecture_stay(tmp_path):
    network, image = built("full", 3)
    names, summary = list(weights_of(network)), network.to_json()
    again = rematerialised(network)
    assert list(weights_of(network)) == names and network.to_json() == summary
    change_weights(network)
    save_weights(network, tmp_path / "weights.npz")
    fresh, _ = built("full", 3, seed=2)
    load_weights(fresh, tmp_path / "weights.npz")
    assert_close(ops.convert_to_numpy(fresh(image)), ops.convert_to_numpy(again(image)))
    level = keras.Model(network.input, network.get_layer("decoder_1_relu_2").output)
    assert ops.convert_to_numpy(level(image)).shape == (2, 8, 4, 4, 8)


def test_half_precision_keeps_its_types():
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network, image = built("full", 2)
        again = rematerialised(network)
    finally:
        keras.config.set_dtype_policy(previous)
    found, expected = again(image), network(image)
    assert ops.dtype(found) == "float32"
    np.testing.assert_array_equal(ops.convert_to_numpy(found), ops.convert_to_numpy(expected))


@pytest.mark.parametrize("training", [True, False])
def test_layers_are_told_whether_this_is_training(training):
    image = keras.Input((8,), name="image")
    x = keras.layers.Dropout(0.5, seed=1)(image)
    network = keras.Model(image, keras.layers.ReLU(name="encoder_1_relu_2")(x))
    values = ops.convert_to_numpy(rematerialised(network)(np.ones((4, 8), "float32"), training=training))
    assert np.any(values == 0) == training


def test_a_network_without_levels_is_refused():
    image = keras.Input((4, 4, 1))
    with pytest.raises(InputError, match="network 'flat' has no layer encoder_1_relu_2"):
        rematerialised(keras.Model(image, keras.layers.Conv2D(2, 3)(image), name="flat"))
