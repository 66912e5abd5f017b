"""Step 1 of 5: cluster the contrasts of every subject into a constraint map.

    python generate_constraint_maps.py --config configs/lgg_tcga.yaml --jobs 2

Reads   the scans below data.root.
Writes  constraint_maps/ in the work dir: <subject>.nii.gz (0 background, 1...K tissue classes, on the grid of
        the contrasts), qc/<subject>.png for inspection, and summary.csv with class sizes, inertia, explained variance
        and seconds; the same in constraint_maps/<space>/ for each further contrast space of the config.
Takes   1 to 8 seconds and up to 1 GB per map and job. All scans are checked before the first map is made.
        Finished maps are skipped.
Next    python generate_h5_pretraining.py --config FILE
"""

import difflib
import functools
import itertools
import logging
import shlex
import time

from utils.checks import InputError, accept, counted
from utils.command_line import from_command_line
from utils.config.schema import channel_names
from utils.parallel import attempt, in_order
from utils.paths import composed
from utils.runs import child_seed, exit_code_of, open_run, progress

log = logging.getLogger("mrccl")

PLAUSIBLE_FOREGROUND = (0.02, 0.95)  # share of the volume; a mask outside this range deserves a look


def add_options(parser):
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects processed at a time (default: 1)")
    parser.add_argument("--subjects", nargs="+", type=composed, metavar="ID", help="make maps of these subjects only")
    parser.add_argument("--keep-going", action="store_true", help="skip subjects that fail and list them at the end")
    parser.add_argument("--overwrite", action="store_true", help="make finished maps again")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("constraint_maps",))
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected at least 1")
    failures = []
    generate_constraint_maps(config, options, failures)
    for line in failures:
        log.warning("failed: %s", line)
    log.info("look at %s, then: python generate_h5_pretraining.py %s", config.work.map_pictures(), options.again)
    return 1 if failures else 0


def generate_constraint_maps(config, options, failures):
    """Make all missing maps; under --keep-going, `failures` collects one line per failure."""
    from data.field_of_view import note_of_outside
    from data.map_summary import write_summary

    everyone, wanted = find_wanted(config, options, failures)
    if not options.keep_going:  # it may leave out subjects named in the splits
        check_plan(config, everyone)
    rows = {space: finished_rows(config, space, everyone, wanted, options.overwrite) for space in config.spaces()}
    todo = {name: [space for space in rows if name not in rows[space]] for name in wanted}
    todo = {name: spaces for name, spaces in todo.items() if spaces}
    sound = sound_subjects(config, options, [wanted[name] for name in todo], failures)
    if not sound:
        return
    jobs = [(todo[files.subject], files) for files in sound]
    maps = [(space, files) for spaces, files in jobs for space in spaces]
    with open_run(config.work.maps(), config.plain(), config.seed):
        for space in rows:
            write_summary(config.work.map_summary(space), rows[space])
        for space, files in maps:  # a map without a row has other settings, or is unfinished
            config.work.map_of(files.subject, space).unlink(missing_ok=True)
        of_subjects = in_order(functools.partial(maps_of_subject, config, options.keep_going), jobs, options.jobs)
        made = itertools.chain.from_iterable(of_subjects)
        outside = {}
        for space, row, share, problems, notes in progress(made, "Constraint maps", len(maps)):
            accept(problems, options.keep_going, failures)
            for line in notes:
                log.warning("%s", line)
            if row:
                outside[row["subject"]] = share
                rows[space][row["subject"]] = row
                write_summary(config.work.map_summary(space), rows[space])
                point_out(row, config.constraint_maps.clusters, space)
        if note := note_of_outside(outside):
            log.warning("%s", note)
    for space in rows:
        found = len(rows[space]), len(everyone)
        log.info("%s: %d of %d subjects have a constraint map", config.work.map_summary(space), *found)


def finished_rows(config, space, everyone, wanted, overwrite):
    """Return the summary rows of one contrast space whose maps are finished and kept."""
    from data.map_summary import read_summary, refuse_other_settings

    summary = config.work.map_summary(space)
    rows = {name: row for name, row in read_summary(summary).items() if name in everyone}
    rows = {name: row for name, row in rows.items() if is_finished(config, name, space)}
    if overwrite:
        rows = {name: row for name, row in rows.items() if name not in wanted}
    refuse_other_settings(summary, rows, config.hash_of_maps(), config.seed)
    refuse_changed(config, space, {name: row.get("files") for name, row in rows.items() if name in wanted}, wanted)
    if kept := len(rows.keys() & wanted.keys()):
        log.info("%s: %d of %d subjects finished before, skipped", summary, kept, len(wanted))
    return rows


def refuse_changed(config, space, noted, wanted):
    """Refuse to keep maps whose scans or masks have changed; `noted` is the record of their files in the summary."""
    from data.identity import changed_files
    from data.scans.subject import SubjectReader

    problems = []
    for name, text in noted.items():
        now = SubjectReader(wanted[name], config.data.wanted(), config.spaces()[space]).note() if text else text
        if text and (changed := changed_files(text, now)):
            what = f"{', '.join(changed)} changed since its constraint map was made"
            problems.append(f"{name}: {what}; make it again: --overwrite --subjects {shlex.quote(name)}")
    if problems:
        raise InputError(problems)


def find_wanted(config, options, failures):
    """Return `{subject: files}` of all subjects in the dataset, and of those requested on the command line."""
    from data.layouts.subjects import find_subjects

    left_out = failures if options.keep_going else None
    everyone = find_subjects(config.data.wanted(), left_out)
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
    """Refuse splits that later steps cannot use, before the first map is made."""
    from data.splits import annotated_subsets, make_splits

    splits = make_splits(config.plain()["data"]["splits"], config.data.root, subjects, config.seed)
    for split in splits if config.finetuning else ():
        annotated = [subject for subject in split.train if subjects[subject].label]
        annotated_subsets(annotated, config.finetuning.subjects_n, config.finetuning.repeats, config.seed)


def sound_subjects(config, options, subjects, failures):
    """Read every file once, before the first map is made, and return the subjects without problems."""
    checked = in_order(functools.partial(check_subject, config), subjects, options.jobs)
    found = list(progress(checked, "Checking scans", len(subjects)))
    accept([line for problems in found for line in problems], options.keep_going, failures)
    return [files for files, problems in zip(subjects, found, strict=True) if not problems]


def point_out(row, clusters, space):
    """Warn about a map that deserves a look."""
    low, high = PLAUSIBLE_FOREGROUND
    where = f"{row['subject']}, contrast space {space}" if space else row["subject"]
    if row["classes"] < clusters:
        found = counted(row["classes"], "class", "classes")
        log.warning("%s: %s, not %d: too few distinct values", where, found, clusters)
    if not low < row["foreground"] < high:
        share = 100 * row["foreground"]
        log.warning("%s: %.1f %% of the volume is foreground; look at its picture in qc/", where, share)


def is_finished(config, subject, space):
    return config.work.map_of(subject, space).is_file() and config.work.map_picture(subject, space).is_file()


def check_subject(config, files):
    """Return one line for each problem with a subject's files."""
    from data.scans.subject import SubjectReader

    return SubjectReader(files, config.data.wanted()).problems()


def maps_of_subject(config, keep_going, job):
    """Make the maps of one subject, reading its files once.

    Returns:
        `(space, row, share outside the slices, problems, notes)` for each map.
    """
    from data.scans.subject import SubjectReader

    spaces, files = job
    names = dict.fromkeys(name for names in config.spaces().values() for name in names)
    reader, made = SubjectReader(files, config.data.wanted(), names, keeps=len(spaces) > 1), []
    for space in spaces:
        found, problems = attempt(functools.partial(map_subject, config, space, reader), files.subject, keep_going)
        row, share, notes = found or (None, 0.0, [])
        made.append((space, row, share, problems, notes))
    return made


def map_subject(config, space, reader):
    """Make the map and picture of one subject in one space; returns its row, its `outside_slices` and warnings."""
    from data.constraint_maps import describe_constraint_map
    from data.scans.air import notes_on_air
    from data.scans.volumes import write_nifti
    from evaluation.pictures.quality_control import draw_constraint_map

    section, subject = config.constraint_maps, reader.subject
    names, title = config.spaces()[space], "Simulated scans. " if config.data.simulated else ""
    title += f"{config.name}: {subject}" + (f", contrast space {space}" if space else "")
    clock = [time.perf_counter()]
    volume, mask, affine = reader.volume(names), reader.mask(), reader.grid.affine
    channels = channel_names(config.data.contrasts, names)
    notes = notes_on_air(subject, volume, channels, affine) if mask is None else []
    clock.append(time.perf_counter())
    recipe = section.model_dump(exclude={"contrasts", "spaces"})
    seed = child_seed(config.seed, "constraint_map", subject, *([space] if space else []))
    details = describe_constraint_map(volume, mask, **recipe, seed=seed, affine=affine)
    clock.append(time.perf_counter())
    picture = config.work.map_picture(subject, space)
    draw_constraint_map(picture, volume, channels, details, affine, title)
    clock.append(time.perf_counter())
    first = next(iter(reader.files.contrasts.values()))
    header_of = reader.header(first) or first
    write_nifti(config.work.map_of(subject, space), details.classes, affine, header_of=header_of)
    clock.append(time.perf_counter())
    reading, _, picture, writing = (after - before for before, after in zip(clock, clock[1:], strict=False))
    seconds = {"reading": reading, **details.seconds, "picture": picture, "writing": writing}
    row = summary_row(config, subject, details, seconds | {"total": clock[-1] - clock[0]})
    row["files"] = reader.note(names)  # compared by step 2
    return row, outside_slices(config, details.classes > 0, affine), notes


def outside_slices(config, foreground, affine):
    """Return the share of the foreground outside the slices of step 2; 0 in a config without slices."""
    from data.field_of_view import share_outside

    if not config.slices:
        return 0.0
    return share_outside(foreground, affine, config.slices.pixel_size, config.slices.image_size)


def summary_row(config, subject, details, seconds):
    """Return one row of `summary.csv`: the result, its settings, and the duration of each part."""
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
    row |= {
        f"explained_variance_{n}": round(float(v), 5) for n, v in enumerate(details.space.explained_variance, start=1)
    }
    sizes = [*details.class_sizes.tolist(), *[0] * (config.constraint_maps.clusters - len(details.class_sizes))]
    row |= {f"voxels_of_class_{n}": size for n, size in enumerate(sizes, start=1)}
    return row | {f"seconds_{part}": round(duration, 3) for part, duration in seconds.items()}


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
