"""Collecting and averaging cells, against plain loops; what is refused."""

import dataclasses
import json

import numpy as np
import pandas
import pytest

from evaluation.report.tables import score_table
from evaluation.scores.gaps import missing_cells
from evaluation.scores.measures import HD95, MEASURES, SEGMENTATION, SYNTHESIS, VOLUME_ERROR, Measure
from evaluation.scores.scores import MEAN, Scores, in_grid_order, read_scores
from evaluation.scores.scores_csv import read_scores_csv, write_scores
from utils.checks import InputError

KEYS = ("dice", "hd95_mm", "surface_dice", "volume_ml", "volume_ml_reference")


def write_cell(work, init="random", n=2, repeat=0, dice=(("a", "liver", 0.5),), fold="", **changes):
    folder = work / fold / "finetuning" / "t2" / init / f"n{n:02d}" / f"r{repeat}"
    folder.mkdir(parents=True)
    rows = [{"subject": s, "label": label} | dict.fromkeys(KEYS) | {"dice": value} for s, label, value in dice]
    metrics = {"config_hash": "abc", "contrasts": "t2", "init": init, "n_annotated": n, "repeat": repeat}
    (folder / "metrics.json").write_text(json.dumps(metrics | {"per_subject": rows} | changes))
    return folder


def random_scores(seed, subjects="abcde", labels=("liver", "spleen"), share_missing=0.2):
    rng = np.random.default_rng(seed)
    values = {(s, label): rng.random() for s in subjects for label in labels}
    return [(s, label, None if rng.random() < share_missing else v) for (s, label), v in values.items()]


def test_cells_become_one_tidy_table(tmp_path):
    write_cell(tmp_path, dice=[("a", "liver", 0.5), ("b", "liver", None)])
    write_cell(tmp_path, init="constrained", n=16, repeat=2)
    results = read_scores(tmp_path).frame
    assert len(results) == 3
    assert results["dice"].dtype == float and results["hd95_mm"].isna().all()
    assert set(results["n_annotated"]) == {2, 16}
    assert (results["split"] == "").all()


def test_averages_equal_plain_loops_whatever_the_order_of_rows(tmp_path):
    scores = {repeat: random_scores(repeat) for repeat in range(3)}
    for repeat, rows in scores.items():
        write_cell(tmp_path, repeat=repeat, dice=rows)
    scored = read_scores(tmp_path)
    values = scored.per_subject().set_index(["subject", "label"])
    shuffled = Scores(scored.frame.sample(frac=1, random_state=0)).per_subject().set_index(["subject", "label"])
    for subject in "abcde":
        means = []
        for label in ("liver", "spleen"):
            found = [v for rows in scores.values() for s, one, v in rows if (s, one) == (subject, label)]
            known = [v for v in found if v is not None]
            assert values.loc[(subject, label), "missing"] == len(found) - len(known)
            assert values.loc[(subject, label), "repeats"] == 3
            if known:
                assert values.loc[(subject, label), "value"] == pytest.approx(sum(known) / len(known))
                means.append(sum(known) / len(known))
        for table in (values, shuffled):
            assert table.loc[(subject, MEAN), "value"] == pytest.approx(sum(means) / len(means))


def test_folds_are_pooled_and_named(tmp_path):
    write_cell(tmp_path, fold="fold0", dice=[("a", "liver", 0.5)])
    write_cell(tmp_path, fold="fold1", dice=[("b", "liver", 0.7)])
    scores = read_scores(tmp_path)
    assert list(scores.frame["split"]) == ["fold0", "fold1"]
    assert scores.per_subject().query("label == @MEAN")["value"].tolist() == [0.5, 0.7]


def test_mixed_configs_in_a_cell_are_refused_all_of_them_at_once(tmp_path):
    for n in (2, 4):
        write_cell(tmp_path, n=n)
        write_cell(tmp_path, n=n, repeat=1, config_hash="xyz")
    with pytest.raises(InputError, match=r"t2/random/n02: made with different configs \(abc in .*r0; xyz in") as error:
        read_scores(tmp_path)
    assert len(error.value.lines) == 2


def test_cells_of_different_configs_may_stand_side_by_side(tmp_path):
    write_cell(tmp_path)
    write_cell(tmp_path, init="constrained", config_hash="xyz")
    assert len(read_scores(tmp_path).frame) == 2


def test_a_subject_tested_in_two_folds_is_refused(tmp_path):
    write_cell(tmp_path, fold="fold0")
    write_cell(tmp_path, fold="fold1")
    with pytest.raises(InputError, match="subject a is tested more than once in repeat 0"):
        read_scores(tmp_path)


def test_an_incomplete_or_broken_file_is_named(tmp_path):
    folder = write_cell(tmp_path, per_subject=[{"subject": "a", "label": "liver"}])
    with pytest.raises(InputError, match=r"metrics.json: key 'dice' is missing"):
        read_scores(tmp_path)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="metrics.json: not readable as JSON"):
        read_scores(tmp_path)


def test_an_empty_work_dir(tmp_path):
    with pytest.raises(InputError, match="run finetune_segmentation.py first"):
        read_scores(tmp_path)


def test_missing_cells_count_runs_over_repeats_and_folds(tmp_path):
    write_cell(tmp_path, fold="fold0", dice=[("a", "liver", 0.5)])
    write_cell(tmp_path, fold="fold1", dice=[("b", "liver", 0.5)])
    write_cell(tmp_path, fold="fold0", repeat=1, dice=[("a", "liver", 0.5)])
    gaps = missing_cells(read_scores(tmp_path), ["t2"], ["random", "global"], [2], 2, ["fold0", "fold1"])
    assert gaps == ["t2/random/n02: 3 of 4 runs", "t2/global/n02: 0 of 4 runs"]
    assert missing_cells(read_scores(tmp_path), ["t2"], ["random"], [2], 1, ["fold0"]) == []


def test_order_of_names():
    assert in_grid_order({"b", "random", "a"}) == ["random", "a", "b"]
    assert in_grid_order({"b", "random", "a"}, ["b", "random", "absent"]) == ["b", "random", "a"]


def test_a_metric_without_any_value_stays_nan(tmp_path):
    write_cell(tmp_path)
    values = read_scores(tmp_path).per_subject(HD95)
    assert values["value"].isna().all() and isinstance(values, pandas.DataFrame)


def test_volume_error_has_a_sign_and_is_averaged_like_a_metric(tmp_path):
    """Repeats 110 and 90 mL, reference 80: errors +30 and +10, mean +20; an unknown volume has no error."""
    for repeat, volume in enumerate((110.0, 90.0)):
        rows = [
            {"subject": "a", "label": "liver"}
            | dict.fromkeys(KEYS)
            | {"volume_ml": volume, "volume_ml_reference": 80.0},
            {"subject": "b", "label": "liver"} | dict.fromkeys(KEYS) | {"volume_ml": 5.0},
        ]
        write_cell(tmp_path, repeat=repeat, per_subject=rows)
    values = read_scores(tmp_path).per_subject(VOLUME_ERROR).query("label == 'liver'").set_index("subject")
    assert values.loc["a", "value"] == 20
    assert np.isnan(values.loc["b", "value"]) and values.loc["b", "missing"] == 2


def test_what_a_cell_records_of_itself_and_older_files_without_it(tmp_path):
    write_cell(tmp_path)
    write_cell(tmp_path, n=4, annotated_available=58, duration_s=12.5, compile_s=3)
    results = read_scores(tmp_path).frame.set_index("n_annotated")[["annotated_available", "duration_s", "compile_s"]]
    assert set(map(str, results.dtypes)) == {"float64"}
    assert results.loc[2].isna().all() and results.loc[4].tolist() == [58, 12.5, 3]


def test_rows_come_in_the_order_of_subjects_and_of_the_configs_labels(tmp_path):
    scores = [(s, label, 0.5) for s in "ba" for label in ("liver", "kidney")]
    write_cell(tmp_path, dice=scores, labels=["kidney", "liver"])
    results = read_scores(tmp_path).frame
    found = [*zip(results["subject"], results["label"], strict=True)]
    assert found == [("a", "kidney"), ("a", "liver"), ("b", "kidney"), ("b", "liver")]


def test_the_runs_behind_a_cell_have_names(tmp_path):
    write_cell(tmp_path, fold="fold0", dice=[("a", "liver", 0.5)])
    write_cell(tmp_path, fold="fold1", repeat=2, dice=[("b", "liver", 0.5)])
    assert read_scores(tmp_path).runs == {("t2", "random", 2): {"fold0/r0", "fold1/r2"}}
    write_cell(tmp_path / "single", repeat=1)
    assert read_scores(tmp_path / "single").runs == {("t2", "random", 2): {"r1"}}


def test_scores_are_read_from_their_table_to_the_last_digit(tmp_path):
    """Names that pandas would read as missing values or numbers are preserved."""
    scores = [("NA", "liver", 1 / 3), ("007", "liver", None)]
    write_cell(tmp_path, dice=scores, fold="fold0", annotated_available=58, duration_s=1.1, validation_subjects=["v"])
    written = read_scores(tmp_path)
    write_scores(written, tmp_path / "scores.csv")
    again = read_scores_csv(tmp_path / "scores.csv", is_simulated=True)
    assert again.frame["subject"].tolist() == ["007", "NA"] and again.note == "Simulated scans."
    relative = written.frame.assign(folder=[folder.relative_to(tmp_path) for folder in written.frame["folder"]])
    pandas.testing.assert_frame_equal(again.frame, relative, check_exact=True)


def test_tables_of_earlier_versions_lack_what_was_recorded_later(tmp_path):
    write_cell(tmp_path)
    write_scores(read_scores(tmp_path), tmp_path / "scores.csv")
    later = ["dead", "judged", "n_selecting", "annotated_available", "compile_s"]
    pandas.read_csv(tmp_path / "scores.csv").drop(columns=later).to_csv(tmp_path / "scores.csv", index=False)
    frame = read_scores_csv(tmp_path / "scores.csv").frame
    assert frame[later[1:]].isna().all(axis=None) and frame["dead"].tolist() == [""]


def test_a_measure_is_added_in_one_place(tmp_path):
    """One entry in the registry is read, checked, averaged and shown in a table, also beside older rows."""
    lesions = Measure("found_share", "Lesions found", "share", high=1.0, digits=2, is_optional=True)
    task = dataclasses.replace(SEGMENTATION, measures=(*SEGMENTATION.measures, lesions))
    row = {"subject": "a", "label": "liver"} | dict.fromkeys(KEYS) | {"dice": 0.5}
    write_cell(tmp_path, per_subject=[row | {"found_share": 0.75}])
    write_cell(tmp_path, n=4, per_subject=[row])
    scores = read_scores(tmp_path, task)
    assert [measure.key for measure in scores.measures] == ["dice", "found_share"]
    table = score_table(scores, lesions)
    assert table.text["liver"].tolist() == ["0.75 ± -", "-"] and table.title == "Lesions found [share]"
    write_cell(tmp_path, n=8, per_subject=[row | {"found_share": 1.5}])
    with pytest.raises(InputError, match="found_share of a is 1.5, expected 0 to 1"):
        read_scores(tmp_path, task)


def test_every_measure_has_one_entry_with_a_range_and_a_title():
    assert len(MEASURES) == len(SEGMENTATION.measures) + len(SYNTHESIS.measures)
    for key, measure in MEASURES.items():
        assert key == measure.key and measure.low < measure.high
        assert measure.better in ("higher", "lower", "nearer to 0", "")
