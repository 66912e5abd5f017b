"""Datasets in their released form, through steps 1 and 2."""

import nibabel
import numpy as np
import yaml

import generate_constraint_maps
import generate_h5_pretraining
from data.layouts.subjects import find_subjects
from data.store.store import SliceStore
from tests.layouts import CHAOS_AFFINE, CHAOS_SHAPE, corner, ramp, save, write_chaos
from tests.readers import read_contrasts, read_label
from utils.config.load import load_config


def run_both(tmp_path, data, contrasts):
    config = {
        "name": "config",
        "work_dir": str(tmp_path / "work"),
        "data": {"root": str(tmp_path / "scans"), **data},
        "constraint_maps": {"contrasts": contrasts, "clusters": 3},
        "slices": {"image_size": [32, 32], "min_foreground": 0},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    for script in (generate_constraint_maps, generate_h5_pretraining):
        assert not script.main(["--config", str(path)])
    return load_config(path)


def test_chaos_on_the_grid_of_one_contrast(tmp_path):
    for seed, name in enumerate(("1", "2", "3")):
        write_chaos(tmp_path / "scans", name, seed)
    data = {"layout": "chaos", "contrasts": ["t1in", "t2spir"], "resample_to": "t1in"}
    data |= {"labels": {"kidneys": ["left_kidney", "right_kidney"], "liver": "liver"}}
    data |= {"ignored_label_values": ["spleen"], "splits": {"train": ["1"], "val": ["2"], "test": ["3"]}}
    config = run_both(tmp_path, data, ["t1in", "t2spir"])
    image = nibabel.load(config.work_dir / "constraint_maps/2.nii.gz")
    np.testing.assert_allclose(image.affine, CHAOS_AFFINE, atol=1e-4)
    assert image.shape == CHAOS_SHAPE and image.dataobj[...].max() == 3
    # Step 4 returns predictions to the scan by the stored grid: labels must return to their voxels.
    store = SliceStore(config.work_dir / "h5/annotated.h5")
    rows, grid = store.rows_of(["2"]), store.grid("2")
    assert grid.shape == CHAOS_SHAPE
    back = grid.to_volume(store.labels(rows), order=0)
    np.testing.assert_array_equal(back, corner([2, 1, 1, 0], CHAOS_SHAPE))
    # The second contrast in the file is T2-SPIR on the T1 grid, scaled.
    files = find_subjects(config.data.wanted())["2"]
    volume, affine = read_contrasts(files, ["t2spir"], config.data.contrasts)
    np.testing.assert_array_equal(read_label(files, config.data.labels, ["spleen"], CHAOS_SHAPE, affine), back)
    packed = grid.to_volume(store.images(["t2spir"], rows)[..., 0].astype("f4"), order=0)
    assert np.corrcoef(packed.ravel(), volume.ravel())[0, 1] > 0.95


def test_bids_sessions_stay_in_one_fold(tmp_path):
    for number in range(6):
        name = f"sub-{number // 2}_ses-{number % 2}"
        place = f"sub-{number // 2}/ses-{number % 2}/anat/{name}"
        save(tmp_path / "scans" / f"{place}_T1w.nii.gz", ramp(number))
        save(tmp_path / "scans" / f"{place}_T2w.nii.gz", 2000 - ramp(number))
        save(tmp_path / "scans/derivatives/manual" / f"{place}_desc-a_dseg.nii.gz", corner([1]))
    data = {"layout": "bids", "contrasts": ["T1w", "T2w"], "label": "derivatives/manual/desc-a_dseg"}
    data |= {"labels": {"a": [1]}, "splits": {"folds": 3, "validation": 1}}
    config = run_both(tmp_path, data, ["T1w", "T2w"])
    for fold in range(3):
        split = SliceStore(config.work_dir / f"fold{fold}/h5/annotated.h5").attributes["split"]
        people = [{name.split("_")[0] for name in split[part]} for part in ("train", "val", "test")]
        assert [len(names) for names in people] == [1, 1, 1] and len(set().union(*people)) == 3
        assert [len(split[part]) for part in ("train", "val", "test")] == [2, 2, 2]
