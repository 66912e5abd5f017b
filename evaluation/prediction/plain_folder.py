"""Plain folders of scans, and single 4D files, for models with one input contrast: each file is a subject."""

import json
import logging
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from data.layouts.files import SUFFIXES, problem_of_path, stem_of
from data.layouts.subjects import SubjectFiles, series_length
from data.scans.scan import grid_of_scan
from utils.checks import InputError
from utils.config.data import file_pattern
from utils.model_description import ModelDescription

log = logging.getLogger("mrccl")

CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: case_0000 is the first channel of a case
MOST_CLASSES = 32  # a file with at most this many different values, all whole numbers, is a label map
NAMES_SHOWN = 5


def scans_in(
    folder: Path, contrast: str, model: ModelDescription, left_out: list[str] | None = None
) -> dict[str, SubjectFiles]:
    """Use every NIfTI file directly in a folder as a scan, named after the file.

    Args:
        folder: Path.
        contrast: The one contrast whose file the model needs.
        model: The model.
        left_out: List, or None. Given a list, scans with a problem are described there instead of raising an error.

    Returns:
        Subject -> `SubjectFiles`; empty if there is no NIfTI file. Other files are listed in a warning. In layout
        nnunet, the channel number is removed from the names.

    Raises:
        InputError: Two results would have the same name, or it is unknown which channel the model needs.
    """
    everything = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    scans = [path for path in everything if path.name.endswith(SUFFIXES)]
    if not scans:
        return {}
    if others := [path.name for path in everything if path not in scans and path.name != "dataset.json"]:
        shown = ", ".join(others[:NAMES_SHOWN]) + (", ..." if len(others) > NAMES_SHOWN else "")
        log.warning(
            "--input %s: taken as a plain folder of scans; ignored, because they are not scans: %s", folder, shown
        )
    named = _by_channel(folder, scans, contrast, model) if model.layout == "nnunet" else _by_name(scans)
    problems, subjects = _problems_of_names(folder, named), {}
    for subject, path in named:
        try:
            if path not in problems:
                subjects[subject] = files_of_scan(subject, path, contrast, model)
        except InputError as error:
            problems[path] = " ".join(error.lines)
    lines = list(dict.fromkeys(problems.values()))
    if lines:
        if left_out is None:
            raise InputError(lines)
        left_out += lines
    return subjects


def _problems_of_names(folder, named):
    """Return `{path: line}` for files that are not scans, or whose results could not be told apart."""
    problems, names_in, folded = {}, {}, defaultdict(list)
    for subject, path in named:
        folded[subject.casefold()].append(path)
        if problem := problem_of_path(path, names_in):
            problems[path] = f"{subject}: {problem}"
    for paths in folded.values():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            line = f"--input {folder}: {names} would have results of one name; rename one"
            known = next((problems[path] for path in paths if path in problems), line)
            problems = dict.fromkeys(paths, known) | problems
    return {
        path: f"{subject!r}: has characters that cannot be printed; rename it"
        for subject, path in named
        if not subject.isprintable()
    } | problems


def files_of_scan(subject: str, path: Path, contrast: str, model: ModelDescription) -> SubjectFiles:
    """Describe one file as the scan of one contrast; from a Decathlon file, the volume of the model is used."""
    chosen = _volume_of(path, contrast, model)
    return SubjectFiles(
        subject,
        {contrast: path},
        volumes={contrast: chosen} if chosen else {},
        bias_correction=tuple(model.bias_correction),
    )


def _by_name(scans):
    return [(stem_of(path), path) for path in scans]


def _by_channel(folder, scans, contrast, model):
    """Match scans to the names of their cases; of several channels, the one that the model needs is used."""
    matches = {path: CHANNEL.fullmatch(stem_of(path)) for path in scans}
    numbers = sorted({match[2] for match in matches.values() if match})
    if len(numbers) > 1:
        known = _channels_near(folder)
        wanted = known.get(file_pattern(model.files[contrast]).casefold())
        if wanted is None:
            raise InputError(
                f"--input {folder}: holds the channels {', '.join(numbers)}, of which the model needs '{contrast}'; no "
                "dataset.json there or above says which that is; give a folder with the files of this channel only"
            )
        matches = {path: match for path, match in matches.items() if not match or int(match[2]) == wanted}
    return [(match[1] if match else stem_of(path), path) for path, match in matches.items()]


def _volume_of(path: Path, contrast: str, model: ModelDescription) -> tuple[int, int] | None:
    """Return `(which volume, of how many)` of a 4D file that holds several contrasts; None for other files."""
    if model.layout != "msd" or series_length(model.files[contrast]):
        return None
    try:
        axes = grid_of_scan(path, contrast).axes or ()
    except InputError:
        return None  # reported by the check of the scan
    if len(axes) != 4 or axes[3] == 1:
        return None
    if contrast in model.volumes:
        return model.volumes[contrast]
    known = _channels_near(path.parent)
    if file_pattern(model.files[contrast]).casefold() in known:
        return known[file_pattern(model.files[contrast]).casefold()], len(known)
    raise InputError(
        f"{stem_of(path)}: '{path}' holds {axes[3]} volumes, of which the model needs '{contrast}', and neither "
        "model.json nor a dataset.json there or above says which that is; give this volume as a 3D file"
    )


def _channels_near(folder):
    """Return the channels in the dataset.json of a folder or its parent, `{name in lower case: number}`."""
    for place in (folder, folder.resolve().parent):
        try:
            content = json.loads((place / "dataset.json").read_text(encoding="utf-8-sig"))
            channels = content.get("channel_names") or content["modality"]
            return {str(name).casefold(): int(number) for number, name in channels.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
    return {}


def no_scan(where: str, values: np.ndarray) -> list[str]:
    """Report that voxels are a label map, which would otherwise be segmented like a scan."""
    if not 0 <= values.min() <= values.max() < 2**16:
        return []
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        return []
    classes = np.flatnonzero(np.bincount(values.astype(np.int64).ravel()))
    if not 1 < len(classes) <= MOST_CLASSES:
        return []
    few = f"only {len(classes)} different whole numbers"
    return [f"{where} holds {few}, as a label map or a mask, and no scan; move it away"]
