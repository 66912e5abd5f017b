"""Step 1 of 5: cluster the contrasts of every subject into a constraint map.

    python generate_constraint_maps.py --config configs/lgg_tcga.yaml --jobs 2

Reads   the scans below data.root.
Writes  constraint_maps/ in the work dir: <subject>.nii.gz (0 background, 1...K tissue classes, on the contrasts' own
        grid), qc/<subject>.png to look at, and summary.csv with class sizes, inertia, explained variance and seconds.
Takes   1 to 8 seconds and up to 1 GB per subject and job. All scans are checked before the first map is made.
        Finished subjects are skipped.
Next    python generate_h5_pretraining.py --config FILE
"""

import difflib
import functools
import logging
import time

from utils.checks import InputError
from utils.config import from_command_line
from utils.parallel import in_order
from utils.runs import child_seed, exit_code_of, open_run, progress
from utils.schema import channel_names

log = logging.getLogger("mrccl")

PLAUSIBLE_FOREGROUND = (0.02, 0.95)  # share of the volume; a mask outside this is worth a look


def add_options(parser):
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects worked on at a time (default: 1)")
    parser.add_argument("--subjects", nargs="+", metavar="ID", help="make the maps of these only")
    parser.add_argument("--keep-going", action="store_true", help="leave out subjects that fail; list them at the end")
    parser.add_argument("--overwrite", action="store_true", help="make finished maps again")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("constraint_maps",))
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected at least 1")
    failures = []
    generate_constraint_maps(config, options, failures)
    for line in failures:
        log.warning("failed: %s", line)
    log.info("look at %s, then: python generate_h5_pretraining.py --config %s", maps_of(config) / "qc", options.config)
    return 1 if failures else 0


def generate_constraint_maps(config, options, failures):
    """Make every map that is missing; under --keep-going, `failures` collects a line for each thing that failed."""
    from data.map_summary import read_summary, refuse_other_settings, write_summary

    everyone, wanted = find_wanted(config, options, failures)
    if not options.keep_going:  # which may leave out subjects that the splits name
        check_plan(config, everyone)
    summary = maps_of(config) / "summary.csv"
    rows = {name: row for name, row in read_summary(summary).items() if is_finished(config, name) and name in everyone}
    if options.overwrite:
        rows = {name: row for name, row in rows.items() if name not in wanted}
    refuse_other_settings(summary, rows, config.hash_of_maps(), config.seed)
    todo = [files for name, files in wanted.items() if name not in rows]
    if len(todo) < len(wanted):
        log.info("%s: %d of %d subjects finished before, skipped", summary, len(wanted) - len(todo), len(wanted))
    todo = sound_subjects(config, options, todo, failures)
    if not todo:
        return
    with open_run(maps_of(config), config.plain(), config.seed):
        write_summary(summary, rows)
        for files in todo:  # maps without a row were made otherwise, or not to the end
            map_of(config, files.subject).unlink(missing_ok=True)
        made = in_order(functools.partial(attempt, config, options.keep_going), todo, options.jobs)
        for row, problems in progress(made, "Constraint maps", len(todo)):
            accept(problems, options.keep_going, failures)
            if row:
                rows[row["subject"]] = row
                write_summary(summary, rows)
                point_out(row, config.constraint_maps.clusters)
    log.info("%s: %d of %d subjects have a constraint map", summary, len(rows), len(everyone))


def find_wanted(config, options, failures):
    """Return `{subject: files}` of everyone in the dataset, and of those that the command line asks for."""
    from data.layouts import find_subjects

    data = config.plain()["data"]
    left_out = failures if options.keep_going else None
    everyone = find_subjects(config.data.root, data["contrasts"], data["label"], data["mask"], left_out)
    if not everyone:
        raise InputError(failures)
    asked = options.subjects or everyone
    incomplete = {line.split(":")[0] for line in failures}
    unknown = [name for name in asked if name not in everyone and name not in incomplete]
    if unknown:
        near = {name: difflib.get_close_matches(name, everyone, n=1) for name in unknown}
        hints = {name: f"; did you mean '{found[0]}'?" if found else "" for name, found in near.items()}
        raise InputError([f"--subjects {name}: not in '{config.data.root}'{hint}" for name, hint in hints.items()])
    return everyone, {name: files for name, files in everyone.items() if name in asked}


def check_plan(config, subjects):
    """Refuse splits that later steps could not use, before the first map is made."""
    from data.splits import annotated_subsets, make_splits

    splits = make_splits(config.plain()["data"]["splits"], config.data.root, subjects, config.seed)
    for split in splits if config.finetuning else ():
        annotated = [subject for subject in split.train if subjects[subject].label]
        annotated_subsets(annotated, config.finetuning.subjects_n, config.finetuning.repeats, config.seed)


def sound_subjects(config, options, subjects, failures):
    """Read every file once, before the first map, and return the subjects without a problem."""
    checked = in_order(functools.partial(check_subject, config), subjects, options.jobs)
    found = list(progress(checked, "Checking scans", len(subjects)))
    accept([line for problems in found for line in problems], options.keep_going, failures)
    return [files for files, problems in zip(subjects, found, strict=True) if not problems]


def accept(problems, keep_going, failures):
    """Add problems to the failures under --keep-going, and raise them as InputError otherwise."""
    if problems and not keep_going:
        raise InputError(problems)
    failures += problems


def point_out(row, clusters):
    """Warn of a map that deserves a look."""
    low, high = PLAUSIBLE_FOREGROUND
    if row["classes"] < clusters:
        log.warning("%s: %d classes, not %d: too few distinct values", row["subject"], row["classes"], clusters)
    if not low < row["foreground"] < high:
        share = 100 * row["foreground"]
        log.warning("%s: %.1f %% of the volume is foreground; look at its picture in qc/", row["subject"], share)


def maps_of(config):
    return config.work_dir / "constraint_maps"


def map_of(config, subject):
    return maps_of(config) / f"{subject}.nii.gz"


def picture_of(config, subject):
    return maps_of(config) / "qc" / f"{subject}.png"


def is_finished(config, subject):
    return map_of(config, subject).is_file() and picture_of(config, subject).is_file()


def check_subject(config, files):
    """Return one line for each thing that is wrong with a subject's files."""
    from data.volumes import problems_of_subject

    data = config.data
    return problems_of_subject(files, data.contrasts, labels=data.labels, ignored=data.ignored_label_values)


def attempt(config, keep_going, files):
    """Return `(row, problems)` of one subject; a fault of the suite counts as a problem under --keep-going only."""
    try:
        return map_subject(config, files), []
    except InputError as error:
        lines = error.lines
    except Exception as error:
        if not keep_going:
            raise
        lines = [f"{type(error).__name__}: {error} (without --keep-going the full report is shown)"]
    return None, [f"{files.subject}: {line.removeprefix(f'{files.subject}: ')}" for line in lines]


def map_subject(config, files):
    """Make map and picture of one subject and return its row of the summary."""
    from data.constraint_maps import describe_constraint_map
    from data.volumes import read_contrasts, read_mask, write_nifti
    from evaluation.quality_control import draw_constraint_map

    section, contrasts, subject = config.constraint_maps, config.data.contrasts, files.subject
    clock = [time.perf_counter()]
    volume, affine = read_contrasts(files, section.contrasts, contrasts)
    mask = read_mask(files, volume.shape, affine)
    clock.append(time.perf_counter())
    recipe = section.model_dump(exclude={"contrasts"})
    seed = child_seed(config.seed, "constraint_map", subject)
    details = describe_constraint_map(volume, mask, **recipe, seed=seed, affine=affine)
    clock.append(time.perf_counter())
    names = channel_names(contrasts, section.contrasts)
    draw_constraint_map(picture_of(config, subject), volume, names, details, affine, f"{config.name}: {subject}")
    clock.append(time.perf_counter())
    write_nifti(map_of(config, subject), details.classes, affine, header_of=next(iter(files.contrasts.values())))
    clock.append(time.perf_counter())
    reading, _, picture, writing = (after - before for before, after in zip(clock, clock[1:], strict=False))
    seconds = {"reading": reading, **details.seconds, "picture": picture, "writing": writing}
    return summary_row(config, subject, details, seconds | {"total": clock[-1] - clock[0]})


def summary_row(config, subject, details, seconds):
    """Return one row of `summary.csv`: what was made, how, and how long each part took."""
    voxels = int(details.class_sizes.sum())
    row = {
        "subject": subject,
        "config_hash": config.hash_of_maps(),
        "seed": config.seed,
        "voxels": voxels,
        "foreground": round(voxels / details.classes.size, 4),
        "classes": len(details.class_sizes),
        "inertia": round(details.inertia, 3),
    }
    row |= {f"explained_variance_{n}": round(float(v), 5) for n, v in enumerate(details.explained_variance, start=1)}
    sizes = [*details.class_sizes.tolist(), *[0] * (config.constraint_maps.clusters - len(details.class_sizes))]
    row |= {f"voxels_of_class_{n}": size for n, size in enumerate(sizes, start=1)}
    return row | {f"seconds_{part}": round(duration, 3) for part, duration in seconds.items()}


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
