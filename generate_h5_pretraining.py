"""Step 2 of 5: pack slices, constraint maps and labels into HDF5.

    python generate_h5_pretraining.py --config configs/lgg_tcga.yaml --jobs 2

Reads   the scans below data.root and constraint_maps/<subject>.nii.gz in the work dir (step 1).
Writes  h5/pretrain_train.h5 and h5/pretrain_val.h5 (contrasts and constraint maps; slices with little foreground are
        left out and counted) and h5/annotated.h5 (every slice of every subject that has a label, with the label);
        with cross-validation one such h5 folder per fold. Test subjects are in annotated.h5 only.
Takes   about a second per subject. All scans are checked before anything is written. Finished files are skipped.
Next    python constrained_contrastive_learning.py --config FILE
"""

import contextlib
import dataclasses
import functools
import logging
from dataclasses import dataclass
from pathlib import Path

from utils.checks import InputError
from utils.config import from_command_line
from utils.parallel import in_order
from utils.runs import exit_code_of, open_run, progress
from utils.schema import channel_names

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects prepared at a time (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="write finished files again")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("constraint_maps", "slices"))
    from data.layouts import find_subjects
    from data.splits import make_splits

    data = config.plain()["data"]
    subjects = find_subjects(config.data.root, data["contrasts"], data["label"], data["mask"])
    splits = make_splits(data["splits"], config.data.root, subjects, config.seed)
    plans = [plan for split in splits for plan in plan_stores(config, split, subjects)]
    unfinished = [plan for plan in plans if options.overwrite or not plan.is_finished()]
    if unfinished:
        check_maps(config)
        pack(config, unfinished, subjects, options.jobs)
    log.info("next: python constrained_contrastive_learning.py --config %s", options.config)


def check_maps(config):
    """Refuse constraint maps that step 1 made with another config or seed."""
    from data.map_summary import read_summary, refuse_other_settings

    summary = config.work_dir / "constraint_maps" / "summary.csv"
    refuse_other_settings(summary, read_summary(summary), config.hash_of_maps(), config.seed)


def pack(config, plans, subjects, jobs):
    """Check every subject, then write all files in one pass over them."""
    wanted = [subjects[subject] for subject in sorted({subject for plan in plans for subject in plan.members})]
    checked = in_order(functools.partial(check_subject, config), wanted, jobs)
    problems = [line for lines in progress(checked, "Checking scans", len(wanted)) for line in lines]
    if problems:
        raise InputError(problems)
    with open_run(config.work_dir / "h5", config.plain(), config.seed):
        prepared = in_order(functools.partial(prepare_subject, config), wanted, jobs)
        write_stores(config, plans, progress(prepared, "Packing slices", len(wanted)))


@dataclass(frozen=True)
class PlannedStore:
    """One file to write: where, whose slices, and what is noted on it."""

    path: Path
    members: tuple[str, ...]
    attributes: dict
    min_foreground: float  # share of foreground pixels below which a slice is left out
    has_labels: bool = False

    def is_finished(self):
        """Tell whether the file exists; one that broke or was made otherwise is an InputError."""
        from data.h5_store import SliceStore

        if not self.path.exists():
            return False
        store = SliceStore(self.path)
        store.check_hash(self.attributes["config_hash"])
        store.check_origin(**{name: self.attributes[name] for name in ("split", "seed", "labels")})
        log.info("%s: finished before, skipped", self.path)
        return True

    def writer(self, contrasts, image_size):
        """Open the file for writing."""
        from data.h5_store import StoreWriter

        return StoreWriter(
            self.path,
            contrasts=contrasts,
            image_size=image_size,
            attributes=self.attributes | {"min_foreground": self.min_foreground},
            has_labels=self.has_labels,
        )


def plan_stores(config, split, subjects):
    """List the files of one split."""
    low, high = config.constraint_maps.percentiles
    attributes = {
        "clusters": config.constraint_maps.clusters,
        "normalization": f"percentiles {low:g} and {high:g} of a contrast's foreground become 0 and 1, clipped",
        "config_hash": config.hash_of_slices(),
        "seed": config.seed,
        "split": split.to_dict(),
        "labels": list(config.data.labels),
    }
    folder, enough = split.folder(config.work_dir) / "h5", config.slices.min_foreground
    plans = [
        PlannedStore(folder / "pretrain_train.h5", split.train, attributes, enough),
        PlannedStore(folder / "pretrain_val.h5", split.val, attributes, enough),
    ]
    if config.data.label:
        everyone = sorted((*split.train, *split.val, *split.test))
        annotated = tuple(subject for subject in everyone if subjects[subject].label)
        if not annotated:
            raise InputError(f"data.label: no subject has a file '{config.data.label}'; correct it, or set label: null")
        if len(annotated) < len(everyone):
            missing = ", ".join(subject for subject in everyone if subject not in annotated)
            log.warning("%s: not in annotated.h5, because they have no label file: %s", folder, missing)
        plans.append(PlannedStore(folder / "annotated.h5", annotated, attributes, min_foreground=0, has_labels=True))
    return plans


def check_subject(config, files):
    """Return one line for each thing that is wrong with a subject's files."""
    from data.volumes import grid_of_subject, problems_of_subject, read_constraint_map

    data = config.data
    problems = problems_of_subject(files, data.contrasts, labels=data.labels, ignored=data.ignored_label_values)
    if not problems:
        shape, affine = grid_of_subject(files, list(data.contrasts), data.contrasts)
        try:
            read_constraint_map(*constraint_map_of(config, files), shape, affine, config.constraint_maps.clusters)
        except InputError as error:
            problems = error.lines
    return problems


def constraint_map_of(config, files):
    """Return `(path, subject)` of a subject's constraint map."""
    return config.work_dir / "constraint_maps" / f"{files.subject}.nii.gz", files.subject


@dataclass(frozen=True)
class Prepared:
    """All slices of one subject, and what decides about them."""

    slices: object  # data.h5_store.SubjectSlices
    foreground: object  # (n,) share of foreground pixels
    cut_label: float  # share of labelled voxels outside the slices


def prepare_subject(config, files):
    """Read one subject, scale its intensities and cut it into slices."""
    import numpy as np

    from data.geometry import SliceGrid
    from data.h5_store import SubjectSlices
    from data.intensity import scale_intensities
    from data.volumes import read_constraint_map, read_contrasts, read_label, read_mask

    data = config.data
    volume, affine = read_contrasts(files, list(data.contrasts), data.contrasts)
    grid = SliceGrid(volume.shape[:3], affine, config.slices.pixel_size, config.slices.image_size)
    constraint_map = read_constraint_map(
        *constraint_map_of(config, files), volume.shape, affine, config.constraint_maps.clusters
    )
    # Each contrast by its own foreground, unless a mask is given: predict.py sees single contrasts and must agree.
    scaled = scale_intensities(volume, read_mask(files, volume.shape, affine), config.constraint_maps.percentiles)
    del volume  # a BraTS subject takes 140 MB
    maps = grid.to_slices(constraint_map, order=0)
    label, cut = None, 0.0
    if files.label:
        on_disk = read_label(files, data.labels, data.ignored_label_values, grid.shape, affine)
        label = grid.to_slices(on_disk, order=0)
        inside = grid.to_volume(np.ones(label.shape, np.uint8), order=0)
        cut = float(np.mean(inside[on_disk > 0] == 0))
    images = grid.to_slices(scaled).astype(np.float16)
    slices = SubjectSlices(files.subject, grid, np.arange(grid.slices), images, maps, label)
    return Prepared(slices, (maps > 0).mean(axis=(1, 2)), cut)


def write_stores(config, plans, prepared):
    """Append every subject to the files it belongs to; they appear together, complete."""
    contrasts, image_size = channel_names(config.data.contrasts), config.slices.image_size
    with contextlib.ExitStack() as stack:
        stores = [(plan, stack.enter_context(plan.writer(contrasts, image_size))) for plan in plans]
        for subject in prepared:
            if subject.cut_label:
                cut = f"{subject.slices.subject}: {subject.cut_label:.2%} of the labelled voxels"
                log.warning("%s lie outside slices.image_size; enlarge it, or pixel_size", cut)
            for plan, store in stores:
                if subject.slices.subject in plan.members:
                    left_out = add_slices(store, subject, plan.min_foreground)
                    store.attributes["slices_left_out"] = store.attributes.get("slices_left_out", 0) + left_out
        for plan, store in stores:
            if not store.slices:
                raise InputError(
                    f"slices.min_foreground: no slice of {plan.path.name} has {plan.min_foreground:.2%} "
                    "foreground pixels; lower it"
                )
    for plan, store in stores:
        log.info("wrote %s: %d slices of %d subjects", plan.path, store.slices, len(store.subjects))
        if plan.min_foreground:
            few = f"less than {100 * plan.min_foreground:g} % of their pixels are foreground"
            log.info("%s: %d slices left out, because %s", plan.path, store.attributes["slices_left_out"], few)


def add_slices(store, subject, min_foreground):
    """Add the slices with enough foreground to a store and return how many were left out."""
    keep, slices = subject.foreground >= min_foreground, subject.slices
    if not keep.any():
        log.warning("%s: no slice has enough foreground for %s", slices.subject, store.path.name)
    store.add(
        dataclasses.replace(
            slices,
            slice_index=slices.slice_index[keep],
            images=slices.images[keep],
            constraint_maps=slices.constraint_maps[keep],
            labels=slices.labels[keep] if store.has_labels else None,
        )
    )
    return int((~keep).sum())


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
