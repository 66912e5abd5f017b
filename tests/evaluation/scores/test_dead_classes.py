"""Dead classes: Dice over all validation slices against plain loops, and their mention in tables and report."""

import math

import numpy as np
import pytest

from evaluation.report.tables import score_table
from evaluation.scores.dead_classes import DEAD, about_validation, dead_labels, pooled_dice
from evaluation.scores.gaps import dead_notes
from evaluation.scores.measures import DICE
from evaluation.scores.scores import read_scores
from tests.evaluation.scores.test_scores import write_cell
from utils.checks import InputError

LABELS = ["liver", "spleen", "kidney"]


def dice_by_hand(pairs, index):
    hits = predicted = reference = 0
    for one, two in pairs:
        for found, true in zip(one.ravel(), two.ravel(), strict=True):
            hits += found == true == index
            predicted += found == index
            reference += true == index
    return 2 * hits / (predicted + reference) if reference else None


def test_pooled_dice_equals_plain_loops():
    generator = np.random.default_rng(0)
    pairs = [
        (generator.integers(0, 4, (2, 5, 4)), generator.integers(0, 4, (2, 5, 4)).astype("uint8")) for _ in range(3)
    ]
    found = pooled_dice(iter(pairs), LABELS)
    assert found == {label: pytest.approx(dice_by_hand(pairs, k)) for k, label in enumerate(LABELS, start=1)}


def test_subjects_are_pooled_not_averaged():
    full, one = np.ones((1, 10, 10), int), np.zeros((1, 10, 10), int)
    one[0, 0, 0] = 1
    assert pooled_dice([(full, full), (1 - full, one)], ["liver"])["liver"] == pytest.approx(200 / 201)


def test_a_class_without_reference_has_no_value_and_one_without_prediction_is_dead():
    reference, predicted = np.zeros((1, 4, 4), int), np.full((1, 4, 4), 2)
    reference[0, 0] = 1
    found = pooled_dice([(predicted, reference)], LABELS)
    assert found == {"liver": 0.0, "spleen": None, "kidney": None}
    assert dead_labels(found) == ["liver"]
    assert dead_labels({"liver": DEAD, "spleen": DEAD - 1e-9}) == ["spleen"]


def test_cells_of_earlier_versions_took_all_validation_subjects():
    assert about_validation({"validation_subjects": ["a", "b"]}) == {"n_selecting": 2, "judged": None, "dead": ""}
    assert about_validation({})["n_selecting"] is None
    later = {"validation_subjects": ["a"], "n_selecting": 0, "validation_dice": {"liver": 0.1, "spleen": None}}
    assert about_validation(later) == {"n_selecting": 0, "judged": 1, "dead": "liver"}


def test_tables_state_who_selected_and_how_many_classes_are_dead(tmp_path):
    dice = [("a", "liver", 0.5), ("a", "spleen", 0.1)]
    ours = {"n_selecting": 0, "validation_subjects": ["v"], "validation_dice": {"liver": 0.9, "spleen": 0.05}}
    write_cell(tmp_path, dice=dice, **ours)
    write_cell(tmp_path, dice=dice, repeat=1, **ours | {"validation_dice": {"liver": 0.1, "spleen": 0.0}})
    write_cell(tmp_path, init="constrained", dice=dice, validation_subjects=["v", "w"])
    write_cell(tmp_path, init="global", dice=dice)
    scores = read_scores(tmp_path)
    table = score_table(scores, DICE)
    shown = table.text.set_index("Init")
    assert list(table.text.columns[:4]) == ["Contrasts", "Init", "N", "Selecting"]
    assert shown.loc[["random", "constrained", "global"], "Selecting"].tolist() == ["0", "2", "-"]
    assert shown.loc[["random", "constrained", "global"], "Dead"].tolist() == ["3 of 4", "-", "-"]
    numbers = table.numbers.set_index("init")
    assert set(numbers.loc["random", "dead"]) == {3} and math.isnan(numbers.loc["global", "dead"].iloc[0])
    assert "Selecting:" in table.caption and "below 0.2" in table.caption
    (note,) = dead_notes(scores)
    assert note == "t2/random/n02: dead classes (validation Dice below 0.2): r0 spleen; r1 liver, spleen."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_dice": [0.1]}, "validation_dice holds list"),
        ({"validation_dice": {"liver": "good"}}, "liver holds str"),
        ({"n_selecting": "all"}, "n_selecting holds str"),
    ],
)
def test_what_cannot_be_said_of_validation_is_refused(tmp_path, changes, message):
    write_cell(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path)
