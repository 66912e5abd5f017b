"""Training, validation and test subjects; annotated subsets."""

import dataclasses
import json

import pytest

from data.layouts.subjects import SubjectFiles
from data.splits import Split, annotated_subsets, make_splits
from utils.checks import InputError

SUBJECTS = [f"sub-{number:02d}" for number in range(1, 16)]
LISTS = {"train": SUBJECTS[:10], "val": SUBJECTS[10:12], "test": SUBJECTS[12:]}


def test_lists_from_the_config_and_from_a_file(tmp_path):
    (tmp_path / "splits.json").write_text(json.dumps(LISTS))
    [inline] = make_splits(LISTS, tmp_path, SUBJECTS, seed=1)
    [from_file] = make_splits("splits.json", tmp_path, SUBJECTS, seed=2)
    assert inline == from_file == Split("", *(tuple(LISTS[name]) for name in ("train", "val", "test")))
    assert inline.to_dict() == LISTS


@pytest.mark.parametrize("folds", [2, 3, 4, 15])
def test_cross_validation_tests_everyone_once(tmp_path, folds):
    splits = make_splits({"folds": folds, "validation": 2}, tmp_path, SUBJECTS, seed=5)
    assert sorted(subject for split in splits for subject in split.test) == SUBJECTS
    for number, split in enumerate(splits):
        assert split.name == f"fold{number}"
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
    for content in ("[1, 2]", '{"train": 10, "val": 2, "test": 3}'):
        (tmp_path / "list.json").write_text(content)
        with pytest.raises(InputError, match="list.json: expected"):
            make_splits("list.json", tmp_path, SUBJECTS, seed=1)


LABELLED = SUBJECTS[::2]
FILES = {name: SubjectFiles(name, {}, f"{name}.nii.gz" if name in LABELLED else None) for name in SUBJECTS}


def test_numbers_draw_labelled_subjects_and_the_others_train(tmp_path):
    drawn = set()
    for seed in range(20):
        [split] = make_splits({"train": 3, "val": 2, "test": 2}, tmp_path, FILES, seed)
        assert split.name == ""
        assert (len(split.val), len(split.test)) == (2, 2) and {*split.val, *split.test} <= {*LABELLED}
        annotated = [name for name in split.train if name in LABELLED]
        assert len(annotated) == 3 and {*split.train} - {*annotated} == {*SUBJECTS} - {*LABELLED}
        assert len({*split.train, *split.val, *split.test}) == len(split.train) + 4 == 7 + 7
        assert all(list(names) == sorted(names) for names in (split.train, split.val, split.test))
        drawn |= {split.test}
    assert len(drawn) > 10, "the seed decides"


def test_numbers_depend_on_names_and_seed_only_and_leave_the_test_set_alone(tmp_path):
    backwards = dict(reversed(FILES.items()))
    [split] = make_splits({"train": 3, "val": 2, "test": 2}, tmp_path, FILES, seed=4)
    assert [split] == make_splits({"test": 2, "val": 2, "train": 3}, tmp_path / "elsewhere", backwards, seed=4)
    [other] = make_splits({"train": 2, "val": 3, "test": 2}, tmp_path, FILES, seed=4)
    assert other.test == split.test and {*split.val} < {*other.val}


def test_labelled_subjects_that_the_numbers_leave_over_are_named(tmp_path, caplog):
    [split] = make_splits({"train": 2, "val": 1, "test": 2}, tmp_path, FILES, seed=4)
    over = sorted({*LABELLED} - {*split.train, *split.val, *split.test})
    assert len(over) == 3 and f"data.splits: subjects in no set, unused (3): {', '.join(over)}" in caplog.text


def test_without_any_label_the_numbers_are_of_all_subjects(tmp_path):
    files = {name: dataclasses.replace(one, label=None) for name, one in FILES.items()}
    [split] = make_splits({"train": 4, "val": 2, "test": 3}, tmp_path, files, seed=4)
    assert [len(split.train), len(split.val), len(split.test)] == [4, 2, 3]
    assert len({*split.train, *split.val, *split.test} & set(files)) == 9


def test_numbers_beyond_the_labelled_subjects(tmp_path):
    with pytest.raises(InputError) as error:
        make_splits({"train": 4, "val": 2, "test": 3}, tmp_path, FILES, seed=1)
    assert error.value.lines == [
        "data.splits: train 4 + val 2 + test 3 = 9 labelled subjects requested, but 8 of 15 subjects have a file that "
        "data.label names; choose smaller numbers, or correct data.label"
    ]


def test_too_few_subjects_for_the_folds(tmp_path):
    with pytest.raises(InputError, match="16 folds need at least 16 subjects, found 15"):
        make_splits({"folds": 16, "validation": 1}, tmp_path, SUBJECTS, seed=1)
    with pytest.raises(InputError, match=r"10 validation subjects leave none .* choose at most 9"):
        make_splits({"folds": 3, "validation": 10}, tmp_path, SUBJECTS, seed=1)


def test_subjects_in_no_set_are_named(tmp_path, caplog):
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
        "finetuning.subjects_n: 16 annotated subjects requested, but the training set has 10; choose at most 10"
    )
