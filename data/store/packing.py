"""Packing: which subjects go into which file in step 2, and writing all files in one pass over the subjects."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.field_of_view import note_of_outside
from data.identity import refuse_same_scans
from data.layouts.subjects import SubjectFiles
from data.store.store import SliceStore, StoreWriter, SubjectSlices
from utils.checks import InputError, accept, counted
from utils.runs import lacks

log = logging.getLogger("mrccl")

HEALTHY = (
    "no labelled voxel in the label maps of %s: trained and scored as background throughout, like healthy subjects; "
    "set data.empty_labels to allow if they are, or to refuse if all subjects should have labels"
)


@dataclass(frozen=True)
class PlannedStore:
    """One file to write: its path, the subjects whose slices it holds, and its attributes."""

    path: Path
    members: tuple[str, ...]
    attributes: dict
    min_foreground: float  # share of foreground pixels below which a slice is left out
    has_labels: bool = False

    def without(self, subjects):
        """Return the same plan without some subjects."""
        return dataclasses.replace(self, members=tuple(name for name in self.members if name not in subjects))

    def is_finished(self, failures=None):
        """Tell whether the file exists; InputError if it is damaged or was made with other settings.

        A file that lacks subjects is an error too, or adds lines to `failures` if given (under --keep-going).
        """
        if not self.path.exists():
            return False
        store = SliceStore(self.path)
        store.check_hash(self.attributes["config_hash"])
        store.check_origin(**{name: self.attributes[name] for name in ("split", "seed", "labels")})
        if absent := [lacks(self.path, subject) for subject in self.members if subject not in store.subjects]:
            accept(absent, failures is not None, failures)
        log.info("%s: finished before, skipped", self.path)
        return True

    def writer(self, contrasts, image_size, spaces):
        """Open the file for writing."""
        return StoreWriter(
            self.path,
            contrasts=contrasts,
            image_size=image_size,
            attributes=self.attributes | {"min_foreground": self.min_foreground},
            has_labels=self.has_labels,
            spaces=spaces,
        )


@dataclass(frozen=True)
class Prepared:
    """All slices of one subject, and what determines which of them are kept and what is reported."""

    slices: SubjectSlices
    foreground: np.ndarray  # (n,) share of foreground pixels
    cut_label: float  # share of labelled voxels outside the slices
    outside: float  # share of the foreground outside the slices
    notes: list[str]  # warnings
    is_empty: bool  # whether there is a label map without a labelled voxel


def write_stores(
    plans: list[PlannedStore],
    form: tuple,
    prepared: Iterable[Prepared],
    subjects: Mapping[str, SubjectFiles],
    hashes: dict[str, dict],
    warns_of_empty_labels: bool,
) -> None:
    """Append every subject to the files it belongs to; all files appear complete at the end, if no scan has two names.

    Args:
        plans: The files to write.
        form: Channel names, image size `(H, W)` and contrast spaces of all files.
        prepared: The subjects, one at a time.
        subjects: Subject -> `SubjectFiles`, for messages.
        hashes: Subject -> hashes, from files finished earlier; those of the subjects are added.
        warns_of_empty_labels: Whether to list subjects whose label map has no labelled voxel in a warning, and to
            refuse a training set that consists of such subjects only; otherwise they are taken as intended.

    Raises:
        InputError: A file gets no slice, no training subject has a labelled voxel, or one scan is in two sets.
    """
    outside, empty = {}, []
    with contextlib.ExitStack() as stack:
        stores = [(plan, stack.enter_context(plan.writer(*form))) for plan in plans]
        for subject in prepared:
            hashes[subject.slices.subject], outside[subject.slices.subject] = subject.slices.hashes, subject.outside
            empty += [subject.slices.subject] if subject.is_empty else []
            for line in subject.notes:
                log.warning("%s", line)
            if subject.cut_label:
                cut = f"{subject.slices.subject}: {subject.cut_label:.2%} of the labelled voxels"
                log.warning("%s lie outside slices.image_size; enlarge it, or pixel_size", cut)
            for plan, store in stores:
                if subject.slices.subject in plan.members:
                    left_out = add_slices(store, subject, plan.min_foreground)
                    store.attributes["slices_left_out"] = store.attributes.get("slices_left_out", 0) + left_out
                    largest = max(subject.outside, store.attributes.get("foreground_outside", 0.0))
                    store.attributes["foreground_outside"] = round(largest, 6)
        for plan, store in stores:
            if not store.slices:
                raise InputError(
                    f"slices.min_foreground: no slice of {plan.path.name} has {plan.min_foreground:.2%} "
                    "foreground pixels; lower it"
                )
        if warns_of_empty_labels:
            refuse_without_labels(plans, empty)
        refuse_leaks(plans, hashes, subjects)
    if empty and warns_of_empty_labels:
        log.warning(HEALTHY, ", ".join(empty))
    if note := note_of_outside(outside):
        log.warning("%s", note)
    report(stores)


def report(stores):
    """Log what was written and what was left out."""
    for plan, store in stores:
        held = f"{counted(store.slices, 'slice')} of {counted(len(store.subjects), 'subject')}"
        log.info("wrote %s: %s", plan.path, held)
        if number := store.attributes["slices_left_out"]:
            few = f"less than {100 * plan.min_foreground:g} % of their pixels are foreground"
            log.info("%s: %s left out, because %s", plan.path, counted(number, "slice"), few)


def refuse_without_labels(plans, empty):
    """Refuse a training set whose label maps have no labelled voxel at all."""
    for plan in plans:
        train = [subject for subject in plan.attributes["split"].get("train", ()) if subject in plan.members]
        if plan.has_labels and train and set(train) <= set(empty):
            what = f"no training subject ({', '.join(train)}) has a labelled voxel, so there is nothing to learn"
            raise InputError(f"{plan.path.name}: {what}; correct data.label or the label maps")


def refuse_leaks(plans, hashes, subjects):
    """Refuse one scan under two names in different sets of any split."""
    splits = [plan.attributes["split"] for plan in plans if "train" in plan.attributes["split"]]
    for number, split in enumerate(splits):
        if split not in splits[:number]:
            refuse_same_scans(split, hashes, subjects)


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
            constraint_maps={space: maps[keep] for space, maps in slices.constraint_maps.items()},
            labels=slices.labels[keep] if store.has_labels else None,
        )
    )
    return int((~keep).sum())
