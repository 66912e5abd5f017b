"""Files with more than one role or subject, and subjects whose names extend those of others.

If one of two roles of a file silently won, the wrong scan could be read; a label map mistaken for the scan of another
subject would train a network on the answers.
"""

import logging
from collections import defaultdict

from utils.checks import counted
from utils.paths import composed

SEPARATORS = "_-. "
SHOWN = 3  # number of name pairs shown in the warning
log = logging.getLogger("mrccl")


def compose_names(found):
    """Convert accents in subject names to composed form (Unicode NFC), whatever the file system uses.

    Args:
        found: `data.layouts.files.Found`, changed in place.
    """
    for key, of_subject in found.paths.items():
        found.paths[key] = defaultdict(list)
        for subject, paths in of_subject.items():
            found.paths[key][composed(subject)] += paths
    for subject in [subject for subject in found.details if composed(subject) != subject]:
        found.details[composed(subject)] |= found.details.pop(subject)
    found.problems = [(composed(subject), line) for subject, line in found.problems]


def settle_claims(found):
    """Assign a file that matches patterns of several subjects to the most specific pattern.

    `case1_seg.nii.gz` is the label map `{subject}_seg.nii.gz` of `case1`, not a scan `{subject}.nii.gz` of a
    subject `case1_seg`.

    Args:
        found: `data.layouts.files.Found`, changed in place; equally specific patterns become problems.
    """
    claims = defaultdict(list)
    for key, of_subject in found.paths.items():
        for subject, paths in of_subject.items():
            for path in paths:
                claims[path].append((key, subject))
    for path, several in claims.items():
        names = sorted({subject for _, subject in several}, key=lambda name: (len(name), name))
        if len(names) < 2:
            continue
        if len(names[0]) == len(names[1]):
            line = f"'{path}' matches as a file of both '{names[0]}' and '{names[1]}'; narrow the patterns"
            found.problems += [(name, f"{name}: {line}") for name in names[:2]]
        for key, subject in several:
            if subject != names[0]:
                found.paths[key][subject].remove(path)
                if not found.paths[key][subject]:
                    del found.paths[key][subject]


def files_named_twice(found, subjects):
    """Return `(subject, line)` for files used as two contrasts, or as a contrast and label or mask.

    Contrasts may be different volumes of one 4D file.
    """
    subjects_of, line_of = defaultdict(list), {}
    for subject in subjects:
        volumes, roles_of = found.details[subject].get("volumes", {}), defaultdict(list)
        for role, name in found.looked_for:
            paths = found.paths[role, name].get(subject, ())
            if len(paths) == 1 and paths[0].exists():  # other cases are reported elsewhere
                status = paths[0].stat()
                volume = volumes.get(name, (None,))[0] if role == "contrast" else None
                shown = f"contrast '{name}'" if role == "contrast" else role
                roles_of[status.st_dev, status.st_ino or paths[0].resolve(), volume].append((shown, paths[0]))
        for several in roles_of.values():
            roles = tuple(dict.fromkeys(shown for shown, _ in several))
            if len(roles) > 1:
                subjects_of[roles].append(subject)
                line_of.setdefault(roles, f"'{several[0][1]}' is {' and '.join(roles)}")
    problems = []
    for roles, names in subjects_of.items():
        more = f" (likewise for {counted(len(names) - 1, 'more subject')})" if len(names) > 1 else ""
        line = f"{names[0]}: {line_of[roles]}{more}; a file has one role: name each once"
        problems += [(name, line) for name in names]
    return problems


def warn_of_derived_names(subjects):
    """Warn of subjects whose name begins with another: label maps, predictions, or sessions of one person."""
    known, pairs = set(subjects), []
    for subject in subjects:
        places = [place for place, letter in enumerate(subject) if letter in SEPARATORS]
        if shorter := [subject[:place] for place in places if subject[:place] in known]:
            pairs.append(f"{subject} beside {shorter[-1]}")
    if pairs:
        listed = ", ".join(pairs[:SHOWN]) + (", ..." if len(pairs) > SHOWN else "")
        log.warning(
            "%s named like another plus a suffix (%s): label maps, predictions and processed images are not subjects; "
            "move them elsewhere or narrow the pattern; sessions of one person belong in one set of a split",
            counted(len(pairs), "subject is", "subjects are"),
            listed,
        )
