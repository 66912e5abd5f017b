"""Who lies where on disk: from the file patterns of a config to the files of every subject."""

import difflib
import glob
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
        left_out: List, or None. Given a list, subjects that lack a file are left out and described there, one line
            for each file, instead of raising.

    Returns:
        Subject identifier -> `SubjectFiles`, sorted by identifier.

    Raises:
        InputError: The folder does not exist or holds no subject, or subjects lack a file (one line for each).
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"data.root: '{root}' is not a folder; set data.root to the folder of the data set")
    patterns = {("contrast", name): file_pattern(entry) for name, entry in contrasts.items()}
    patterns |= {("label", "label"): label} if label else {}
    found, problems = {}, []
    for role, pattern in patterns.items():
        found[role], several = _files_by_subject(root, pattern)
        problems += several
    subjects = sorted(set().union(*found.values()))
    if not subjects and not problems:
        listed = ", ".join(f"'{pattern}'" for pattern in patterns.values())
        raise InputError(f"data.root: no file below '{root}' matches {listed}; check data.root and data.contrasts")
    if mask:
        found["mask", "mask"], several = _files_by_subject(root, mask)
        patterns["mask", "mask"] = mask
        problems += several
    problems += [
        (
            subject,
            f"{subject}: {role} '{name}' is missing: no file '{root / pattern.replace('{subject}', subject)}'; "
            "add it, or take the subject out of the folder",
        )
        for subject in subjects
        for (role, name), pattern in patterns.items()
        if role != "label" and subject not in found[role, name]
    ]
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
    """Return `{subject: path}` of one pattern, and `(subject, line)` where several files match."""
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
    paths = defaultdict(list)
    wildcard = glob.escape(pattern.replace("{subject}", "*")).replace("[*]", "*")
    for path in sorted(root.glob(wildcard)):
        match = re.fullmatch(matcher, path.relative_to(root).as_posix())
        if match:
            paths[match["subject"]].append(path)
    several = [
        (
            subject,
            f"{subject}: {len(files)} files match '{pattern}' ({', '.join(f.name for f in files)}); narrow the pattern",
        )
        for subject, files in paths.items()
        if len(files) > 1
    ]
    return {subject: files[0] for subject, files in paths.items()}, several
