"""One damaged or missing file affects only its subject: --keep-going processes the others, with exit code 1."""

import csv
import json

import pytest

import evaluation.prediction.new_scans
import generate_h5_pretraining
from data.store.store import SliceStore
from tests.bad_input.harness import run
from tests.cohort import CONFIG, FIRST_FOUR, MODEL, save, volumes, write_cohort
from tests.test_predict_segmentation import write_model, write_scan
from utils.checks import InputError

pytestmark = pytest.mark.usefixtures("uncompiled")
FINETUNING = CONFIG["finetuning"] | {"inits": ["random"]}
SLICES, CELLS = FIRST_FOUR[1], FIRST_FOUR[3]
SUBJECTS = [f"sub-{number}" for number in range(1, 6)]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


SPOILERS = {
    "truncated": (truncate, "is truncated; copy or export it again"),
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes); copy or export it again"),
    "missing": (lambda path: path.unlink(), "is missing: no file '{}'; add it, or remove the subject from the folder"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; put the scan in its place"),
}


def predict(folder, *words):
    words = ("--model", folder / "model", "--input", folder / "scans", "--output", folder / "out", *words)
    return run("predict", *words)


def results(folder):
    return sorted(path.name for path in (folder / "out").rglob("*.nii.gz"))


def subjects(folder):
    with (folder / "out/volumes.csv").open(newline="") as file:
        return {row["subject"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("spoiler", "is_plain"),
    [("truncated", False), ("missing", False), ("a folder", False), ("empty", True), ("missing", True)],
)
def test_predict_continues_with_the_other_scans_of_a_folder(tmp_path, spoiler, is_plain):
    write_model(tmp_path / "model", **({} if is_plain else {"contrasts": ["t1", "t2"]}))
    names = ["{}.nii.gz"] if is_plain else ["{}/t1.nii.gz", "{}/t2.nii.gz"]
    for subject in ("a", "b", "c"):
        for number, name in enumerate(names):
            write_scan(tmp_path / "scans" / name.format(subject), number)
    spoil, text = SPOILERS[spoiler]
    spoil(path := tmp_path / "scans" / names[-1].format("b"))
    if spoiler == "missing" and is_plain:
        path.symlink_to("nowhere")
        text = "is a link to 'nowhere', which"
    refused = predict(tmp_path)
    assert refused.code == 2 and not (tmp_path / "out").exists() and text.format(path) in refused.said[0]
    outcome = predict(tmp_path, "--keep-going")
    assert outcome.code == 1 and not outcome.said and results(tmp_path) == ["a.nii.gz", "c.nii.gz"]
    assert subjects(tmp_path) == {"a", "c"}
    [line] = [line for line in outcome.logged if line.startswith("failed: ")]
    assert line.startswith("failed: b: ") and text.format(path) in line and "data." not in line
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in results(tmp_path)}
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    write_scan(path, len(names) - 1)
    assert predict(tmp_path).code == 0 and results(tmp_path) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in kept.items())


def test_keep_going_refuses_if_no_scan_is_left(tmp_path):
    write_model(tmp_path / "model")
    for subject in ("a", "b"):
        write_scan(tmp_path / f"scans/{subject}/t1.nii.gz")
        truncate(tmp_path / f"scans/{subject}/t1.nii.gz")
    outcome = predict(tmp_path, "--keep-going")
    assert outcome.code == 2 and len(outcome.said) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["spoiled meanwhile", "a fault of the suite"])
def test_a_scan_that_fails_during_prediction_affects_no_other(tmp_path, monkeypatch, fault):
    write_model(tmp_path / "model")
    for number, subject in enumerate("abc"):
        write_scan(tmp_path / f"scans/{subject}/t1.nii.gz", number)
    read = evaluation.prediction.new_scans.read_slices

    def spoilt(model, reader):
        if reader.subject == "b":
            if fault != "spoiled meanwhile":
                raise RuntimeError("no idea")
            truncate(reader.files.contrasts["t1"])
        return read(model, reader)

    monkeypatch.setattr(evaluation.prediction.new_scans, "read_slices", spoilt)
    outcome = predict(tmp_path, "--keep-going")
    assert outcome.code == 1 and results(tmp_path) == ["a.nii.gz", "c.nii.gz"] and subjects(tmp_path) == {"a", "c"}
    [line] = [line for line in outcome.logged if line.startswith("failed: b: ")]
    assert "is truncated" in line or "RuntimeError: no idea (without --keep-going" in line


def test_two_files_of_one_name_are_both_left_out(tmp_path):
    write_model(tmp_path / "model")
    for name in ("a", "A", "b", "c"):
        write_scan(tmp_path / f"scans/{name}.nii.gz")
    truncate(tmp_path / "scans/a.nii.gz")
    truncate(tmp_path / "scans/b.nii.gz")
    outcome = predict(tmp_path, "--keep-going")
    assert outcome.code == 1 and results(tmp_path) == ["c.nii.gz"]
    assert any("A.nii.gz and a.nii.gz would have results of one name" in line for line in outcome.logged)


def spoil_in(folder, subject, name, spoiler):
    SPOILERS[spoiler][0](path := folder / f"data/{subject}/{name}.nii.gz")
    return path


@pytest.fixture
def four(tmp_path):
    """Return a cohort of four subjects, two of them for training."""
    data = CONFIG["data"] | {"root": str(tmp_path / "data")}
    data["splits"] = {"train": ["sub-1", "sub-4"], "val": ["sub-2"], "test": ["sub-3", "sub-5"]}
    for seed, subject in ((7, "sub-4"), (8, "sub-5")):
        for name, array in volumes(seed).items():
            save(tmp_path / "data" / subject / f"{name}.nii.gz", array)
    return write_cohort(tmp_path, data=data, pretraining=None, finetuning=FINETUNING, constraint_maps=None)


def test_check_dataset_lists_every_bad_subject_and_draws_the_others(tmp_path, four):
    spoil_in(tmp_path, "sub-4", "t2", "truncated")  # its header is valid: only the montage notices
    spoil_in(tmp_path, "sub-5", "t2", "missing")
    outcome = run("tools.check_dataset", "--config", four)
    assert outcome.code == 2 and sorted(line[:6] for line in outcome.said) == ["sub-4:", "sub-5:"]
    assert (tmp_path / "work/check/montage.png").exists()


def test_step_2_packs_the_others_and_says_so_again(tmp_path, four):
    spoil_in(tmp_path, "sub-4", "t1", "truncated")
    for _ in range(2):  # packed, and kept
        outcome = run(SLICES, "--config", four, "--keep-going")
        assert outcome.code == 1 and any(line.startswith("failed: sub-4: ") for line in outcome.logged)
    assert SliceStore(tmp_path / "work/h5/pretrain_train.h5").subjects == ["sub-1"]
    assert SliceStore(tmp_path / "work/h5/annotated.h5").attributes["split"]["train"] == ["sub-1", "sub-4"]


@pytest.mark.parametrize(
    "fault", [InputError("no voxel differs from air"), RuntimeError("no idea")], ids=["scan", "bug"]
)
def test_step_2_continues_without_a_subject_that_fails_with_valid_files(tmp_path, four, monkeypatch, fault):
    prepare = generate_h5_pretraining.prepare_subject

    def failing(config, files):
        if files.subject == "sub-4":
            raise fault
        return prepare(config, files)

    monkeypatch.setattr(generate_h5_pretraining, "prepare_subject", failing)
    outcome = run(SLICES, "--config", four)
    assert outcome.code == (2 if isinstance(fault, InputError) else 1)
    assert outcome.said[-1] in (f"sub-4: {fault}", f"RuntimeError: {fault}")
    assert not list((tmp_path / "work/h5").glob("*.h5"))
    outcome = run(SLICES, "--config", four, "--keep-going")
    assert outcome.code == 1 and any(
        line.startswith("failed: sub-4: ") and str(fault) in line for line in outcome.logged
    )
    assert SliceStore(tmp_path / "work/h5/annotated.h5").subjects == [name for name in SUBJECTS if name != "sub-4"]


@pytest.mark.parametrize("spoiler", ["truncated", "missing"])
@pytest.mark.parametrize("subject", ["sub-4", "sub-5"])
def test_steps_2_and_4_continue_without_a_subject(tmp_path, four, subject, spoiler):
    whole = (tmp_path / f"data/{subject}/t2.nii.gz").read_bytes()
    path = spoil_in(tmp_path, subject, "t2", spoiler)
    refused = run(SLICES, "--config", four)
    assert refused.code == 2 and len(refused.said) == 1 and not (tmp_path / "work/h5/annotated.h5").exists()
    outcome = run(SLICES, "--config", four, "--keep-going")
    assert outcome.code == 1, outcome.said
    assert [line for line in outcome.logged if line.startswith("failed: ")] == [f"failed: {refused.said[0]}"]
    store = SliceStore(tmp_path / "work/h5/annotated.h5")
    assert store.subjects == [name for name in SUBJECTS if name != subject]
    assert run(CELLS, "--config", four).code == 2
    outcome = run(CELLS, "--config", four, "--keep-going")
    assert outcome.code == 1, outcome.said
    assert any(line.startswith(f"failed: {subject}: ") for line in outcome.logged)
    rows = json.loads((tmp_path / "work" / MODEL / "metrics.json").read_text())["per_subject"]
    assert {row["subject"] for row in rows} == {"sub-3", "sub-5"} - {subject}
    path.write_bytes(whole)  # repaired: files without the subject do not count as complete
    assert run(SLICES, "--config", four).said[0].startswith(f"{subject}: is not in ")
    assert run(SLICES, "--config", four, "--overwrite").code == 0
    assert SliceStore(tmp_path / "work/h5/annotated.h5").subjects == SUBJECTS
    again = run(CELLS, "--config", four)
    assert again.code == (2 if subject == "sub-5" else 0)  # sub-4 was not drawn
    assert not again.said or again.said[0].endswith("give --overwrite, or another --work-dir")


@pytest.mark.parametrize("spoiler", ["truncated", "missing"])
def test_step_4_scores_the_others_where_a_reference_is_spoiled(tmp_path, four, spoiler):
    assert run(SLICES, "--config", four).code == 0
    spoil_in(tmp_path, "sub-5", "label", spoiler)
    refused = run(CELLS, "--config", four)
    assert refused.code == 2 and refused.said[0].startswith("sub-5: ") and not (tmp_path / "work" / MODEL).exists()
    outcome = run(CELLS, "--config", four, "--keep-going")
    assert outcome.code == 1 and f"failed: {refused.said[0]}" in outcome.logged
    rows = json.loads((tmp_path / "work" / MODEL / "metrics.json").read_text())["per_subject"]
    assert {row["subject"] for row in rows} == {"sub-3"}


def test_step_4_draws_no_other_subject_if_a_label_map_is_missing(tmp_path, four):
    """Otherwise another subject would silently be used for training in its place."""
    assert run(SLICES, "--config", four).code == 0
    spoil_in(tmp_path, "sub-4", "label", "missing")
    line = "sub-4: no longer has the label map that step 2 packed; put it back"
    assert run(CELLS, "--config", four).said == [line]


def test_keep_going_refuses_if_no_subject_is_valid(tmp_path, four):
    for subject in SUBJECTS:
        spoil_in(tmp_path, subject, "t1", "truncated")
    outcome = run(SLICES, "--config", four, "--keep-going")
    assert outcome.code == 2 and len(outcome.said) == len(SUBJECTS)
