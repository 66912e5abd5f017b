"""Sessions of one person stay together in every kind of split."""

import json

import pytest

from data.layouts.persons import people_of
from data.layouts.subjects import SubjectFiles
from data.splits import make_splits
from utils.checks import InputError

SUBJECTS = {
    f"sub-{person}_ses-{session}": SubjectFiles(
        f"sub-{person}_ses-{session}", {}, "label.nii.gz" if session == 1 else None, person=f"sub-{person}"
    )
    for person in range(9)
    for session in range(1 + person % 3)
}


def person_of(subject):
    return subject.split("_")[0]


@pytest.mark.parametrize("splits", [{"folds": 3, "validation": 2}, {"train": 2, "val": 1, "test": 2}])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_no_person_is_in_two_sets(splits, seed):
    made = make_splits(splits, ".", SUBJECTS, seed)
    for split in made:
        people = [{person_of(subject) for subject in members} for members in (split.train, split.val, split.test)]
        assert sum(map(len, people)) == len(set().union(*people))
        used = [*split.train, *split.val, *split.test]
        assert len(used) == len(set(used))
        # Each person appears with all sessions.
        assert set(used) == {subject for subject in SUBJECTS if person_of(subject) in set().union(*people)}
    if "folds" in splits:
        assert sorted(subject for split in made for subject in split.test) == sorted(SUBJECTS)
        assert [len({person_of(subject) for subject in split.val}) for split in made] == [2, 2, 2]


def test_a_person_counts_as_labelled_if_one_session_is():
    [split] = make_splits({"train": 4, "val": 1, "test": 1}, ".", SUBJECTS, 0)
    assert len({person_of(subject) for subject in split.test if SUBJECTS[subject].label}) == 1
    with pytest.raises(InputError, match="= 7 labelled subjects requested, but 6 of 9 subjects"):
        make_splits({"train": 5, "val": 1, "test": 1}, ".", SUBJECTS, 0)


@pytest.mark.parametrize("is_file", [False, True])
def test_lists_that_separate_the_sessions_of_a_person_are_refused(tmp_path, is_file):
    lists = {"train": ["sub-1_ses-0"], "val": ["sub-2_ses-0", "sub-2_ses-1"], "test": ["sub-1_ses-1", "sub-0_ses-0"]}
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    with pytest.raises(InputError, match="sub-1: has sessions in train and test of data.splits; keep a person in one"):
        make_splits("splits.json" if is_file else lists, tmp_path, SUBJECTS, 0)
    lists["test"] = ["sub-0_ses-0"]
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    [split] = make_splits("splits.json" if is_file else lists, tmp_path, SUBJECTS, 0)
    assert split.val == ("sub-2_ses-0", "sub-2_ses-1")


def test_persons_with_one_session_are_split_as_ever():
    names = [f"s{number}" for number in range(7)]
    plain = {name: SubjectFiles(name, {}, "x") for name in names}
    named = {name: SubjectFiles(name, {}, "x", person=f"p-{name}") for name in names}
    for splits in ({"folds": 3, "validation": 1}, {"train": 3, "val": 1, "test": 2}):
        assert make_splits(splits, ".", plain, 5) == make_splits(splits, ".", named, 5)
    assert people_of(names) == {name: [name] for name in names}
