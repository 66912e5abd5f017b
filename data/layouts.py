"""Who lies where on disk: from the file patterns of a config to the files of every subject."""

import difflib
import functools
import glob
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from utils.checks import InputError
from utils.schema import channel_names


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one subject; `label` and `mask` are None where the subject has none."""

    subject: str
    contrasts: dict[str, Path]
    label: Path | None = None
    mask: Path | None = None


def file_pattern(entry):
    """Return the file pattern of one contrast: a plain pattern, or `{"file": pattern, "volumes": n}`."""
    return entry if isinstance(entry, str) else dict(entry)["file"]


def series_length(entry):
    """Return the number of volumes of a 4D series, or None for a single 3D image."""
    return None if isinstance(entry, str) else dict(entry)["volumes"]


def find_subjects(root, contrasts, label=None, mask=None, left_out=None):
    """Find every subject below a folder.

    `{subject}` in a pattern stands for one path component or a part of it, and may occur several times
    (`"{subject}/{subject}_flair.nii.gz"`); `*` matches anything within one component. Neither begins with a dot: such
    files are hidden, as the ones that macOS leaves in archives. A subject exists as soon as one contrast or the label
    of it exists.

    Args:
        root: Folder of the data set.
        contrasts: Contrast name -> pattern below `root`, or `{"file": pattern, "volumes": n}` for a 4D series.
        label: Pattern of the label map, or None.
        mask: Pattern of the foreground mask, or None. A subject without its mask is an error, one without
            its label is an unlabelled subject.
        left_out: List, or None. Given a list, subjects with a problem are left out and described there, one line for
            each file, instead of raising.

    Returns:
        Subject identifier -> `SubjectFiles`, sorted by identifier.

    Raises:
        InputError: The folder does not exist or holds no subject, or subjects have problems (one line for each): a file
            is missing, a link to nowhere or a folder, several files match, `.nii` lies beside `.nii.gz`, or two
            identifiers differ in case only.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: '{root}' is not a folder; set data.root to the folder of the data set")
    patterns = {("contrast", name): file_pattern(entry) for name, entry in contrasts.items()}
    patterns |= {("label", "label"): label} if label else {}
    found, problems = {}, []
    for role, pattern in patterns.items():
        found[role], unclear = _files_by_subject(root, pattern)
        problems += unclear
    subjects = sorted(set().union(*found.values()))
    if not subjects and not problems:
        listed = ", ".join(f"'{pattern}'" for pattern in patterns.values())
        raise InputError(f"data.root: no file below '{root}' matches {listed}; check data.root and data.contrasts")
    if mask:
        found["mask", "mask"], unclear = _files_by_subject(root, mask)
        patterns["mask", "mask"] = mask
        problems += unclear
    problems += [*_missing_files(root, patterns, subjects, found), *_names_that_clash(root, subjects)]
    lines = [line for _, line in problems]
    if lines and left_out is None:
        raise InputError(lines)
    if lines:
        left_out += lines
    bad = {subject for subject, _ in problems}
    return {
        subject: SubjectFiles(
            subject,
            {name: found["contrast", name][subject] for name in contrasts},
            found.get(("label", "label"), {}).get(subject),
            found.get(("mask", "mask"), {}).get(subject),
        )
        for subject in subjects
        if subject not in bad
    }


def file_of_channel(contrasts, channel):
    """Return `(contrast, volume)`: whose file holds a channel, and which volume of it (None for a 3D file)."""
    for name, entry in contrasts.items():
        channels = channel_names(contrasts, [name])
        if channel in channels:
            return name, None if series_length(entry) is None else channels.index(channel)
    known = channel_names(contrasts)
    near = difflib.get_close_matches(channel, known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise InputError(f"contrast '{channel}' is not in data.contrasts; {advice}")


def _files_by_subject(root, pattern):
    """Return `{subject: path}` of one pattern, and `(subject, line)` where it is unclear which file is meant."""
    matcher = _matcher_of(pattern)
    paths = defaultdict(list)
    wildcard = glob.escape(pattern.replace("{subject}", "*")).replace("[*]", "*")
    # Unlike Path.glob, this finds links to nowhere, which deserve a line and not silence.
    for name in sorted(glob.glob(wildcard, root_dir=root)):
        if match := re.fullmatch(matcher, name):
            paths[match["subject"]].append(root / name)
    unclear = [
        (
            subject,
            f"{subject}: {len(files)} files match '{pattern}' ({', '.join(f.name for f in files)}); narrow the pattern",
        )
        for subject, files in paths.items()
        if len(files) > 1
    ]
    names_in = functools.cache(lambda folder: set(os.listdir(folder)))
    unclear += [
        (subject, f"{subject}: {problem}")
        for subject, files in paths.items()
        if len(files) == 1 and (problem := _problem_of_file(files[0], names_in))
    ]
    return {subject: files[0] for subject, files in paths.items()}, unclear


def _matcher_of(pattern):
    """Return the regular expression of the paths that a pattern means."""
    matcher, known = "", False
    for part in re.split(r"(\{subject\}|\*)", pattern):
        if part == "{subject}":
            matcher += "(?P=subject)" if known else r"(?P<subject>[^/.][^/]*)"
            known = True
        else:
            is_first = not matcher or matcher.endswith("/")
            matcher += (r"(?!\.)[^/]*" if is_first else "[^/]*") if part == "*" else re.escape(part)
    if not known:
        raise InputError(f"pattern '{pattern}' has no '{{subject}}'; write for instance '{{subject}}/flair.nii.gz'")
    if pattern.startswith("/"):
        raise InputError(f"pattern '{pattern}' begins with '/'; patterns are below data.root")
    return matcher


def _problem_of_file(path, names_in):
    """Say why a path is no scan, or why it may not be the one that is meant; None if all is well."""
    if not path.exists():
        return f"'{path}' is a link to '{os.readlink(path)}', which does not exist; mend the link"
    if not path.is_file():
        return f"'{path}' is {'a folder' if path.is_dir() else 'no regular file'}; put the scan in its place"
    twin = path.name.removesuffix(".gz") if path.name.endswith(".nii.gz") else f"{path.name}.gz"
    if twin.endswith((".nii", ".nii.gz")) and twin in names_in(path.parent):
        return f"'{twin}' lies beside '{path}'; keep the one that holds the scan, move the other away"
    return None


def _missing_files(root, patterns, subjects, found):
    """Return `(subject, line)` for each file that a subject must have and lacks."""
    for subject in subjects:
        for (role, name), pattern in patterns.items():
            if role != "label" and subject not in found[role, name]:
                path = root / pattern.replace("{subject}", subject)
                advice = "add it, or take the subject out of the folder"
                yield subject, f"{subject}: {role} '{name}' is missing: no file '{path}'; {advice}"


def _names_that_clash(root, subjects):
    """Return `(subject, line)` for identifiers that would give one file of results, or a broken line of a message."""
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
