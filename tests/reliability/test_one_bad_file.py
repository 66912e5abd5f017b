"""One spoiled or missing file stops its subject, not everyone: with --keep-going the rest goes on, and exit code 1."""

import csv

import pytest

import evaluation.new_scans
from tests.bad_input.harness import run
from tests.test_predict_segmentation import write_model, write_scan


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


SPOILERS = {
    "truncated": (truncate, "is truncated; copy or export it again"),
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes); copy or export it again"),
    "missing": (lambda path: path.unlink(), "is missing: no file '{}'; add it, or take the subject out of the folder"),
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


@pytest.mark.parametrize("spoiler", SPOILERS)
@pytest.mark.parametrize("is_plain", [False, True])
def test_predict_goes_on_with_the_other_scans_of_a_folder(tmp_path, spoiler, is_plain):
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


def test_where_nothing_is_left_keep_going_refuses(tmp_path):
    write_model(tmp_path / "model")
    for subject in ("a", "b"):
        write_scan(tmp_path / f"scans/{subject}/t1.nii.gz")
        truncate(tmp_path / f"scans/{subject}/t1.nii.gz")
    outcome = predict(tmp_path, "--keep-going")
    assert outcome.code == 2 and len(outcome.said) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["spoiled meanwhile", "a fault of the suite"])
def test_a_scan_that_fails_while_it_is_predicted_stops_itself_only(tmp_path, monkeypatch, fault):
    write_model(tmp_path / "model")
    for number, subject in enumerate("abc"):
        write_scan(tmp_path / f"scans/{subject}/t1.nii.gz", number)
    read = evaluation.new_scans.read_slices

    def spoilt(model, files):
        if files.subject == "b":
            if fault != "spoiled meanwhile":
                raise RuntimeError("no idea")
            truncate(files.contrasts["t1"])
        return read(model, files)

    monkeypatch.setattr(evaluation.new_scans, "read_slices", spoilt)
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
