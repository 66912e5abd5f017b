"""Train nnU-Net on the cells of a study, for its tables: the same subjects, slices per training and network size.

    make install-nnunet
    python -m tools.run_nnunet --config configs/chaos_mr.yaml --subjects-n 2 8

Reads   what tools.export_dataset reads: the scans and label maps, and h5/annotated.h5 (step 2).
Writes  nnunet/ in the work dir (raw and preprocessed datasets, results, predictions) and, like
        tools.score_predictions, finetuning/<contrasts>/nnunet/n<NN>/r<K>/ for each cell.
Takes   at least as long as the cells of step 4. The config determines the features of each level, the patch
        (slices.image_size), the pixel size, the batch, and the epochs of finetuning.training.steps_per_epoch updates;
        trainer, loss, schedule, augmentation, normalisation and mirroring in prediction are nnU-Net's own.
        Finished cells are skipped; an interrupted one resumes from its last checkpoint, one per tenth of the epochs.
        nnU-Net's schedule is made for 250,000 updates. With 2,000 of 12 slices of chaos_mr (N = 8, one cell) it found
        the liver of the validation subjects (Dice 0.85) and no other organ; this suite reached 0.84 over all four.
        --set finetuning.training.epochs=1000 trains it longer and leaves all other cells valid.
Next    python reproduce_tables.py --config FILE
"""

import csv
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

from utils.checks import InputError
from utils.command_line import from_command_line
from utils.runs import exit_code_of, read_json, write_json
from utils.work_dir import METRICS

log = logging.getLogger("mrccl")
ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("_nnunet.py")
NAME = "nnunet"
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
LINES_SHOWN = 5  # of the output of a failed command


def add_options(parser):
    text = "Python that has nnU-Net (default: .venv-nnunet/bin/python, from make install-nnunet)"
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-nnunet/bin/python", metavar="FILE", help=text)
    parser.add_argument("--contrasts", nargs="+", metavar="NAME", help="input sets (default: all)")
    parser.add_argument("--subjects-n", nargs="+", type=int, metavar="N", help="values of N to run (default: all)")
    parser.add_argument("--repeats", type=int, metavar="K", help="the first K draws (default: all)")
    parser.add_argument("--folds", nargs="+", type=int, metavar="F", help="folds of a cross-validation (default: all)")
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="CPU threads for nnU-Net (default: 1)")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    check(config, options)
    folder = Path(config.work_dir) / NAME
    if not any((folder / "raw").glob("Dataset*/cells.csv")):
        say = [sys.executable, "-m", "tools.export_dataset", *shlex.split(options.again)]
        call([*say, "--format", NAME, "--output", folder / "raw"], folder / "export.log")
    for number, (contrasts, dataset) in enumerate(datasets(config, folder).items()):
        if options.contrasts and contrasts not in options.contrasts:
            continue
        settings = write_settings(config, options, folder, dataset)
        if not (folder / "preprocessed" / dataset.name / "splits_final.json").exists():
            log.info("%s: nnU-Net plans and preprocesses", dataset.name)
            call([options.python, WORKER, "prepare", settings], folder / f"prepare_{number}.log", folder)
        run_cells(config, options, folder, contrasts, dataset, settings)
    log.info("next: python reproduce_tables.py %s", options.again)


def check(config, options):
    """Refuse what cannot be compared, before anything is written."""
    grid, mistakes = config.finetuning, []
    if not options.python.exists():
        mistakes.append(f"--python {options.python}: does not exist; type: make install-nnunet")
    if grid.training.steps_per_epoch is None:
        mistakes.append(
            "finetuning.training.steps_per_epoch: is not set, so that the number of updates depends on N; set it"
        )
    for option, asked, known in (
        ("--contrasts", options.contrasts, list(grid.contrasts)),
        ("--subjects-n", options.subjects_n, grid.subjects_n),
    ):
        mistakes += [
            f"{option} {one}: not one of {', '.join(map(str, known))} (finetuning)"
            for one in asked or ()
            if one not in known
        ]
    if mistakes:
        raise InputError(mistakes)


def datasets(config, folder):
    """Return the exported dataset of each input set; the sets have consecutive numbers."""
    found = sorted((folder / "raw").glob("Dataset*"))
    return dict(zip(config.finetuning.contrasts, found, strict=True))


def write_settings(config, options, folder, dataset):
    """Write the settings that nnU-Net takes from the config; returns the file."""
    training, path = config.finetuning.training, folder / f"{dataset.name}.json"
    write_json(
        path,
        {
            "dataset": dataset.name,
            "number": int(dataset.name.removeprefix("Dataset")[:3]),
            "filters": list(config.network.filters),
            "image_size": list(config.slices.image_size),
            "pixel_mm": config.slices.pixel_size,
            "batch_size": training.batch_size,
            "epochs": training.epochs,
            "steps_per_epoch": training.steps_per_epoch,
            "seed": config.seed,
            "threads": options.threads,
        },
    )
    return path


def run_cells(config, options, folder, contrasts, dataset, settings):
    """Train, predict and score the requested cells of one dataset that are not finished."""
    with (dataset / "cells.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if is_asked_for(row, options)]
    if not rows:
        raise InputError(f"{dataset}: no cell of --subjects-n, --repeats and --folds; see cells.csv there")
    for place, row in enumerate(rows, start=1):
        work = config.work.of(row["split"])
        cell = work.cell("finetuning", contrasts, NAME, n=row["subjects_n"], repeat=row["repeat"])
        if (cell / METRICS).exists():
            continue
        output = folder / "predictions" / dataset.name / row["fold"]
        log.info("%s: trains, cell %d of %d", cell, place, len(rows))
        words = [options.python, WORKER, "cell", settings, row["fold"], dataset / row["images"], output]
        call(words, output.with_suffix(".log"), folder)
        score(config, options, contrasts, row, output, read_json(settings))


def is_asked_for(row, options):
    """Tell whether the command line asks for the cell in a row of cells.csv."""
    split = row["split"].removeprefix("fold")
    return (
        (options.subjects_n is None or int(row["subjects_n"]) in options.subjects_n)
        and (options.repeats is None or int(row["repeat"]) < options.repeats)
        and (options.folds is None or not split or int(split) in options.folds)
    )


def score(config, options, contrasts, row, output, settings):
    """Score the predictions of one cell with tools.score_predictions, with a note on its training."""
    times = read_json(output / "times.json")
    rate = f"; {times['slices_per_second']:.0f} slices a second" if times["slices_per_second"] else ""
    note = (
        f"nnU-Net {times['version']}, 2D, with its own trainer, loss, schedule and augmentation; from this study: "
        f"features {settings['filters']}, patch {settings['image_size']}, pixel size, batch {settings['batch_size']}, "
        f"{settings['epochs']} epochs of {settings['steps_per_epoch']} updates; last weights{rate} on {times['device']}"
    )
    words = [sys.executable, "-m", "tools.score_predictions", *shlex.split(options.again), "--name", NAME]
    words += ["--contrasts", contrasts, "--subjects-n", row["subjects_n"], "--repeat", row["repeat"], "--note", note]
    words += ["--selecting", "0", *(["--fold", row["split"].removeprefix("fold")] if row["split"] else [])]
    call([*words, "--predictions", output], output.with_suffix(".log"))


def call(words, path, folder=None):
    """Run a command with its output appended to a file; InputError with its last lines if it fails.

    Args:
        words: The command.
        path: File for the output.
        folder: Folder of nnU-Net's data; None for commands of this suite.
    """
    places = {key: str((folder / name).resolve()) for key, name in FOLDERS.items()} if folder else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    command = list(map(str, words))
    with path.open("a", encoding="utf-8") as said:
        done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, env=os.environ | places)
    if done.returncode:
        last = path.read_text(encoding="utf-8").splitlines()[-LINES_SHOWN:]
        raise InputError([f"{path}: this command failed: {shlex.join(command)}", *last])


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
