"""Tables against numbers computed by hand, in each of the three formats."""

import functools
import itertools
import math

import numpy as np
import pandas
import pytest
from scipy import stats

from evaluation.report.tables import (
    difference_table,
    duration_table,
    score_table,
    to_latex,
    to_markdown,
    write_table,
)
from evaluation.scores.agreement import bland_altman_table
from evaluation.scores.expected import Entry, Ours, Stated, expected_table
from evaluation.scores.measures import DICE, HD95, SEGMENTATION_MEASURES, VOLUME_ERROR
from evaluation.scores.savings import savings_table
from evaluation.scores.scores import MEAN, read_scores
from tests.evaluation.made_scores import as_scores
from utils.runs import write_json

LABELS = ("liver", "left_kidney")


def make_scores(quality, subjects=6, repeats=2, labels=LABELS, missing=(), **about):
    """Return `Scores` with the given mean Dice per `(init, N)`."""
    rows = []
    for (init, n), mean in quality.items():
        rng = np.random.default_rng(n + len(init))
        for subject, repeat, label in itertools.product(range(subjects), range(repeats), labels):
            dice = math.nan if (init, n, subject, repeat, label) in missing else mean + rng.uniform(-0.05, 0.05)
            keys = {"contrasts": "t2", "init": init, "n_annotated": n, "repeat": repeat, "subject": f"s{subject}"}
            keys |= {"split": "", "label": label, "folder": f"{init}/{n}/{repeat}"}
            keys |= {"n_selecting": 2}
            rows.append(keys | {"dice": dice, "hd95_mm": 100 * (1 - dice), "volume_error_ml": 50 * (mean - 0.75)})
    return as_scores(pandas.DataFrame(rows), **about)


QUALITY = {("random", 2): 0.5, ("random", 8): 0.8, ("constrained", 2): 0.7, ("constrained", 8): 0.82}


def test_spread_is_between_subjects_not_between_runs():
    """Two subjects, 0.2 and 0.6 on average; the spread over repeats must not affect the standard deviation."""
    rows = [("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.4), ("b", 1, 0.8)]
    results = pandas.DataFrame(
        [
            {"contrasts": "t2", "init": "random", "n_annotated": 2, "repeat": r, "subject": s, "label": "x", "dice": d}
            | {"folder": str(r), "n_selecting": 2}
            for s, r, d in rows
        ]
    )
    table = score_table(as_scores(results), DICE)
    row = table.numbers.set_index("label").loc[MEAN]
    assert (row["mean"], row["sd"]) == pytest.approx((0.4, 0.4 / math.sqrt(2)))
    assert (row["subjects"], row["repeats"]) == (2, 2)
    assert table.text.loc[0, "x"] == "0.400 ± 0.283"
    assert "over test subjects" in table.caption and "repeats of a subject are averaged first" in table.caption
    assert "Fewer than 10 test subjects" in table.caption


def test_missing_scores_are_counted_and_shown():
    lost = {("random", 2, 0, repeat, label) for repeat in range(2) for label in LABELS} | {("random", 2, 1, 0, "liver")}
    table = score_table(make_scores(QUALITY, missing=lost), DICE)
    row = table.numbers.set_index(["init", "n_annotated", "label"]).loc["random", 2, MEAN]
    assert (row["subjects"], row["missing"]) == (5, 5)
    shown = table.text.set_index(["Init", "N"]).loc["random", "2"]
    assert (shown["Subjects"], shown["NaN"]) == ("5", "5")


def test_what_is_compared_stands_together():
    table = score_table(make_scores(QUALITY, inits=("random", "constrained")), DICE)
    assert table.text[["N", "Init"]].to_numpy().tolist() == [
        ["2", "random"], ["2", "constrained"], ["8", "random"], ["8", "constrained"],
    ]  # fmt: skip
    assert list(table.text.columns[4:7]) == [*LABELS, MEAN]


def test_a_cell_without_any_score_is_a_dash():
    lost = {("random", 2, subject, 0, "liver") for subject in range(6)}
    table = score_table(make_scores({("random", 2): 0.5}, repeats=1, labels=("liver",), missing=lost), DICE)
    assert table.text.loc[0, "liver"] == "-"


def test_paired_differences_average_repeats_first():
    scores = make_scores(QUALITY)
    table = difference_table(scores)
    by_subject = scores.frame.groupby(["init", "n_annotated", "subject"])["dice"].mean()
    for row in table.numbers.itertuples():
        a, b = by_subject[row.init, row.n_annotated], by_subject["random", row.n_annotated]
        expected = stats.ttest_rel(a, b)
        assert (row.t, row.p, row.pairs) == pytest.approx((expected.statistic, expected.pvalue, 6))
        assert row.p_bonferroni == pytest.approx(min(1, 2 * expected.pvalue))
    assert set(table.numbers["comparisons"]) == {2}
    assert table.text.loc[0, "Difference"].startswith("+0.2") and table.text.loc[0, "Difference"].endswith("*")
    assert "family of 2 comparisons" in table.caption


def test_differences_by_label_are_a_family_of_their_own():
    scores = make_scores(QUALITY)
    table = difference_table(scores, by_label=True)
    assert table.name == "dice_differences_by_label" and len(table.numbers) == 4
    assert set(table.numbers["comparisons"]) == {4}
    by_subject = scores.frame.groupby(["init", "n_annotated", "label", "subject"])["dice"].mean()
    for row in table.numbers.itertuples():
        both = (by_subject[init, row.n_annotated, row.label] for init in (row.init, "random"))
        assert row.p_bonferroni == pytest.approx(min(1, 4 * stats.ttest_rel(*both).pvalue))
    assert table.text["Label"].tolist() == [*LABELS, *LABELS]
    assert difference_table(make_scores(QUALITY, labels=("liver",)), by_label=True) is None


def test_stars_stand_at_the_means_that_differ_and_agree_with_the_difference_table():
    scores = make_scores(QUALITY)
    marked = score_table(scores, DICE).text.set_index(["Init", "N"])[MEAN]
    differences = difference_table(scores).text.set_index(["Init", "N"])["Difference"]
    for key, difference in differences.items():
        assert marked[key].count("*") == difference.count("*")
    assert marked["constrained", "2"].endswith("***")
    assert not any("*" in marked["random", n] for n in ("2", "8"))
    assert "Bonferroni" in score_table(scores, DICE).caption
    assert "*" not in score_table(scores, HD95).text.to_string()


def test_volume_errors_say_that_they_have_a_sign():
    table = score_table(make_scores(QUALITY), VOLUME_ERROR)
    assert table.text.set_index(["Init", "N"]).loc[("random", "2"), MEAN] == "-12.5 ± 0.0"
    assert "[mL]" in table.title and "errors of opposite sign cancel" in table.caption and "NaN:" not in table.caption


def test_cells_with_a_subject_that_has_fewer_repeats_show_both_numbers():
    scores = make_scores(QUALITY)
    rows = scores.frame
    fewer = scores.only(~((rows["subject"] == "s0") & (rows["repeat"] == 1) & (rows["init"] == "random")))
    shown = score_table(fewer, DICE).text.set_index(["Init", "N"])["Repeats"]
    assert shown["random", "2"] == "1 to 2" and shown["constrained", "2"] == "2"


def test_durations_by_hand():
    """Cells of 10 and 20 s, of which 3 and 0 s for compiling: mean 15 s, 10 % compiling, half a minute in total."""
    scores = make_scores({("random", 2): 0.5}, is_simulated=True)
    scores.frame["duration_s"] = scores.frame["repeat"].map({0: 10.0, 1: 20.0})
    scores.frame["compile_s"] = scores.frame["repeat"].map({0: 3.0, 1: 0.0})
    table = duration_table(scores)
    for row in table.text.to_dict("records"):
        assert (row["Runs"], row["Mean [s]"], row["Longest [s]"]) == ("2", "15.0", "20.0")
        assert (row["Compiling [s]"], row["Compiling"], row["In all [min]"]) == ("3.0", "10%", "0.5")
    assert table.text["Contrasts"].tolist() == ["t2", "all"] and table.caption.startswith("Simulated scans. Wall-clock")


def test_durations_that_were_not_recorded():
    scores = make_scores({("random", 2): 0.5})
    assert duration_table(scores) is None
    scores.frame.loc[scores.frame["repeat"] == 0, "duration_s"] = 8.0
    row = duration_table(scores).text.iloc[0]
    assert (row["Runs"], row["Mean [s]"], row["Compiling [s]"], row["Compiling"]) == ("1", "8.0", "-", "-")


def write_cells(work, seed=None):
    """Write a small grid; a seed shuffles the numbers of the repeats and the rows of the files."""
    for (init, n), cell in make_scores(QUALITY, subjects=5, repeats=3).frame.groupby(["init", "n_annotated"]):
        renamed = range(3) if seed is None else np.random.default_rng([seed, n]).permutation(3).tolist()
        for repeat, rows in cell.groupby("repeat"):
            scores = rows[["subject", "label", "dice", "hd95_mm"]].assign(surface_dice=rows["dice"] - 0.1)
            scores = scores.assign(volume_ml=100 * rows["dice"], volume_ml_reference=75.0)
            scores = scores.assign(lesion_f1=rows["dice"], lesion_sensitivity=rows["dice"], lesions_reference=2.0)
            scores = scores.assign(lesions_detected=1.0, lesions_false_positive=3 * rows["dice"])
            scores = scores if seed is None else scores.sample(frac=1, random_state=seed)
            metrics = {"contrasts": "t2", "init": init, "n_annotated": n, "repeat": renamed[repeat], "labels": LABELS}
            metrics |= {"config_hash": init, "duration_s": 10.0 + repeat, "compile_s": 1.0, "annotated_available": 20}
            folder = work / "finetuning" / "t2" / init / f"n{n:02d}" / f"r{renamed[repeat]}"
            write_json(folder / "metrics.json", metrics | {"per_subject": scores.to_dict("records")})
    return read_scores(work)


def test_shuffled_repeats_and_subjects_leave_every_table_unchanged(tmp_path):
    stated = Stated(what="Dice", place="", quotation="", value=0.8, ours=Ours(quantity="dice", init="random", n=8))
    makers = [functools.partial(score_table, measure=measure) for measure in SEGMENTATION_MEASURES if measure.better]
    makers += [difference_table, functools.partial(difference_table, by_label=True), savings_table, duration_table]
    makers += [
        bland_altman_table,
        functools.partial(expected_table, entry=Entry(citation="", file="", numbers=[stated])),
    ]
    first, second = write_cells(tmp_path / "first"), write_cells(tmp_path / "second", seed=1)
    assert first.frame["dice"].tolist() != second.frame["dice"].tolist()
    for make in makers:
        table, shuffled = make(first), make(second)
        assert to_markdown(table) == to_markdown(shuffled)
        pandas.testing.assert_frame_equal(table.numbers, shuffled.numbers, rtol=1e-9)


def test_without_the_baseline_there_is_no_difference_table():
    assert difference_table(make_scores({("constrained", 2): 0.7})) is None
    assert difference_table(make_scores({("constrained", 2): 0.7, ("random", 8): 0.7})) is None


def test_a_pair_that_cannot_be_tested_says_so_in_the_table():
    table = difference_table(make_scores(QUALITY, subjects=1))
    assert set(table.text["Note"]) == {"one pair: no test"}
    assert set(table.text["p Bonferroni"]) == {"-"}


def test_markdown_and_latex_hold_what_the_reader_sees():
    table = score_table(make_scores(QUALITY, is_simulated=True), DICE)
    markdown = to_markdown(table).splitlines()
    assert markdown[0].startswith("Simulated scans. Dice")
    assert markdown[2].startswith("| Contrasts | Init | N | Selecting | liver |")
    assert len(markdown) == 4 + 4
    latex = to_latex(table)
    for piece in (r"\toprule", r"\midrule", r"\bottomrule", r"left\_kidney", r"$\pm$", r"\label{tab:dice}"):
        assert piece in latex
    assert "±" not in latex and latex.count(r"\\") == 5
    assert r"95 \% CI" in to_latex(difference_table(make_scores(QUALITY)))


def test_three_files_are_written(tmp_path):
    table = score_table(make_scores(QUALITY), HD95)
    write_table(table, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hd95_mm.csv", "hd95_mm.md", "hd95_mm.tex"]
    read = pandas.read_csv(tmp_path / "hd95_mm.csv")
    np.testing.assert_allclose(read["mean"], table.numbers["mean"])
    assert "HD95 [mm]" in (tmp_path / "hd95_mm.md").read_text() and "image diagonal" in table.caption
