"""Relaxometry on small files in the layout of the real ones: scale factors, which voxels count, what is refused."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
import yaml

from tools import evaluate_relaxometry as script
from utils.checks import InputError
from utils.command_line import from_command_line

pytestmark = pytest.mark.usefixtures("rough_figures")
AFFINE = np.array([[3.0, 0, 0, -20], [0, 0, 5, -10], [0, 3, 0, -15], [0, 0, 0, 1]])
TIMES = [10.0, 25.0, 40.0, 60.0, 90.0]
WORDS = ["--map", "{subject}/t2.nii.gz", "--quality", "{subject}/fit_r2.nii.gz", "--limits", "5", "400"]
WORDS += ["--model", "decay", "--images", "2", "3", "--seeds", "2"]


def save(path, values, slope=None):
    """Write integers with a scale factor, as fitted maps are stored."""
    image = nibabel.Nifti1Image(values, AFFINE)
    if slope:
        image = nibabel.Nifti1Image(np.round(values / slope).astype(np.uint16), AFFINE)
        image.header.set_slope_inter(slope, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def write_subject(folder, seed, echoes=5, with_map=True):
    rng = np.random.default_rng(seed)
    shape = (16, 12, 3)
    true = np.broadcast_to(np.repeat([30.0, 50, 80, 120], 4)[:, None, None], shape)
    amplitude = np.broadcast_to(np.linspace(500, 1500, 12)[None, :, None], shape)
    mask, quality, fitted = np.zeros(shape, np.uint8), np.full(shape, 0.95), true.copy()
    mask[1:, 1:] = 1
    fitted[:, 1] = 399.96  # stored as 400.0, the limit
    quality[:, 2] = 0.9  # not above it
    for number, time in enumerate(TIMES[:echoes], start=1):
        image = amplitude * np.exp(-time / true) + rng.normal(0, 3, shape)
        save(folder / f"echo{number:02d}.nii.gz", np.abs(image).round().astype(np.uint16))
    save(folder / "mask.nii.gz", mask)
    if with_map:
        save(folder / "t2.nii.gz", fitted, 0.1)
        save(folder / "fit_r2.nii.gz", quality, 0.01)


@pytest.fixture
def config(tmp_path):
    root = tmp_path / "scans"
    write_subject(root / "sub-1", 1)
    write_subject(root / "sub-2", 2, echoes=4, with_map=False)  # another sequence
    times = ",".join(f"{time:g}" for time in TIMES)
    (root / "participants.tsv").write_text(f"subject\ttimes_ms\nsub-1\t{times}\nsub-2\t1,2,3,4\n")
    names = [f"echo{number:02d}" for number in range(1, 6)]
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(tmp_path / "work"),
        "data": {
            "root": str(root),
            "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in names},
            "mask": "{subject}/mask.nii.gz",
            "splits": {"folds": 3, "validation": 1},
        },
        "constraint_maps": {"contrasts": names, "clusters": 6},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(config, *words):
    return script.main(["--config", str(config), *WORDS, *words]) or 0


def test_scale_factors_apply_once_and_only_sound_voxels_count(config, caplog):
    loaded, options = from_command_line("", ["--config", str(config), *WORDS], script.add_options)
    [files] = script.find_fitted(loaded, options)
    scan = script.read_scan(loaded, options, script.times_of(loaded, options, "sub-1"), files)
    assert scan.times_ms.tolist() == TIMES and scan.volume.shape == (16, 12, 3, 5)
    assert np.unique(np.round(scan.reference_ms, 3)).tolist() == [30, 50, 80, 120]
    expected = np.zeros((16, 12, 3), bool)
    expected[1:, 3:] = True
    np.testing.assert_array_equal(scan.chosen, expected)
    # 15 x 11 x 3 voxels in the mask, without the row of low quality; that at the limit is left out after it.
    said = "sub-1: 405 of 495 voxels of the mask compared; quality above 0.9: 450, of these at a limit of the fit: 45"
    assert any(line.startswith(said) and "median 80.0 ms" in line for line in caplog.messages)
    assert any(line.endswith("left out: sub-2") for line in caplog.messages)


def test_what_is_written(config):
    assert run(config) == 0
    folder = config.parent / "work" / "report" / "relaxometry"
    written = {path.name for path in folder.iterdir()}
    assert {"agreement.md", "agreement.csv", "agreement.tex", "agreement.png", "all_values.csv", "sub-1.png"} <= written
    assert json.loads((folder / "environment.json").read_text())["seed"] == 3
    rows = pandas.read_csv(folder / "all_values.csv", keep_default_na=False)
    assert set(rows["subject"]) == {"sub-1"} and rows["value"].between(-0.01, 1 + 1e-9).all()
    shares = rows[(rows["measure"] == "variance") & (rows["made_from"] == "constraint map")]
    assert set(zip(shares["images"], shares["reference"], strict=True)) == {
        (2, "all images"),
        (2, "hidden images"),
        (3, "all images"),
        (3, "hidden images"),
        (5, "all images"),
    }
    assert (shares["value"] > 0.4).all()


def test_the_map_of_the_first_seed_is_that_of_step_1(config):
    import generate_constraint_maps
    from evaluation.probes.map_agreement import explained_variance

    assert run(config) == 0
    steps = ["--config", str(config), "--keep-going", "--subjects", "sub-1"]
    generate_constraint_maps.main(steps)
    made = np.asarray(nibabel.load(config.parent / "work/constraint_maps/sub-1.nii.gz").dataobj)
    fitted = nibabel.load(config.parent / "scans/sub-1/t2.nii.gz").get_fdata()
    chosen = np.zeros(made.shape, bool)
    chosen[1:, 3:] = True
    expected = explained_variance(made[chosen], np.log(fitted[chosen]))
    rows = pandas.read_csv(config.parent / "work/report/relaxometry/all_values.csv", dtype={"seed": str})
    found = rows.query("images == 5 and made_from == 'constraint map' and measure == 'variance' and seed == '0'")
    assert found["value"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limits", "400", "5"], "--limits 400 5: expected two times"),
        (["--map", "{subject}/t9.nii.gz"], "--map {subject}/t9.nii.gz: no subject in .* has this file"),
        (["--map", "t2.nii.gz"], "'t2.nii.gz': write '{subject}'"),
        (["--map", "{subject}/mask.nii.gz"], "sub-2: contrast 'echo05' is missing"),
        (["--quality", "{subject}/r2.nii.gz"], "sub-1: .*r2.nii.gz' does not exist"),
        (["--times", "times.tsv"], "--times times.tsv: '.*times.tsv' does not exist"),
        (["--above", "0.99"], "sub-1: no two values of .*t2.nii.gz' to compare"),
        (
            ["--set", "constraint_maps.contrasts=[echo01, echo02]"],
            r"sub-1 has the times 10,25,40,60,90; expected one per contrast.*\(2: echo01, echo02\)",
        ),
        (["--set", "data.mask=null"], "data.mask: none"),
    ],
)
def test_mistakes_are_named(config, words, message):
    with pytest.raises(InputError, match=message):
        run(config, *words)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("subject\ttimes_ms\nsub-1\t10,25,60,40,90\n", "sub-1 has the times 10,25,60,40,90; expected .* ascending"),
        ("subject\ttimes_ms\nsub-1\t10,25,x,40,90\n", "sub-1 has the times 10,25,x,40,90; expected"),
        ("subject\ttimes_ms\nsub-2\t10,25,40,60,90\n", "0 rows for sub-1, expected 1"),
        ("subject\tte\nsub-1\t10,25,40,60,90\n", "has no column times_ms"),
    ],
)
def test_times_that_cannot_be_those_of_the_images_are_refused(config, table, message):
    (config.parent / "scans" / "participants.tsv").write_text(table)
    with pytest.raises(InputError, match=f"--times participants.tsv: .*{message}"):
        run(config)


def test_the_page_shows_the_committed_numbers():
    """Every share in a table of the page that names a subject and what the classes were made from."""
    folder, checked = Path(__file__).parents[1] / "results" / "kidney_relaxometry", 0
    tables = [pandas.read_csv(path, keep_default_na=False) for path in sorted(folder.glob("agreement_*.csv"))]
    numbers = pandas.concat(tables).query("measure == 'variance'").astype({"mean": float})
    for line in (folder / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| subject | classes; reference |"):
            columns = cells[2:]
        if not line.startswith("| sub-") or "; " not in cells[1]:
            continue
        made_from, _, reference = cells[1].partition("; ")
        row = numbers.query("subject == @cells[0] and made_from == @made_from and reference == @reference")
        for column, cell in zip(columns, cells[2:], strict=True):
            if cell:
                [expected] = row.loc[row["images"] == int(column), "mean"]
                assert cell.split()[0] == f"{expected:.2f}", line
                checked += 1
    assert checked > 50
