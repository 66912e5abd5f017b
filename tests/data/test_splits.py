"""Subjects of training, validation and test; annotated subsets."""

import json
import logging

import pytest

from data.splits import Split, annotated_subsets, make_splits
from utils.checks import InputError

SUBJECTS = [f"sub-{number:02d}" for number in range(1, 16)]
LISTS = {"train": SUBJECTS[:10], "val": SUBJECTS[10:12], "test": SUBJECTS[12:]}


def test_lists_from_the_config_and_from_a_file(tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps(LISTS))
    [inline] = make_splits(LISTS, tmp_path, SUBJECTS, seed=1)
    [from_file] = make_splits("splits.json", tmp_path, SUBJECTS, seed=2)
    assert inline == from_file == Split("", *(tuple(LISTS[name]) for name in ("train", "val", "test")))
    assert inline.folder(tmp_path) == tmp_path
    assert inline.to_dict() == LISTS


@pytest.mark.parametrize("folds", [2, 3, 4, 15])
def test_cross_validation_tests_everyone_once(tmp_path, folds):
    splits = make_splits({"folds": folds, "validation": 2}, tmp_path, SUBJECTS, seed=5)
    assert sorted(subject for split in splits for subject in split.test) == SUBJECTS
    for number, split in enumerate(splits):
        assert split.folder(tmp_path) == tmp_path / f"fold{number}"
        assert len(split.val) == 2
        assert sorted((*split.train, *split.val, *split.test)) == SUBJECTS
    sizes = [len(split.test) for split in splits]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_the_seed_and_on_nothing_else(tmp_path):
    asked = {"folds": 3, "validation": 2}
    splits = make_splits(asked, tmp_path, SUBJECTS, seed=5)
    assert splits == make_splits(asked, tmp_path / "elsewhere", SUBJECTS[::-1], seed=5)
    assert splits != make_splits(asked, tmp_path, SUBJECTS, seed=6)
    assert all(type(subject) is str for split in splits for subject in split.train + split.val + split.test)


def test_every_mistake_of_a_split_has_its_line(tmp_path):
    lists = {"train": ["sub-01", "sub-02", "sub-99", 7, "sub-03", "sub-03"], "test": ["sub-01"], "val": [], "tets": []}
    with pytest.raises(InputError) as error:
        make_splits(lists, tmp_path, SUBJECTS, seed=1)
    assert error.value.lines == [
        "data.splits: 'val' is missing or empty; list its subjects",
        "data.splits: unknown set 'tets'; a split has train, val and test",
        "data.splits: train lists 7, which is not text; put subjects in quotes",
        "sub-01: is in train and test of data.splits; keep it in one set",
        "sub-99: is in train of data.splits, but there are no such scans; remove or add it",
        "sub-03: is listed 2 times in train of data.splits; list it once",
    ]


def test_files_that_are_no_split(tmp_path):
    with pytest.raises(InputError, match="absent.json: no such file"):
        make_splits("absent.json", tmp_path, SUBJECTS, seed=1)
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="list.json: expected"):
        make_splits("list.json", tmp_path, SUBJECTS, seed=1)


def test_too_few_subjects_for_the_folds(tmp_path):
    with pytest.raises(InputError, match="16 folds need at least 16 subjects, found 15"):
        make_splits({"folds": 16, "validation": 1}, tmp_path, SUBJECTS, seed=1)
    with pytest.raises(InputError, match=r"10 validation subjects leave none .* choose at most 9"):
        make_splits({"folds": 3, "validation": 10}, tmp_path, SUBJECTS, seed=1)


def test_subjects_in_no_set_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mrccl"), "propagate", True)  # scripts turn it off
    make_splits(LISTS | {"train": SUBJECTS[:8]}, tmp_path, SUBJECTS, seed=1)
    assert "data.splits: subjects in no set, unused (2): sub-09, sub-10" in caplog.text


def test_annotated_subsets_are_nested_within_a_repeat_and_differ_between_repeats():
    subsets = annotated_subsets(LISTS["train"], [2, 4, 8, 10], repeats=3, seed=3)
    assert len(subsets) == 12
    for repeat in range(3):
        for small, large in [(2, 4), (4, 8), (8, 10)]:
            assert len(subsets[small, repeat]) == small == len(set(subsets[small, repeat]))
            assert set(subsets[small, repeat]) < set(subsets[large, repeat])
        assert set(subsets[10, repeat]) == set(LISTS["train"])
    assert len({subsets[4, repeat] for repeat in range(3)}) == 3
    assert subsets == annotated_subsets(LISTS["train"][::-1], [10, 8, 4, 2], repeats=3, seed=3)
    assert subsets[4, 1] == annotated_subsets(LISTS["train"], [4], repeats=5, seed=3)[4, 1]
    assert subsets != annotated_subsets(LISTS["train"], [2, 4, 8, 10], repeats=3, seed=4)


def test_more_annotated_subjects_than_there_are():
    with pytest.raises(InputError) as error:
        annotated_subsets(LISTS["train"], [2, 16, 32], repeats=1, seed=0)
    assert len(error.value.lines) == 2
    assert error.value.lines[0] == (
        "finetuning.subjects_n: 16 annotated subjects asked for, but the training set has 10 with labels; "
        "choose at most 10"
    )
