"""Score label maps of any other tool as a cell of step 4, so that step 5 shows them beside the study's own cells.

    python -m tools.score_predictions --config configs/chaos_mr.yaml --name nnunet --contrasts t1out --subjects-n 8 \\
        --repeat 0 --fold 0 --predictions predictions/ --note "nnU-Net 2.8.1, 2d, 250 epochs"
    python -m tools.score_predictions --config configs/chaos_mr.yaml --name mrsegmentator --contrasts t1out \\
        --subjects-n 0 --repeat 0 --predictions segmented/ --labels liver=5 right_kidney=2 left_kidney=3 spleen=1 \\
        --ignored-values others --note "MRSegmentator as published, trained on other MR and CT"

Reads   a folder with a label map of each test subject on the grid of its scan, named <subject>.nii.gz or after the case
        of tools.export_dataset; the label maps of the test subjects; and h5/annotated.h5 (step 2).
Writes  finetuning/<contrasts>/<name>/n<NN>/r<K>/ with metrics.json and predictions/<subject>.nii.gz like step 4, marked
        as external: tables, figures and page show it as '<name> (external)'.
Takes   seconds per subject. All files are checked and every mistake is reported before anything is written.
Next    python reproduce_tables.py --config FILE
"""

import difflib
import itertools
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.checks import InputError
from utils.command_line import from_command_line, whole
from utils.paths import composed
from utils.runs import exit_code_of, json_number, open_run, progress, read_json, write_json
from utils.work_dir import METRICS, PREDICTIONS

if TYPE_CHECKING:
    from data.annotated import Annotated

log = logging.getLogger("mrccl")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
ROLES = {
    "train": "a training subject",
    "val": "a validation subject",
    "test": "a test subject without a label map",
}


class Part(NamedTuple):
    """The test subjects of one split, their predictions, and the subjects that trained the tool."""

    annotated: "Annotated"
    paths: dict[str, Path]
    train_subjects: list[str]
    folder: Path


def whole_or_others(word):
    """Read a value of a label map, or the word `others` for all values that belong to no class."""
    return word if word == "others" else whole(word)


def add_options(parser):
    parser.add_argument("--name", required=True, help="name of the tool in the tables: letters, digits, - and _")
    parser.add_argument("--contrasts", required=True, metavar="NAME", help="input set of the config that it was given")
    text = "number of annotated subjects of this study that trained it; 0 for a tool used as published"
    parser.add_argument("--subjects-n", required=True, type=whole, metavar="N", help=text)
    parser.add_argument("--repeat", required=True, type=whole, metavar="K", help="draw of these subjects, from 0")
    parser.add_argument("--predictions", required=True, type=Path, metavar="DIR", help="folder of its label maps")
    text = "values of the classes in these maps, such as liver=5 kidneys=2,3 (default: 1, 2, ... as in the config)"
    parser.add_argument("--labels", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    text = "further values in these maps that count as background; others: all that belong to no class"
    parser.add_argument("--ignored-values", nargs="+", type=whole_or_others, default=[], metavar="VALUE", help=text)
    parser.add_argument("--note", default="", metavar="TEXT", help="what readers should know about its training")
    text = "subjects of this study that trained it (default: those that step 4 draws for this N and repeat)"
    parser.add_argument("--train-subjects", nargs="+", type=composed, metavar="ID", help=text)
    text = "annotated validation subjects that selected its weights or settings (default: not recorded)"
    parser.add_argument("--selecting", type=whole, metavar="M", help=text)
    text = "with cross-validation, the fold that is tested (default with --subjects-n 0: all)"
    parser.add_argument("--fold", type=whole, metavar="F", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace scores of an external tool with this name")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    values, mistakes = values_of_labels(config, options.labels)
    mistakes += [
        f"--ignored-values {value}: is a value of the class '{name}', so it cannot be background"
        for name, members in values.items()
        for value in sorted({*members} & {*options.ignored_values})
    ]
    mistakes += mistakes_of_names(config, options)
    from data.splits import find_and_split

    files, splits = find_and_split(config.data.wanted(), config.plain()["data"]["splits"], config.seed)
    chosen, found = chosen_splits(options, splits)
    if mistakes or found:
        raise InputError([*mistakes, *found])
    parts = find_parts(config, options, chosen, files)
    problems = [line for part in parts for line in problems_of_files(part, values, options.ignored_values)]
    if problems:
        raise InputError(problems)
    for part in parts:
        score(config, options, part, values)
        log.info("wrote %s", part.folder)
    log.info("next: python reproduce_tables.py %s", options.again)


def values_of_labels(config, words):
    """Return the values of each class in the predictions, `{name: [value, ...]}`, and the mistakes in --labels."""
    names, mistakes, values = list(config.data.labels), [], {}
    if not words:
        return {name: [index] for index, name in enumerate(names, start=1)}, []
    for word in words:
        name, equals, listed = word.rpartition("=")
        name = composed(name)
        numbers = [number for number in listed.split(",") if number]
        if not equals or not all(number.isdecimal() and int(number) for number in numbers):
            mistakes.append(f"--labels {word}: expected NAME=VALUE with whole numbers above 0, such as {names[0]}=1,2")
        elif name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
            mistakes.append(f"--labels {word}: '{name}' is not one of data.labels; {hint}")
        elif name in values:
            mistakes.append(f"--labels {word}: '{name}' is named twice; list its values once, such as {name}=1,2")
        else:
            values[name] = [int(number) for number in numbers]
    owners = {}
    for name, value in ((name, value) for name, members in values.items() for value in members):
        if owners.setdefault(value, name) != name:
            mistakes.append(f"--labels {name}={value}: is a value of '{owners[value]}' too; a voxel has one class")
    if not mistakes:
        cure = "give {0}=VALUE, or {0}= if the predictions do not hold it"
        mistakes += [f"--labels: '{name}' is missing; {cure.format(name)}" for name in names if name not in values]
    return {name: values[name] for name in names if name in values}, mistakes


def mistakes_of_names(config, options):
    """Yield mistakes in the name of the tool, its contrasts and its folder."""
    inits = ["random", *(config.pretraining.stages if config.pretraining else ())]
    sets, name = config.finetuning.contrasts, options.name
    if not NAME.fullmatch(name):
        yield f"--name {name}: expected letters, digits, - and _, such as nnunet"
    elif name.casefold() in {init.casefold() for init in inits}:
        yield f"--name {name}: is an initialisation of this study ({', '.join(inits)}); give the name of the tool"
    if options.contrasts not in sets:
        yield f"--contrasts {options.contrasts}: not one of finetuning.contrasts ({', '.join(sets)})"
    if not options.predictions.is_dir():
        what = "is a file, not a folder" if options.predictions.exists() else "no such folder"
        yield f"--predictions {options.predictions}: {what}; give the folder of the label maps"


def chosen_splits(options, splits):
    """Return the splits whose test subjects are scored, and the mistakes in --fold."""
    if options.fold is None:
        if len(splits) == 1 or options.subjects_n == 0:
            return splits, []
        return [], [f"--fold: is missing; say which of the {len(splits)} folds is tested, 0 to {len(splits) - 1}"]
    if len(splits) == 1:
        return [], [f"--fold {options.fold}: this config has no cross-validation; omit the option"]
    if options.fold >= len(splits):
        return [], [f"--fold {options.fold}: there are {len(splits)}, counted from 0"]
    return [splits[options.fold]], []


def find_parts(config, options, splits, files):
    """Open every split, and find its predictions and training subjects; InputError for all mistakes at once."""
    from data.annotated import open_annotated
    from data.identity import refuse_same_scans
    from evaluation.prediction.outside import find_predictions

    parts, problems, tested = [], [], []
    for split in splits:
        work = config.work.of(split.name)
        annotated = open_annotated(work.store("annotated"), split, files, **config.of_annotated())
        refuse_same_scans(split.to_dict(), annotated.store.hashes, files)
        problems += [*annotated.absent()]
        trained, mistakes = training_subjects(config, options, annotated)
        names = "finetuning", options.contrasts, options.name
        folder = work.cell(*names, n=options.subjects_n, repeat=options.repeat)
        problems += [*mistakes, *mistakes_of_folder(folder, options.overwrite)]
        if not annotated.of("test"):
            problems.append(f"data.splits: no subject of {split.name or 'the split'}/test has a label map")
        tested += annotated.of("test")
        parts.append(Part(annotated, {}, trained, folder))
    roles = dict.fromkeys(files, "a subject in no set")
    for split, (part, role) in itertools.product(splits, ROLES.items()):
        roles |= dict.fromkeys(getattr(split, part), role)
    paths, found = find_predictions(options.predictions, tested, roles)
    if problems := [*dict.fromkeys(problems), *found]:
        raise InputError(problems)
    return [part._replace(paths={name: paths[name] for name in part.annotated.of("test")}) for part in parts]


def training_subjects(config, options, annotated):
    """Return the subjects of the study that trained the tool, and the mistakes in --train-subjects and --subjects-n."""
    from data.splits import annotated_subsets

    n, repeat = options.subjects_n, options.repeat
    if options.train_subjects is None:
        if n == 0:
            return [], []
        try:
            drawn = annotated_subsets(annotated.of("train"), [n], repeat + 1, config.seed, "--subjects-n")
        except InputError as error:
            return [], error.lines
        return list(drawn[n, repeat]), []
    named, mistakes = list(dict.fromkeys(options.train_subjects)), []
    for name in named:
        if name not in annotated.files:
            near = difflib.get_close_matches(name, annotated.files, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "name subjects of this study only"
            mistakes.append(f"--train-subjects {name}: not in '{config.data.root}'; {hint}")
        elif name in annotated.split.test:
            mistakes.append(
                f"--train-subjects {name}: is a test subject; a tool that has seen it cannot be tested on it"
            )
    if len(named) != n:
        mistakes.append(f"--subjects-n {n}: but --train-subjects names {len(named)}; N is what was annotated")
    return named, mistakes


def mistakes_of_folder(folder, overwrite):
    """Refuse the folder of a cell of step 4, and the existing scores of an external tool without --overwrite."""
    from evaluation.scores.external import KEY

    if not (folder / METRICS).exists():
        return []
    if KEY not in read_json(folder / METRICS):
        return [f"{folder}: holds a cell of step 4; give another --name"]
    return [] if overwrite else [f"{folder}: is already scored; give --overwrite, or another --name"]


def problems_of_files(part, values, ignored):
    """Read all predictions and references of a split, and yield their problems."""
    for subject in progress(part.paths, "Checking predictions"):
        for read in (lambda name: read_prediction(part, name, values, ignored), part.annotated.read_reference):
            try:
                read(subject)
            except InputError as error:
                yield from error.lines


def read_prediction(part, subject, values, ignored):
    """Read the prediction of a subject as class indices."""
    from data.scans.grid import Grid
    from evaluation.prediction.outside import read_classes

    grid = part.annotated.store.grid(subject)
    return read_classes(part.paths[subject], subject, Grid(None, grid.shape, grid.affine), values, ignored)


def score(config, options, part, values):
    """Score the test subjects of one split, and write the files that step 4 writes for a cell."""
    from data.label_tables import write_label_tables
    from data.scans.volumes import write_nifti
    from evaluation.scores.label_maps import score_label_map

    folder, annotated, rows = part.folder, part.annotated, []
    with open_run(folder, config.plain(), config.seed):
        (folder / METRICS).unlink(missing_ok=True)  # a folder with metrics.json counts as finished
        shutil.rmtree(folder / PREDICTIONS, ignore_errors=True)
        write_label_tables(folder / PREDICTIONS, config.data.legend())
        for subject in progress(part.paths, "Scoring"):
            grid = annotated.store.grid(subject)
            classes = read_prediction(part, subject, values, options.ignored_values)
            write_nifti(folder / PREDICTIONS / f"{subject}.nii.gz", classes, grid.affine, intent="label")
            rows += score_label_map(
                subject,
                (classes, annotated.read_reference(subject)),
                grid,
                list(config.data.labels),
                config.evaluation,
                voxel_size_known=config.data.voxel_size_known,
            )
        rows = [{key: json_number(value) for key, value in row.items()} for row in rows]
        write_json(folder / METRICS, about(config, options, part, values) | {"per_subject": rows})


def about(config, options, part, values):
    """Return the entries of metrics.json for an external cell, without its scores."""
    from data.splits import hash_of_split
    from evaluation.scores.external import KEY
    from utils.provenance import Provenance

    split = part.annotated.split
    made_of = {"train_subjects": part.train_subjects, "labels": list(config.data.labels)}
    made_from = Provenance(config.hash_of_scoring(), config.seed, hash_of_split(split.to_dict()), None, made_of)
    selecting = {} if options.selecting is None else {"n_selecting": options.selecting}
    return made_from.as_dict() | {
        "split": split.name,
        "contrasts": options.contrasts,
        "init": options.name,
        "n_annotated": options.subjects_n,
        "repeat": options.repeat,
        "annotated_available": len(part.annotated.of("train")),
        **selecting,
        KEY: {"note": options.note.strip(), "labels": values, "ignored_values": options.ignored_values},
    }


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
