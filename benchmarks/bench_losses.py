"""Time the constrained contrastive loss, value and gradient, against a loop over slices and anchors in the graph.

    PYTHONPATH=. python benchmarks/bench_losses.py [--slices 10] [--output FILE]

The loop is what a direct reading of the method gives: 10 slices with 20 anchors each, 1,600 patches of 64 features,
100 nearest patches. The targets are 10 times less per step and 50 times less until the first step is done. Writes
benchmarks/output/losses_<backend>.json; exit code 1 when a target is missed. Takes about two minutes on TensorFlow.

On JAX the time to compile the loop grows faster than its length (20 anchors: a second, 80: two and a half minutes on a
CPU core, 200: not within ten minutes); `--slices 2` gives figures in two minutes there, on a problem too small for the
second target.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from utils.runs import environment, write_json

PATCHES, FEATURES, ANCHORS, NEAREST = 1600, 64, 20, 100
TEMPERATURE = 0.1
TARGETS = {"per_step": 10.0, "first_step": 50.0}


def main(arguments=None):
    import keras

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/output/losses_<backend>.json)")
    parser.add_argument("--slices", type=int, default=10, help="slices of a batch")
    options = parser.parse_args(arguments)
    output = options.output or Path(__file__).parent / "output" / f"losses_{keras.backend.backend()}.json"
    data = [keras.ops.convert_to_tensor(array) for array in batch(options.slices)]
    compiled(lambda x: keras.ops.sum(x * x))(data[0])  # starts the backend, so that neither loss pays for it
    figures = measure({"vectorised": vectorised, "loop": loop}, data)
    ratios = {name: figures["loop"][f"{name}_s"] / figures["vectorised"][f"{name}_s"] for name in TARGETS}
    agree = agreement(figures)
    report = {"slices": options.slices, "ratios": ratios, "targets": TARGETS, "largest_relative_difference": agree}
    report |= {name: {key: figure[key] for key in figure if key.endswith("_s")} for name, figure in figures.items()}
    write_json(output, {**report, "environment": environment()})
    print(table(report))
    print(f"written to {output}")
    return 0 if all(ratios[name] >= target for name, target in TARGETS.items()) and max(agree.values()) < 1e-4 else 1


def vectorised(representations, classes, anchors):
    """Mean loss of a batch by the suite."""
    from keras import ops

    from losses.constrained_contrastive import constrained_contrastive_loss

    options = {"temperature": TEMPERATURE, "nearest_patches": NEAREST}
    return ops.mean(constrained_contrastive_loss(representations, classes, anchors, **options))


def loop(representations, classes, anchors):
    """Mean loss of a batch, one anchor after the other."""
    slices, per_slice = anchors.shape
    costs = [
        anchor_cost(representations[index], classes[index], anchors[index, anchor])
        for index in range(slices)
        for anchor in range(per_slice)
    ]
    return sum(costs) / len(costs)


def anchor_cost(patches, classes, anchor):
    """Pairwise cost of one anchor among the patches of its slice, with every patch kept and the others masked."""
    from keras import ops

    bank = ops.normalize(patches, axis=-1)
    similarity = ops.sum(bank * ops.normalize(ops.take(patches, anchor, axis=0), axis=-1), axis=-1)
    nearest = ops.top_k(similarity, NEAREST + 1)[1]
    is_near = ops.sum(ops.one_hot(nearest, PATCHES), axis=0)
    is_same = ops.cast(classes == ops.take(classes, anchor), "float32")
    likeness = ops.exp(similarity / TEMPERATURE)
    negatives = ops.sum(likeness * is_near * (1 - is_same))
    cost = -ops.log(likeness / (likeness + negatives))
    return ops.sum(cost * is_near * is_same) / ops.sum(is_near * is_same)


def batch(slices, seed=0):
    """Draw representations, classes and anchors of one batch."""
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(slices, PATCHES, FEATURES)).astype("float32"),
        generator.integers(1, 21, (slices, PATCHES)).astype("int32"),
        np.stack([generator.permutation(PATCHES)[:ANCHORS] for _ in range(slices)]).astype("int32"),
    )


def compiled(function):
    """Return a compiled function to value and gradient by its first argument."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(jax.value_and_grad(lambda *arguments: function(*arguments)))  # a new function: no cached code
    if backend == "tensorflow":
        import tensorflow as tf

        def value_and_gradient(first, *others):
            with tf.GradientTape() as tape:
                tape.watch(first)
                value = function(first, *others)
            return value, tf.convert_to_tensor(tape.gradient(value, first))

        return tf.function(value_and_gradient, autograph=False)  # as Keras compiles its training step
    raise SystemExit(f"no graph compiler is set up here for the backend '{backend}'")


def measure(functions, data, compilations=3, steps=20):
    """Return, for each function, median seconds until the first step is done and per step, value and gradient.

    The functions take turns, so that whatever else the machine does slows all alike.
    """
    figures = {name: {} for name in functions}
    firsts, times = [], []
    for _ in range(compilations):
        compiled_steps = {name: compiled(function) for name, function in functions.items()}
        firsts.append({name: timed(step, data) for name, step in compiled_steps.items()})
    for _ in range(steps):
        times.append({name: timed(step, data)[0] for name, step in compiled_steps.items()})
    for name, figure in figures.items():
        figure["first_step_s"] = statistics.median(first[name][0] for first in firsts)
        figure["per_step_s"] = statistics.median(step[name] for step in times)
        figure["value"], figure["gradient"] = firsts[-1][name][1]
    return figures


def timed(step, data):
    """Return the seconds a step takes, and its outcome."""
    start = time.perf_counter()
    outcome = [np.asarray(array) for array in step(*data)]  # fetching waits for the device
    return time.perf_counter() - start, outcome


def agreement(figures):
    """Return the largest differences of value and gradient, relative to the largest entry."""
    found, expected = figures["vectorised"], figures["loop"]
    return {
        key: float(np.max(np.abs(found[key] - expected[key])) / np.max(np.abs(expected[key])))
        for key in ("value", "gradient")
    }


def table(report):
    """Return the figures as lines for the terminal."""
    lines = [f"{'':12}{'vectorised':>12}{'loop':>12}{'ratio':>8}{'target':>8}"]
    for name, target in TARGETS.items():
        seconds = [report[side][f"{name}_s"] for side in ("vectorised", "loop")]
        lines.append(f"{name:12}{seconds[0]:11.4f}s{seconds[1]:11.4f}s{report['ratios'][name]:8.1f}{target:8.0f}")
    lines.append(f"largest relative differences: {report['largest_relative_difference']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
