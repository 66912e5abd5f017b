"""Problems that would otherwise go unnoticed: unreadable folders, scans without orientation, unlisted maps."""

import os

import nibabel
import numpy as np
import pytest

from data.layouts.subjects import find_subjects
from data.scans import nifti
from tests.bad_input.harness import assert_refused, run
from tests.cohort import write_cohort
from utils.checks import InputError
from utils.config.data import Wanted

NOBODY = 65534
CONTRASTS = {"t1": "{subject}/t1.nii.gz"}


def test_a_folder_that_may_not_be_read_is_named(as_user, caplog):
    write_cohort(as_user)
    closed = as_user / "data" / "sub-2"
    closed.chmod(0o000)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    assert list(find_subjects(Wanted(as_user / "data", CONTRASTS))) == ["sub-1", "sub-3"]
    expected = f"'{closed}' cannot be read, so its contents are left out; fix its permissions"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_data_set_that_may_not_be_read_is_refused(as_user):
    write_cohort(as_user)
    (as_user / "data").chmod(0o000)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    with pytest.raises(InputError, match=f"data.root: no permission to read '{as_user}/data'; change it"):
        find_subjects(Wanted(as_user / "data", CONTRASTS))


def test_scans_that_do_not_say_how_they_lie_are_pointed_out_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(nifti, "TOLD", [])
    values = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    for name, codes in (("placed", (1, 1)), ("qform", (0, 1)), ("first", (0, 0)), ("second", (0, 0))):
        image = nibabel.Nifti1Image(values, np.diag([-2.0, 2, 5, 1]))
        image.set_sform(image.affine, codes[0])
        image.set_qform(image.affine, codes[1])
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
        found, problems = nifti.read_image(tmp_path / f"{name}.nii.gz", "sub-1")
        assert not problems and nibabel.aff2axcodes(found.affine) == ("L", "A", "S")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"'{tmp_path}/first.nii.gz' has no orientation (sform_code and")


@pytest.fixture
def mapped(tmp_path):
    config = write_cohort(tmp_path)
    assert run("generate_constraint_maps", "--config", config).code == 0
    return config


def test_a_map_that_the_table_does_not_list_is_refused(mapped):
    table = mapped.parent / "work" / "constraint_maps" / "summary.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("sub-2")) + "\n")
    line = f"{table}: has no row for 1 map (sub-2); run generate_constraint_maps.py again, which makes them again"
    assert_refused(mapped.parent, "generate_h5_pretraining", ["--config", mapped], [line])
    assert run("generate_constraint_maps", "--config", mapped).code == 0
    assert run("generate_h5_pretraining", "--config", mapped).code == 0


def test_maps_without_any_table_are_pointed_out(mapped):
    table = mapped.parent / "work" / "constraint_maps" / "summary.csv"
    table.unlink()
    outcome = run("generate_h5_pretraining", "--config", mapped)
    line = f"{table}: does not exist or is empty; nothing says what made 3 maps (sub-1, sub-2, sub-3)"
    assert outcome.code == 0 and line in outcome.logged
