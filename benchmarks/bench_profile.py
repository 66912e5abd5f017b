"""Take one step of constrained pretraining apart: what each kind of layer costs, and the floor under it.

    PYTHONPATH=. python benchmarks/bench_profile.py [--batch 10] [--size 160 160] [--output FILE]

The layers of the network (authors' filters, partial decoder, two contrasts) are timed one kind at a time, value and
gradient, each compiled by itself on inputs of its own size, and multiplied by how often it occurs; beside them stands
the whole step. A layer alone writes its result to memory, which a compiler may spare inside the step: the sum can be
larger than the step. The floor of a layer is the larger of its operations at the rate of a large matrix product and its
bytes at the rate of a pass over a large array, both measured in the same run. Writes
benchmarks/output/profile_<backend>.json. Takes a minute on two cores. No goals.
"""

import collections
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of
from benchmarks.steps import constrained_batch, constrained_task, make_step, rates_of_device, take_turns

CONTRASTS, TURNS = 2, 5
NAMES = {"Conv2D": "convolution", "GroupNormalization": "group norm", "ReLU": "ReLU", "MaxPooling2D": "pooling"}
NAMES |= {"UpSampling2D": "upsampling", "Concatenate": "concatenation", "Reshape": "reshape"}


def main(arguments=None):
    parser = parser_of(__doc__, "profile_<backend>")
    parser.add_argument("--batch", type=int, default=10, metavar="B", help="slices (default: 10)")
    parser.add_argument("--size", type=int, nargs=2, default=[160, 160], metavar="N", help="pixels (default: 160 160)")
    parser.add_argument("--mixed", action="store_true", help="compute in bfloat16")
    options = parser.parse_args(arguments)
    import keras

    from training.devices import use_precision

    use_precision(options.mixed)
    dtype = "bfloat16" if options.mixed else "float32"
    task = constrained_task((*options.size, CONTRASTS))
    batch, rates = constrained_batch(task, options.batch), rates_of_device(dtype)
    task.train_on_batch(batch)
    sides, kinds = {"whole step": make_step(task, batch)}, kinds_of(task.network)
    sides |= {kind: alone(layers[0], options.batch, dtype) for kind, layers in kinds.items()}
    seconds = {name: min(times) for name, times in take_turns(sides, TURNS).items()}
    rows = [
        {"kind": kind, "count": len(layers), "seconds": len(layers) * seconds[kind]}
        | {"floor_s": len(layers) * floor(layers[0], options.batch, rates, 2 if options.mixed else 4)}
        for kind, layers in kinds.items()
    ]
    rows.sort(key=lambda row: -row["seconds"])
    print(table(rows, seconds["whole step"]))
    output = Path(str(options.output).replace("<backend>", keras.backend.backend()))
    figures = {"whole_step_s": seconds["whole step"], "layers": rows, "rates": rates, "by_type": by_type(rows)}
    return finish(
        output, sizes={"batch": options.batch, "size": options.size, "dtype": dtype}, figures=figures, goals={}
    )


def kinds_of(network):
    """Layers that cost the same: those of one type with the same inputs and outputs."""
    kinds = collections.defaultdict(list)
    for layer in network.layers:
        if type(layer).__name__ not in ("InputLayer", "Concatenate", "Reshape"):
            sizes = " x ".join(map(str, layer.output.shape[1:-1]))
            channels = f"{layer.input.shape[-1]} to {layer.output.shape[-1]}"
            kernel = " x ".join(map(str, layer.kernel.shape[:2])) + " " if hasattr(layer, "kernel") else ""
            kinds[f"{kernel}{NAMES.get(type(layer).__name__, type(layer).__name__)}, {sizes}, {channels}"].append(layer)
    return kinds


def alone(layer, count, dtype):
    """Return `run(steps)` that computes the gradients of a layer, by input and weights, and waits for the last ones."""
    from keras import ops

    shape = (count, *layer.input.shape[1:])
    image = ops.cast(ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape).astype("float32")), dtype)
    step = gradients_of(layer)

    def run(steps):
        for _ in range(steps):
            gradients = step(image)
        np.asarray(ops.convert_to_numpy(ops.ravel(gradients[0])[0]))

    return run


def gradients_of(layer):
    """Return a compiled function from an input to the gradients of the layer's mean square."""
    import keras
    from keras import ops

    def total(output):
        return ops.mean(ops.square(ops.cast(output, "float32")))

    if keras.backend.backend() == "jax":
        import jax

        def value(image, weights):
            return total(layer.stateless_call(weights, [], image)[0])

        weights = [variable.value for variable in layer.trainable_variables]
        gradients = jax.jit(jax.grad(value, argnums=(0, 1)))
        return lambda image: gradients(image, weights)
    if keras.backend.backend() != "tensorflow":
        raise SystemExit("only TensorFlow and JAX are set up here; choose one with KERAS_BACKEND")
    import tensorflow as tf

    def gradients(image):
        sources = [image, *(variable.value for variable in layer.trainable_variables)]
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = total(layer(image))
        return tape.gradient(loss, sources)

    return tf.function(gradients, autograph=False)


def floor(layer, count, rates, bytes_per_value):
    """Seconds that a layer needs at least: forward, gradient by the input, gradient by the kernel.

    Bytes: forward the input is read and the output written; backward both are read again with the gradient of the
    output, and the gradient of the input is written.
    """
    inputs, outputs = (count * int(np.prod(tensor.shape[1:])) for tensor in (layer.input, layer.output))
    seconds = (3 * inputs + 3 * outputs) * bytes_per_value / rates["bytes_per_s"]
    if hasattr(layer, "kernel"):
        pixels = count * int(np.prod(layer.output.shape[1:-1]))
        seconds = max(seconds, 3 * 2 * pixels * int(np.prod(layer.kernel.shape)) / rates["operations_per_s"])
    return seconds


def by_type(rows):
    """Seconds of all layers of a type."""
    seconds = collections.Counter()
    for row in rows:
        seconds["".join(c for c in row["kind"].split(",")[0] if not c.isdigit()).replace("x", "").strip()] += row[
            "seconds"
        ]
    return dict(seconds.most_common())


def table(rows, whole):
    """Return the figures as lines for the terminal."""
    head = f"{'layers':<52}{'times':>6}{'ms':>9}{'share':>8}{'of floor':>10}"
    lines = [
        f"{row['kind']:<52}{row['count']:>6}{1e3 * row['seconds']:>9.1f}{row['seconds'] / whole:>8.1%}"
        f"{row['seconds'] / row['floor_s']:>9.1f}x"
        for row in rows
    ]
    parts = sum(row["seconds"] for row in rows)
    types = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in by_type(rows).items())
    return "\n".join(
        [head, *lines, f"whole step {1e3 * whole:.0f} ms; layers by themselves {1e3 * parts:.0f} ms: {types}"]
    )


if __name__ == "__main__":
    sys.exit(main())
