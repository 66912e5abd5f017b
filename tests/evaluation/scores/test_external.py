"""Cells of tools outside this suite: names, notes, and N = 0 in figures, pictures and savings."""

import numpy as np
import pandas
import pytest

from evaluation.report.figures import against_n
from evaluation.report.tables import difference_table, score_table
from evaluation.scores.external import NOTHING_STATED, about_external, external_notes, is_external
from evaluation.scores.measures import DICE
from evaluation.scores.savings import savings_table
from evaluation.scores.scores import MEAN
from tests.evaluation.made_scores import as_scores

TOOL = "segmentator (external)"
MEANS = {"random": {2: 0.5, 4: 0.6, 8: 0.8}, "constrained": {2: 0.6, 4: 0.85, 8: 0.9}}


def made(means):
    """Return scores of five subjects around the means, `{init: {N: mean}}`."""
    rows = [
        {"contrasts": "t1", "init": init, "n_annotated": n, "subject": f"s{subject}", "label": "liver"}
        | {"dice": mean + 0.01 * subject, "repeat": 0, "folder": f"{init}/{n}"}
        for init, curve in means.items()
        for n, mean in curve.items()
        for subject in range(-2, 3)
    ]
    return as_scores(pandas.DataFrame(rows))


def test_a_cell_of_step_4_is_not_external():
    assert about_external({"init": "random"}) == {} and not is_external("random")


@pytest.mark.parametrize(("note", "said"), [("trained on CT.", "trained on CT"), ("", NOTHING_STATED)])
def test_an_external_cell_has_a_name_that_no_init_has(note, said):
    found = about_external({"init": "constrained", "external": {"note": note}})
    assert found == {"init": "constrained (external)", "external": said} and is_external(found["init"])


def test_each_statement_is_a_sentence_with_its_n():
    scores = made(MEANS | {TOOL: {0: 0.7, 8: 0.8}})
    of_tool = scores.frame["init"] == TOOL
    scores.frame["external"] = np.where(of_tool, np.where(scores.frame["n_annotated"] > 0, "finetuned", "as is"), None)
    assert external_notes(scores) == [
        f"{TOOL}, N = 0: predictions of a tool outside this suite; as is.",
        f"{TOOL}, N = 8: predictions of a tool outside this suite; finetuned.",
    ]
    assert external_notes(made(MEANS)) == []


def test_n_0_stands_left_of_all_others_in_a_figure():
    (axis,) = against_n(made(MEANS | {TOOL: {0: 0.7}}), labels=[MEAN]).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "2", "4", "8"]
    assert list(axis.get_xticks()) == [1, 2, 4, 8]
    low, high = axis.get_xlim()
    lines = [container.lines[0] for container in axis.containers]
    assert len(lines) == 3
    for line in lines:
        assert ((line.get_xdata() > low) & (line.get_xdata() < high)).all()
    (zero,) = [line for line in lines if len(line.get_xdata()) == 1]
    assert zero.get_ydata()[0] == pytest.approx(0.7) and abs(np.log2(zero.get_xdata()[0])) < 0.5


def test_n_0_alone_is_a_figure_too():
    (axis,) = against_n(made({TOOL: {0: 0.7}}), labels=[MEAN]).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0"]


def test_a_tool_without_annotation_saves_all_of_it_and_that_is_no_bound():
    table = savings_table(made(MEANS | {TOOL: {0: 0.81}, "worse (external)": {0: 0.7}}))
    rows = table.text.set_index("Init")
    assert rows.loc[TOOL, ["N, tested", "Saved, tested N", "N, interpolated", "Saved"]].tolist() == [
        "0",
        "100%",
        "0",
        "100%",
    ]
    assert rows.loc["worse (external)", "Saved"] == "not reached"
    assert rows.loc["constrained", "N, tested"] == "4"


def test_n_0_comes_before_the_ends_of_the_curves():
    assert made(MEANS | {TOOL: {0: 0.7}}).smallest_and_largest_n == [0, 2, 8]
    assert made(MEANS).smallest_and_largest_n == [2, 8]
    assert made({TOOL: {0: 0.7}}).smallest_and_largest_n == [0]


def test_tables_name_the_tool_and_test_it_where_others_have_its_n():
    scores = made(MEANS | {TOOL: {0: 0.7, 8: 0.9}})
    table = score_table(scores, DICE)
    assert table.text.query("Init == @TOOL")["N"].tolist() == ["0", "8"]
    assert "(external): predictions that were made outside this suite" in table.caption
    assert "(external)" not in score_table(made(MEANS), DICE).caption
    compared = difference_table(scores).numbers.set_index(["init", "n_annotated"])["mean_difference"]
    assert compared[TOOL, 8] == pytest.approx(0.1) and (TOOL, 0) not in compared
