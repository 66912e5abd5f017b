"""Compare training, with its data, to the same compiled step on one batch that already is on the device.

    PYTHONPATH=. python benchmarks/bench_training.py [--cases constrained segmentation] [--rounds N] [--output FILE]

Both kinds of training run as in steps 3 and 4: `resident` with the slices on the device, of which a batch names the
rows, and `streaming` from HDF5 (`data.resident: never`). Orders, anchors and random changes of images are drawn as
ever, and Keras' loop is around them; the `step` beside them does nothing but repeat itself. Generated slices. Goals: at
least 0.95 of the step's throughput resident, 0.90 streaming. Writes benchmarks/output/training_<backend>.json; exit
code 1 when a goal is missed. Takes about five minutes on two cores.
"""

import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of

FILTERS, SMALL_FILTERS = [16, 32, 64, 128, 128, 128], [16, 32, 64, 64, 64]
CASES = {  # paper size, and the size of configs/lgg_tcga.yaml
    "constrained": {"size": (160, 160), "contrasts": 2, "batch": 10, "filters": FILTERS, "slices": 400},
    "constrained_small": {"size": (64, 64), "contrasts": 1, "batch": 16, "filters": SMALL_FILTERS, "slices": 800},
    "segmentation_small": {"size": (64, 64), "contrasts": 1, "batch": 20, "filters": SMALL_FILTERS, "slices": 800},
}
GOALS = {"resident": 0.95, "streaming": 0.90}


def main(arguments=None):
    parser = parser_of(__doc__, "training_<backend>")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each side (default: 15)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn (default: 1.5)")
    options = parser.parse_args(arguments)
    import keras

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            figures[name] = measure(name, CASES[name], Path(folder), options.rounds, options.seconds)
            print(line(name, figures[name]), flush=True)
    goals = {
        f"{name}, {side} against the step alone": (figures[name]["ratios"][side], "at least", bound)
        for name in options.cases
        for side, bound in GOALS.items()
    }
    output = Path(str(options.output).replace("<backend>", keras.backend.backend()))
    return finish(output, sizes={name: CASES[name] for name in options.cases}, figures=figures, goals=goals)


def measure(name, case, folder, rounds, seconds):
    """Return slices per second of every turn of the three sides, and the medians of their ratios."""
    store = store_of(case, folder / f"{name}.h5")
    build = build_segmentation if name.startswith("segmentation") else build_constrained
    (step, step_batches), (resident, batches), (streaming, streamed) = (
        build(store, case, s) for s in (True, True, False)
    )
    sides = {"step": repeated(step, step_batches)}
    sides |= {"resident": trained(resident, batches), "streaming": trained(streaming, streamed)}
    for run in sides.values():
        run(2)  # compiles
    steps = max(3, round(seconds / (sides["step"](3) / 3)))
    rates = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            rates[side].append(steps * case["batch"] / run(steps))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    # Round by round, so that what else the machine does falls on both sides of a ratio.
    ratios = {side: float(np.median(np.divide(rates[side], rates["step"]))) for side in GOALS}
    return {"slices_per_s": medians, "ratios": ratios, "turns": rates, "steps_a_turn": steps}


def store_of(case, path):
    """Write slices with constraint maps and labels as step 2 does, and open them."""
    from data.geometry import SliceGrid
    from data.store.store import SliceStore, StoreWriter, SubjectSlices

    generator, subjects = np.random.default_rng(0), 8
    count, names = case["slices"] // subjects, [f"t{number}" for number in range(1, case["contrasts"] + 1)]
    grid = SliceGrid((*case["size"], count), np.eye(4), None, case["size"])
    options = {"contrasts": names, "image_size": case["size"], "attributes": {}, "has_labels": True}
    with StoreWriter(path, **options) as writer:
        for number in range(subjects):
            maps = generator.integers(0, 21, (count, *(n // 8 for n in case["size"]))).repeat(8, 1).repeat(8, 2)
            images = maps[..., None] / 20 + generator.normal(0, 0.05, (*maps.shape, len(names)))
            slices = {"images": images, "constraint_maps": {None: maps}, "labels": (maps > 15).astype("uint8")}
            writer.add(SubjectSlices(f"sub-{number}", grid, np.arange(count), **slices))
    return SliceStore(path)


def build_constrained(store, case, is_resident):
    """Return task and training batches of constrained pretraining, just before its first step."""
    from data.store.slices import in_memory_if, stored_images, stored_maps
    from losses.constrained_contrastive import constrained_contrastive_loss
    from training import pretraining
    from training.effective import PatchCounts

    caught, train = [], pretraining._train
    pretraining._train = lambda task, batches, setup: caught.extend((task.ready(1e-4), batches[0]))
    images = in_memory_if([stored_images(store, store.contrasts)], "always" if is_resident else "never", 0)[0]
    shown = pretraining.Images(images, stored_maps(store))
    decoder = pretraining.Decoder(len(case["filters"]) - 3, features=64)
    counts, patches = PatchCounts(nearest=100, anchors=20), pretraining.Patches()
    with tempfile.TemporaryDirectory() as folder:
        setup = pretraining.Setup(case["filters"], schedule_of(case), run_in(Path(folder)))
        pretraining.pretrain_constrained(shown, shown, constrained_contrastive_loss, decoder, counts, patches, setup)
    pretraining._train = train
    task, batches = caught
    held = {name: batches.arrays[name].values for name in batches.on_device}
    task.hold(held, held)
    return task, batches


def schedule_of(case, steps=None):
    """Return what a training of a case is told of its batches."""
    from training.schedules import Schedule

    return Schedule(epochs=1, learning_rate=1e-3, batch_size=case["batch"], steps_per_epoch=steps)


def run_in(folder):
    """Return a run that is kept in a folder."""
    from training.loop import RunOptions

    return RunOptions(folder, tag="bench", name="bench", seed=1)


def build_segmentation(store, case, is_resident):
    """Return task and training batches of a finetuning cell, just before its first step."""
    from data.store.slices import in_memory_if, stored_images, stored_labels
    from losses.segmentation import segmentation_loss
    from models.unet import build_unet
    from training.augmentation import Changes
    from training.finetuning import SegmentationTrainer

    caught, shape = [], (*case["size"], case["contrasts"])
    trainer = SegmentationTrainer(
        functools.partial(build_unet, shape, filters=case["filters"], outputs=2),
        segmentation_loss,
        augmentation=Changes(translation=0.1, rotation_degrees=10, scale=(0.9, 1.1), elastic_px=2.0),
        schedule=schedule_of(case, steps=10),
    )
    trainer.fit = lambda batches, validation, run: caught.append(batches)
    arrays = [stored_images(store, store.contrasts), stored_labels(store)]
    trainer.use(*in_memory_if(arrays, "always" if is_resident else "never", 0))
    trainer.train(np.arange(len(store)), np.arange(len(store)), run_in(Path("nowhere")))
    return trainer.task, caught[0]


def repeated(task, batches):
    """Return `run(steps)`, seconds of training on one batch again and again, which is on the device."""
    import keras

    from benchmarks.steps import make_step, timed

    (batch,) = batches[0]
    batch = {name: keras.ops.convert_to_tensor(values) for name, values in batch.items()}
    task.train_on_batch(batch)
    step = make_step(task, batch)
    return lambda steps: timed(step, steps)


def trained(task, batches):
    """Return `run(steps)`, seconds of an epoch of that many steps, trained as steps 3 and 4 do."""
    import keras

    from training.batches import fed

    def run(steps):
        batches.steps = steps * batches.per_dispatch
        batches.__dict__.pop("dispatches", None)
        ends = []  # the first epoch has the start of `fit` in it, which a training has once
        note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
        task.fit(fed(batches), epochs=2, shuffle=False, verbose=0, callbacks=[note])
        return (ends[1] - ends[0]) / batches.per_dispatch

    return run


def line(name, figure):
    """Return the figures of a case for the terminal."""
    rates = "   ".join(f"{side} {rate:.1f} slices/s" for side, rate in figure["slices_per_s"].items())
    return f"{name}: {rates}"


if __name__ == "__main__":
    sys.exit(main())
