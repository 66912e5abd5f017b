"""A training step of constrained contrast on a batch that is already on the device, shared by several benchmarks.

Synthetic images, random classes and anchors: what is computed does not depend on them.
"""

import functools
import time

import numpy as np

from utils.environment import device_name

FILTERS = (16, 32, 64, 128, 128, 128)  # authors' code
# As in configs/papers: lesions get a partial decoder with 1 x 1 patches, organs the full one with 4 x 4 patches; of
# 160 x 160 pixels either makes 1,600 patches.
DECODERS = {"partial": {"decoder_levels": 3, "patch_size": 1}, "full": {"decoder_levels": 5, "patch_size": 4}}
TEMPERATURE, NEAREST_PATCHES = 0.1, 100
ANCHORS, CLASSES, LEARNING_RATE = 20, 20, 1e-4
MODES = {
    "tensorflow": {"eager": {"run_eagerly": True}, "compiled": {"jit_compile": False}, "xla": {"jit_compile": True}},
    "jax": {"eager": {"run_eagerly": True}, "compiled": {"jit_compile": True}},
    "torch": {"eager": {"jit_compile": False}, "compiled": {"jit_compile": True}},
}


def constrained_task(image_shape, *, filters=FILTERS, decoder="partial", kind=None, **compilation):
    """Return a compiled task; `kind` replaces `ConstrainedContrast`, `compilation` is one of `MODES` or nothing.

    Without `compilation` the step is compiled as in a training.
    """
    from losses.constrained_contrastive import Selection, constrained_contrastive_loss
    from models.unet import build_unet
    from training.tasks import ConstrainedContrast

    network = build_unet(tuple(image_shape), filters=filters, head="projection", **DECODERS[decoder])
    loss = functools.partial(constrained_contrastive_loss, temperature=TEMPERATURE)
    task = (kind or ConstrainedContrast)(network, loss, Selection(NEAREST_PATCHES)).ready(LEARNING_RATE)
    if compilation:
        task.compile(task.optimizer, **compilation)
    return task


def constrained_batch(task, count, seed=0):
    """Return a batch of `count` images on the device."""
    from keras import ops

    generator, patches = np.random.default_rng(seed), task.network.output_shape[1]
    arrays = {
        "image": generator.random((count, *task.network.input_shape[1:]), "float32"),
        "patch_classes": generator.integers(0, CLASSES + 1, (count, patches)).astype("int32"),
        "anchors": generator.integers(0, patches, (count, ANCHORS)).astype("int32"),
    }
    return {name: ops.convert_to_tensor(array) for name, array in arrays.items()}


def repeated(batch, count):
    """Return a batch that stands for `count` steps in one dispatch, or for one as it is."""
    from keras import ops

    return batch if count == 1 else {"steps": {name: ops.stack([array] * count) for name, array in batch.items()}}


def make_step(task, batch):
    """Return `run(calls)`, which trains that often on the batch and waits for the last time.

    The task must have trained on the batch once: this is what compiles the step. What the host does between two calls
    is part of the time where it takes longer than the device, as in a training.
    """
    import keras

    data, backend = (batch, None, None), keras.backend.backend()
    state = state_of(task) if backend == "jax" else None

    def run(calls):
        nonlocal state
        for _ in range(calls):
            if backend == "jax":
                logs, state = task.train_function(state, iter([data]))
            else:
                logs = task.train_function([data] if backend == "torch" else iter([data]))
        return float(logs["loss"])  # fetching waits for the device

    return run


def state_of(task):
    """Return what a JAX step changes; copies, because the step gives the memory of its arguments to its results."""
    import jax

    groups = (task.trainable_variables, task.non_trainable_variables, task.optimizer.variables, task.metrics_variables)
    return tuple([jax.numpy.copy(variable.value) for variable in group] for group in groups)


def take_turns(sides, turns, least_s=0.05):
    """Return, for each `run(calls)`, the seconds per call of every turn; whatever else the machine does slows all.

    Args:
        sides: `{name: run}`; all must have run before.
        turns: How often each is measured.
        least_s: A turn is as many calls as take that long, at least one.
    """
    calls, seconds = {}, {name: [] for name in sides}
    for name, run in sides.items():
        run(1)
        calls[name] = max(1, round(least_s / max(timed(run, 1), 1e-6)))
    for _ in range(turns):
        for name, run in sides.items():
            seconds[name].append(timed(run, calls[name]) / calls[name])
    return seconds


def timed(run, calls):
    """Return the seconds that `run(calls)` takes."""
    start = time.perf_counter()
    run(calls)
    return time.perf_counter() - start


def work_of(network, bytes_per_value):
    """Return what a step of one image cannot do without: operations of the convolutions, bytes of the feature maps.

    Operations: forward, gradient by input, gradient by kernel. Bytes: each output of a convolution, and of a ReLU after
    its normalisation, is written and read once forward; read once backward, where its gradient is written and read.
    Less is possible only where a compiler fuses across convolutions, or a map stays in a cache.
    """
    operations = values = 0
    for layer in network.layers:
        if "conv" in type(layer).__name__.lower():
            *sizes, _ = layer.output.shape[1:]
            operations += 3 * 2 * int(np.prod(layer.kernel.shape)) * int(np.prod(sizes))
        if "conv" in type(layer).__name__.lower() or type(layer).__name__ == "ReLU":
            values += int(np.prod(layer.output.shape[1:]))
    return {"operations": operations, "bytes": 5 * values * bytes_per_value}


def rates_of_device(dtype):
    """Return operations per second of a large matrix product and bytes per second of a pass over a large array."""
    import keras

    size, length = (2048, 2**25) if device_name() == "cpu" else (8192, 2**28)
    factor = keras.ops.cast(keras.ops.ones((size, size)) / size, dtype)
    array = keras.ops.ones((length,), "float32")

    def products(steps):
        result = factor
        for _ in range(steps):
            result = keras.ops.matmul(result, factor)
        return float(result[0, 0])

    def passes(steps):
        result = array
        for _ in range(steps):
            result = result + 1.0
        return float(result[0])

    seconds = {name: min(times) for name, times in take_turns({"product": products, "pass": passes}, 5).items()}
    return {"operations_per_s": 2 * size**3 / seconds["product"], "bytes_per_s": 8 * length / seconds["pass"]}


def floor_s(work, rates, count):
    """Return the seconds below which a step of `count` images cannot fall at these rates."""
    return count * max(work["operations"] / rates["operations_per_s"], work["bytes"] / rates["bytes_per_s"])
