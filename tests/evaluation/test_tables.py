"""Tables against hand-worked numbers, and in each of the three formats."""

import itertools
import math

import numpy as np
import pandas
import pytest
from scipy import stats

from evaluation.results import MEAN
from evaluation.tables import describe_savings, difference_table, score_table, to_latex, to_markdown, write_table

LABELS = ("liver", "left_kidney")


def make_results(quality, subjects=6, repeats=2, labels=LABELS, missing=()):
    """Return what `collect_results` would, with the given mean Dice per `(init, N)`."""
    rows = []
    for (init, n), mean in quality.items():
        rng = np.random.default_rng(n + len(init))
        for subject, repeat, label in itertools.product(range(subjects), range(repeats), labels):
            dice = math.nan if (init, n, subject, repeat, label) in missing else mean + rng.uniform(-0.05, 0.05)
            keys = {
                "contrasts": "t2",
                "init": init,
                "n_annotated": n,
                "repeat": repeat,
                "subject": f"s{subject}",
                "split": "",
            }
            rows.append(keys | {"label": label, "dice": dice, "hd95_mm": 100 * (1 - dice)})
    return pandas.DataFrame(rows)


QUALITY = {("random", 2): 0.5, ("random", 8): 0.8, ("constrained", 2): 0.7, ("constrained", 8): 0.82}


def test_spread_is_between_subjects_not_between_runs():
    """Two subjects, 0.2 and 0.6 on average; the scatter over repeats must not enter the standard deviation."""
    rows = [("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.4), ("b", 1, 0.8)]
    results = pandas.DataFrame(
        [
            {"contrasts": "t2", "init": "random", "n_annotated": 2, "repeat": r, "subject": s, "label": "x", "dice": d}
            | {"split": ""}
            for s, r, d in rows
        ]
    )
    table = score_table(results, "dice")
    row = table.numbers.set_index("label").loc[MEAN]
    assert (row["mean"], row["sd"]) == pytest.approx((0.4, 0.4 / math.sqrt(2)))
    assert (row["subjects"], row["repeats"]) == (2, 2)
    assert table.text.loc[0, "x"] == "0.400 ± 0.283"
    assert "over test subjects" in table.caption and "repeats of a subject are averaged first" in table.caption
    assert "Fewer than 10 test subjects" in table.caption


def test_missing_scores_are_counted_and_shown():
    lost = {("random", 2, 0, repeat, label) for repeat in range(2) for label in LABELS} | {("random", 2, 1, 0, "liver")}
    table = score_table(make_results(QUALITY, missing=lost), "dice")
    row = table.numbers.set_index(["init", "n_annotated", "label"]).loc["random", 2, MEAN]
    assert (row["subjects"], row["missing"]) == (5, 5)
    shown = table.text.set_index(["Init", "N"]).loc["random", "2"]
    assert (shown["Subjects"], shown["NaN"]) == ("5", "5")


def test_what_is_compared_stands_together():
    table = score_table(make_results(QUALITY), "dice", inits=["random", "constrained"])
    assert table.text[["N", "Init"]].to_numpy().tolist() == [
        ["2", "random"], ["2", "constrained"], ["8", "random"], ["8", "constrained"],
    ]  # fmt: skip
    assert list(table.text.columns[3:6]) == [*LABELS, MEAN]


def test_a_cell_without_any_score_is_a_dash():
    lost = {("random", 2, subject, 0, "liver") for subject in range(6)}
    table = score_table(make_results({("random", 2): 0.5}, repeats=1, labels=("liver",), missing=lost), "dice")
    assert table.text.loc[0, "liver"] == "-"


def test_paired_differences_average_repeats_first():
    results = make_results(QUALITY)
    table = difference_table(results)
    by_subject = results.groupby(["init", "n_annotated", "subject"])["dice"].mean()
    for row in table.numbers.itertuples():
        a, b = by_subject[row.init, row.n_annotated], by_subject["random", row.n_annotated]
        expected = stats.ttest_rel(a, b)
        assert (row.t, row.p, row.pairs) == pytest.approx((expected.statistic, expected.pvalue, 6))
        assert row.p_bonferroni == pytest.approx(min(1, 2 * expected.pvalue))
    assert set(table.numbers["comparisons"]) == {2}
    assert table.text.loc[0, "Difference"].startswith("+0.2") and table.text.loc[0, "Difference"].endswith("*")
    assert "family of 2 comparisons" in table.caption


def test_shuffled_rows_and_repeats_leave_the_tables_unchanged():
    results = make_results(QUALITY)
    shuffled = results.sample(frac=1, random_state=1)
    shuffled["repeat"] = shuffled["repeat"].map({0: 7, 1: 3})
    for make in (lambda r: score_table(r, "dice"), difference_table):
        numbers = [make(r).numbers.sort_values(list(make(results).numbers.columns[:4])) for r in (results, shuffled)]
        first, second = (table.reset_index(drop=True) for table in numbers)
        pandas.testing.assert_frame_equal(first, second, rtol=1e-9)


def test_without_the_baseline_there_is_no_difference_table():
    assert difference_table(make_results({("constrained", 2): 0.7})) is None
    assert difference_table(make_results({("constrained", 2): 0.7, ("random", 8): 0.7})) is None


def test_a_pair_that_cannot_be_tested_says_so_in_the_table():
    table = difference_table(make_results(QUALITY, subjects=1))
    assert set(table.text["Note"]) == {"one pair: no test"}
    assert set(table.text["p Bonferroni"]) == {"-"}


def test_savings_in_words():
    flat = {(i, n): q for (i, n), q in QUALITY.items()}
    (sentence,) = describe_savings(make_results(flat))
    assert "constrained reaches the mean Dice of random at N = 8" in sentence and "annotation saved:" in sentence
    (sentence,) = describe_savings(make_results(flat | {("constrained", 2): 0.95}))
    assert "at most N = 2.0 (annotation saved: 75%" in sentence
    (sentence,) = describe_savings(make_results(flat | {("constrained", 2): 0.1, ("constrained", 8): 0.2}))
    assert "at no tested N" in sentence
    assert describe_savings(make_results({("constrained", 2): 0.7})) == []


def test_markdown_and_latex_hold_what_the_reader_sees():
    table = score_table(make_results(QUALITY), "dice", note="Simulated scans.")
    markdown = to_markdown(table).splitlines()
    assert markdown[0].startswith("Simulated scans. Dice")
    assert markdown[2].startswith("| Contrasts | Init | N | liver |")
    assert len(markdown) == 4 + 4
    latex = to_latex(table)
    for piece in (r"\toprule", r"\midrule", r"\bottomrule", r"left\_kidney", r"$\pm$", r"\label{tab:dice}"):
        assert piece in latex
    assert "±" not in latex and latex.count(r"\\") == 5
    assert r"95 \% CI" in to_latex(difference_table(make_results(QUALITY)))


def test_three_files_are_written(tmp_path):
    table = score_table(make_results(QUALITY), "hd95_mm")
    write_table(table, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hd95_mm.csv", "hd95_mm.md", "hd95_mm.tex"]
    read = pandas.read_csv(tmp_path / "hd95_mm.csv")
    np.testing.assert_allclose(read["mean"], table.numbers["mean"])
    assert "HD95 [mm]" in (tmp_path / "hd95_mm.md").read_text() and "image diagonal" in table.caption
