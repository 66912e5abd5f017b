"""Step 5 on a study of contrast synthesis: tables, paired tests and page, recomputed from the files in plain loops."""

import contextlib
import io
import json
import math
import re
import shutil
import statistics

import pandas
import pytest
from scipy import stats

import reproduce_tables
from evaluation.report.synthesis_tables import synthesis_tables
from evaluation.scores.measures import SYNTHESIS, SYNTHESIS_MEASURES
from evaluation.scores.scores import Scores, read_scores
from tests.evaluation.synthesis_study import NOISE, SUBJECTS, TARGETS, TEST, make_config, make_scans, make_work
from utils.checks import InputError
from utils.config.load import load_config

pytestmark = pytest.mark.usefixtures("rough_figures")
COLUMNS = [measure.key for measure in SYNTHESIS_MEASURES]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return make_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture
def work(scans, tmp_path):
    """Return a config and a work dir that one test may change."""
    return make_work(scans, tmp_path)


@pytest.fixture(scope="module")
def report(scans, tmp_path_factory):
    """Return the report of a complete work dir, made once and not to be changed."""
    path, config = make_work(scans, tmp_path_factory.mktemp("report"), paper="synthesis_poster")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        reproduce_tables.main(["--config", str(path)])
    return config, output.getvalue()


def scores_by_hand(config, init, n, label, column):
    """Return one value per test subject, averaged over repeats, read from the JSON files."""
    by_subject = {subject: [] for subject in TEST}
    for file in (config.work_dir / "synthesis" / init / f"n{n:02d}").glob("r*/metrics.json"):
        for row in json.loads(file.read_text())["per_subject"]:
            if row["label"] == label:
                by_subject[row["subject"]].append(row[column])
    return [sum(found) / len(found) for found in by_subject.values()]


def change_rows(config, init, n, repeat, change):
    """Rewrite the rows of a cell's metrics.json."""
    file = config.work_dir / "synthesis" / init / f"n{n:02d}" / f"r{repeat}" / "metrics.json"
    metrics = json.loads(file.read_text())
    for row in metrics["per_subject"]:
        change(row)
    file.write_text(json.dumps(metrics))


@pytest.mark.parametrize("name", ["synthesis", "synthesis_whole_volume"])
def test_means_and_spreads_equal_plain_loops(report, name):
    config, _ = report
    table = pandas.read_csv(config.work_dir / "report" / "tables" / f"{name}.csv")
    columns = COLUMNS[:3] if name == "synthesis" else COLUMNS[3:]
    assert len(table) == len(NOISE) * len(TARGETS) * 3
    for (init, n), label, column in ((c, t, m) for c in NOISE for t in TARGETS for m in columns):
        row = table[(table[["init", "n_annotated", "label", "metric"]] == [init, n, label, column]).all(axis=1)]
        by_hand = scores_by_hand(config, init, n, label, column)
        assert row["mean"].item() == pytest.approx(statistics.mean(by_hand))
        assert row["sd"].item() == pytest.approx(statistics.stdev(by_hand))
        assert row[["subjects", "repeats", "missing", "infinite"]].to_numpy().tolist() == [[4, 2, 0, 0]]


@pytest.mark.parametrize(
    ("name", "columns"),
    [("synthesis_differences", COLUMNS[:3]), ("synthesis_whole_volume_differences", COLUMNS[3:])],
)
def test_paired_tests_are_of_these_numbers_and_one_family(report, name, columns):
    config, _ = report
    table = pandas.read_csv(config.work_dir / "report" / "tables" / f"{name}.csv")
    assert set(table["metric"]) == set(columns) and len(table) == 2 * 2 * 3
    assert set(table["comparisons"]) == {12}
    for row in table.itertuples():
        a, b = (scores_by_hand(config, init, row.n_annotated, row.label, row.metric) for init in (row.init, "random"))
        test = stats.ttest_rel(a, b)
        assert (row.t, row.p, row.pairs) == pytest.approx((test.statistic, test.pvalue, 4))
        assert row.p_bonferroni == pytest.approx(min(1, 12 * test.pvalue))
        assert row.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
        assert row.repeat_mean == pytest.approx(sum(a) / 4 - sum(b) / 4)  # both repeats have every subject
        assert row.repeats_same_sign == row.repeats == 2
        is_lower = row.metric.startswith("mse")
        assert (row.mean_difference < 0) == is_lower  # less noise: every measure is better


def test_the_terminal_shows_the_tables_inside_the_mask(report):
    config, output = report
    assert output.count("┏") == 2 and "Synthesis: SSIM, MSE and PSNR, inside the mask" in output
    assert "PSNR [dB]" in output and "whole" not in output
    assert "MSE: lower is better" in " ".join(output.split())
    assert str((config.work_dir / "report" / "index.html").resolve()) in output.splitlines()[-1]


def test_captions_say_what_was_measured_where(work, tmp_path):
    _, config = work
    scores = read_scores(config.work_dir, SYNTHESIS, is_simulated=True)
    inside, differences, whole, whole_differences, durations = synthesis_tables(scores)
    for table in (inside, differences, whole, whole_differences, durations):
        assert table.caption.startswith("Simulated scans.") and "annotated" not in table.caption
        assert table.text.columns[0] == "Inputs" and set(table.text["Inputs"]) <= {"t1gd+flair", "all"}
    assert [table.is_folded for table in (inside, differences, whole, whole_differences)] == [False, False, True, True]
    assert "inside the mask of each subject (given with the scans)" in inside.caption
    assert "found in the images" in synthesis_tables(Scores(scores.frame.assign(mask="found"), SYNTHESIS))[0].caption
    assert "over the whole volume, air included" in whole.caption and "mask" not in whole.caption
    for table in (inside, whole):
        assert "data range is 1," in table.caption and "SSIM is three-dimensional" in table.caption
    shown = differences.text.set_index("Measure")["Better"].to_dict()
    assert shown == {"SSIM": "higher", "MSE": "lower", "PSNR [dB]": "higher"}
    assert durations.title == "Time per run of synthesis" and durations.text["Runs"].iloc[-1] == "8"


def test_stars_stand_at_the_same_cells_as_in_the_differences(work):
    _, config = work
    inside, differences, *_ = synthesis_tables(read_scores(config.work_dir, SYNTHESIS))
    scores = inside.text.set_index(["Init", "N"])
    marked = 0
    for row in differences.text.to_dict("records"):
        cell = scores.loc[(row["Init"], row["N"]), f"{row['Contrast']}: {row['Measure']}"]
        assert cell.count("*") == row["Difference"].count("*")
        marked += "*" in cell
    assert marked and not scores.loc["random"].map(lambda cell: "*" in cell).any(axis=None)


def test_infinite_and_undefined_values_are_counted_and_not_averaged(work):
    _, config = work

    def perfect(row):
        if (row["subject"], row["label"]) == (TEST[0], "t2"):
            row.update(mse_mask=0.0, psnr_db_mask=None, ssim_mask=1.0)
        if (row["subject"], row["label"]) == (TEST[1], "t1"):
            row.update(mse_mask=None, psnr_db_mask=None, ssim_mask=None)

    for repeat in (0, 1):
        change_rows(config, "constrained", 10, repeat, perfect)
    change_rows(config, "constrained", 2, 0, lambda row: row.update(psnr_db_mask=math.inf, mse_mask=0.0))
    inside, differences, *_ = synthesis_tables(read_scores(config.work_dir, SYNTHESIS))
    shown = inside.text.set_index(["Init", "N"])
    # One PSNR of t2 in two repeats; three measures of t1 in two repeats.
    assert shown.loc[("constrained", "10"), ["Infinite PSNR", "NaN", "Subjects"]].tolist() == ["2", "6", "3 to 4"]
    assert shown.loc[("constrained", "2"), ["Infinite PSNR", "NaN", "Subjects"]].tolist() == ["8", "0", "4"]
    numbers = inside.numbers.set_index(["init", "n_annotated", "label", "metric"])
    others = scores_by_hand(config, "constrained", 10, "t2", "psnr_db")[1:]
    assert numbers.loc[("constrained", 10, "t2", "psnr_db_mask"), "subjects"] == 3
    assert len(others) == 3 and math.isfinite(numbers.loc[("constrained", 10, "t2", "psnr_db_mask"), "mean"])
    notes = differences.text.set_index(["N", "Contrast", "Measure"])["Note"]
    assert notes["10", "t2", "PSNR [dB]"] == "1 without a pair" and notes["10", "t2", "MSE"] == ""
    assert "Infinite PSNR" in inside.caption


def test_the_posters_numbers_stand_beside_ours_of_both_regions(report):
    config, _ = report
    table = pandas.read_csv(config.work_dir / "report" / "tables" / "paper.csv")
    assert len(table) == 12 * 2 and table["ours"].notna().all()
    for what, init, label, column, region in (
        ("T1w SSIM, from scratch", "random", "t1", "ssim_mask", "mask"),
        ("T1w MSE, pretrained", "constrained", "t1", "mse", "whole volume"),
        ("T2w PSNR, pretrained", "constrained", "t2", "psnr_db_mask", "mask"),
        ("T2w PSNR, from scratch", "random", "t2", "psnr_db", "whole volume"),
    ):
        row = table[(table["what"] == what) & (table["region"] == region)]
        assert row["ours"].item() == pytest.approx(statistics.mean(scores_by_hand(config, init, 10, label, column)))
    page = (config.work_dir / "report" / "index.html").read_text()
    assert "nor of which voxels the measures are" in page


def test_the_page_shows_all_of_it_and_nothing_of_segmentation(report):
    config, _ = report
    page = (config.work_dir / "report" / "index.html").read_text()
    for piece in (
        "Contrast synthesis with few finetuning subjects",
        "t1, t2 from t1gd+flair",
        "Synthesised volumes",
        "Error maps of the median and the worst test subject",
        "Synthesis against finetuning subjects",
        "Time per run of synthesis",
        "SSIM inside the mask (mean over target contrasts",
        "Pretraining",
    ):
        assert piece in page
    assert "Dice" not in re.sub(r"base64,[^\"]*|<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert page.count('<details class="rows" open>') == 4  # the whole volume is folded
    figures = {file.stem for file in (config.work_dir / "report" / "figures").iterdir()}
    assert figures == {"ssim_against_n", "mse_against_n", "psnr_db_against_n", "error_maps_n02", "error_maps_n10",
                       "pretraining_curves"}  # fmt: skip


def test_missing_cells_and_predictions_are_named(work, tmp_path):
    path, config = work
    shutil.rmtree(config.work_dir / "synthesis" / "constrained" / "n02" / "r1")
    for file in (config.work_dir / "synthesis" / "random" / "n10" / "r0" / "predictions").iterdir():
        file.unlink()
    results = read_scores(config.work_dir, SYNTHESIS)
    assert reproduce_tables.synthesis_gaps(config, results) == [
        "Missing: t1gd+flair/constrained/n02: 1 of 2 runs; run finetune_synthesis.py"
    ]
    figures, notes = reproduce_tables.make_synthesis_figures(config, results, tmp_path / "figures")
    assert len(notes) == 1 and "No error maps at N = 10" in notes[0] and "not readable" in notes[0]
    assert [png.name for png in figures[-1].pngs] == ["error_maps_n02.png"]
    other = load_config(path, overrides=["synthesis.overlap=0.25"])
    assert len(reproduce_tables.synthesis_gaps(other, results)) == 5
    absent = load_config(path, overrides=["data.root=/nowhere"])
    figures, notes = reproduce_tables.make_synthesis_figures(absent, results, tmp_path / "figures")
    assert len(figures) == 2 and len(notes) == 2 and "is not a folder" in notes[0]


def write_segmentation(config, init):
    folder = config.work_dir / "finetuning" / "all" / init / "n02" / "r0"
    folder.mkdir(parents=True)
    rows = [
        {"subject": s, "label": "lesion", "dice": 0.3 + 0.1 * k + 0.2 * (init != "random") + 0.01 * k**2}
        | {"hd95_mm": 3.0, "surface_dice": 0.5, "volume_ml": 10.0 + k, "volume_ml_reference": 11.0}
        for k, s in enumerate(TEST)
    ]
    metrics = {"config_hash": config.hash_of_cell("all", init), "contrasts": "all", "init": init, "n_annotated": 2}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"repeat": 0, "per_subject": rows}))


def test_both_tasks_of_one_config_stand_on_one_page(scans, tmp_path, capsys, monkeypatch):
    training = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    grid = {"contrasts": {"all": ["t1gd"]}, "subjects_n": [2], "repeats": 1, "training": training}
    with_labels = {"label": "{subject}/label.nii.gz", "labels": {"lesion": [1]}}
    path, config = make_work(scans, tmp_path, finetuning=grid, data=with_labels, paper="synthesis_poster")
    with monkeypatch.context() as patch:  # drawn only once, below
        patch.setattr(reproduce_tables, "make_synthesis_figures", lambda *arguments: ([], []))
        assert reproduce_tables.main(["--config", str(path)]) is None
    page = (config.work_dir / "report" / "index.html").read_text()
    assert "no finetuning/*/*/n*/r*/metrics.json; run finetune_segmentation.py first" in page
    for init in ("random", "constrained"):
        write_segmentation(config, init)
    capsys.readouterr()
    reproduce_tables.main(["--config", str(path)])
    names = {file.stem for file in (config.work_dir / "report" / "tables").glob("*.md")}
    assert {"dice", "dice_differences", "paper", "synthesis", "synthesis_whole_volume", "synthesis_differences"} < names
    assert capsys.readouterr().out.count("┏") == 4
    page = (config.work_dir / "report" / "index.html").read_text()
    for piece in ("Segmentation with few annotated subjects, and contrast synthesis", "Dice scores", "lesion",
                  "Dice against annotated subjects", "Synthesis against finetuning subjects"):  # fmt: skip
        assert piece in page


def test_a_config_needs_one_of_the_two_tasks_and_a_finished_cell(work, scans, tmp_path):
    path, config = work
    with pytest.raises(InputError, match="this step needs the section 'finetuning:' or 'synthesis:'"):
        reproduce_tables.main(["--config", str(path), "--set", "synthesis=null"])
    with pytest.raises(InputError, match=r"no synthesis/\*/n\*/r\*/metrics.json; run finetune_synthesis.py first"):
        reproduce_tables.main(["--config", str(path), "--work-dir", str(tmp_path / "empty")])
    grid = {"contrasts": {"all": ["t1gd"]}, "subjects_n": [2], "repeats": 1}
    grid["training"] = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    with_labels = {"label": "{subject}/label.nii.gz", "labels": {"lesion": [1]}}
    both = make_config(tmp_path, scans.root, finetuning=grid, data=with_labels)
    with pytest.raises(InputError) as error:
        reproduce_tables.main(["--config", str(both), "--work-dir", str(tmp_path / "empty")])
    assert len(error.value.lines) == 2
    file = config.work_dir / "synthesis" / "random" / "n02" / "r0" / "metrics.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "mask"}))
    with pytest.raises(InputError, match="key 'mask' is missing; delete the cell's folder"):
        read_scores(config.work_dir, SYNTHESIS)


def test_rows_come_in_the_order_of_subjects_and_targets(work):
    _, config = work
    results = read_scores(config.work_dir, SYNTHESIS).frame
    assert list(results["label"].head(4)) == [*TARGETS, *TARGETS] and set(results["subject"]) == set(SUBJECTS[:4])
    assert set(results["contrasts"]) == {"t1gd+flair"} and set(results["mask"]) == {"given"}


def test_folds_are_pooled(work):
    """Cells of two folds with two test subjects each give the same as one split with all four."""
    _, config = work
    together = synthesis_tables(read_scores(config.work_dir, SYNTHESIS))
    for fold, kept in (("fold0", TEST[:2]), ("fold1", TEST[2:])):
        shutil.copytree(config.work_dir / "synthesis", config.work_dir / fold / "synthesis")
        for file in (config.work_dir / fold).rglob("metrics.json"):
            metrics = json.loads(file.read_text())
            metrics["per_subject"] = [row for row in metrics["per_subject"] if row["subject"] in kept]
            file.write_text(json.dumps(metrics))
    shutil.rmtree(config.work_dir / "synthesis")
    results = read_scores(config.work_dir, SYNTHESIS)
    assert set(results.frame["split"]) == {"fold0", "fold1"}
    for table, pooled in zip(together[:4], synthesis_tables(results)[:4], strict=True):
        pandas.testing.assert_frame_equal(table.text, pooled.text)
