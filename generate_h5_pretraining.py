"""Step 2 of 5: pack slices, constraint maps and labels into HDF5.

    python generate_h5_pretraining.py --config configs/lgg_tcga.yaml --jobs 2

Reads   the scans below data.root and constraint_maps/ in the work dir (step 1); if the config has no such
        section, the foreground replaces the maps and step 1 is not needed.
Writes  h5/pretrain_train.h5 and h5/pretrain_val.h5 (contrasts and constraint maps, without slices that show little
        foreground, which are counted) and h5/annotated.h5 (all slices of all labelled subjects, with their labels);
        with cross-validation, one such h5 folder per fold. Test subjects are in annotated.h5 only. For contrast
        synthesis also h5/volumes.h5: all slices and contrasts of all subjects, labelled or not, once for all folds.
Takes   about a second per subject. All scans are checked before anything is written. Finished files are skipped.
Next    python constrained_contrastive_learning.py --config FILE
"""

import functools
import logging
import shlex

from utils.checks import InputError, accept
from utils.command_line import from_command_line
from utils.config.schema import channel_names
from utils.parallel import attempt, in_order
from utils.runs import exit_code_of, open_run, progress

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects processed at a time (default: 1)")
    parser.add_argument("--keep-going", action="store_true", help="skip subjects that fail and list them at the end")
    parser.add_argument("--overwrite", action="store_true", help="rewrite finished files")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices",))
    from data.splits import find_and_split

    failures, data = [], config.plain()["data"]
    left_out = failures if options.keep_going else None
    subjects, splits = find_and_split(config.data.wanted(), data["splits"], config.seed, left_out)
    plans = [plan for split in splits for plan in plan_stores(config, split, subjects)]
    plans += [plan_volumes(config, splits)] if config.synthesis else []
    plans = [plan.without({*plan.members} - subjects.keys()) for plan in plans]
    unfinished = [plan for plan in plans if options.overwrite or not plan.is_finished(left_out)]
    refuse_changed(config, [plan for plan in plans if plan not in unfinished], subjects)
    if unfinished:
        noted = check_maps(config, sorted({subject for plan in unfinished for subject in plan.members}))
        others = hashes_in([plan for plan in plans if plan not in unfinished])
        unfinished = of_sound_subjects(config, unfinished, subjects, noted, options, failures)
        pack(config, unfinished, subjects, others, options, failures)
    for line in dict.fromkeys(failures):
        log.warning("failed: %s", line)
    log.info("next: python constrained_contrastive_learning.py %s", options.again)
    return 1 if failures else 0


def check_maps(config, subjects):
    """Refuse constraint maps that step 1 made with another config or seed, or that its table does not list.

    Returns `{space: {subject: record of its files in step 1}}`.
    """
    from data.map_summary import read_summary, refuse_other_settings, refuse_unlisted

    noted = {}
    for space in config.spaces():
        summary = config.work.map_summary(space)
        rows = read_summary(summary)
        refuse_other_settings(summary, rows, config.hash_of_maps(), config.seed)
        refuse_unlisted(summary, rows, subjects)
        noted[space] = {subject: row.get("files") for subject, row in rows.items()}
    return noted


def hashes_in(plans):
    """Return the hashes of the subjects in finished files, whose scans are not read again."""
    from data.store.store import SliceStore

    return {subject: found for plan in plans for subject, found in SliceStore(plan.path).hashes.items()}


def refuse_changed(config, plans, subjects):
    """Refuse to keep finished files whose scans or label maps have changed."""
    from data.identity import changed_files
    from data.store.store import SliceStore

    now, problems = {}, {}
    for plan in plans:
        for subject, hashes in SliceStore(plan.path).hashes.items():
            if "files" not in hashes or subject not in subjects:
                continue
            now[subject] = now.get(subject) or files_packed(config, subjects[subject])
            if changed := changed_files(hashes["files"], now[subject]):
                what = f"{', '.join(changed)} changed since step 2 packed it; give --overwrite, or another --work-dir"
                problems[subject] = f"{subject}: {what}"
    if problems:
        raise InputError(list(problems.values()))


def files_packed(config, files):
    """Return a record of all files of a subject that are packed."""
    from data.scans.subject import SubjectReader

    return SubjectReader(files, config.data.wanted()).note_of_all()


def files_of(plans, subjects):
    """Return the files of all subjects to be packed."""
    return [subjects[subject] for subject in sorted({subject for plan in plans for subject in plan.members})]


def of_sound_subjects(config, plans, subjects, noted, options, failures):
    """Check every subject; returns the files to write, under --keep-going without the subjects that have problems.

    `noted` is the record of the scans in step 1.
    """
    wanted = files_of(plans, subjects)
    checked = in_order(functools.partial(check_subject, config, noted), wanted, options.jobs)
    found = list(progress(checked, "Checking scans", len(wanted)))
    accept([line for lines in found for line in lines], options.keep_going, failures)
    bad = {files.subject for files, lines in zip(wanted, found, strict=True) if lines}
    if len(bad) == len(wanted):
        raise InputError(failures)
    return [plan.without(bad) for plan in plans]


def pack(config, plans, subjects, hashes, options, failures):
    """Write all files in one pass over the subjects; `hashes` are those in other files.

    A subject that fails although its files are sound stops the run; under --keep-going it is skipped.
    """
    from data.store.packing import write_stores

    wanted = files_of(plans, subjects)
    with open_run(config.work.volumes.parent, config.plain(), config.seed):
        prepared = in_order(functools.partial(try_to_prepare, config, options.keep_going), wanted, options.jobs)
        form = (channel_names(config.data.contrasts), config.slices.image_size, list(config.spaces())[1:])
        warns = config.data.empty_labels == "warn"
        prepared = sound_ones(progress(prepared, "Packing slices", len(wanted)), options.keep_going, failures)
        write_stores(plans, form, prepared, subjects, hashes, warns)


def try_to_prepare(config, keep_going, files):
    """Return `(Prepared, [])` for a subject, or `(None, problems)`."""
    return attempt(functools.partial(prepare_subject, config, files), files.subject, keep_going)


def sound_ones(tried, keep_going, failures):
    """Yield the subjects that could be prepared; under --keep-going, problems of the others go to `failures`."""
    for prepared, problems in tried:
        accept(problems, keep_going, failures)
        if prepared:
            yield prepared


def plan_stores(config, split, subjects):
    """List the files of one split."""
    from data.store.packing import PlannedStore

    attributes = attributes_of(config, split.to_dict())
    work, enough = config.work.of(split.name), config.slices.min_foreground
    plans = [
        PlannedStore(work.store("pretrain_train"), split.train, attributes, enough),
        PlannedStore(work.store("pretrain_val"), split.val, attributes, enough),
    ]
    if config.data.labels:
        everyone = sorted((*split.train, *split.val, *split.test))
        everyone = [subject for subject in everyone if subject in subjects]
        annotated = tuple(subject for subject in everyone if subjects[subject].label)
        if not annotated:
            raise InputError("data.labels: no subject has a label map; correct data.label, or remove label and labels")
        if len(annotated) < len(everyone):
            missing = ", ".join(subject for subject in everyone if subject not in annotated)
            log.warning("%s: not in annotated.h5, because they have no label file: %s", work.folder / "h5", missing)
        path = work.store("annotated")
        plans.append(PlannedStore(path, annotated, attributes, min_foreground=0, has_labels=True))
    return plans


def plan_volumes(config, splits):
    """Plan the file with the whole volumes of all subjects; step 4 decides which are for training and testing."""
    from data.store.packing import PlannedStore

    members = sorted({subject for split in splits for subject in (*split.train, *split.val, *split.test)})
    path = config.work.volumes
    return PlannedStore(path, tuple(members), attributes_of(config, {"all": members}), min_foreground=0)


def attributes_of(config, split):
    """Return the attributes that every file carries."""
    (low, high), spaces = config.percentiles(), config.spaces()
    return {
        "clusters": config.constraint_maps.clusters if config.constraint_maps else 1,
        "contrast_spaces": {f"param_{space}" if space else "param": names for space, names in spaces.items()},
        "normalization": f"percentiles {low:g} and {high:g} of a contrast's foreground become 0 and 1, clipped",
        "config_hash": config.hash_of_slices(),
        "seed": config.seed,
        "split": split,
        "labels": list(config.data.labels),
    }


def check_subject(config, noted, files):
    """Return one line for each problem with a subject's files."""
    from data.scans.subject import SubjectReader

    reader = SubjectReader(files, config.data.wanted())
    problems = reader.problems()
    for space in () if problems else config.spaces():
        try:
            read_map(config, space, reader)
        except InputError as error:
            problems += error.lines
    return problems or files_that_changed(config, noted, reader)


def files_that_changed(config, noted, reader):
    """Return a line for each contrast space whose map was made from files that have since changed."""
    from data.identity import changed_files

    problems, files = [], reader.files
    for space, names in config.spaces().items():
        if changed := changed_files(noted[space].get(files.subject), reader.note(names)):
            shown = ", ".join(f"'{files.mask if name == 'mask' else files.contrasts[name]}'" for name in changed)
            again = f"make it again: generate_constraint_maps.py --overwrite --subjects {shlex.quote(files.subject)}"
            problems.append(f"{files.subject}: {shown} changed since the constraint map was made; {again}")
    return list(dict.fromkeys(problems))


def read_map(config, space, reader):
    """Read the constraint map of one subject in one contrast space."""
    return reader.constraint_map(config.work.map_of(reader.subject, space), config.constraint_maps.clusters)


def prepare_subject(config, files):
    """Read one subject, scale its intensities and cut it into slices."""
    import numpy as np

    from data.geometry import SliceGrid
    from data.identity import hashes_of_subject
    from data.intensity import intensity_ranges, scale_between
    from data.scans.air import notes_on_air
    from data.scans.subject import SubjectReader
    from data.store.packing import Prepared
    from data.store.store import SubjectSlices

    reader = SubjectReader(files, config.data.wanted())
    volume, mask, affine, names = reader.volume(), reader.mask(), reader.grid.affine, reader.channels
    grid = SliceGrid(volume.shape[:3], affine, config.slices.pixel_size, config.slices.image_size)
    maps = {space: read_map(config, space, reader) for space in config.spaces()}
    maps = maps or {None: find_foreground(volume, mask, affine).astype(np.uint8)}
    # Each contrast within its own foreground unless a mask is given: predict.py may see one contrast, and must agree.
    ranges = intensity_ranges(volume, mask, config.percentiles(), affine)
    notes = notes_on_air(files.subject, volume, names, affine) if mask is None else []
    label, cut = None, 0.0
    on_disk = reader.label() if files.label else None
    is_empty = on_disk is not None and not on_disk.any()
    hashes = hashes_of_subject(volume, names, affine, on_disk, maps, mask) | {"files": reader.note_of_all()}
    scaled = scale_between(volume, ranges)
    del volume  # a BraTS subject takes 140 MB
    outside = grid.share_outside(maps[None] > 0)
    maps = {space: grid.to_slices(classes, order=0) for space, classes in maps.items()}
    if files.label:
        label, cut = grid.to_slices(on_disk, order=0), grid.share_outside(on_disk > 0)
    images = grid.to_slices(scaled).astype(np.float16)
    intensities = dict(zip(names, ranges.tolist(), strict=True))
    slices = SubjectSlices(files.subject, grid, np.arange(grid.slices), images, maps, label, intensities, hashes)
    return Prepared(slices, (maps[None] > 0).mean(axis=(1, 2)), cut, outside, notes, is_empty)


def find_foreground(volume, mask, affine):
    """Return the given mask, or the foreground of all contrasts together, boolean `(X, Y, Z)`."""
    from data.geometry import axial_turns
    from data.intensity import foreground_mask

    turn, turn_back = axial_turns(affine)
    return turn_back(foreground_mask(turn(volume))) if mask is None else mask


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
