"""Sessions of one person: they stay in one set, or a network would be tested on people it was trained on."""

import dataclasses

from utils.checks import InputError

SETS = ("train", "val", "test")


def people_of(subjects):
    """Group subjects by person.

    Args:
        subjects: Identifier -> `SubjectFiles`, or identifiers alone, each of which is then a person.

    Returns:
        Person -> list of identifiers, in the order of the subjects.
    """
    people = {}
    for subject in subjects:
        files = subjects[subject] if isinstance(subjects, dict) else None
        people.setdefault(getattr(files, "person", None) or subject, []).append(subject)
    return people


def split_by_person(make_splits, splits, root, subjects, people, seed):
    """Make splits in which all sessions of a person are in one set.

    Folds and numbers count persons; a person counts as labelled if any session is. Lists name sessions and are checked.

    Args:
        make_splits: `data.splits.make_splits`.
        splits: As for `make_splits`.
        root: As for `make_splits`.
        subjects: As for `make_splits`.
        people: From `people_of`.
        seed: As for `make_splits`.

    Returns:
        List of `data.splits.Split` of sessions.

    Raises:
        InputError: As for `make_splits`; or a list has sessions of one person in several sets.
    """
    if isinstance(splits, str) or isinstance(splits.get("train"), list | tuple):
        alone = {subject: dataclasses.replace(files, person=None) for subject, files in subjects.items()}
        made = make_splits(splits, root, alone, seed)
        _refuse_parted(made, people)
        return made
    chosen = {person: max((subjects[name] for name in names), key=_has_label) for person, names in people.items()}
    persons = {person: dataclasses.replace(files, person=None) for person, files in chosen.items()}
    made = make_splits(splits, root, persons, seed)
    return [dataclasses.replace(split, **{part: _sessions(split, part, people) for part in SETS}) for split in made]


def _has_label(files):
    return files.label is not None


def _sessions(split, part, people):
    return tuple(session for person in getattr(split, part) for session in people[person])


def _refuse_parted(splits, people):
    lines = []
    for split in splits:
        for person, sessions in people.items():
            sets = [part for part in SETS if set(sessions) & set(getattr(split, part))]
            if len(sets) > 1:
                listed = " and ".join(sets)
                lines.append(f"{person}: has sessions in {listed} of data.splits; keep a person in one set")
    if lines:
        raise InputError(lines)
