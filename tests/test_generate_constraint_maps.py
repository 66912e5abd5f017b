"""Step 1 on a small cohort: what it writes, what it skips, what it refuses."""

import csv
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

import generate_constraint_maps as script
from data.constraint_maps import constraint_map
from data.map_summary import read_summary
from data.scans.volumes import write_nifti
from tests.bad_input.harness import run as as_from_shell
from utils.checks import InputError
from utils.runs import child_seed, exit_code_of

ROOT = Path(__file__).parents[1]
SUBJECTS = ["sub-1", "sub-2", "sub-3"]
FILES = ["echoes", "t1"]
SHAPE = (28, 24, 6)
AFFINE = np.array([[-2, 0, 0, 27], [0, 2, 0, -23], [0, 0, 5, 0], [0, 0, 0, 1.0]])


def write_subject(data, subject, seed):
    """Write a body of two tissues in noise, as one 3D contrast and one series of two echoes."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    body = np.repeat((x**2 + y**2 < 0.7)[..., None], SHAPE[2], axis=2)
    organ = np.repeat(((x - 0.3) ** 2 + y**2 < 0.1)[..., None], SHAPE[2], axis=2)
    tissue = np.where(organ, 2, body.astype(int))
    levels = np.array([[0, 0, 0], [300, 500, 200], [600, 250, 240]])[tissue]
    noisy = np.abs(levels + rng.normal(0, 10, levels.shape))
    write_nifti(data / subject / "t1.nii.gz", noisy[..., 0].astype(np.int16), AFFINE)
    write_nifti(data / subject / "echoes.nii.gz", noisy[..., 1:].astype(np.float32), AFFINE)
    return tissue


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed, subject in enumerate(SUBJECTS):
        write_subject(folder, subject, seed)
    return folder


@pytest.fixture
def own_data(tmp_path):
    """Return a cohort that the test may damage."""
    for seed, subject in enumerate(SUBJECTS):
        write_subject(tmp_path / "data", subject, seed)
    return tmp_path / "data"


def write_config(folder, data, **changes):
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(data),
            "contrasts": {
                "t1": "{subject}/t1.nii.gz",
                "echoes": {"file": "{subject}/echoes.nii.gz", "volumes": 2},
            },
            "splits": {"folds": 3, "validation": 1},
        },
        "constraint_maps": {"contrasts": ["t1", "echoes"], "clusters": 5, **changes},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(config, *words):
    return script.main(["--config", str(config), *words])


def summary(config):
    with open(config.parent / "work" / "constraint_maps" / "summary.csv", newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def maps(config):
    folder = config.parent / "work" / "constraint_maps"
    return {path.name.split(".")[0]: nibabel.load(path) for path in sorted(folder.glob("*.nii.gz"))}


def classes(image):
    return np.asarray(image.dataobj)


def leftovers(config):
    return sorted(str(path) for path in (config.parent / "work").rglob(".tmp*"))


def test_the_script_from_the_shell_and_any_number_of_jobs(data, tmp_path):
    config = write_config(tmp_path, data)
    command = [sys.executable, "generate_constraint_maps.py", "--config", config, "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 subjects have a constraint map" in done.stderr
    assert f"python generate_h5_pretraining.py --config {config}" in done.stderr
    folder = tmp_path / "work" / "constraint_maps"
    assert sorted(path.name for path in (folder / "qc").iterdir()) == [f"{name}.png" for name in SUBJECTS]
    assert {"resolved_config.yaml", "environment.json", "run.log"} <= {path.name for path in folder.iterdir()}
    assert not leftovers(config)
    first = {name: classes(image) for name, image in maps(config).items()}
    assert list(first) == SUBJECTS
    assert run(config, "--overwrite", "--work-dir", str(tmp_path / "work")) == 0
    for name, image in maps(config).items():
        np.testing.assert_array_equal(classes(image), first[name])


def test_maps_and_rows(data, tmp_path):
    config = write_config(tmp_path, data)
    assert run(config) == 0
    rows = summary(config)
    assert list(rows) == SUBJECTS
    for seed, (name, image) in enumerate(maps(config).items()):
        found, tissue = classes(image), write_subject(tmp_path / "again", name, seed)
        np.testing.assert_allclose(image.affine, AFFINE)
        assert found.dtype == np.uint8 and found.shape == SHAPE
        assert ((found > 0) != (tissue > 0)).mean() < 0.01
        in_organ = np.bincount(found[tissue == 2], minlength=6)
        in_body = np.bincount(found[tissue == 1], minlength=6)
        assert np.minimum(in_organ, in_body).sum() < 0.02 * in_organ.sum(), "tissues share no class"
        row = rows[name]
        sizes = [int(row[f"voxels_of_class_{k}"]) for k in range(1, 6)]
        np.testing.assert_array_equal(sizes, np.bincount(found.ravel(), minlength=6)[1:])
        assert sum(sizes) == int(row["voxels"]) and int(row["classes"]) == 5
        assert sum(float(row[f"explained_variance_{n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-4)
        assert float(row["seconds_total"]) > 0 and float(row["inertia"]) > 0


def test_finished_subjects_are_skipped_and_missing_ones_made(data, tmp_path):
    config = write_config(tmp_path, data)
    folder = tmp_path / "work" / "constraint_maps"
    assert run(config, "--subjects", "sub-2", "sub-1") == 0
    assert list(maps(config)) == list(summary(config)) == ["sub-1", "sub-2"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    old = summary(config)
    (folder / "qc" / "sub-2.png").unlink()
    assert run(config) == 0
    assert list(summary(config)) == SUBJECTS
    assert summary(config)["sub-1"] == old["sub-1"]
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    assert after["sub-1.nii.gz"] == before["sub-1.nii.gz"]
    assert after["sub-2.nii.gz"] > before["sub-2.nii.gz"], "its picture was gone, so it was made again"
    assert run(config) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")} == after


def test_maps_of_other_settings_never_mix(data, tmp_path):
    config = write_config(tmp_path, data)
    assert run(config, "--subjects", "sub-1", "sub-2") == 0
    write_config(tmp_path, data, clusters=4)
    with pytest.raises(InputError, match=r"2 maps \(sub-1, sub-2\) were made with other contrasts, settings or seed"):
        run(config)
    with pytest.raises(InputError, match=r"1 map \(sub-2\)"):
        run(config, "--subjects", "sub-1", "--overwrite")
    with pytest.raises(InputError, match="--overwrite, or give another --work-dir"):
        run(config, "--set", "seed=4", "--set", "constraint_maps.clusters=5")
    assert run(config, "--overwrite") == 0
    assert {classes(image).max() for image in maps(config).values()} == {4}


def test_the_root_may_move_and_subjects_may_leave(own_data, tmp_path):
    config = write_config(tmp_path, own_data)
    assert run(config) == 0
    own_data.rename(tmp_path / "moved")
    (tmp_path / "moved" / "sub-3").rename(tmp_path / "gone")
    write_subject(tmp_path / "moved", "sub-4", 9)
    assert run(config, "--set", f"data.root={tmp_path / 'moved'}") == 0
    assert list(summary(config)) == ["sub-1", "sub-2", "sub-4"]


def spoil(data):
    """Put NaN into one subject, and delete the echoes of another."""
    image = nibabel.load(data / "sub-1" / "echoes.nii.gz")
    values = np.array(image.dataobj)
    values[3, 3, 3, 1] = np.nan
    write_nifti(data / "sub-1" / "echoes.nii.gz", values, image.affine)


def test_the_whole_data_set_is_checked_before_the_first_map(own_data, tmp_path):
    config = write_config(tmp_path, own_data)
    spoil(own_data)
    write_nifti(own_data / "sub-3" / "t1.nii.gz", np.full(SHAPE, 7, np.int16), AFFINE)
    with pytest.raises(InputError) as caught:
        run(config)
    assert len(caught.value.lines) == 2
    assert "sub-1: " in caught.value.lines[0] and "NaN or infinite" in caught.value.lines[0]
    assert "sub-3: " in caught.value.lines[1] and "constant (7 everywhere)" in caught.value.lines[1]
    assert not (tmp_path / "work").exists()


def test_keep_going_leaves_out_what_is_broken_and_says_so(own_data, tmp_path):
    config = write_config(tmp_path, own_data)
    spoil(own_data)
    (own_data / "sub-2" / "echoes.nii.gz").unlink()
    done = as_from_shell("generate_constraint_maps", "--config", config, "--keep-going")
    assert done.code == 1
    listed = [line for line in done.logged if "failed: " in line]
    assert len(listed) == 2
    assert "sub-2: contrast 'echoes' is missing" in listed[0] and "sub-1: " in listed[1]
    assert list(maps(config)) == list(summary(config)) == ["sub-3"]
    refused = as_from_shell("generate_constraint_maps", "--config", config)
    assert refused.code == 2 and any("sub-2: contrast 'echoes' is missing" in line for line in refused.said)
    assert "Traceback" not in "\n".join(refused.said)


def test_nothing_usable_at_all(own_data, tmp_path):
    config = write_config(tmp_path, own_data)
    for subject in SUBJECTS:
        (own_data / subject / "t1.nii.gz").unlink()
    with pytest.raises(InputError, match="sub-3: contrast 't1' is missing"):
        run(config, "--keep-going")


def replaced(monkeypatch, error, subject="sub-2"):
    """Let one subject fail during the work."""
    original = script.map_subject

    def map_subject(config, space, files):
        if files.subject == subject:
            raise error
        return original(config, space, files)

    monkeypatch.setattr(script, "map_subject", map_subject)
    return lambda: monkeypatch.setattr(script, "map_subject", original)


@pytest.mark.parametrize("error", [InputError("sub-2: spoilt"), RuntimeError("spoilt")])
def test_one_failing_subject(data, tmp_path, monkeypatch, caplog, error):
    config = write_config(tmp_path, data)
    assert run(config) == 0
    mend = replaced(monkeypatch, error)
    with pytest.raises(type(error), match="spoilt"):
        run(config, "--overwrite")
    assert list(summary(config)) == ["sub-1"], "what was done before the failure stays"
    assert run(config, "--keep-going") == 1
    assert [line for line in caplog.messages if line.startswith("failed: sub-2: ")][0].count("sub-2") == 1
    assert list(maps(config)) == list(summary(config)) == ["sub-1", "sub-3"], "the outdated map is gone"
    mend()
    assert run(config) == 0
    assert list(maps(config)) == list(summary(config)) == SUBJECTS


def test_interrupted_work_resumes(data, tmp_path, monkeypatch):
    config = write_config(tmp_path, data)
    mend = replaced(monkeypatch, KeyboardInterrupt())
    assert exit_code_of(script.main, ["--config", str(config)]) == 130
    assert list(summary(config)) == ["sub-1"] and not leftovers(config)
    mend()
    assert run(config) == 0
    assert list(summary(config)) == SUBJECTS


def test_given_mask_is_used(own_data, tmp_path):
    config = write_config(tmp_path, own_data)
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:20, 8:16, 1:5] = 1
    for subject in SUBJECTS:
        write_nifti(own_data / subject / "mask.nii.gz", mask, AFFINE)
    assert run(config, "--set", "data.mask='{subject}/mask.nii.gz'") == 0
    for image in maps(config).values():
        np.testing.assert_array_equal(classes(image) > 0, mask > 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subjects", "sub-l"], r"--subjects sub-l: not in .*; did you mean 'sub-\d'"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
        (["--set", "data.root=/nowhere"], "'/nowhere' is not a folder"),
        (["--set", "constraint_maps.contrasts=[t1, echos]"], "did you mean 'echoes'"),
        (["--set", "constraint_maps.spaces={qc: [t1, echoes]}"], "spaces.qc: constraint_maps/qc/ holds pictures"),
        (["--set", "constraint_maps=null", "slices={image_size: [32, 32]}"], "needs the section 'constraint_maps:'"),
    ],
)
def test_mistakes_are_named(data, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        run(write_config(tmp_path, data), *words)


def test_maps_worth_a_look_are_pointed_out(caplog):
    row = {"subject": "sub-9", "classes": 3, "foreground": 0.99}
    script.point_out(row, clusters=20, space=None)
    assert "sub-9: 3 classes, not 20: too few distinct values" in caplog.messages
    assert any("99.0 % of the volume is foreground" in line for line in caplog.messages)
    script.point_out(row, clusters=4, space="late")
    assert "sub-9, contrast space late: 3 classes, not 4: too few distinct values" in caplog.messages


def test_every_contrast_space_has_maps_of_its_own(data, tmp_path):
    config, one = write_config(tmp_path, data), ["--subjects", "sub-1"]
    assert run(config, *one) == 0
    default, folder = classes(maps(config)["sub-1"]), tmp_path / "work" / "constraint_maps"
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "qc"]
    config = write_config(tmp_path, data, spaces={"late": ["echoes"], "mixed": ["echoes_2", "t1"]})
    with pytest.raises(InputError, match=r"constraint_maps.summary.csv: 1 map .* was made with other contrasts"):
        run(config)
    assert run(config, *one, "--overwrite") == 0
    np.testing.assert_array_equal(classes(maps(config)["sub-1"]), default)
    echoes, t1 = (nibabel.load(data / "sub-1" / f"{file}.nii.gz").get_fdata(dtype=np.float32) for file in FILES)
    for space, volume in {"late": echoes, "mixed": np.stack([echoes[..., 1], t1], axis=-1)}.items():
        found = nibabel.load(folder / space / "sub-1.nii.gz")
        seed = child_seed(3, "constraint_map", "sub-1", space)
        expected = constraint_map(volume, clusters=5, components=2, seed=seed, affine=AFFINE)
        np.testing.assert_array_equal(classes(found), expected)
        np.testing.assert_allclose(found.affine, AFFINE)
        assert (folder / space / "qc" / "sub-1.png").is_file()
        row = read_summary(folder / space / "summary.csv")["sub-1"]
        assert "explained_variance_2" in row and "explained_variance_3" not in row


def test_only_the_missing_maps_of_a_space_are_made(data, tmp_path):
    config = write_config(tmp_path, data, spaces={"late": ["echoes"]})
    assert run(config, "--subjects", "sub-2") == 0
    assert run(config, "--subjects", "sub-2", "sub-1") == 0
    folder = tmp_path / "work" / "constraint_maps"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert len(before) == 4
    (folder / "late" / "qc" / "sub-2.png").unlink()
    assert run(config, "--subjects", "sub-2", "sub-1") == 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert {path for path in after if after[path] > before[path]} == {folder / "late" / "sub-2.nii.gz"}
    assert list(read_summary(folder / "late" / "summary.csv")) == ["sub-1", "sub-2"]
