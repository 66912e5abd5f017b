"""The papers' numbers: each quotation is in its source, each entry has a preset, and ours are computed by hand."""

import math
import re
from pathlib import Path

import pandas
import pytest

from evaluation.scores.expected import EXPECTED, SHARES, Entry, Ours, Stated, expected_table, read_expected
from evaluation.scores.measures import SEGMENTATION_MEASURES
from tests.evaluation.made_scores import as_scores
from utils.checks import InputError
from utils.config.load import read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent.parent
SOURCES = ROOT.parent / "shared" / "papers"
NAMES = list(read_yaml(EXPECTED))
NUMBERS = [(name, stated) for name in NAMES for stated in read_expected(name).numbers]


def words(text):
    return re.sub(r"\s+", " ", text)


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the source documents are not beside the checkout")
def test_every_quotation_is_in_its_source_word_for_word(subtests):
    for name, stated in NUMBERS:
        with subtests.test(f"{name}: {stated.what}"):
            source = words((SOURCES / read_expected(name).file).read_text())
            place = 0
            for piece in stated.quotation.split("[...]"):
                place = source.find(words(piece).strip(), place)
                assert place >= 0, piece


def test_every_value_is_in_its_quotation(subtests):
    for name, stated in NUMBERS:
        with subtests.test(f"{name}: {stated.what}"):
            forms = {f"{stated.value:g}", f"{stated.value:.2f}", f"{100 * stated.value:g}%"}
            assert any(re.search(rf"(?<![\d.]){re.escape(form)}(?!\d)", stated.quotation) for form in forms)
    assert len(NUMBERS) > 15


def test_what_the_issue_of_each_paper_names_is_there():
    values = {name: [stated.value for stated in read_expected(name).numbers] for name in NAMES}
    assert values["renal_ismrm2024"] == [pytest.approx(1 - 8 / 20)]
    assert values["liver_arxiv2022"] == [0.89, 0.89, 0.86, 0.02, 0.3]
    assert values["prostate_arxiv2022"] == [0.03]
    assert values["synthesis_poster"] == [
        0.52, 0.78, 1.12, 0.11, 17.22, 25.30, 0.729, 0.715, 0.18, 0.18, 25.07, 24.47,
    ]  # fmt: skip
    assert values["abdomen_t2_medphys2024"] == values["brats_medphys2024"] == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "papers").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_has_an_entry_and_the_cells_that_it_is_compared_with(path):
    config = read_yaml(path)
    entry, grid = read_expected(config["paper"]), config.get("finetuning", {})
    for ours in (stated.ours for stated in entry.numbers if stated.ours):
        if ours.quantity in (*(measure.key for measure in SEGMENTATION_MEASURES), *SHARES):
            assert {ours.init, ours.reference or ours.init} <= set(grid["inits"])
            assert {n for n in (ours.n, ours.reference_n) if n} <= set(grid["subjects_n"])


def make_scores(means, contrasts=("t2",), subjects=4, **about):
    """Return `Scores` in which two subjects lie 0.1 above the mean and two 0.1 below."""
    rows = [
        {"contrasts": name, "init": init, "n_annotated": n, "repeat": 0, "subject": f"s{s}", "label": "x"}
        | {"dice": mean + (0.1 if s % 2 else -0.1)}
        for name in contrasts
        for (init, n), mean in means.items()
        for s in range(subjects)
    ]
    return as_scores(pandas.DataFrame(rows), **about)


def table_of(scores, **ours):
    stated = Stated(what="it", place="Sec. 1", quotation="0.5", value=0.5, ours=Ours(**ours))
    return expected_table(scores, Entry(citation="A paper", file="a.md", numbers=[stated]))


def test_a_mean_with_its_interval():
    row = table_of(make_scores({("random", 8): 0.6}), quantity="dice", init="random", n=8).numbers.iloc[0]
    assert (row["paper"], row["ours"], row["difference"]) == pytest.approx((0.5, 0.6, 0.1))
    half = 3.1824463 * 0.1 * math.sqrt(4 / 3) / 2  # t with 3 degrees of freedom x sd / sqrt(4)
    assert (row["ours_low"], row["ours_high"]) == pytest.approx((0.6 - half, 0.6 + half))


def test_shares_by_hand():
    scores = make_scores({("random", 20): 0.8, ("ccl", 4): 0.76, ("ccl", 8): 0.8, ("ccl", 12): 0.85})
    reference = {"init": "ccl", "reference": "random", "reference_n": 20}
    for quantity, expected, text in (
        ("shortfall", 0.05, "5.0%"),
        ("annotation_used", 0.4, "40.0%"),
        ("annotation_saved", 0.6, "60.0%"),
    ):
        table = table_of(scores, quantity=quantity, n=4 if quantity == "shortfall" else None, **reference)
        assert table.numbers["ours"].iloc[0] == pytest.approx(expected)
        row = table.text.iloc[0]
        assert (row["Paper"], row["Ours"]) == ("50%", text)
        assert row["Difference"] == f"{100 * (expected - 0.5):+.1f} points"


@pytest.mark.parametrize(
    "ours",
    [
        {"quantity": "dice", "init": "random", "n": 58},
        {"quantity": "dice", "init": "other", "n": 8},
        {"quantity": "dice", "init": "random", "n": 8, "label": "y"},
        {"quantity": "ssim", "init": "random", "n": 8},
        {"quantity": "shortfall", "init": "random", "n": 8, "reference": "random", "reference_n": 21},
        {"quantity": "annotation_saved", "init": "random", "reference": "other", "reference_n": 8},
    ],
)
def test_what_the_results_do_not_hold_is_a_dash_and_never_a_number(ours):
    table = table_of(make_scores({("random", 8): 0.6}), **ours)
    assert table.text.loc[0, ["Ours", "Difference", "95 % CI"]].tolist() == ["-", "-", "-"]
    assert table.numbers[["ours", "difference"]].isna().all(axis=None)


def test_a_curve_that_never_reaches_the_goal_is_reported():
    scores = make_scores({("random", 8): 0.6, ("ccl", 8): 0.5})
    table = table_of(scores, quantity="annotation_saved", init="ccl", reference="random", reference_n=8)
    assert table.text.loc[0, ["Ours", "Difference"]].tolist() == ["not reached", "-"]


def test_one_row_per_contrasts_with_place_and_quotation():
    scores = make_scores({("random", 20): 0.8, ("constrained", 8): 0.8}, contrasts=("bold", "dixon"), is_simulated=True)
    table = expected_table(scores, read_expected("renal_ismrm2024"))
    assert table.name == "paper" and table.text["Contrasts"].tolist() == ["bold", "dixon"]
    assert set(table.text["Ours"]) == {"60.0%"} and set(table.text["Difference"]) == {"+0.0 points"}
    assert set(table.text["Place"]) == {"Results and Discussion"}
    assert "N=8" in table.numbers.loc[0, "quotation"]
    assert (
        table.caption.startswith("Simulated scans. Results that Ghoul et al.") and "14 in the legend" in table.caption
    )


def test_a_source_without_numbers_has_no_table_and_within_is_shown_as_at_most():
    scores = make_scores({("random", 15): 0.8, ("global_local", 8): 0.76})
    assert expected_table(scores, read_expected("brats_medphys2024")) is None
    row = expected_table(scores, read_expected("prostate_arxiv2022")).text.iloc[0]
    assert (row["Paper"], row["Ours"], row["Difference"]) == ("≤ 3%", "5.0%", "+2.0 points")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(InputError, match="no entry 'renal'; did you mean|no entry 'renal'; known: renal_ismrm2024"):
        read_expected("renal")
    with pytest.raises(InputError, match="did you mean 'liver_arxiv2022'"):
        read_expected("liver_arxiv2021")
    (tmp_path / "expected.yaml").write_text("mine: {citation: A, file: b.md, numbers: [{what: x, valu: 1}]}\n")
    with pytest.raises(InputError, match=r"mine.numbers.0.valu: Extra inputs") as error:
        read_expected("mine", tmp_path / "expected.yaml")
    assert any("mine.numbers.0.value: Field required" in line for line in error.value.lines)
