"""The Bland-Altman table from the volumes of cells."""

import math

import pandas
import pytest

from evaluation.scores.agreement import bland_altman_table, volumes
from evaluation.statistics import bland_altman
from tests.evaluation.made_scores import as_scores


def make_scores(measured, reference, **about):
    """Return `Scores` from `{(repeat, subject, label): mL}` and `{(subject, label): mL}`."""
    keys = {"contrasts": "t2", "init": "random", "n_annotated": 2, "split": ""}
    frame = pandas.DataFrame(
        [
            keys
            | {"repeat": r, "subject": s, "label": label, "volume_ml": ml}
            | {"volume_ml_reference": reference[s, label]}
            for (r, s, label), ml in measured.items()
        ]
    )
    return as_scores(frame, **about)


REFERENCE = {("a", "left"): 100.0, ("b", "left"): 120.0, ("a", "right"): 90.0, ("b", "right"): 110.0}
MEASURED = {
    (0, "a", "left"): 104.0, (1, "a", "left"): 108.0, (0, "b", "left"): 118.0, (1, "b", "left"): 126.0,
    (0, "a", "right"): 90.0, (1, "a", "right"): 90.0, (0, "b", "right"): 110.0, (1, "b", "right"): 110.0,
}  # fmt: skip


def test_repeats_are_averaged_before_the_differences():
    """Left: errors +6 and +2 of the mean volumes; bias 4, sd 2 sqrt 2, limits 4 -+ 1.96 sd."""
    table = bland_altman_table(make_scores(MEASURED, REFERENCE, is_simulated=True))
    left, right = (table.numbers.set_index("label").loc[label] for label in ("left", "right"))
    assert (left["pairs"], left["bias"], left["sd"]) == (2, 4.0, pytest.approx(2 * math.sqrt(2)))
    assert left["upper"] == pytest.approx(4 + 1.96 * 2 * math.sqrt(2))
    assert left["upper_high"] == pytest.approx(bland_altman([106, 122], [100, 120]).upper_high)
    assert (right["bias"], right["sd"]) == (0.0, 0.0)
    assert table.text.loc[0, "Bias"] == "+4.0" and table.text.loc[0, "Upper limit"] == "+9.5"
    assert table.caption.startswith("Simulated scans.") and "mean over its repeats" in table.caption


def test_one_subject_has_a_bias_but_no_limits():
    measured = {key: value for key, value in MEASURED.items() if key[1] == "a"}
    row = bland_altman_table(make_scores(measured, REFERENCE)).text.iloc[0]
    assert (row["Bias"], row["SD"], row["Lower limit"], row["Upper, 95 % CI"]) == ("+6.0", "-", "-", "-")


def test_without_volumes_there_is_no_table():
    frame = make_scores(MEASURED, REFERENCE).frame
    assert bland_altman_table(as_scores(frame.assign(volume_ml=math.nan, volume_ml_reference=math.nan))) is None


def test_volumes_have_one_row_per_subject_and_label():
    both = volumes(make_scores(MEASURED, REFERENCE)).set_index(["subject", "label"])
    assert len(both) == 4 and both.loc[("b", "left"), ["measured", "reference"]].tolist() == [122.0, 120.0]
