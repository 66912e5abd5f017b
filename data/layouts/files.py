"""Shared by all layouts: the files that were requested and found, and finding files by a pattern with `{subject}`."""

import difflib
import glob
import logging
import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

from utils.checks import InputError
from utils.paths import FORMS, composed

log = logging.getLogger("mrccl")

SUFFIXES = (".nii", ".nii.gz")


class Found:
    """Files by `(role, name)` and subject, where they were searched for, and their problems.

    Attributes:
        looked_for: `(role, name)` -> pattern with `{subject}`, for messages.
        paths: `(role, name)` -> subject -> paths; more than one is a problem.
        cures: `(role, name)` -> what to do if several files match.
        problems: List of `(subject, line)`.
        details: Subject -> further fields of `SubjectFiles`.
    """

    def __init__(self, looked_for, cure="keep the right one, move the others away"):
        self.looked_for = looked_for
        self.cures = dict.fromkeys(looked_for, cure)
        self.paths = {key: defaultdict(list) for key in looked_for}
        self.problems = []
        self.details = defaultdict(dict)

    def add(self, role, name, subject, path):
        """Record a file of a subject."""
        self.paths[role, name][subject].append(path)

    def include(self, other):
        """Add the results of another search."""
        self.looked_for |= other.looked_for
        self.cures |= other.cures
        self.paths |= other.paths

    def subjects(self):
        """Return all identifiers, sorted; a mask alone does not make a subject."""
        return sorted(set().union(*(files for (role, _), files in self.paths.items() if role != "mask")))

    def unclear(self):
        """Return `(subject, line)` if several files match, or the only one is not a scan."""
        lines, names_in = [], {}
        for key, pattern in self.looked_for.items():
            for subject, files in self.paths[key].items():
                if len(files) > 1:
                    listed = ", ".join(_names_that_differ(files))
                    lines.append(
                        (subject, f"{subject}: {len(files)} files match '{pattern}' ({listed}); {self.cures[key]}")
                    )
                elif problem := problem_of_path(files[0], names_in):
                    lines.append((subject, f"{subject}: {problem}"))
        return lines


def _names_that_differ(files):
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else [str(file) for file in files]


def warn_of_closed_folders(root):
    """Warn of unreadable folders directly below the dataset, whose subjects would otherwise be missing silently.

    Args:
        root: Folder of the dataset.

    Raises:
        InputError: The folder itself cannot be read.
    """
    who = {"effective_ids": os.access in os.supports_effective_ids}
    if not os.access(root, os.R_OK | os.X_OK, **who):
        raise InputError(f"data.root: no permission to read '{root}'; change it, or give another data.root")
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not os.access(entry.path, os.R_OK | os.X_OK, **who):
            log.warning("'%s' cannot be read, so its contents are left out; fix its permissions", entry.path)


def known_name(word, known, key, where):
    """Return the layout's spelling of a name in a config, ignoring case.

    Args:
        word: The name as given in the config.
        known: Names in the layout.
        key: Key of the config, for the message.
        where: Source of these names, for the message.

    Raises:
        InputError: There is no such name, or there are several.
    """
    if word in known:
        return word
    folded = defaultdict(list)
    for name in known:
        folded[composed(name).casefold()].append(name)
    word_folded = composed(word).casefold()
    if len(same := folded.get(word_folded, [])) > 1:
        listed = " and ".join(f"'{name}'" for name in same)
        raise InputError(f"{key}: '{word}' may be {listed} of {where}; write it like one of them")
    if same:
        return same[0]
    near = difflib.get_close_matches(word_folded, folded, n=1)
    advice = f"did you mean '{folded[near[0]][0]}'?" if near else f"known: {', '.join(known) or 'none'}"
    raise InputError(f"{key}: '{word}' is not one of {where}; {advice}")


def find_by_pattern(wanted):
    """Layout pattern: one path with `{subject}` per contrast."""
    looked_for = {("contrast", name): pattern for name, pattern in wanted.entries.items()}
    looked_for |= {("label", "label"): wanted.label} if wanted.label else {}
    found = Found(looked_for, cure="narrow the pattern")
    for key, pattern in looked_for.items():
        for subject, path in files_of_pattern(wanted.root, pattern):
            found.add(*key, subject, path)
    return found


def files_of_pattern(root, pattern):
    """Yield `(subject, path)` of everything below a folder that matches a pattern.

    `{subject}` stands for one path component or a part of it, and may occur several times
    (`"{subject}/{subject}_flair.nii.gz"`); `*` matches anything within one component. Neither matches a leading dot:
    such files are hidden, like those that macOS adds to archives.

    Raises:
        InputError: The pattern has no `{subject}`, or begins with '/'.
    """
    matcher, names = _matcher_of(composed(pattern)), set()
    for form in {pattern, *(unicodedata.normalize(form, pattern) for form in FORMS)}:
        wildcard = glob.escape(form.replace("{subject}", "*")).replace("[*]", "*")
        # Unlike Path.glob, this finds broken links, which must be reported.
        names |= set(glob.glob(wildcard, root_dir=root))
    for name in sorted(names):
        if match := re.fullmatch(matcher, composed(name)):
            yield match["subject"], root / name


def _matcher_of(pattern):
    """Return the regular expression of the paths that match a pattern."""
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


def walk_scans(root):
    """Yield every NIfTI file below a folder, sorted; hidden files and folders are left out.

    A folder named like a scan is yielded too, so that it is reported.
    """
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*files, *folders]):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


def stem_of(path):
    """Return the name of a scan without `.nii` or `.nii.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def problem_of_path(path, names_in):
    """Explain why a path is not a scan, or not certainly the intended one; None if there is no problem.

    Args:
        path: File; a folder is valid if it is not named like a scan (DICOM series, several files).
        names_in: Dictionary that this function fills with the names in folders, so that each is listed once.
    """
    if not path.exists():
        if path.is_symlink():
            return f"'{path}' is a link to '{os.readlink(path)}', which does not exist; fix the link"
        return f"'{path}' does not exist; add it"
    is_scan = path.name.endswith(SUFFIXES)
    if not path.is_file() and (is_scan or not path.is_dir()):
        return f"'{path}' is {'a folder' if path.is_dir() else 'not a regular file'}; put the scan in its place"
    if not is_scan:
        return None
    twin = path.name.removesuffix(".gz") if path.name.endswith(".nii.gz") else f"{path.name}.gz"
    if path.parent not in names_in:
        names_in[path.parent] = set(os.listdir(path.parent))
    if twin in names_in[path.parent]:
        return f"'{twin}' lies beside '{path}'; keep the one that holds the scan, move the other away"
    return None
