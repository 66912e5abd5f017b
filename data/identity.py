"""Hashes of file contents: to detect one scan under two names, and a scan that has changed under its name.

Names keep a test subject out of training only if every person has just one. Copies of a scan have the same voxels
whatever their name, compression and axis order; resampled or rescaled copies differ and are not detected.
"""

import hashlib
import itertools
import logging
from collections import defaultdict

import numpy as np

from data.geometry import axial_turns
from utils.checks import InputError

log = logging.getLogger("mrccl")
ADDED = ("mask", "files")  # keys of the hashes of a subject that older files lack
CURE = "remove one of them from the data, or put both into one set"


def content_hash(values):
    """Return 16 hexadecimal digits for an array's shape and values; None if all values are equal.

    Such an array, for instance a contrast that was not acquired and is stored as zeros, does not identify a subject.
    """
    values = np.ascontiguousarray(values)
    if not values.size or (values == values.flat[0]).all():
        return None
    described = hashlib.blake2b(repr((values.shape, values.dtype.str)).encode(), digest_size=8)
    described.update(values)
    return described.hexdigest()


def hashes_of_subject(volume, channels, affine, label=None, maps=None, mask=None):
    """Hash the contents of one subject's files.

    Args:
        volume: `(X, Y, Z, C)`, as on disk.
        channels: C names.
        affine: `(4, 4)`, voxel to world; axes are first brought into a canonical order.
        label: `(X, Y, Z)` class index, or None.
        maps: Contrast space -> `(X, Y, Z)` constraint map.
        mask: Given foreground `(X, Y, Z)`, or None.

    Returns:
        `{"images": {channel: hash}, "label": hash, "maps": {space: hash}, "mask": hash}`, without constant images or
        maps and without anything that is not given.
    """
    turn, _ = axial_turns(affine)
    images = {name: content_hash(turn(volume[..., number])) for number, name in enumerate(channels)}
    parts = {space or "": content_hash(turn(values)) for space, values in (maps or {}).items()}
    known = {"images": _known(images), "maps": _known(parts)}
    others = {"label": label, "mask": mask}
    return known | {name: content_hash(turn(values)) for name, values in others.items() if values is not None}


def of_scans(hashes):
    """Leave out the kinds of hashes added later, so that `fingerprint` gives the same result as before."""
    return {subject: {key: found[key] for key in found if key not in ADDED} for subject, found in hashes.items()}


def is_unchanged(values, affine, digest):
    """Whether an array `(X, Y, Z)` on disk has the recorded hash, which is None for a constant array."""
    turn, _ = axial_turns(affine)
    return content_hash(turn(values)) == digest


def changed_files(noted, now):
    """Return the names whose files differ between two results of `SubjectReader.note`; none if nothing was recorded."""
    before, after = (dict(part.split("=") for part in text.split()) for text in (noted or now, now))
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def refuse_same_scans(sets, hashes, files=None):
    """Refuse a scan that has two names in different sets; warn of one within a set, where it counts twice.

    Args:
        sets: Name of a set (`train`, `val`, `test`) to its subjects.
        hashes: Subject -> what `hashes_of_subject` returned; subjects without hashes are not checked.
        files: Subject -> `SubjectFiles`, for the message, or None.

    Raises:
        InputError: One line for each such pair: both names, both sets, the contrast, the files and what to do.
    """
    set_of = {subject: name for name, subjects in sets.items() for subject in subjects}
    problems = []
    for (one, other), channels in _same(hashes, set_of).items():
        shown = ", ".join(f"'{channel}'" for channel in channels)
        places = [f"{subject} ({set_of[subject]}{_file_of(files, subject, channels[0])})" for subject in (one, other)]
        what = f"{' and '.join(places)}: one scan under two names (the same voxels in {shown})"
        if set_of[one] == set_of[other]:
            log.warning("%s; it counts twice in the set", what)
        else:
            problems.append(f"{what}; {CURE}")
    if problems:
        raise InputError(problems)


def owners_of_images(hashes):
    """Return `{hash: subject}` of all images, to be stored with weights trained on them."""
    return {digest: subject for subject, found in hashes.items() for digest in found.get("images", {}).values()}


def _known(hashes):
    return {name: digest for name, digest in hashes.items() if digest is not None}


def _same(hashes, subjects):
    """Return `{(subject, subject): channels}` of pairs that share images."""
    owners, pairs = defaultdict(dict), defaultdict(list)
    for subject in sorted(hashes.keys() & subjects.keys()):
        for channel, digest in hashes[subject].get("images", {}).items():
            owners[digest].setdefault(subject, channel)
    for sharing in owners.values():
        for pair in itertools.combinations(sorted(sharing), 2):
            pairs[pair].append(sharing[pair[0]])
    return pairs


def _file_of(files, subject, channel):
    """Return the file of a channel; for a series, whose channels end in numbers, the file of the series."""
    if files is None:
        return ""
    contrasts = files[subject].contrasts
    return f", '{contrasts.get(channel) or contrasts[channel.rpartition('_')[0]]}'"
