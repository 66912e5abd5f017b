"""Check a dataset before training: its subjects, grids and labels.

    python -m tools.check_dataset --config configs/brats2015_subset.yaml
    python -m tools.check_dataset --config configs/chaos_mr.yaml --whole --jobs 2

Reads   the scans described in the section `data` of the config (docs/data.md describes the layouts): headers and
        complete label maps; with --whole every voxel of every file, as steps 1 and 2 do before they start.
Prints  a table with one row per subject: contrasts, grid, voxel size, orientation, volume of each class, warnings; then
        one line per problem: subject, file, what was found, what to do (exit code 2).
Writes  check/subjects.csv (the table) and check/montage.png (some subjects, all contrasts, labels) in the work dir.
Takes   0.2 s per label map of a brain: 4 minutes for the 1,251 subjects of BraTS 2021, divided by --jobs.
Next    python generate_constraint_maps.py --config FILE
"""

import csv
import dataclasses
import functools
import logging

from utils.checks import InputError, counted
from utils.command_line import from_command_line, positive
from utils.config.schema import channel_names
from utils.parallel import in_order
from utils.runs import atomic_path, exit_code_of, progress

log = logging.getLogger("mrccl")
PICTURES = 6


def add_options(parser):
    parser.add_argument("--whole", action="store_true", help="read every voxel of every file")
    parser.add_argument("--pictures", type=positive, default=PICTURES, metavar="N", help="subjects in the montage")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects checked at a time (default: 1)")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options)
    from data.layouts.subjects import find_subjects
    from data.scans.dataset_check import point_out_unlike

    problems = []
    subjects = find_subjects(config.data.wanted(), problems)
    found = in_order(functools.partial(check, config, options.whole), subjects.values(), options.jobs)
    checks = list(progress(found, "Looking at scans", len(subjects)))
    checks = point_out_unlike(checks, config.data.voxel_size_known)
    rows = table_of(config, checks, subjects)
    folder = config.work_dir / "check"
    if rows:
        print_rows(rows)
        write_rows(folder / "subjects.csv", rows)
        log.info("wrote %s", folder / "subjects.csv")
    problems += [line for each in checks for line in each.problems]
    problems += problems_of_splits(config, subjects) if not problems else []
    sound = [subjects[each.subject] for each in checks if not each.problems]
    if sound:
        problems += draw(config, folder / "montage.png", sound, options.pictures)
    summarise(config, checks, subjects)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    log.info("next: python generate_constraint_maps.py %s", options.again)


def check(config, whole, files):
    """Check one subject."""
    from data.scans.dataset_check import check_subject

    return check_subject(files, config.data.wanted(), whole=whole)


def problems_of_splits(config, subjects):
    """Return the reasons why these subjects cannot be split as the config asks."""
    from data.splits import make_splits

    try:
        make_splits(config.plain()["data"]["splits"], config.data.root, subjects, config.seed)
    except InputError as error:
        return error.lines
    return []


def table_of(config, checks, subjects):
    """Return one row of text per subject."""
    is_mm, sessions = config.data.voxel_size_known, any(f.person not in (None, s) for s, f in subjects.items())
    unit, digits = ("mL", 2) if is_mm else ("voxels", 0)
    rows = []
    for each in checks:
        row = {"subject": each.subject}
        row |= {"person": subjects[each.subject].person} if sessions else {}
        row |= {
            "contrasts": " ".join(each.contrasts),
            "grid": " x ".join(map(str, each.shape)),
            f"voxel{', mm' if is_mm else ''}": " x ".join(f"{length:.3g}" for length in each.spacing),
            "axes": each.orientation,
        }
        volumes = each.volumes(is_mm)
        for name in config.data.labels:
            row[f"{name}, {unit}"] = f"{volumes[name]:.{digits}f}" if name in volumes else "-"
        to_fix = f"{len(each.problems)} to fix" if each.problems else ""
        rows.append(row | {"warnings": "; ".join([*each.warnings, *filter(None, [to_fix])])})
    return rows


def print_rows(rows):
    """Print the table at its full width, because it may be redirected to a file."""
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for cells in ({name: name for name in columns}, {name: "-" * widths[name] for name in columns}, *rows):
        print("  ".join(cells[name].ljust(widths[name]) for name in columns).rstrip())


def write_rows(path, rows):
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw(config, path, files, number):
    """Draw the montage of subjects from the whole dataset, those with labels first; returns the problems found.

    These scans are read completely, whereas only their headers were checked before.
    """
    from evaluation.pictures.dataset_montage import draw_montage

    labelled, others = [e for e in files if e.label], [e for e in files if not e.label]
    chosen = labelled[:: max(1, len(labelled) // number)][:number]
    chosen += others[: number - len(chosen)]
    pictures, problems = [], []
    for each in progress(chosen, "Drawing"):
        try:
            pictures.append(picture_of(each, config.data.wanted()))
        except InputError as error:
            problems += error.lines
    if not pictures:
        return problems
    note = "Simulated scans. " if config.data.simulated else ""
    title = f"{note}{config.name}: {len(pictures)} of {len(files)} subjects; the patient's right is on the left"
    draw_montage(path, pictures, channel_names(config.data.contrasts), config.data.legend(), title)
    log.info("wrote %s", path)
    return problems


def picture_of(files, wanted):
    """Read the images of a subject for the montage: `(name, volume, label, affine)`."""
    from data.scans.subject import SubjectReader

    # N4 takes seconds per contrast, and a montage does not need it.
    reader = SubjectReader(dataclasses.replace(files, bias_correction=()), wanted)
    volume = reader.volume()
    return files.subject, volume, reader.label() if files.label and wanted.labels else None, reader.grid.affine


def summarise(config, checks, subjects):
    """Log the numbers of subjects, labels, grids and warnings."""
    from data.derivatives import numbered_otherwise

    for files in [files for files in subjects.values() if files.label and config.data.layout == "nnunet"][:1]:
        if differing := numbered_otherwise(config.data.labels, files.label_names):
            listed = ", ".join(f"{name} {values}" for name, values in differing.items())
            log.warning("data.labels: predictions number classes from 1 as listed; dataset.json has %s", listed)
            log.warning("list the classes as dataset.json does if nnU-Net's evaluator is to read predictions")
    labelled = sum(files.label is not None for files in subjects.values())
    people = len({files.person or subject for subject, files in subjects.items()})
    who = counted(len(subjects), "subject")
    if people < len(subjects):
        who = f"{counted(len(subjects), 'session')} of {counted(people, 'person')}"
    grids = len({(each.shape, tuple(round(length, 3) for length in each.spacing)) for each in checks if each.shape})
    unusual = sum(bool(each.warnings) for each in checks)
    told = f"{who}, {labelled} with label, {counted(grids, 'grid')}, {unusual} with warnings"
    log.info("%s: %s (layout %s)", config.name, told, config.data.layout)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
