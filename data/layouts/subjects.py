"""From the names in a config to the files of each subject, in any layout."""

import dataclasses
import difflib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.layouts.bids import find_bids
from data.layouts.claims import compose_names, files_named_twice, settle_claims, warn_of_derived_names
from data.layouts.collections import find_brats, find_msd, find_nnunet
from data.layouts.files import Found, files_of_pattern, find_by_pattern, warn_of_closed_folders
from data.layouts.folders import find_chaos, find_renal
from utils.checks import InputError, counted
from utils.config.data import Wanted
from utils.config.schema import channel_names
from utils.model_description import ModelDescription
from utils.paths import existing_form

FINDERS = {
    "pattern": find_by_pattern,
    "brats": find_brats,
    "msd": find_msd,
    "nnunet": find_nnunet,
    "bids": find_bids,
    "chaos": find_chaos,
    "renal": find_renal,
}


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one subject, and how `data.scans.volumes` reads them.

    Attributes:
        subject: Identifier; a person with several sessions has one for each.
        contrasts: Contrast -> file, or folder of a DICOM series or of NIfTI files that together form a series.
        label: Label map, file or folder, or None.
        mask: Foreground mask, or None.
        person: Who was scanned; None: the subject. Sessions of one person belong to one set of a split.
        volumes: Contrasts that share a 4D file with others -> `(which volume, counted from 0, of how many)`.
        label_names: Name -> its values in this subject's label map.
        resample_to: Contrast to whose grid all files are resampled; None: they must share one.
        bias_correction: Contrasts read with N4 bias correction.
        empty_labels: With `"refuse"`, a label map must not consist of background only; otherwise it may.
    """

    subject: str
    contrasts: dict[str, Path]
    label: Path | None = None
    mask: Path | None = None
    person: str | None = None
    volumes: dict[str, tuple[int, int]] = field(default_factory=dict)
    label_names: dict[str, tuple[int, ...]] = field(default_factory=dict)
    resample_to: str | None = None
    bias_correction: tuple[str, ...] = ()
    empty_labels: str = "warn"


def series_length(entry):
    """Return the number of volumes of a 4D series, or None for a single 3D image."""
    return None if isinstance(entry, str) else dict(entry)["volumes"]


def find_subjects(wanted: Wanted, left_out: list[str] | None = None) -> dict[str, SubjectFiles]:
    """Find every subject below a folder. A subject exists if at least one of its contrasts or its label exists.

    Args:
        wanted: The folder and what to find in it, such as `config.data.wanted()`.
        left_out: List, or None. Given a list, subjects with a problem are left out and described there, one line per
            file, instead of raising an error.

    Returns:
        Subject identifier -> `SubjectFiles`, sorted by identifier.

    Raises:
        InputError: The folder does not exist, does not follow the layout or holds no subject; a name is unknown in it;
            or subjects have problems (one line each): a file is missing, a broken link or a folder, several files
            match, `.nii` exists beside `.nii.gz`, one file has two roles, or two identifiers differ only in case.
    """
    wanted = dataclasses.replace(wanted, root=existing_form(Path(wanted.root)))
    if not wanted.root.is_dir():
        raise InputError(f"data.root: '{wanted.root}' is not a folder; set data.root to the folder of the dataset")
    warn_of_closed_folders(wanted.root)
    if wanted.layout not in FINDERS:
        raise InputError(f"data.layout: '{wanted.layout}' is not one of {', '.join(FINDERS)}")
    found, subjects, problems = _search(wanted)
    lines = list(dict.fromkeys(line for _, line in problems))
    if lines:
        if left_out is None:
            raise InputError(lines)
        left_out += lines
    bad = {subject for subject, _ in problems}
    return {
        subject: SubjectFiles(
            subject,
            {name: found.paths["contrast", name][subject][0] for name in wanted.contrasts},
            _only(found, "label", subject),
            _only(found, "mask", subject),
            **found.details[subject],
            resample_to=wanted.resample_to,
            bias_correction=tuple(wanted.bias_correction),
            empty_labels=wanted.empty_labels,
        )
        for subject in subjects
        if subject not in bad
    }


def needed_of(model: ModelDescription) -> dict[str, Any]:
    """Return the entries of the contrasts that a model needs.

    For a model with several input contrasts, the one whose grid they are resampled to is included; a model with one
    contrast works on the grid of that contrast.
    """
    names = dict.fromkeys(file_of_channel(model.files, channel)[0] for channel in model.contrasts)
    if model.resample_to and len(names) > 1:
        names |= {model.resample_to: None}
    return {name: model.files[name] for name in names}


def file_of_channel(contrasts, channel):
    """Return `(contrast, volume)`: the contrast whose file holds a channel, and the volume in it (None if 3D)."""
    for name, entry in contrasts.items():
        channels = channel_names(contrasts, [name])
        if channel in channels:
            return name, None if series_length(entry) is None else channels.index(channel)
    known = channel_names(contrasts)
    near = difflib.get_close_matches(channel, known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise InputError(f"contrast '{channel}' is not in data.contrasts; {advice}")


def _search(wanted):
    """Return `Found`, the identifiers, and `(subject, line)` for each problem."""
    found = FINDERS[wanted.layout](wanted)
    if wanted.mask:
        found.include(_find_masks(wanted))
    compose_names(found)
    settle_claims(found)
    subjects = found.subjects()
    problems = [*found.problems, *found.unclear()]
    if not subjects and not problems:
        listed = ", ".join(f"'{pattern}'" for pattern in found.looked_for.values())
        where = f"no file below '{wanted.root}' matches {listed}"
        raise InputError(f"data.root: {where}; check data.root and data.contrasts")
    if wanted.layout == "pattern":
        warn_of_derived_names(subjects)
    problems += files_named_twice(found, subjects)
    problems += _missing_files(wanted.root, found, subjects)
    problems += [*_names_that_clash(wanted.root, subjects), *_unclear_labels(wanted, found)]
    return found, subjects, problems


def _find_masks(wanted):
    if wanted.layout == "bids":
        return find_bids(Wanted(wanted.root, {"mask": wanted.mask}), role="mask")
    masks = Found({("mask", "mask"): wanted.mask}, cure="narrow the pattern")
    for subject, path in files_of_pattern(wanted.root, wanted.mask):
        masks.add("mask", "mask", subject, path)
    return masks


def _only(found, role, subject):
    files = found.paths.get((role, role), {}).get(subject)
    return files[0] if files else None


def _missing_files(root, found, subjects):
    """Yield `(subject, line)` for each required file that is missing."""
    for subject in subjects:
        for (role, name), pattern in found.looked_for.items():
            if role != "label" and not found.paths[role, name].get(subject):
                path = root / pattern.replace("{subject}", subject)
                advice = "add it, or remove the subject from the folder"
                yield subject, f"{subject}: {role} '{name}' is missing: no file '{path}'; {advice}"


def _names_that_clash(root, subjects):
    """Yield `(subject, line)` for identifiers that would share a result file or break a message."""
    by_folded = defaultdict(list)
    for subject in subjects:
        by_folded[subject.casefold()].append(subject)
    for several in by_folded.values():
        if len(several) > 1:
            listed = " and ".join(f"'{subject}'" for subject in several)
            for subject in several:
                yield subject, f"{subject}: {listed} differ in upper and lower case only; rename all but one"
    for subject in subjects:
        if not subject.isprintable():
            yield subject, f"{subject!r}: has characters that cannot be printed; rename it in '{root}'"


def _unclear_labels(wanted, found):
    """Yield `(subject, line)` if a label map lacks a name in the config, or two classes share one of its values."""
    subjects_of = defaultdict(list)  # one line for all subjects with the same mistake
    for subject in found.paths.get(("label", "label"), ()):
        known = found.details[subject].get("label_names", {})
        for name in wanted.label_names():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none, give numbers'}"
                subjects_of[f"has no name '{name}'; {advice}"].append(subject)
        class_of = {}
        for name, members in wanted.labels.items():
            for value in {value for member in members for value in known.get(member, (member,))}:
                if class_of.setdefault(value, name) != name:
                    both = f"'{class_of[value]}' and '{name}' share"
                    advice = "unite classes in evaluation.regions instead"
                    subjects_of[f"has value {value}, which {both}; {advice}"].append(subject)
    for mistake, subjects in subjects_of.items():
        more = f" (and of {counted(len(subjects) - 1, 'more subject')})" if len(subjects) > 1 else ""
        for subject in subjects:
            yield subject, f"data.labels: the label map of {subjects[0]}{more} {mistake}"
