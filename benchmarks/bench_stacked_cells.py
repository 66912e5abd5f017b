"""Prototype: train several finetuning cells as one batched computation, against one after another (JAX only).

    PYTHONPATH=. python benchmarks/bench_stacked_cells.py [--cells 1 4 12] [--steps-per-call N] [--output FILE]

Cells of one grid share network shape, batch size and step; only weights, optimiser state and data differ. The training
step of `Segmentation`, augmentation and Adam included, is compiled in several ways, which take turns on the same
batches:

    one by one   one cell's step, called for each cell in turn, as a grid does
    looped       the same with several steps in a call, only with `--steps-per-call`, which those below obey as well
    mapped       all cells in one call, one after another on the device (`jax.lax.map`)
    stacked      all cells at once, their weights along a further axis (`jax.vmap`)
    products     the same, with each convolution written as a sum of shifted matrix products

`jax.vmap` turns a convolution whose kernels differ from cell to cell into one with feature groups, a group per cell,
and its gradient by the kernel into one with batch groups; the table says how many the compiled step has. The products
become batched ones instead. On a CPU, XLA computes convolutions inside a loop several times more slowly than outside;
`mapped` is measured there with one cell only; more take time in proportion.

Stacking is worth its trouble at 3 times the slices per second of the faster of `one by one` and `looped`; whether it
reaches that is printed and stored, and is no goal. The goal is that all ways train the same: after one step from the
same weights, their gradients (Adam's momentum) differ by 0.05 of their length at most. Rounding makes it 1e-6 to 5e-3,
the more where it switches a ReLU or a maximum, or where a GPU multiplies in TF32; another cell's data would make it 1.
Augmentation leaves these slices alone: of a moved label, the nearest pixel is another one where the last bit of a
position is. Weights are a poor measure, because Adam's first steps have the same length however small a gradient is;
their distances after one and three steps, as a share of the way that training has moved them, are stored. Writes
benchmarks/output/stacked_cells.json. Takes about ten minutes on two cores, mostly compiling.
"""

import functools
import os
import re
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of

CONFIGS = [Path(__file__).resolve().parents[1] / "configs" / f"{n}.yaml" for n in ("lgg_tcga", "renal_table_simulated")]
WAYS = ("one by one", "looped", "mapped", "stacked", "products")
ONE_BY_ONE = WAYS[:2]
WORTH_IT, TOLERANCE, FURTHER_STEPS = 3.0, 0.05, 2


def main(arguments=None):
    options = options_of(arguments)
    os.environ["KERAS_BACKEND"] = "jax"
    print(f"{'slices per second (ratio)':33}", *(f"{way:>16}" for way in WAYS), "  distance  grouped", sep="")
    rows = []
    for path in options.configs:
        for count in options.cells:
            rows.append(measure(path, count, options))
            print(line(rows[-1]), flush=True)
    best = max(row["ratios"][way] for row in rows for way in ("stacked", "products"))
    verdict = f"{'worth it' if best >= WORTH_IT else 'not worth it'}: at most {best:.2f} times one after another"
    print(f"stacking cells is {verdict} (needed: {WORTH_IT:g})")
    farthest = max(row["distance"] for row in rows)
    goals = {"distance of gradients from one by one": (farthest, "at most", TOLERANCE)}
    sizes = {"configs": [path.stem for path in options.configs], "cells": options.cells, "turns": options.turns}
    sizes["steps_per_call"] = options.steps_per_call
    return finish(options.output, sizes=sizes, figures={"rows": rows, "verdict": verdict}, goals=goals)


def options_of(arguments):
    parser = parser_of(__doc__, "stacked_cells")
    parser.add_argument("--configs", nargs="+", type=Path, default=CONFIGS, metavar="FILE", help="grids (two)")
    parser.add_argument("--cells", nargs="+", type=int, default=[1, 4], metavar="K", help="at a time (1 4)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="timed turns (3)")
    parser.add_argument("--steps-per-call", type=int, default=1, metavar="N", help="of all but the first (1)")
    return parser.parse_args(arguments)


def measure(path, count, options):
    """Return slices per second of all ways for `count` cells of a config's grid, and how far their weights agree."""
    from benchmarks import steps
    from utils.config.load import load_config
    from utils.environment import device_name

    config = load_config(path)
    batches = [batch_of(config, seed) for seed in range(count)]
    task, states = cells_of(config, batches[0], count)
    left_out = {"looped", "mapped"} if device_name() == "cpu" and count > 1 else {"looped"}
    ways = {way: compiled(way, task, states, batches, 1) for way in WAYS if way not in left_out}
    still = [batch_of(config, seed, moved=False) for seed in range(count)]
    row = {"config": config.name, "cells": count, "distances": distances_of(task, ways, states, still)}
    row["convolutions"] = {way: convolutions for way, (_, convolutions) in ways.items()}
    if options.steps_per_call > 1:
        again = {"looped", *ways} - {"one by one"}
        ways |= {way: compiled(way, task, states, batches, options.steps_per_call) for way in again}
    sides = {way: run_of(call, way, states, batches) for way, (call, _) in ways.items()}
    seconds = steps.take_turns(sides, options.turns)
    slices = count * config.finetuning.training.batch_size
    per_call = dict.fromkeys(ways, slices * options.steps_per_call) | {"one by one": slices}
    rates = {way: per_call[way] / statistics.median(seconds[way]) for way in WAYS if way in ways}
    faster = max(rates[way] for way in ONE_BY_ONE if way in ways)
    ratios = {way: rate / faster for way, rate in rates.items()}
    return row | {"distance": max(row["distances"]["gradients"].values()), "slices_per_s": rates, "ratios": ratios}


def batch_of(config, seed, moved=True):
    """Return a training batch of a cell: random images, labels in blocks of 8 pixels, changes of the config or none."""
    import keras

    from training.augmentation import Changes, draw_changes

    generator = np.random.default_rng(seed)
    size, count = config.slices.image_size, config.finetuning.training.batch_size
    changes = Changes(**config.finetuning.augmentation.changes())
    blocks = generator.integers(0, len(config.data.labels) + 1, (count, *(-(-length // 8) for length in size)))
    batch = {
        "image": generator.random((count, *size, 1), "float32"),
        "label": blocks.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]].astype("uint8"),
        **draw_changes(count, size, generator, changes if moved else Changes(elastic_grid=changes.elastic_grid)),
    }
    return {name: keras.ops.convert_to_tensor(array) for name, array in batch.items()}


def cells_of(config, batch, count):
    """Return a task of a config's grid, and for each cell what its step changes, with weights of its own."""
    from benchmarks.steps import state_of
    from losses.segmentation import segmentation_loss
    from models.unet import build_unet
    from training.tasks import Segmentation

    shape, classes = (*config.slices.image_size, 1), len(config.data.labels) + 1
    networks = [build_unet(shape, filters=config.network.filters, outputs=classes, seed=seed) for seed in range(count)]
    loss = config.finetuning.loss.model_dump(exclude={"class_weights"})
    task = Segmentation(networks[0], functools.partial(segmentation_loss, **loss))
    task.ready(config.finetuning.training.learning_rate)
    _, *others = state_of(task)
    states = [([variable.value for variable in network.trainable_variables], *others) for network in networks]
    states = [copied(state) for state in states]  # training below would take their memory
    task.train_on_batch(batch)  # Keras builds the rest of a task with its first batch
    return task, states


def compiled(way, task, states, batches, steps_per_call):
    """Return the compiled step of one way, and how many convolutions it has, all and with groups."""
    import jax

    def step(state, batch):
        if way == "products":
            with as_products():
                return task.train_step(state, (batch, None, None))[1]
        return task.train_step(state, (batch, None, None))[1]

    def cell(state, batch):
        if steps_per_call == 1:
            return step(state, batch)
        return jax.lax.scan(lambda now, _: (step(now, batch), None), state, length=steps_per_call)[0]

    calls = {
        "one by one": cell,
        "looped": cell,
        "mapped": lambda states, batches: jax.lax.map(lambda one: cell(*one), (states, batches)),
        "stacked": jax.vmap(cell),
        "products": jax.vmap(cell),
    }
    arguments = (states[0], batches[0]) if way in ONE_BY_ONE else (stacked(states), stacked(batches))
    lowered = jax.jit(calls[way], donate_argnums=0).lower(*arguments)
    found = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    grouped = [line for line in found if re.search(r"group_count = ([2-9]|\d\d)", line)]
    return lowered.compile(), {"all": len(found), "grouped": len(grouped)}


def run_of(call, way, states, batches):
    """Return `run(steps)`, which trains all cells that many steps, waits and returns their states."""
    import jax

    one_by_one = way in ONE_BY_ONE
    states = copied(states) if one_by_one else stacked(states)
    batches = batches if one_by_one else stacked(batches)

    def run(steps):
        nonlocal states
        for _ in range(steps):
            if one_by_one:
                states = [call(state, batch) for state, batch in zip(states, batches, strict=True)]
            else:
                states = call(states, batches)
        return jax.block_until_ready(states)

    return run


def as_products():
    """Return a context in which convolutions are sums of matrix products of shifted images."""
    from unittest.mock import patch

    import keras

    def shifted_products(layer, images, kernel):
        rows, columns = kernel.shape[:2]
        height, width = images.shape[1:3]
        edges = [((size - 1) // 2, size // 2) for size in (rows, columns)]
        images = keras.ops.pad(images, [(0, 0), *edges, (0, 0)])
        return sum(
            keras.ops.matmul(images[:, row : row + height, column : column + width], kernel[row, column])
            for row in range(rows)
            for column in range(columns)
        )

    return patch.object(keras.layers.Conv2D, "convolution_op", shifted_products)


def stacked(trees):
    """Return the trees of several cells as one, along a new first axis."""
    import jax

    return jax.tree.map(lambda *arrays: jax.numpy.stack(arrays), *trees)


def copied(tree):
    """Return a tree of copies, whose memory can be given away."""
    import jax

    return jax.tree.map(jax.numpy.copy, tree)


def distances_of(task, ways, states, batches):
    """Return how far each way ends from `one by one`, by what is compared, then by way; the farthest cell."""
    sides = {way: run_of(call, way, states, batches) for way, (call, _) in ways.items()}
    momenta = [place for place, v in enumerate(task.optimizer.variables) if v.name.endswith("_momentum")]
    start, found = vectors(states, 0), {}
    for step, steps in {"first": 1, "third": FURTHER_STEPS}.items():
        ends = {way: run(steps) for way, run in sides.items()}
        weights = {way: vectors(end, 0) for way, end in ends.items()}
        found[f"weights, {step} step"] = distances(weights, start)
        if step == "first":
            found["gradients"] = distances({way: vectors(end, 2, momenta) for way, end in ends.items()}, 0.0)
    return found


def vectors(states, group, places=None):
    """Return some variables of all cells as one vector per cell, `(K, length)`."""
    import jax

    states = stacked(states) if isinstance(states, list) else states
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states[group])]
    leaves = leaves if places is None else [leaves[place] for place in places]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def distances(ends, start):
    """Return, by way, the distance from `one by one` as a share of its distance from the start; the farthest cell."""
    expected = ends["one by one"]
    way_moved = np.linalg.norm(expected - start, axis=1)
    return {way: float(np.max(np.linalg.norm(end - expected, axis=1) / way_moved)) for way, end in ends.items()}


def line(row):
    """Return one row of the table."""
    rates, ratios, grouped = row["slices_per_s"], row["ratios"], row["convolutions"]["stacked"]
    ways = "".join(f"{rates[way]:9.4g} ({ratios[way]:4.2f})" if way in rates else f"{'-':>16}" for way in WAYS)
    name = f"{row['config']:24}{row['cells']:3} cells"
    return f"{name}{ways}{row['distance']:10.1e}  {grouped['grouped']} of {grouped['all']}"


if __name__ == "__main__":
    sys.exit(main())
