"""Export the study as nnU-Net v2 datasets, with the annotated, validation and test subjects of step 4.

    python -m tools.export_dataset --config configs/chaos_mr.yaml --format nnunet --output nnUNet_raw/

Reads   the scans and label maps, and h5/annotated.h5 (step 2), which lists the subjects that step 4 may draw.
Writes  DatasetNNN_<name>_<contrasts>/ for each input set of finetuning.contrasts: imagesTr, labelsTr, imagesTs and
        labelsTs (with cross-validation imagesTs_fold<K> and labelsTs_fold<K>); dataset.json; splits_final.json, in
        which each fold is one cell (a pair of N and repeat) with the subjects that step 4 draws and the validation
        subjects; and cells.csv, which maps folds to cells. Labels are numbered in the order of the config; contrasts
        have the intensities and grid that the steps use. Characters that are not safe in case names are written as =XX
        (UTF-8), which tools.score_predictions decodes.
Takes   about a second per subject and contrast.
Next    the commands that it prints; then python -m tools.score_predictions --config FILE ...
"""

import csv
import functools
import logging
import os
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from utils.checks import InputError, counted
from utils.command_line import check_writable, from_command_line
from utils.config.schema import channel_names
from utils.disk import results_go_to
from utils.parallel import in_order
from utils.runs import TEMPORARY, atomic_path, exit_code_of, progress, remove_left_overs, write_json

log = logging.getLogger("mrccl")
FIRST_NUMBER, LARGEST_NUMBER = 501, 999  # of a dataset; smaller numbers are taken by published datasets
DESCRIPTION, SPLITS, CELLS = "dataset.json", "splits_final.json", "cells.csv"


class Fold(NamedTuple):
    """A fold of nnU-Net: the split of one cell of step 4, with its training and validation subjects."""

    split: str
    n: int
    repeat: int
    train: tuple[str, ...]
    val: tuple[str, ...]


def add_options(parser):
    parser.add_argument("--format", required=True, choices=("nnunet",), help="nnunet: raw datasets of nnU-Net v2")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write, such as nnUNet_raw")
    text = f"number of the first dataset (default: {FIRST_NUMBER}); the others follow"
    parser.add_argument("--first-number", type=int, default=FIRST_NUMBER, metavar="N", help=text)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects processed at a time (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace datasets that were exported before")


@results_go_to("--output")
def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    check_writable(options.output, "--output", "give another folder")
    folders = dataset_folders(config, options)
    from data.splits import find_and_split

    files, splits = find_and_split(config.data.wanted(), config.plain()["data"]["splits"], config.seed)
    parts = [open_part(config, split, files) for split in splits]
    folds = [fold for part in parts for fold in folds_of(config, part)]
    for contrasts, folder in folders.items():
        export(config, options, contrasts, folder, parts, folds)
        log.info("wrote %s: %s, one for each cell (%s)", folder, counted(len(folds), "fold"), folder / CELLS)
        for line in what_to_type(config, options, contrasts, folder, folds[0]):
            log.info("next: %s", line)


def dataset_folders(config, options):
    """Return the folder of each input set; InputError if one cannot be written, or not be read by nnU-Net."""
    from data.nnunet import RESERVED, dataset_name

    names, first = list(config.finetuning.contrasts), options.first_number
    mistakes = []
    if not 1 <= first <= LARGEST_NUMBER + 1 - len(names):
        most = LARGEST_NUMBER + 1 - len(names)
        mistakes.append(f"--first-number {first}: expected 1 to {most}, because there is one dataset per input set")
    if RESERVED in config.data.labels:
        mistakes.append(f"data.labels: '{RESERVED}' means something else to nnU-Net; give the class another name")
    folders = {
        name: options.output / dataset_name(number, config.name, name) for number, name in enumerate(names, first)
    }
    for number, folder in enumerate(folders.values(), first):
        taken = [other.name for other in options.output.glob(f"Dataset{number:03d}_*") if other != folder]
        if taken:
            mistakes.append(f"--first-number {number}: already belongs to '{taken[0]}'; give another one")
        if folder.exists() and not options.overwrite:
            mistakes.append(f"{folder}: already exists; give --overwrite, or another --output")
    if mistakes:
        raise InputError(mistakes)
    return folders


def open_part(config, split, files):
    """Open the annotated subjects of one split, checked as in step 4."""
    from data.annotated import open_annotated
    from data.identity import refuse_same_scans

    packed = config.work.of(split.name).store("annotated")
    annotated = open_annotated(packed, split, files, **config.of_annotated())
    if problems := list(annotated.absent()):
        raise InputError(problems)
    refuse_same_scans(split.to_dict(), annotated.store.hashes, files)
    where = f"data.splits: no subject of {split.name or 'the split'}"
    mistakes = [f"{where}/{part} has a label map" for part in ("train", "test") if not annotated.of(part)]
    if not annotated.of("val"):
        mistakes.append(f"{where}/val has a label map, and nnU-Net needs validation subjects; move one to val")
    if mistakes:
        raise InputError(mistakes)
    return annotated


def folds_of(config, annotated):
    """List the folds of one split in the order in which step 4 runs its cells."""
    from data.splits import annotated_subsets

    grid = config.finetuning
    drawn = annotated_subsets(annotated.of("train"), grid.subjects_n, grid.repeats, config.seed)
    val = tuple(annotated.of("val"))
    cells = [(n, repeat) for n in grid.subjects_n for repeat in range(grid.repeats)]
    return [Fold(annotated.split.name, *cell, drawn[cell], val) for cell in cells]


def export(config, options, contrasts, folder, parts, folds):
    """Write one dataset, completely or not at all."""
    from data.label_tables import write_label_tables
    from data.nnunet import dataset_description, fold_of

    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    remove_left_overs([unfinished])
    channels = channel_names(config.data.contrasts, config.finetuning.contrasts[contrasts])
    places = places_of(unfinished, parts, folds)
    owners = {subject: part for part in parts for name in ("train", "val", "test") for subject in part.of(name)}
    write = functools.partial(write_subject, channels, owners, places)
    made = in_order(write, list(places), options.jobs)
    if problems := [line for lines in progress(made, "Exporting", len(places)) for line in lines]:
        remove_left_overs([unfinished])
        raise InputError(problems)
    write_json(unfinished / SPLITS, [fold_of(fold.train, fold.val) for fold in folds])
    write_cells(unfinished / CELLS, folds)
    cases = {subject for fold in folds for subject in (*fold.train, *fold.val)}
    note = "Simulated scans. " if config.data.simulated else ""
    about = {"name": folder.name, "description": f"{note}{config.name}, input {contrasts}; {CELLS} names the folds"}
    described = dataset_description(channels, list(config.data.labels), len(cases), **about)
    write_json(unfinished / DESCRIPTION, described)
    write_label_tables(unfinished, config.data.legend())
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def places_of(folder, parts, folds):
    """Return the destinations of each subject: pairs of folders for its images and its label map.

    Training and validation subjects of any fold go to imagesTr; subjects that step 4 never draws are omitted.
    """
    places = {}
    for subject in sorted({subject for fold in folds for subject in (*fold.train, *fold.val)}):
        places[subject] = [(folder / "imagesTr", folder / "labelsTr")]
    for part in parts:
        images, labels = test_folders(folder, part.split.name)
        for subject in part.of("test"):
            places.setdefault(subject, []).append((images, labels))
    return places


def test_folders(folder, split):
    """Return the folders of the images and of the label maps of the test subjects of a split."""
    ending = f"_{split}" if split else ""
    return folder / f"imagesTs{ending}", folder / f"labelsTs{ending}"


def write_subject(channels, owners, places, subject):
    """Write one subject to all its destinations; returns one line for each problem with its files."""
    from data.nnunet import write_case
    from data.scans.subject import SubjectReader

    owner, (first, *others) = owners[subject], places[subject]
    reader = SubjectReader(owner.files[subject], owner.wanted, channels)
    try:
        volume = reader.volume()
        classes = owner.read_reference(subject)
    except InputError as error:
        return error.lines
    written = write_case(first, subject, volume, classes, reader.grid.affine)
    for folders in others:
        for old, source in written:
            copy = folders[source] / old.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(old, copy)
    return []


def link_or_copy(source, copy):
    """Give a file a second name, or copy it if the file system does not support links."""
    try:
        os.link(source, copy)
    except OSError:
        shutil.copyfile(source, copy)


def write_cells(path, folds):
    """Write the table of folds: the cell of step 4 that each one is, and its training cases."""
    from data.nnunet import case_name

    rows = [
        {
            "fold": number,
            "split": fold.split,
            "subjects_n": fold.n,
            "repeat": fold.repeat,
            "images": test_folders(path.parent, fold.split)[0].name,
            "train": " ".join(map(case_name, fold.train)),
        }
        for number, fold in enumerate(folds)
    ]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def what_to_type(config, options, contrasts, folder, fold):
    """Yield the commands that train and score the first fold of a dataset."""
    raw, splits, images = map(
        shlex.quote, map(str, (options.output, folder / SPLITS, test_folders(folder, fold.split)[0]))
    )
    number = int(folder.name.removeprefix("Dataset")[:3])
    yield f"nnUNet_raw={raw} nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity"
    yield f"cp {splits} $nnUNet_preprocessed/{folder.name}/"
    yield f"nnUNetv2_train {number} 2d 0"
    yield f"nnUNetv2_predict -i {images} -o predictions -d {number} -c 2d -f 0"
    cell = f"--contrasts {contrasts} --subjects-n {fold.n} --repeat {fold.repeat}"
    outer = f" --fold {fold.split.removeprefix('fold')}" if fold.split else ""
    yield (
        f"python -m tools.score_predictions {options.again} --name nnunet {cell}{outer} --predictions predictions "
        "--note TEXT"
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
