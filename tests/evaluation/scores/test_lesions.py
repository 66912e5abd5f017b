"""Lesions one by one, against plain loops with exact fractions and against panoptica; lesions in the report."""

import collections
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from evaluation.report.segmentation import draw_lesions
from evaluation.report.tables import score_table
from evaluation.scores.gaps import lesion_notes
from evaluation.scores.lesions import count_lesions, with_lesions
from evaluation.scores.measures import FALSE_LESIONS, LESION_F1, LESION_SENSITIVITY
from evaluation.scores.metrics import score_subject
from evaluation.scores.scores import MEAN, read_scores
from evaluation.scores.scores_csv import read_scores_csv, write_scores
from tests.lesion_cases import OVERLAPS, PAIRS, by_panoptica, draw_pair
from utils.checks import InputError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "panoptica.json").read_text())


def lesions_by_hand(mask):
    """Return sets of voxels connected by faces, edges or corners, in the order of their first voxels."""
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
    found = []
    for voxel in sorted(left):
        if voxel not in left:
            continue
        left.discard(voxel)
        lesion, todo = {voxel}, [voxel]
        while todo:
            here = todo.pop()
            near = [tuple(c + d for c, d in zip(here, step, strict=True)) for step in steps]
            for other in near:
                if other in left:
                    left.discard(other)
                    lesion.add(other)
                    todo.append(other)
        found.append(lesion)
    return found


def counts_by_hand(predicted, true, overlap):
    reference, found = lesions_by_hand(true), lesions_by_hand(predicted)
    owner = {voxel: n for n, lesion in enumerate(found) for voxel in lesion}
    candidates = []
    for number, lesion in enumerate(reference):
        for other in {owner[voxel] for voxel in lesion if voxel in owner}:
            iou = Fraction(len(lesion & found[other]), len(lesion | found[other]))
            candidates.append((-iou, number, other))
    pairs = {}
    for iou, number, other in sorted(candidates):
        if -iou >= Fraction(str(overlap)) and number not in pairs and other not in pairs.values():
            pairs[number] = other
    return len(reference), len(pairs), len(found) - len(pairs)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_counts_equal_plain_loops(overlap, subtests):
    for number in range(0, PAIRS, 2) if overlap == OVERLAPS[0] else range(1, 20):
        with subtests.test(f"pair {number}"):
            predicted, true = draw_pair(number)
            assert count_lesions(predicted, true, overlap) == counts_by_hand(predicted, true, overlap)


def test_counts_and_f1_equal_those_of_panoptica(subtests):
    """panoptica counted the same masks; `tests/lesion_cases.py` shows how it was called."""
    assert len(GOLDEN["cases"]) == PAIRS
    for number, case in enumerate(GOLDEN["cases"]):
        predicted, true = draw_pair(number)
        assert [int(predicted.sum()), int(true.sum())] == case["voxels"], "other masks than those of the file"
        for overlap in OVERLAPS:
            with subtests.test(f"pair {number}, overlap {overlap}"):
                found, (*expected, f1) = count_lesions(predicted, true, overlap), case["counts"][str(overlap)]
                assert list(found) == expected
                assert found.f1 == pytest.approx(math.nan if f1 is None else f1, abs=1e-12, nan_ok=True)


def test_the_file_of_panoptica_is_what_it_counts_today():
    pytest.importorskip("panoptica", reason="needs an environment of its own (tests/lesion_cases.py)")
    for number in range(0, PAIRS, 7):
        counts = {str(overlap): by_panoptica(*draw_pair(number), overlap) for overlap in OVERLAPS}
        assert counts == GOLDEN["cases"][number]["counts"]


def test_the_cases_tell_the_conventions_apart():
    """Some of many lesions are found at one overlap but not at another, and several compete for the same partner."""
    totals = collections.Counter()
    for case in GOLDEN["cases"]:
        for overlap in OVERLAPS:
            reference, detected, false_positive, f1 = case["counts"][str(overlap)]
            totals["lesions"] += reference
            totals["false"] += false_positive
            totals[overlap] += detected
            totals["without F1"] += f1 is None
    assert totals["lesions"] > 2000 and totals["false"] > 1000 and totals["without F1"] >= 15
    assert totals[0.1] > totals[0.25] + 30 > totals[0.5] + 60


def mask(*voxels, shape=(12, 12, 4)):
    found = np.zeros(shape, bool)
    for voxel in voxels:
        found[voxel] = True
    return found


def test_an_overlap_at_the_threshold_is_enough():
    true, predicted = mask(np.s_[:10, 0, 0]), mask(np.s_[0, 0, 0])  # 1 of 10 voxels
    assert count_lesions(predicted, true, 0.1) == (1, 1, 0)
    assert count_lesions(predicted, true, 0.11) == (1, 0, 1)


def test_a_lesion_has_one_partner():
    true = mask(np.s_[:9, 0, 0])
    halves = mask(np.s_[:4, 0, 0], np.s_[5:9, 0, 0])
    assert count_lesions(halves, true, 0.1) == (1, 1, 1)
    assert count_lesions(true, halves, 0.1) == (2, 1, 0)


def test_lesions_touch_by_corners_through_the_slices():
    assert count_lesions(mask((0, 0, 0), (1, 1, 1)), mask((0, 0, 0), (1, 1, 1)), 0.1) == (1, 1, 0)
    assert count_lesions(mask((0, 0, 0), (0, 0, 2)), mask((0, 0, 0), (0, 2, 0)), 0.1) == (2, 1, 1)


def test_empty_masks_follow_the_stated_convention():
    some, none = mask((1, 1, 1), (5, 5, 1)), mask()
    both, missed, invented = (count_lesions(*pair, 0.1) for pair in ((none, none), (none, some), (some, none)))
    assert both == (0, 0, 0) and math.isnan(both.f1) and math.isnan(both.sensitivity)
    assert missed == (2, 0, 0) and missed.f1 == missed.sensitivity == 0
    assert invented == (0, 0, 2) and invented.f1 == 0 and math.isnan(invented.sensitivity)


def test_only_the_labels_that_are_lesions_get_the_scores():
    rng = np.random.default_rng(3)
    maps = rng.choice(4, (2, 9, 8, 5), p=[0.9, 0.04, 0.03, 0.03])
    labels, regions = (
        ["necrosis", "oedema", "enhancing"],
        {"whole": ["necrosis", "oedema", "enhancing"], "e": ["enhancing"]},
    )
    plain = score_subject(*maps, (1, 1, 2), labels, 1.0, regions)
    whole, enhancing = with_lesions(plain, maps, labels, regions, ["whole"], 0.1)
    assert enhancing == plain[1] and {key: whole[key] for key in plain[0]} == plain[0]
    counts = counts_by_hand(maps[0] > 0, maps[1] > 0, 0.1)
    assert [whole[f"lesions_{key}"] for key in ("reference", "detected", "false_positive")] == list(counts)
    assert whole["lesion_sensitivity"] == counts[1] / counts[0]
    assert whole["lesion_f1"] == pytest.approx(2 * counts[1] / (counts[0] + counts[1] + counts[2]))
    without = with_lesions(score_subject(*maps, (1, 1, 2), labels, 1.0), maps, labels, {}, ["oedema"], 0.1)
    assert ["lesion_f1" in row for row in without] == [False, True, False]
    assert with_lesions(plain, maps, labels, regions, [], 0.1) == plain


NOTHING = dict.fromkeys(("hd95_mm", "surface_dice", "volume_ml", "volume_ml_reference"))


def write_cell(work, init, repeat, rows, config_hash="abc"):
    """Write a finished cell; each row has a subject, a label and, if its lesions were counted, the counts."""
    folder = work / "finetuning" / "flair" / init / "n02" / f"r{repeat}"
    folder.mkdir(parents=True)
    per_subject = []
    for subject, label, *counts in rows:
        row = {"subject": subject, "label": label, "dice": 0.5} | NOTHING
        if counts:
            reference, detected, false_positive = counts
            lesions = reference + detected + false_positive
            row |= {"lesions_reference": reference, "lesions_detected": detected}
            row |= {"lesions_false_positive": false_positive, "lesion_f1": 2 * detected / lesions if lesions else None}
            row |= {"lesion_sensitivity": detected / reference if reference else None}
        per_subject.append(row)
    about = {"config_hash": config_hash, "contrasts": "flair", "init": init, "n_annotated": 2, "repeat": repeat}
    (folder / "metrics.json").write_text(json.dumps(about | {"per_subject": per_subject}))


@pytest.fixture
def study(tmp_path):
    """Make lesions beside an organ, one subject without any, and an earlier cell without counts."""
    write_cell(
        tmp_path, "random", 0, [("a", "lesion", 4, 2, 1), ("b", "lesion", 0, 0, 0), ("a", "liver"), ("b", "liver")]
    )
    write_cell(
        tmp_path, "random", 1, [("a", "lesion", 4, 3, 3), ("b", "lesion", 0, 0, 2), ("a", "liver"), ("b", "liver")]
    )
    write_cell(tmp_path, "late", 0, [("a", "lesion"), ("b", "lesion"), ("a", "liver"), ("b", "liver")])
    return tmp_path


def test_averages_and_their_gaps_stand_in_a_table_of_each_measure(study):
    scores = read_scores(study, lesion_overlap=0.1)
    assert [measure for measure in scores.measures if measure.counted_with] == [
        LESION_F1,
        LESION_SENSITIVITY,
        FALSE_LESIONS,
    ]
    f1, sensitivity, false = (score_table(scores, one) for one in (LESION_F1, LESION_SENSITIVITY, FALSE_LESIONS))
    by_hand = [(2 * 2 / 7 + 2 * 3 / 10) / 2, 0.0]  # of b: no value, and 0
    (row,) = f1.numbers[f1.numbers["label"] == "lesion"].itertuples()
    assert row.mean == pytest.approx(np.mean(by_hand)) and (row.missing, row.subjects, row.repeats) == (1, 2, 2)
    assert f1.text[["Init", "lesion", "NaN"]].to_numpy().tolist() == [["random", "0.293 ± 0.414", "1"]]
    assert sensitivity.text[["lesion", "Subjects", "NaN"]].to_numpy().tolist() == [["0.625 ± -", "1", "2"]]
    assert false.text["lesion"].tolist() == ["1.50 ± 0.71"] and "per subject" in false.title
    assert "at least 0.1, one to one" in f1.caption and "no lesion in reference and prediction" in f1.caption
    assert set(f1.numbers["label"]) == {"lesion", MEAN}


def test_runs_that_counted_no_lesions_are_named(study):
    scores = read_scores(study)
    (note,) = lesion_notes(scores, ["lesion"])
    assert note.startswith("No lesions of 'lesion' were counted in 1 of 3 runs") and "--overwrite" in note
    assert lesion_notes(scores, []) == [] and lesion_notes(scores.of(init="random"), ["lesion"]) == []
    assert "in 3 of 3 runs" in lesion_notes(scores, ["liver"])[0]


def test_a_study_without_lesions_is_as_before(tmp_path):
    write_cell(tmp_path, "random", 0, [("a", "liver"), ("b", "liver")])
    scores = read_scores(tmp_path)
    assert not [column for column in scores.frame if "lesion" in column]
    assert draw_lesions(scores, tmp_path) == []
    assert "in 1 of 1 runs" in lesion_notes(scores, ["liver"])[0]


def test_scores_csv_and_figures_hold_the_lesions(study):
    scores = read_scores(study)
    write_scores(scores, study / "scores.csv")
    again = read_scores_csv(study / "scores.csv")
    for measure in (LESION_F1, FALSE_LESIONS):
        assert score_table(again, measure).text.equals(score_table(scores, measure).text)
    figures = draw_lesions(scores, study)
    assert [figure.title.partition(" against")[0] for figure in figures] == ["Lesion F1", "False-positive lesions"]
    assert all(png.stat().st_size > 5000 for figure in figures for png in figure.pngs)


def test_cells_with_other_reference_lesions_are_refused(study):
    write_cell(study, "early", 0, [("a", "lesion", 5, 2, 1)])
    with pytest.raises(InputError, match="a: lesions_reference of 'lesion' is 5 in .* and 4 in"):
        read_scores(study)


def test_more_found_than_there_are_is_refused(tmp_path):
    write_cell(tmp_path, "early", 0, [("a", "lesion", 2, 3, 1)])
    with pytest.raises(InputError, match="lesion_sensitivity of a is 1.5, expected 0 to 1"):
        read_scores(tmp_path)
