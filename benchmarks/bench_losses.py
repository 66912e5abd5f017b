"""Time the constrained contrastive loss, value and gradient: against a loop, and as a share of a training step.

    PYTHONPATH=. python benchmarks/bench_losses.py [--parts loop share] [--slices N] [--output FILE]

`loop` compares it with a loop over slices and anchors unrolled in the graph, what a direct reading of the method
gives: 10 slices with 20 anchors each, 1,600 patches of 64 features, 100 nearest patches. The goals are 10 times less
per step on a CPU, 100 times on a GPU, and 50 times less until the first step is done. On JAX the time to compile the
loop grows faster than its length (20 anchors: a second, 80: two and a half minutes on a CPU core): there it is compiled
slice by slice for the time per step, and the whole loop gets `--limit` seconds in a process of its own for the first
step; what it does not reach in them is a lower bound. PyTorch runs both without compiling.

`share` compares a training step on as many images of 160 x 160 x 2, compiled as in a training, with the same step whose
loss is the mean square of the representations, and with the loss alone; the goal is a share of 0.05 at most, both
ways. The loss alone reads the representations and writes their gradient: its floor is one pass over such an array.

Writes benchmarks/output/losses_<backend>.json; exit code 1 when a goal is missed. Takes about three minutes on
TensorFlow.
"""

import argparse
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks.common import finish, parser_of

PATCHES, FEATURES, ANCHORS, NEAREST = 1600, 64, 20, 100
TEMPERATURE, IMAGE_SHAPE = 0.1, (160, 160, 2)
STEPS_PER_DISPATCH = 16  # on a GPU, as in a training: what the host does between two steps would hide the loss
PER_STEP_CPU, PER_STEP_GPU, FIRST_STEP, SHARE, TOLERANCE = 10.0, 100.0, 50.0, 0.05, 1e-4


def main(arguments=None):
    options = options_of(arguments)
    import keras

    data = [keras.ops.convert_to_tensor(array) for array in batch(options.slices)]
    run_of(compiled(lambda x: keras.ops.sum(x * x)), [data[:1]])(1)  # starts the backend: no loss pays for it
    if options.only_loop:
        return time_whole_loop(data)
    figures, goals = {}, {}
    for part, measure in {"loop": against_loop, "share": share_of_step}.items():
        if part in options.parts:
            figures[part], part_goals = measure(data, options)
            goals |= part_goals
    print("\n".join(f"{part} {name}: {value}" for part in figures for name, value in figures[part].items()))
    sizes = {"slices": options.slices, "patches": PATCHES, "features": FEATURES, "anchors": ANCHORS, "nearest": NEAREST}
    sizes |= {"image_shape": IMAGE_SHAPE, "turns": options.turns}
    output = options.output.with_name(options.output.name.replace("<backend>", keras.backend.backend()))
    return finish(output, sizes=sizes, figures=figures, goals=goals)


def options_of(arguments):
    parser = parser_of(__doc__, "losses_<backend>")
    parser.add_argument(
        "--parts", nargs="+", choices=("loop", "share"), default=["loop", "share"], help="default: both"
    )
    parser.add_argument("--slices", type=int, default=10, metavar="N", help="slices of a batch (10)")
    parser.add_argument("--turns", type=int, default=10, metavar="N", help="timed turns (10)")
    parser.add_argument("--limit", type=float, default=120, metavar="S", help="JAX: to compile the whole loop (120 s)")
    parser.add_argument("--only-loop", action="store_true", help=argparse.SUPPRESS)  # in the process of its own
    return parser.parse_args(arguments)


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
    import torch

    def eager(first, *others):
        first = first.detach().requires_grad_()
        value = function(first, *others)
        return value.detach(), torch.autograd.grad(value, first)[0]

    return eager


def run_of(step, pieces):
    """Return `run(steps)`, which computes all pieces of a batch that often, waits, and returns what the last gave."""
    from keras import ops

    def run(steps):
        for _ in range(steps):
            outcomes = [step(*piece) for piece in pieces]
        ops.convert_to_numpy(outcomes[-1][1][:1, :1, :1])  # fetching waits for the device
        return outcomes

    return run


def against_loop(data, options, compilations=3):
    """Return figures and goals of the loss beside the loop; they take turns, so that load slows both alike."""
    import keras

    from benchmarks import steps
    from utils.environment import device_name

    is_jax = keras.backend.backend() == "jax"
    # JAX could not compile the whole loop, and the slices of a batch have nothing to do with each other.
    pieces = [[array[i : i + 1] for array in data] for i in range(options.slices)] if is_jax else [data]
    firsts = []
    for _ in range(compilations):
        sides = {"loss": run_of(compiled(vectorised), [data]), "loop": run_of(compiled(loop), pieces)}
        firsts.append({name: steps.timed(run, 1) for name, run in sides.items()})
    first = {name: statistics.median(seconds[name] for seconds in firsts) for name in sides}
    is_bound = False
    if is_jax:
        first["loop"], is_bound = whole_loop_s(options)
    per_step = {n: statistics.median(seconds) for n, seconds in steps.take_turns(sides, options.turns).items()}
    difference = largest_difference(sides)
    ratios = {"per_step": per_step["loop"] / per_step["loss"], "first_step": first["loop"] / first["loss"]}
    figures = {"first_step_s": first, "per_step_s": per_step, "ratios": ratios, "largest_difference": difference}
    figures["first_step_of_loop_is_lower_bound"] = is_bound
    known = None if is_bound and ratios["first_step"] < FIRST_STEP else ratios["first_step"]
    goal = PER_STEP_CPU if device_name() == "cpu" else PER_STEP_GPU
    return figures, {
        "loop / loss, per step": (ratios["per_step"], "at least", goal),
        "loop / loss, first step": (known, "at least", FIRST_STEP),
        "largest difference of value and gradient, relative": (difference, "at most", TOLERANCE),
    }


def time_whole_loop(data):
    """Say when the backend is ready, then compile and run the whole loop and print the seconds that it took."""
    from benchmarks import steps

    print("ready", flush=True)
    print(steps.timed(run_of(compiled(loop), [data]), 1))
    return 0


def whole_loop_s(options):
    """Return the seconds to the first step of the whole loop, measured elsewhere, and whether it was ended before."""
    command = [sys.executable, __file__, "--only-loop", "--slices", str(options.slices)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        process.stdout.readline()
        start = time.perf_counter()
        try:
            return float(process.communicate(timeout=options.limit)[0]), False
        except subprocess.TimeoutExpired:
            process.kill()
            return time.perf_counter() - start, True


def largest_difference(sides):
    """Return the largest difference of value and gradient between loss and loop, relative to the largest entry."""
    from keras import ops

    results = []
    for run in sides.values():
        values, gradients = zip(*run(1), strict=True)
        values, gradients = ([ops.convert_to_numpy(array) for array in arrays] for arrays in (values, gradients))
        results.append((np.mean(values), np.concatenate(gradients) / len(gradients)))
    pairs = zip(*results, strict=True)
    return max(float(np.max(np.abs(found - expected)) / np.max(np.abs(expected))) for found, expected in pairs)


def share_of_step(data, options):
    """Return figures and goals of the loss within a compiled training step; all sides take turns."""
    from keras import ops

    from benchmarks import steps
    from training.tasks import ConstrainedContrast
    from utils.environment import device_name

    class Trivial(ConstrainedContrast):
        def cost(self, batch, representations, training):
            # Its gradient differs from patch to patch: a compiler would simplify the backward pass of a constant one.
            return ops.mean(ops.square(representations), axis=(1, 2))

    sides = {}
    per_dispatch = 1 if device_name() == "cpu" else STEPS_PER_DISPATCH
    for name, kind in {"step": ConstrainedContrast, "step_without_loss": Trivial}.items():
        task = steps.constrained_task(IMAGE_SHAPE, kind=kind)
        images = steps.repeated(steps.constrained_batch(task, options.slices), per_dispatch)
        task.train_on_batch(images)
        sides[name] = steps.make_step(task, images)
    sides["loss"] = run_of(compiled(vectorised), [data])
    sides["pass"] = run_of(lambda array: (None, array * 2.0), [data[:1]])
    seconds = steps.take_turns(sides, options.turns)
    for name in ("step", "step_without_loss"):
        seconds[name] = [value / per_dispatch for value in seconds[name]]
    turns = [dict(zip(seconds, turn, strict=True)) for turn in zip(*seconds.values(), strict=True)]
    by_difference = statistics.median(1 - turn["step_without_loss"] / turn["step"] for turn in turns)
    alone = statistics.median(turn["loss"] / turn["step"] for turn in turns)
    figures = {"per_step_s": {name: statistics.median(values) for name, values in seconds.items()}}
    figures |= {"share_by_difference": by_difference, "share_alone": alone}
    floor = statistics.median(turn["pass"] / turn["loss"] for turn in turns)
    figures |= {"bytes_of_floor": 2 * data[0].shape[0] * PATCHES * FEATURES * 4, "floor_as_share_of_loss": floor}
    return figures, {
        "loss as a share of the step, by difference": (by_difference, "at most", SHARE),
        "loss as a share of the step, loss alone": (alone, "at most", SHARE),
    }


if __name__ == "__main__":
    sys.exit(main())
