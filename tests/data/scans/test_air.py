import numpy as np
import pytest

from data.scans.air import notes_on_air
from tests.bad_input.harness import run
from tests.cohort import SUBJECTS, save, volumes, write_cohort

SHAPE = (40, 36, 6)


def body(tissue, air, noise, seed=0):
    """Return a body that fills half of the slice, `(X, Y, Z, 1)`."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    inside = np.repeat((x**2 + y**2 < 0.6)[..., None], SHAPE[2], axis=2)
    return np.where(inside, rng.choice(tissue, SHAPE), air) + rng.normal(0, noise, SHAPE)


SCANS = {  # -> whether the corners are air
    "magnitude": (np.abs(body([200, 500, 900], 0, 20)), True),
    "much noise": (np.abs(body([200, 500, 900], 0, 90)), True),
    "air of exact zeros": (np.maximum(body([200, 500, 900], -500, 20), 0), True),
    "signed inversion recovery, grey air": (body([-600, 300, 900], 0, 20), True),
    "no corner of one kind": (np.random.default_rng(1).choice([200.0, 500, 900], SHAPE), False),
    "even tissue in all corners": (np.abs(body([100, 500, 900], 450, 20)), False),
    "signed, tissue in the corners": (np.random.default_rng(2).choice([-600.0, 300, 900], SHAPE), False),
}


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_corners_without_air_are_reported(name, order):
    """In any storage order of the slices."""
    scan, is_air = SCANS[name]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, 2, 5])[:, order]
    found = notes_on_air("sub-1", scan.transpose(order)[..., None].astype(np.float32), ["t1"], affine)
    assert bool(found) == (not is_air), found


def test_the_line_names_contrasts_numbers_and_cure():
    part = np.full(SHAPE, 450.0) + np.arange(SHAPE[0])[:, None, None] / 10
    part[18:22, 16:20] = np.linspace(0, 900, 96).reshape(4, 4, 6)
    scan = np.stack([np.abs(body([100, 500, 900], 0, 5)), part], -1)
    [line] = notes_on_air("sub-1", scan, ["t1", "t2"], np.diag([1.0, 1, 1, 1]))
    assert line.startswith("sub-1: the corners do not seem to show air (t2 452, half of them 450 to 454, all ")
    assert line.endswith("no foreground is found without data.mask; give one")


@pytest.mark.parametrize("jobs", [1, 2])
def test_steps_1_and_2_warn_unless_a_mask_is_given(jobs, tmp_path):
    config = write_cohort(tmp_path)
    rng = np.random.default_rng(0)
    for subject in SUBJECTS:
        for name in ("t1", "t2"):
            save(tmp_path / "data" / subject / f"{name}.nii.gz", rng.choice([200, 500, 900], volumes()["t1"].shape))
    for script in ("generate_constraint_maps", "generate_h5_pretraining"):
        told = [
            line for line in run(script, "--config", config, "--jobs", jobs).logged if "not seem to show air" in line
        ]
        assert [line.split(":")[0] for line in told] == SUBJECTS, script
        assert all("(t1 " in line and "; t2 " in line for line in told)
    words = ["--config", config, "--set", "data.mask='{subject}/mask.nii.gz'", "--work-dir", tmp_path / "masked"]
    for script in ("generate_constraint_maps", "generate_h5_pretraining"):
        outcome = run(script, *words)
        assert outcome.code == 0 and not [line for line in outcome.logged if "do not seem to show air" in line]
