"""Time pretraining and finetuning at the papers' size: the whole loop, with validation, checkpoints and compiling.

    PYTHONPATH=. python benchmarks/bench_paper.py [--share 0.01] [--mixed] [--output FILE]

80 subjects of 100 slices, 160 x 160 pixels, two contrasts, authors' filters, partial decoder, batches of 10; 150 epochs
of constrained contrast with 10 validation subjects; and a grid of 2 initialisations x 5 N (2, 4, 8, 16, 20) x 3
repeats, 200 epochs in batches of 20 slices, with 20 test subjects of 240 x 240 x 155 voxels to predict, write and score
in three dimensions in every cell. Generated slices, on the device. On a processor only a share of the slices
and of the epochs is run, and what is printed for the whole is extrapolated from the seconds a slice and says so. Goals,
on a GPU: 15,000 slices a second in pretraining, 150 epochs in 4 minutes, the grid and two pretrainings in 30 minutes.
Writes benchmarks/output/paper_<backend>.json; exit code 1 when a goal is missed. Takes five minutes on two cores with
the default share there; on a GPU the default is all of it.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of
from utils.environment import device_name

SIZE, CONTRASTS, FILTERS, CLASSES = (160, 160), 2, [16, 32, 64, 128, 128, 128], 4
SUBJECTS, VALIDATION, SLICES, EPOCHS, BATCH = 80, 10, 100, 150, 10
GRID = {"inits": 2, "subjects_n": [2, 4, 8, 16, 20], "repeats": 3, "epochs": 200, "batch": 20, "tests": 20}
METHODS = 2  # pretrainings of the whole table


def main(arguments=None):
    parser = parser_of(__doc__, "paper_<backend>")
    parser.add_argument("--share", type=float, help="share of slices and epochs (default: 1 on a GPU, else 0.01)")
    parser.add_argument("--mixed", action="store_true", help="compute in bfloat16")
    options = parser.parse_args(arguments)
    import keras

    from training.devices import use_precision

    use_precision(options.mixed)
    is_cpu = device_name() == "cpu"
    share = options.share or (0.01 if is_cpu else 1.0)
    with tempfile.TemporaryDirectory() as folder:
        figures = {"pretraining": pretraining(share, Path(folder)), "finetuning": finetuning(share, Path(folder))}
    figures["table_s"] = METHODS * figures["pretraining"]["whole_s"] + figures["finetuning"]["whole_s"]
    print(table(figures, share))
    goals = {} if is_cpu else goals_of(figures)
    output = Path(str(options.output).replace("<backend>", keras.backend.backend()))
    sizes = {"share": share, "size": SIZE, "batch": BATCH, "grid": GRID, "mixed": options.mixed}
    return finish(output, sizes=sizes, figures=figures, goals=goals)


def goals_of(figures):
    """Return the goals of a GPU."""
    return {
        "pretraining, slices a second": (figures["pretraining"]["slices_per_s"], "at least", 15_000),
        "150 epochs of pretraining, minutes": (figures["pretraining"]["whole_s"] / 60, "at most", 4),
        "the whole table, minutes": (figures["table_s"] / 60, "at most", 30),
    }


def slices(count, seed):
    """Generate images `(count, H, W, C)` float16 and maps `(count, H, W)` of 20 classes."""
    generator = np.random.default_rng(seed)
    maps = generator.integers(0, 21, (count, *(length // 8 for length in SIZE))).repeat(8, 1).repeat(8, 2)
    noise = generator.normal(0, 0.05, (count, *SIZE, CONTRASTS)).astype(np.float16)
    return (maps[..., None] / 20).astype(np.float16) + noise, maps.astype(np.uint8)


def pretraining(share, folder):
    """Pretrain on a share of the slices, for a share of the epochs, and extrapolate to all of them."""
    from losses.constrained_contrastive import constrained_contrastive_loss
    from training.effective import PatchCounts
    from training.loop import RunOptions
    from training.pretraining import Decoder, Images, Patches, Setup, pretrain_constrained
    from training.schedules import Schedule

    count, seen = (max(2 * BATCH, round(share * number * SLICES)) for number in (SUBJECTS, VALIDATION))
    epochs = max(3, round(share * EPOCHS))
    run = RunOptions(folder / "pretraining", "bench", "pretraining", seed=1)
    setup = Setup(FILTERS, Schedule(epochs, learning_rate=1e-4, batch_size=BATCH), run)
    counts, decoder = PatchCounts(nearest=100, anchors=20), Decoder(levels=3, features=64)
    shown = Images(*slices(count, 0)), Images(*slices(seen, 1))
    started = time.perf_counter()
    _, history = pretrain_constrained(*shown, constrained_contrastive_loss, decoder, counts, Patches(), setup)
    whole = time.perf_counter() - started
    later = [row["seconds"] for row in history[1:]]  # the first compiles
    first, per_epoch = whole - sum(later), float(np.mean(later))
    # What a validation slice costs beside a training slice: the forward half of a third.
    per_slice = per_epoch / (count + seen / 3)
    at_size = per_slice * (SUBJECTS + VALIDATION / 3) * SLICES
    return {
        "slices": count,
        "validation_slices": seen,
        "epochs": epochs,
        "seconds": whole,
        "first_epoch_s": first,
        "epoch_s": per_epoch,
        "slices_per_s": 1 / per_slice,
        "whole_s": whole if share == 1 else first + EPOCHS * at_size,
    }


def finetuning(share, folder):
    """Train cells on a share of the epochs and extrapolate to the grid; every cell has the same number of updates."""
    from losses.segmentation import segmentation_loss
    from models.unet import build_unet
    from training.augmentation import Changes
    from training.finetuning import SegmentationTrainer
    from training.loop import RunOptions
    from training.schedules import Schedule

    steps, epochs = 10, max(3, round(share * GRID["epochs"]))
    trainer = SegmentationTrainer(
        functools.partial(build_unet, (*SIZE, CONTRASTS), filters=FILTERS, outputs=CLASSES),
        segmentation_loss,
        augmentation=Changes(translation=0.1, rotation_degrees=10, scale=(0.9, 1.1), elastic_px=2.0),
        schedule=Schedule(epochs, 1e-3, GRID["batch"], steps_per_epoch=steps, evaluate_every=2),
    )
    images, maps = slices(max(2 * GRID["batch"], round(share * 30 * SLICES)), 2)
    rows, others = np.split(np.arange(len(images)), [len(images) * 2 // 3])
    trainer.use(images, maps % CLASSES)
    seconds = []
    for name in "ab":  # the first compiles
        started = time.perf_counter()
        trainer.start_from(seed=1)
        trainer.train(rows, others, RunOptions(folder / name, "bench", name, seed=1))
        seconds.append(time.perf_counter() - started)
    first, later = seconds
    cells = GRID["inits"] * len(GRID["subjects_n"]) * GRID["repeats"]
    tested = testing(trainer.network, share)
    at_size = later * GRID["epochs"] / epochs + GRID["tests"] * tested
    return {
        "epochs": epochs,
        "updates_a_cell": steps * GRID["epochs"],
        "validation_slices": len(others),
        "first_cell_s": first,
        "later_cell_s": later,
        "test_subject_s": tested,
        "cells": cells,
        "whole_s": first - later + cells * at_size,
    }


def testing(network, share):
    """Return the seconds a test subject from its slices to its scores.

    Scored is a made-up tumour, not what the network says, which has hardly learned: surfaces of noise take longer.
    """
    from benchmarks.bench_evaluation import finisher, label_maps, probabilities_of
    from evaluation.prediction.inference import predict_slices
    from utils.parallel import in_threads

    reference, prediction = label_maps()
    grid, probabilities = probabilities_of(prediction)
    images = np.zeros((len(probabilities), *SIZE, CONTRASTS), np.float32)
    predict_slices(network, images[: GRID["batch"]], GRID["batch"])  # compiles
    count = max(4, round(share * GRID["tests"]))

    def predicted():
        for number in range(count):
            predict_slices(network, images, GRID["batch"])
            yield f"sub-{number}", grid, probabilities

    with tempfile.TemporaryDirectory() as folder:
        finish, started = finisher(folder, reference), time.perf_counter()
        list(in_threads(finish, predicted()))
        return (time.perf_counter() - started) / count


def table(figures, share):
    """Return the figures as lines for the terminal."""
    before, after = figures["pretraining"], figures["finetuning"]
    how = "measured" if share == 1 else f"extrapolated from {share:.3g} of slices and epochs"
    whole = f"{EPOCHS} epochs of {SUBJECTS * SLICES}: {before['whole_s'] / 60:.1f} min"
    return "\n".join(
        [
            f"pretraining: {before['slices_per_s']:.1f} slices/s, {before['epoch_s']:.1f} s an epoch of "
            f"{before['slices']} slices; {whole} ({how})",
            f"finetuning: {after['later_cell_s']:.1f} s a cell of {after['epochs']} epochs, first one "
            f"{after['first_cell_s']:.1f} s; {after['test_subject_s']:.1f} s a test subject; {after['cells']} cells: "
            f"{after['whole_s'] / 60:.1f} min ({how})",
            f"table ({METHODS} pretrainings and the cells): {figures['table_s'] / 60:.1f} min ({how})",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
