"""Which subjects are for training, validation and testing, and which are annotated; always by subject and by name."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.layouts.persons import people_of, split_by_person
from data.layouts.subjects import find_subjects
from utils.checks import InputError, counted
from utils.config.schema import fingerprint
from utils.paths import composed
from utils.runs import child_seed, read_json

SETS = ("train", "val", "test")
log = logging.getLogger("mrccl")


@dataclass(frozen=True)
class Split:
    """Disjoint sets of subjects; `name` is "" without cross-validation, otherwise `fold0`, `fold1`, ..."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def to_dict(self):
        """Return `{"train": [...], "val": [...], "test": [...]}`."""
        return {name: list(getattr(self, name)) for name in SETS}


def find_and_split(wanted, splits, seed, failures=None):
    """Find the subjects of a dataset and make the splits of a config.

    Args:
        wanted: As in `data.layouts.subjects.find_subjects`.
        splits: As in `make_splits`.
        seed: As in `make_splits`.
        failures: List, or None. Given a list, subjects that lack files are left out and described there.

    Returns:
        `(subject -> SubjectFiles, list of Split)`. The lists of a split still name the subjects that were left out,
        because results made with them are compared by their split.
    """
    subjects = find_subjects(wanted, failures)
    if failures and not subjects:
        raise InputError(failures)
    missing = {line.split(":")[0] for line in failures or ()} - subjects.keys()
    return subjects, make_splits(splits, wanted.root, subjects, seed, missing)


def hash_of_split(lists):
    """Hash the subjects for training, validation and testing, whatever the order of their names.

    Args:
        lists: `{"train": [...], "val": [...], "test": [...]}`.
    """
    return fingerprint({name: sorted(lists[name]) for name in SETS})


def make_splits(splits, root, subjects, seed, missing=()):
    """Turn the config's `data.splits` into lists of names.

    Args:
        splits: Name of a JSON file below `root`, or `{"train": [...], "val": [...], "test": [...]}`, or
            `{"folds": k, "validation": v}` for cross-validation, or `{"train": a, "val": b, "test": c}`, numbers of
            labelled subjects to draw; subjects without a label are then used for training too (pretraining only). In a
            dataset without labels, the numbers count all subjects.
        root: Folder of the dataset.
        subjects: Subjects that exist: identifier -> `SubjectFiles`. Labels matter only to numbers; the other kinds of
            splits need only the identifiers. Sessions of one person stay together (`data.layouts.persons`).
        seed: Seed of the config, for the draws of cross-validation and numbers.
        missing: Subjects that lists may name although they do not exist.

    Returns:
        List of `Split`: one without cross-validation; with it, every subject is tested in exactly one.

    Raises:
        InputError: A set is missing or empty, a subject is in two sets or does not exist, or there are too few
            subjects for the folds or too few labelled ones for the numbers; one line each.
    """
    splits = _composed_names(splits)
    if len(people := people_of(subjects)) < len(subjects):
        return split_by_person(functools.partial(make_splits, missing=missing), splits, root, subjects, people, seed)
    if not isinstance(splits, str) and "folds" in splits:
        return _folds(sorted(subjects), splits["folds"], splits["validation"], seed)
    where, lists = ("data.splits", splits) if not isinstance(splits, str) else _from_file(Path(root) / splits)
    if not isinstance(splits, str) and isinstance(splits["train"], int):
        lists = _drawn(splits, subjects, seed)
    lists = _composed_names(lists)
    problems = _problems_of_lists(where, lists, {*subjects, *missing})
    if problems:
        raise InputError(problems)
    split = Split("", *(tuple(lists[name]) for name in SETS))
    unused = sorted(set(subjects) - {*split.train, *split.val, *split.test})
    if unused:
        log.warning("%s: subjects in no set, unused (%d): %s", where, len(unused), ", ".join(unused))
    return [split]


def _composed_names(lists):
    """Convert names to the form of `data.layouts.subjects.find_subjects`, with accents composed (Unicode NFC)."""
    if isinstance(lists, str):
        return lists
    is_name = {part: isinstance(names, list | tuple) for part, names in lists.items()}
    return {
        part: [composed(name) if isinstance(name, str) else name for name in names] if is_name[part] else names
        for part, names in lists.items()
    }


def chosen_folds(splits, numbers):
    """Return the splits with these fold numbers (None: all), in the order of the config.

    Raises:
        InputError: A number is not that of a fold.
    """
    unknown = [number for number in numbers or () if not 0 <= number < len(splits)]
    if unknown:
        raise InputError(f"--folds {unknown[0]}: there are {len(splits)}, counted from 0")
    return [split for number, split in enumerate(splits) if numbers is None or number in numbers]


def annotated_subsets(train, sizes, repeats, seed, key="finetuning.subjects_n"):
    """Draw the annotated subjects for every N and repeat; within a repeat, larger sets contain the smaller ones.

    Args:
        train: Training subjects that have labels or, for synthesis, all contrasts.
        sizes: Numbers N of annotated subjects.
        repeats: Number of independent draws.
        seed: Seed of the config.
        key: Config key that the numbers come from, for the message.

    Returns:
        `{(n, repeat): subjects}`, repeats counted from 0.

    Raises:
        InputError: More annotated subjects are requested than there are.
    """
    too_many = [n for n in sizes if n > len(train)]
    if too_many:
        raise InputError(
            [
                f"{key}: {counted(n, 'annotated subject')} requested, but the training set has {len(train)}; "
                f"choose at most {len(train)}"
                for n in too_many
            ]
        )
    drawn = {}
    for repeat in range(repeats):
        order = np.random.default_rng(child_seed(seed, "annotated", repeat)).permutation(sorted(train)).tolist()
        drawn |= {(n, repeat): tuple(order[:n]) for n in sizes}
    return drawn


def _folds(subjects, folds, validation, seed):
    if folds > len(subjects):
        raise InputError(f"data.splits.folds: {folds} folds need at least {folds} subjects, found {len(subjects)}")
    order = np.random.default_rng(child_seed(seed, "folds")).permutation(subjects)
    splits = []
    for number, test in enumerate(np.array_split(order, folds)):
        remaining = sorted(set(subjects) - set(test.tolist()))
        if validation >= len(remaining):
            raise InputError(
                f"data.splits.validation: {validation} validation subjects leave none to train on "
                f"(fold {number} has {len(remaining)} besides its test subjects); choose at most {len(remaining) - 1}"
            )
        draw = np.random.default_rng(child_seed(seed, "validation", number))
        val = draw.choice(remaining, validation, replace=False).tolist()
        train = [subject for subject in remaining if subject not in val]
        splits.append(Split(f"fold{number}", tuple(train), tuple(sorted(val)), tuple(sorted(test.tolist()))))
    return splits


def _drawn(sizes, subjects, seed):
    """Draw these numbers of labelled subjects, the test set first, so that the other numbers do not affect it."""
    labelled = sorted(name for name, files in subjects.items() if files.label is not None) or sorted(subjects)
    asked = sum(sizes[name] for name in SETS)
    if asked > len(labelled):
        listed = " + ".join(f"{name} {sizes[name]}" for name in SETS)
        raise InputError(
            f"data.splits: {listed} = {asked} labelled subjects requested, but {len(labelled)} of {len(subjects)} "
            "subjects have a file that data.label names; choose smaller numbers, or correct data.label"
        )
    order, lists = np.random.default_rng(child_seed(seed, "splits")).permutation(labelled).tolist(), {}
    for name in reversed(SETS):
        lists[name], order = sorted(order[: sizes[name]]), order[sizes[name] :]
    lists["train"] = sorted({*lists["train"], *(set(subjects) - set(labelled))})
    return lists


def _from_file(path):
    content = read_json(path, cure="correct it")
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise InputError(f'{path}: expected {{"train": [...], "val": [...], "test": [...]}}')
    return path, content


def _problems_of_lists(where, lists, known):
    problems = [f"{where}: '{name}' is missing or empty; list its subjects" for name in SETS if not lists.get(name)]
    problems += [
        f"{where}: unknown set '{name}'; a split has train, val and test" for name in lists if name not in SETS
    ]
    sets_of = {}
    for name in SETS:
        for subject in lists.get(name) or ():
            if not isinstance(subject, str):
                problems.append(f"{where}: {name} lists {subject!r}, which is not text; put subjects in quotes")
                continue
            sets_of.setdefault(subject, []).append(name)
    for subject, sets in sets_of.items():
        if len(set(sets)) > 1:
            problems.append(f"{subject}: is in {' and '.join(dict.fromkeys(sets))} of {where}; keep it in one set")
        elif len(sets) > 1:
            problems.append(f"{subject}: is listed {len(sets)} times in {sets[0]} of {where}; list it once")
        if subject not in known:
            problems.append(f"{subject}: is in {sets[0]} of {where}, but there are no such scans; remove or add it")
    return problems
