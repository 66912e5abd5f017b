"""The sweep over K on a small simulated cohort: what it measures, writes, skips and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml

import generate_constraint_maps
import simulate_cohort
from data.layouts.subjects import find_subjects
from data.scans.volumes import write_nifti
from tests.readers import read_contrasts
from tools import evaluate_constraint_maps as script
from utils.checks import InputError
from utils.config.data import Wanted
from utils.config.load import load_config

pytestmark = pytest.mark.usefixtures("rough_figures")
ROOT = Path(__file__).parents[1]
SWEEP = ["--clusters", "3", "8", "--seeds", "2"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "scans"
    simulate_cohort.main(["--out", str(folder), "--subjects", "3", "--shape", "40", "32", "6", "--seed", "3"])
    return folder


def write_config(folder, data, **changes):
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(data),
            "contrasts": {
                "t1w": "{subject}/t1w.nii.gz",
                "t2_echoes": {"file": "{subject}/t2_echoes.nii.gz", "volumes": 4},
            },
            "label": "{subject}/label.nii.gz",
            "labels": {"kidney": [1, 2], "liver": [3], "spleen": [4]},
            "splits": "splits.json",
            "simulated": True,
            **changes,
        },
        "constraint_maps": {"contrasts": ["t1w", "t2_echoes"], "clusters": 5},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(config, *words):
    return script.main(["--config", str(config), *SWEEP, *words]) or 0


def report(config):
    return config.parent / "work" / "report" / "constraint_maps"


def stamps(config):
    return {path.stem: path.stat().st_mtime_ns for path in (report(config) / "subjects").iterdir()}


@pytest.fixture(scope="module")
def done(cohort, tmp_path_factory):
    config = write_config(tmp_path_factory.mktemp("done"), cohort)
    command = [sys.executable, "-m", "tools.evaluate_constraint_maps", "--config", config, *SWEEP, "--jobs", "2"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"python generate_constraint_maps.py --config {config}" in finished.stderr
    return config


def test_what_is_written(done):
    names = {path.name for path in report(done).iterdir()}
    assert {f"agreement.{suffix}" for suffix in ("csv", "md", "tex", "png", "pdf")} <= names
    assert {f"change.{suffix}" for suffix in ("csv", "md", "tex")} <= names
    assert {"per_subject.csv", "resolved_config.yaml", "environment.json", "command.txt", "run.log"} <= names
    assert sorted(stamps(done)) == ["sub-001", "sub-002", "sub-003"]
    assert (report(done) / "agreement.md").read_text().startswith("Simulated scans. tiny.")


def test_numbers_that_must_hold(done):
    rows = pandas.read_csv(report(done) / "per_subject.csv", keep_default_na=False, na_values={"value": [""]})
    assert set(rows["clusters"]) == {1, 3, 5, 8}, "the config's K and no map are always there"
    assert set(rows.loc[rows["measure"] == "stability", "seed"]) == {"0-1"}
    assert rows["value"].notna().all() and rows["value"].between(-0.01, 1 + 1e-9).all()
    means = rows.groupby(["measure", "label", "clusters"])["value"].mean()
    for measure in ("ami_tissue", "variance_t1", "variance_t2", "balanced_purity", "homogeneity"):
        assert means[measure, "", 1] == pytest.approx(0, abs=1e-9), measure
        assert means[measure, "", 8] > max(0.1, 0.9 * means[measure, "", 3]), measure
    assert means["variance_t1", "", 8] > 0.5, "the contrasts are made of T1 and T2"
    assert means["best_dice", "liver", 8] > means["best_dice", "shifted map", 8] + 0.2
    table = pandas.read_csv(report(done) / "agreement.csv", keep_default_na=False)
    cell = table[(table["measure"] == "variance_t1") & (table["label"] == "") & (table["clusters"] == 8)].iloc[0]
    assert float(cell["mean"]) == pytest.approx(means["variance_t1", "", 8]) and cell["subjects"] == 3


def test_the_map_of_step_1_is_the_first_of_the_maps_evaluated(done):
    import nibabel

    from data.constraint_maps import cluster
    from evaluation.probes.map_agreement import best_dice, cross_table

    assert generate_constraint_maps.main(["--config", str(done), "--subjects", "sub-002"]) == 0
    config = load_config(done)
    root = config.data.root
    made = np.asarray(nibabel.load(done.parent / "work" / "constraint_maps" / "sub-002.nii.gz").dataobj)
    label = np.asarray(nibabel.load(root / "sub-002" / "label.nii.gz").dataobj)
    inside = made > 0
    expected = best_dice(cross_table(made[inside], label[inside], 5), 3)
    rows = json.loads((report(done) / "subjects" / "sub-002.json").read_text())["rows"]
    found = {(k, seed, measure, name): value for k, seed, measure, name, value in rows}
    assert found[5, "0", "best_dice", "liver"] == pytest.approx(expected, abs=1e-12)
    data = config.plain()["data"]
    files = find_subjects(Wanted(root, data["contrasts"], data["label"]))["sub-002"]
    features, labels, truth, _ = script.read_references(config, files)
    classes, _, _ = cluster(features, 5, script.seed_of_map(config, "sub-002", 0))
    for name, reference in (("label", labels), *truth.items()):
        image = np.asarray(nibabel.load(root / "sub-002" / f"{name}.nii.gz").dataobj)
        image = np.array([0, 1, 1, 2, 3])[image] if name == "label" else image
        for k in range(1, 6):
            np.testing.assert_array_equal(np.sort(reference[classes == k]), np.sort(image[made == k]))


def test_references_follow_the_features_in_any_orientation(cohort, tmp_path):
    """The label is the scan itself, on axes that step 1 has to reorder."""
    from nibabel import orientations

    config = load_config(write_config(tmp_path, cohort))
    data = config.plain()["data"]
    files = find_subjects(Wanted(config.data.root, data["contrasts"], data["label"]))["sub-001"]
    volume, affine = read_contrasts(files, ["t1w"], config.data.contrasts)
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("SPL"))
    turned = affine @ orientations.inv_ornt_aff(turn, volume.shape[:3])
    values = orientations.apply_orientation(volume[..., 0], turn)
    mask = values > 300
    for name, image in {"a": values, "b": values**2, "label": 1 + (values > 800), "mask": mask}.items():
        write_nifti(tmp_path / "turned" / "sub-001" / f"{name}.nii.gz", image, turned)
    contrasts = {"a": "{subject}/a.nii.gz", "b": "{subject}/b.nii.gz"}
    changes = {"contrasts": contrasts, "labels": {"a_dark": [1], "b_bright": [2]}, "mask": "{subject}/mask.nii.gz"}
    path = write_config(tmp_path, tmp_path / "turned", **changes)
    words = [
        "constraint_maps.contrasts=[a, b]",
        "constraint_maps.tv_weight=1e9",
        "constraint_maps.percentiles=[0, 100]",
    ]
    config = load_config(path, words)
    data = config.plain()["data"]
    files = find_subjects(Wanted(config.data.root, data["contrasts"], data["label"], data["mask"]))["sub-001"]
    features, labels, _, outside = script.read_references(config, files)
    assert len(features) == mask.sum() and outside == pytest.approx(1 - mask.mean())
    dark, bright = features[labels == 1, 0], features[labels == 2, 0]
    cut = (dark.max() + bright.min()) / 2  # denoising mixes the two slightly; a wrong order would mix half of them
    assert len(bright) == (values > 800).sum() and (dark < cut).mean() > 0.95 and (bright > cut).mean() > 0.95


def test_finished_subjects_are_skipped_until_settings_change(cohort, tmp_path, monkeypatch):
    config = write_config(tmp_path, cohort)
    monkeypatch.setattr(sys.modules[__name__], "SWEEP", ["--clusters", "3", "--seeds", "2"])
    assert run(config, "--subjects", "sub-002") == 0
    first = stamps(config)
    assert run(config, "--subjects", "sub-001") == 0
    assert stamps(config)["sub-002"] == first["sub-002"]
    assert "n = 2" in (report(config) / "agreement.md").read_text(), "the report holds all that are finished"
    assert run(config, "--subjects", "sub-002", "--overwrite") == 0
    again = stamps(config)
    assert again["sub-002"] > first["sub-002"]
    before = json.loads((report(config) / "subjects" / "sub-001.json").read_text())
    assert run(config, "--subjects", "sub-001", "--set", "constraint_maps.tv_weight=20") == 0
    assert stamps(config)["sub-001"] > again["sub-001"]
    after = json.loads((report(config) / "subjects" / "sub-001.json").read_text())
    assert after["settings"] != before["settings"] and after["rows"] != before["rows"]
    assert "n = 1" in (report(config) / "agreement.md").read_text(), "unlike results never mix"


def test_the_same_seed_gives_the_same_numbers(done, tmp_path):
    config = write_config(tmp_path, load_config(done).data.root)
    assert run(config, "--subjects", "sub-003") == 0
    first, second = (json.loads((report(c) / "subjects" / "sub-003.json").read_text()) for c in (done, config))
    assert first["rows"] == second["rows"] and first["settings"] == second["settings"]


def test_an_older_cohort_and_subjects_without_labels(cohort, tmp_path, caplog):
    for path in [*(cohort / "sub-001").iterdir()]:
        if path.name.split(".")[0] not in ("true_tissue", "label"):
            (tmp_path / "older" / "sub-001").mkdir(parents=True, exist_ok=True)
            (tmp_path / "older" / "sub-001" / path.name).symlink_to(path)
    config = write_config(tmp_path, tmp_path / "older")
    assert run(config) == 0
    assert any("simulate the cohort again with simulate_cohort.py" in line for line in caplog.messages)
    rows = json.loads((report(config) / "subjects" / "sub-001.json").read_text())["rows"]
    assert {row[2] for row in rows} == {"variance_t1", "variance_t2", "stability"}


def test_labels_outside_the_foreground_are_pointed_out(caplog):
    script.point_out("sub-9", {"labelled_outside": 0.123})
    script.point_out("sub-8", {"labelled_outside": None})
    assert caplog.messages == ["sub-9: 12.3 % of the labelled voxels lie outside the foreground and are not counted"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subjects", "sub-01"], r"--subjects sub-01: not in .*; did you mean 'sub-0"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
        (
            ["--set", "data.labels={liver: [3]}"],
            "sub-001: .* holds the values 1, 2, 4, which data.labels does not name",
        ),
        (
            ["--seeds", "1", "--set", "data.label=null", "data.labels={}", "data.simulated=false"],
            "--seeds 1: nothing to compare",
        ),
    ],
)
def test_mistakes_are_named(cohort, tmp_path, words, message):
    config = write_config(tmp_path, cohort)
    with pytest.raises(InputError, match=message):
        run(config, *words)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("words", [["--clusters", "0"], ["--seeds", "two"]])
def test_numbers_on_the_command_line(cohort, tmp_path, words, capsys):
    with pytest.raises(SystemExit):
        run(write_config(tmp_path, cohort), *words)
    assert "expected a whole number of at least 1" in capsys.readouterr().err


def test_truth_on_another_grid_is_refused(cohort, tmp_path):
    (tmp_path / "moved" / "sub-001").mkdir(parents=True)
    for path in (cohort / "sub-001").iterdir():
        if not path.name.startswith("true"):
            (tmp_path / "moved" / "sub-001" / path.name).symlink_to(path)
    image = np.random.default_rng(0).random((40, 32, 6))
    write_nifti(tmp_path / "moved" / "sub-001" / "true_t1.nii.gz", image, np.eye(4))
    with pytest.raises(InputError, match="sub-001: true_t1 and the scans are not on one grid"):
        run(write_config(tmp_path, tmp_path / "moved"))
