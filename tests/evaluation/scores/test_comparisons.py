"""Comparisons across subjects and repeats, against numbers computed by hand; repeats that only one side has."""

import itertools
import math

import numpy as np
import pandas
import pytest

from evaluation.report.tables import difference_table
from evaluation.scores.comparisons import compare_inits, unequal_repeats
from evaluation.scores.scores import MEAN
from tests.evaluation.made_scores import as_scores


def make_frame(dice, split=""):
    """Return the frame of `Scores` from `{(init, repeat, subject, label): Dice}`."""
    keys = ("init", "repeat", "subject", "label")
    rows = [dict(zip(keys, key, strict=True)) | {"dice": value} for key, value in dice.items()]
    return pandas.DataFrame(rows).assign(contrasts="t2", n_annotated=2, split=split)


def make_scores(dice):
    return as_scores(make_frame(dice))


def test_differences_of_single_repeats_by_hand():
    """Repeat 0: +0.2 and +0.4, mean +0.3. Repeat 1: -0.1 twice. Mean +0.1, sd 0.2 sqrt 2, one of two has its sign."""
    dice = {("random", r, s, "x"): 0.5 for r in (0, 1) for s in "ab"}
    dice |= {("ccl", 0, "a", "x"): 0.7, ("ccl", 0, "b", "x"): 0.9}
    dice |= {("ccl", 1, "a", "x"): 0.4, ("ccl", 1, "b", "x"): 0.4}
    row = compare_inits(make_scores(dice)).iloc[0]
    assert (row["repeat_mean"], row["repeat_sd"]) == pytest.approx((0.1, 0.2 * math.sqrt(2)))
    assert (row["repeats"], row["repeats_same_sign"]) == (2, 1)
    # Across subjects: a +0.05, b +0.15.
    assert (row["mean_difference"], row["pairs"]) == (pytest.approx(0.1), 2)
    text = difference_table(make_scores(dice)).text.iloc[0]
    assert (text["By repeat"], text["Same sign"]) == ("+0.100 ± 0.283", "1 of 2")


def test_labels_are_averaged_within_a_repeat_or_taken_alone():
    dice = {("random", 0, s, label): 0.5 for s in "ab" for label in "xy"}
    dice |= {("ccl", 0, s, "x"): 0.9 for s in "ab"} | {("ccl", 0, s, "y"): 0.6 for s in "ab"}
    (row,) = compare_inits(make_scores(dice)).itertuples()
    assert row.label == MEAN and row.repeat_mean == pytest.approx(0.25) and math.isnan(row.repeat_sd)
    by_label = compare_inits(make_scores(dice), by_label=True).set_index("label")
    assert by_label["repeat_mean"].to_dict() == pytest.approx({"x": 0.4, "y": 0.1})


def test_folds_are_pooled_by_subject_within_a_repeat():
    folds = []
    for fold, subject, value in (("fold0", "a", 0.6), ("fold1", "b", 0.8)):
        dice = {("random", 0, subject, "x"): 0.5, ("ccl", 0, subject, "x"): value}
        folds.append(make_frame(dice, split=fold))
    (row,) = compare_inits(as_scores(pandas.concat(folds))).itertuples()
    assert (row.repeats, row.repeat_mean, row.pairs) == (1, pytest.approx(0.2), 2)
    assert row.note == ""


def test_repeats_that_only_one_side_has_are_named_and_left_out_of_the_single_repeats():
    dice = {("random", r, s, "x"): 0.5 for r in (0, 1, 2) for s in "ab"}
    dice |= {("ccl", r, s, "x"): 0.6 + 0.01 * (s == "b") for r in (0, 1) for s in "ab"}
    table = difference_table(make_scores(dice))
    assert table.text.loc[0, "Note"] == "unequal repeats: ccl 2, random 3 (only random: r2)"
    assert table.text.loc[0, "Same sign"] == "2 of 2"


def test_unequal_repeats_in_words():
    assert unequal_repeats({"ccl": {"r0", "r1"}, "random": {"r1", "r0"}}) == ""
    both = unequal_repeats({"ccl": {"r0", "r1"}, "random": {"r0", "r2", "r3"}})
    assert both == "unequal repeats: ccl 2, random 3 (only ccl: r1; only random: r2, r3)"


def test_no_repeat_in_common():
    dice = {("random", 0, s, "x"): 0.5 for s in "ab"} | {("ccl", 1, "a", "x"): 0.6, ("ccl", 1, "b", "x"): 0.8}
    table = difference_table(make_scores(dice))
    assert (table.text.loc[0, "By repeat"], table.text.loc[0, "Same sign"]) == ("- ± -", "0 of 0")
    assert "only ccl: r1; only random: r0" in table.text.loc[0, "Note"]
    assert table.text.loc[0, "Difference"] == "+0.200"


def test_similar_subjects_make_chance_significant_and_the_repeats_reveal_it():
    """There is no true difference; training runs differ by 0.02, and subjects agree within 0.005.

    The t-test across subjects nearly always rejects, because it is about these networks only. The differences of
    single repeats change sign as often as three coins do.
    """
    rng, experiments = np.random.default_rng(0), []
    for n in range(1, 41):  # each N is a separate experiment
        dice = {}
        for init, repeat in itertools.product(("random", "ccl"), range(3)):
            training = rng.normal(0.7, 0.02)
            dice |= {(init, repeat, f"s{s}", "x"): training + rng.normal(0, 0.005) for s in range(10)}
        experiments.append(make_frame(dice).assign(n_annotated=n))
    compared = compare_inits(as_scores(pandas.concat(experiments)))
    assert (compared["p"] < 0.05).sum() > 30
    assert 3 <= (compared["repeats_same_sign"] == compared["repeats"]).sum() <= 18  # 10 expected: 1 / 2^(3 - 1)
