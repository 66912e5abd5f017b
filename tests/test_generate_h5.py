"""Step 2 on a small cohort: the content of each file, what is left out, what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import yaml

from data.intensity import foreground_mask
from data.scans.volumes import write_nifti
from data.store.store import SliceStore
from generate_h5_pretraining import main
from tests.bad_input.harness import run as as_from_shell
from utils.checks import InputError

ROOT = Path(__file__).parents[1]
SUBJECTS = [f"sub-{number}" for number in range(1, 8)]
SPLIT = {"train": SUBJECTS[:3], "val": SUBJECTS[3:4], "test": SUBJECTS[4:6]}
SHAPE, AFFINE = (20, 18, 6), np.array([[-2, 0, 0, 19], [0, 2, 0, -17], [0, 0, 5, 0], [0, 0, 0, 1.0]])


def body_of(shape):
    """An ellipse in slices 1 to 4."""
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    body = np.zeros(shape, bool)
    body[..., 1:5] = (x**2 + y**2 < 0.7)[..., None]
    return body


def write_subject(data, maps, subject, seed):
    """Write an ellipse of tissue in slices 1 to 4, a liver on the patient's right, a map of three classes."""
    rng = np.random.default_rng(seed)
    shape = (*SHAPE[:2], SHAPE[2] + seed % 2)
    body, x = body_of(shape), np.linspace(-1, 1, shape[0])[:, None]
    label = np.zeros(shape, np.uint8)
    label[12 + seed % 3 : 16, 7:11, 2:4] = 4  # x decreases along the first axis: high indices are on the patient's left
    image = np.where(body, 400 + 50.0 * label + rng.normal(0, 20, shape), rng.normal(0, 3, shape))
    echoes = np.stack([image, 700 - image / 2], axis=-1) * body[..., None] + rng.normal(0, 3, (*shape, 2))
    write_nifti(data / subject / "t1.nii.gz", image.astype(np.float32), AFFINE)
    write_nifti(data / subject / "echoes.nii.gz", echoes.astype(np.float32), AFFINE)
    write_nifti(data / subject / "label.nii.gz", label, AFFINE)
    write_nifti(maps / f"{subject}.nii.gz", (body * (1 + (label > 0) + (x > 0)[..., None])).astype(np.uint8), AFFINE)


@pytest.fixture
def config(tmp_path):
    """Return the config of seven subjects, one of them in no set, and one test subject without a label."""
    data, work = tmp_path / "data", tmp_path / "work"
    for seed, subject in enumerate(SUBJECTS):
        write_subject(data, work / "constraint_maps", subject, seed)
    (data / "sub-6" / "label.nii.gz").unlink()
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(work),
        "data": {
            "root": str(data),
            "contrasts": {
                "t1": "{subject}/t1.nii.gz",
                "echoes": {"file": "{subject}/echoes.nii.gz", "volumes": 2},
            },
            "label": "{subject}/label.nii.gz",
            "labels": {"kidney": [4]},
            "splits": SPLIT,
        },
        "constraint_maps": {"contrasts": ["t1", "echoes"], "clusters": 3},
        "slices": {"image_size": [16, 24], "min_foreground": 0.05},
        "network": {"filters": [4, 8, 8]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(config, *words):
    return main(["--config", str(config), *words])


def stores(folder):
    return {path.stem: SliceStore(path) for path in sorted((folder / "h5").glob("*.h5"))}


def test_the_script_from_the_shell(config):
    command = [sys.executable, "generate_h5_pretraining.py", "--config", config, "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain_train.h5: 12 slices of 3 subjects" in done.stderr
    assert "7 slices left out, because less than 5 % of their pixels are foreground" in done.stderr
    assert "not in annotated.h5, because they have no label file: sub-6" in done.stderr
    assert "next: python constrained_contrastive_learning.py" in done.stderr
    work = config.parent / "work"
    assert sorted(stores(work)) == ["annotated", "pretrain_train", "pretrain_val"]
    assert (work / "h5" / "resolved_config.yaml").is_file()
    assert not list(work.rglob(".tmp*"))


def test_who_is_in_which_file(config):
    run(config)
    found = stores(config.parent / "work")
    assert found["pretrain_train"].subjects == SPLIT["train"]
    assert found["pretrain_val"].subjects == SPLIT["val"]
    assert found["annotated"].subjects == SUBJECTS[:5]
    assert found["annotated"].attributes["split"] == SPLIT
    assert not found["pretrain_train"].has_labels
    for name in ("pretrain_train", "pretrain_val"):
        assert set(found[name].slice_index) == {1, 2, 3, 4}, "slices of air are left out"
        assert set(found[name].subjects).isdisjoint(SPLIT["test"])
    assert found["pretrain_train"].attributes["slices_left_out"] == 7
    for subject in SUBJECTS[:5]:
        depth = found["annotated"].grid(subject).shape[2]
        assert found["annotated"].slice_index[found["annotated"].rows_of([subject])].tolist() == list(range(depth))


def test_what_is_in_the_files(config):
    run(config)
    store = stores(config.parent / "work")["annotated"]
    assert store.contrasts == ["t1", "echoes_1", "echoes_2"]
    assert {name: store.attributes[name] for name in ("clusters", "labels", "seed")} == {
        "clusters": 3,
        "labels": ["kidney"],
        "seed": 3,
    }
    images = store.images()
    assert images.min() == 0
    assert images.max() == 1
    assert set(np.unique(store.constraint_maps())) == {0, 1, 2, 3}
    for subject in store.subjects:
        rows, grid = store.rows_of([subject]), store.grid(subject)
        stored = nibabel.load(config.parent / "data" / subject / "label.nii.gz")
        assert np.array_equal(grid.to_volume(store.labels(rows), order=0) * 4, np.asanyarray(stored.dataobj))
        # The image is bright inside the label, in every slice.
        assert images[rows][store.labels(rows) == 1, 0].min() > 0.6
        assert (np.nonzero(store.labels(rows))[2] >= 12).all(), "the patient's left is the right half of the image"


def test_several_workers_write_the_same_as_one(config):
    run(config)
    work = config.parent / "work"
    first = {name: (store.images(), store.constraint_maps()) for name, store in stores(work).items()}
    run(config, "--jobs", "3", "--overwrite")
    for name, store in stores(work).items():
        assert np.array_equal(first[name][0], store.images())
        assert np.array_equal(first[name][1], store.constraint_maps())


def test_finished_files_are_kept_and_missing_ones_added(config):
    run(config)
    work = config.parent / "work"
    (work / "h5" / "pretrain_val.h5").unlink()
    times = {path: path.stat().st_mtime_ns for path in work.glob("h5/*.h5")}
    scans = sorted((config.parent / "data").glob("sub-[12]/t1.nii.gz"))
    scans[0].touch()
    before = scans[1].read_bytes()
    scans[1].write_bytes(b"another scan")
    with pytest.raises(InputError, match="^sub-2: t1 changed since step 2 packed it; give --overwrite"):
        run(config)
    scans[1].write_bytes(before)
    run(config)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert SliceStore(work / "h5" / "pretrain_val.h5").subjects == SPLIT["val"]


def test_files_of_another_config_or_split_are_not_taken_for_finished(config):
    run(config)
    with pytest.raises(InputError, match="pretrain_train.h5: made with another config; make it again"):
        run(config, "--set", "slices.min_foreground=0.2")
    with pytest.raises(InputError, match="made with another seed; make it again with generate_h5"):
        run(config, "--set", "seed=4")
    run(config, "--set", "seed=4", "--overwrite")
    run(config, "--set", "seed=4")
    with h5py.File(config.parent / "work" / "h5" / "annotated.h5", "a") as file:
        del file["img"]
    with pytest.raises(InputError, match="annotated.h5: not a complete HDF5 store"):
        run(config, "--set", "seed=4")


def test_every_fold_has_its_own_files(config):
    run(config, "--set", "data.splits={folds: 3, validation: 1}")
    tested = []
    for number in range(3):
        found = stores(config.parent / "work" / f"fold{number}")
        split = found["annotated"].attributes["split"]
        tested += split["test"]
        assert found["pretrain_train"].subjects == split["train"]
        assert found["pretrain_val"].subjects == split["val"]
        assert found["annotated"].subjects == [subject for subject in SUBJECTS if subject != "sub-6"]
    assert sorted(tested) == SUBJECTS


def test_numbers_of_subjects_instead_of_names(config):
    run(config, "--set", "data.splits={train: 3, val: 1, test: 2}")
    found = stores(config.parent / "work")
    split = found["annotated"].attributes["split"]
    assert "sub-6" in split["train"] and [len(split[part]) for part in ("train", "val", "test")] == [4, 1, 2]
    assert found["pretrain_train"].subjects == split["train"] and found["pretrain_val"].subjects == split["val"]
    assert found["annotated"].subjects == [subject for subject in SUBJECTS if subject != "sub-6"]
    with pytest.raises(InputError, match="train 4 . val 1 . test 2 = 7 labelled subjects requested, but 6 of 7"):
        run(config, "--set", "data.splits={train: 4, val: 1, test: 2}")


def test_maps_of_every_contrast_space_are_packed(config):
    maps = config.parent / "work" / "constraint_maps"
    for subject in SUBJECTS:
        default = nibabel.load(maps / f"{subject}.nii.gz")
        # Foreground in slice 0 as well: the default space decides which slices are kept.
        other = (np.asarray(default.dataobj) > 1) + np.uint8(1)
        write_nifti(maps / "late" / f"{subject}.nii.gz", other.astype(np.uint8), default.affine)
    run(config, "--set", "constraint_maps.spaces={late: [echoes]}")
    for store in stores(config.parent / "work").values():
        assert store.spaces == (None, "late")
        assert store.attributes["contrast_spaces"] == {"param": ["t1", "echoes"], "param_late": ["echoes"]}
        for subject in store.subjects:
            rows, grid = store.rows_of([subject]), store.grid(subject)
            stored = np.asarray(nibabel.load(maps / "late" / f"{subject}.nii.gz").dataobj)
            expected = grid.to_slices(stored, order=0)[store.slice_index[rows]]
            assert np.array_equal(store.constraint_maps(rows, "late"), expected)
    train = stores(config.parent / "work")["pretrain_train"]
    assert set(train.slice_index) == {1, 2, 3, 4}
    (maps / "late" / "sub-2.nii.gz").unlink()
    with pytest.raises(InputError, match="sub-2: no constraint map '.*late/sub-2.nii.gz'; run generate_constraint"):
        run(config, "--set", "constraint_maps.spaces={late: [echoes]}", "--overwrite")


WITHOUT = ("--set", "constraint_maps=null", "slices.percentiles=[2, 98]")


def test_without_constraint_maps_the_foreground_is_packed(config):
    shutil.rmtree(config.parent / "work")
    run(config, *WITHOUT)
    found = stores(config.parent / "work")
    assert sorted(found) == ["annotated", "pretrain_train", "pretrain_val"]
    assert set(found["pretrain_train"].slice_index) == {1, 2, 3, 4} and found["annotated"].spaces == (None,)
    for store in found.values():
        assert store.attributes["clusters"] == 1 and store.attributes["contrast_spaces"] == {}
        assert store.attributes["normalization"].startswith("percentiles 2 and 98 of")
        for subject in store.subjects:
            rows, grid = store.rows_of([subject]), store.grid(subject)
            clean = body_of(grid.shape)
            is_inside = grid.to_slices(clean.astype(np.uint8), order=0)[store.slice_index[rows]]
            assert np.mean(store.constraint_maps(rows) != is_inside) < 0.02
            assert set(np.unique(store.constraint_maps(rows))) == {0, 1}


def test_a_given_mask_is_packed_in_place_of_constraint_maps(config):
    mask = np.zeros((*SHAPE[:2], SHAPE[2] + 1), np.uint8)
    mask[5:14, 4:13, 2:] = 3
    for seed, subject in enumerate(SUBJECTS):
        write_nifti(config.parent / "data" / subject / "mask.nii.gz", mask[..., : SHAPE[2] + seed % 2], AFFINE)
    run(config, *WITHOUT, "data.mask='{subject}/mask.nii.gz'")
    store = stores(config.parent / "work")["annotated"]
    for subject in store.subjects:
        grid = store.grid(subject)
        packed = grid.to_volume(store.constraint_maps(store.rows_of([subject])), order=0)
        assert np.array_equal(packed, mask[..., : grid.shape[2]] > 0)


def test_without_labels_there_is_no_annotated_file(config):
    run(config, "--set", "data.label=null", "--set", "data.labels={}")
    assert sorted(stores(config.parent / "work")) == ["pretrain_train", "pretrain_val"]


SYNTHESIS = [
    "crops={size: [8, 8]}",
    "synthesis={inputs: [t1], targets: [echoes], inits: [random], subjects_n: [1], "
    "training: {epochs: 1, batch_size: 1, learning_rate: 1}}",
]


def percentiles_by_hand(folder, subject, percentiles, mask=None):
    """Return the intensities of all three channels at two percentiles of their foreground, from the files alone."""
    t1, echoes = (nibabel.load(folder / subject / f"{name}.nii.gz").get_fdata() for name in ("t1", "echoes"))
    found = {}
    for name, channel in {"t1": t1, "echoes_1": echoes[..., 0], "echoes_2": echoes[..., 1]}.items():
        inside = foreground_mask(channel[..., None].astype(np.float32)) if mask is None else mask
        values = np.sort(channel[inside])
        found[name] = np.interp(np.array(percentiles) / 100 * (len(values) - 1), np.arange(len(values)), values)
    return found


def assert_whole_volumes(store, folder, percentiles=(1, 99)):
    """Check every slice of every subject, scaled between the intensities recorded in the store."""
    for subject in store.subjects:
        rows, grid, ranges = store.rows_of([subject]), store.grid(subject), store.intensities(subject)
        assert store.slice_index[rows].tolist() == list(range(grid.shape[2]))
        by_hand = percentiles_by_hand(folder, subject, percentiles)
        assert list(ranges) == store.contrasts
        for name in ranges:
            assert ranges[name] == pytest.approx(by_hand[name], rel=1e-5)
        t1, (low, high) = nibabel.load(folder / subject / "t1.nii.gz").get_fdata(), ranges["t1"]
        expected = grid.to_slices(np.clip((t1 - low) / (high - low), 0, 1).astype(np.float32))
        np.testing.assert_allclose(store.images(["t1"], rows)[..., 0], expected, atol=5e-4)  # float16


def test_for_synthesis_every_slice_of_every_subject_is_packed_labelled_or_not(config):
    run(config, "--set", *SYNTHESIS)
    found = stores(config.parent / "work")
    assert sorted(found) == ["annotated", "pretrain_train", "pretrain_val", "volumes"]
    store = found["volumes"]
    assert store.subjects == SUBJECTS[:6], "sub-6 has no label, sub-7 is in no set"
    assert not store.has_labels and store.contrasts == ["t1", "echoes_1", "echoes_2"]
    assert store.attributes["split"] == {"all": SUBJECTS[:6]} and store.attributes["slices_left_out"] == 0
    assert_whole_volumes(store, config.parent / "data")
    for other in found.values():
        for subject in other.subjects:
            rows, slices = other.rows_of([subject]), store.rows_of([subject])
            assert other.intensities(subject) == store.intensities(subject)
            np.testing.assert_array_equal(other.images(rows=rows), store.images(rows=slices[other.slice_index[rows]]))
    packed = (config.parent / "work" / "h5" / "volumes.h5").stat().st_mtime_ns
    run(config, "--set", *SYNTHESIS)
    assert (config.parent / "work" / "h5" / "volumes.h5").stat().st_mtime_ns == packed


def test_volumes_are_packed_once_for_all_folds(config):
    run(config, "--set", *SYNTHESIS, "data.splits={folds: 3, validation: 1}")
    work = config.parent / "work"
    assert [path.relative_to(work).as_posix() for path in work.rglob("volumes.h5")] == ["h5/volumes.h5"]
    assert SliceStore(work / "h5" / "volumes.h5").subjects == SUBJECTS
    assert_whole_volumes(SliceStore(work / "h5" / "volumes.h5"), config.parent / "data")


def test_volumes_of_another_list_of_subjects_are_refused(config):
    lists = config.parent / "data" / "splits.json"
    lists.write_text(json.dumps(SPLIT))
    run(config, "--set", *SYNTHESIS, "data.splits=splits.json")
    lists.write_text(json.dumps(SPLIT | {"test": ["sub-7"]}))
    for name in ("pretrain_train", "pretrain_val", "annotated"):
        (config.parent / "work" / "h5" / f"{name}.h5").unlink()
    with pytest.raises(InputError, match="volumes.h5: made with another split; make it again"):
        run(config, "--set", *SYNTHESIS, "data.splits=splits.json")


def test_the_intensities_of_volumes_are_those_of_a_given_mask_and_of_the_configs_percentiles(config):
    mask = np.zeros((*SHAPE[:2], SHAPE[2] + 1), np.uint8)
    mask[5:14, 4:13, 2:] = 3
    for seed, subject in enumerate(SUBJECTS):
        write_nifti(config.parent / "data" / subject / "mask.nii.gz", mask[..., : SHAPE[2] + seed % 2], AFFINE)
    run(config, "--set", *SYNTHESIS, *WITHOUT[1:], "data.mask='{subject}/mask.nii.gz'")
    store = SliceStore(config.parent / "work" / "h5" / "volumes.h5")
    for subject in store.subjects:
        inside = mask[..., : store.grid(subject).shape[2]] > 0
        by_hand = percentiles_by_hand(config.parent / "data", subject, (2, 98), inside)
        for name, ends in store.intensities(subject).items():
            assert ends == pytest.approx(by_hand[name], rel=1e-5)


def test_labels_cut_off_by_the_slices_are_reported(config):
    done = as_from_shell("generate_h5_pretraining", "--config", config, "--set", "slices.image_size=[8, 8]")
    assert done.code == 0, done.said
    assert "sub-1: 50.00% of the labelled voxels lie outside slices.image_size" in "\n".join(done.logged)


def test_every_bad_subject_is_listed_before_anything_is_written(config):
    data, work = config.parent / "data", config.parent / "work"
    (data / "sub-1" / "t1.nii.gz").write_bytes((data / "sub-1" / "t1.nii.gz").read_bytes()[:2000])
    write_nifti(data / "sub-3" / "label.nii.gz", np.full(SHAPE, 5, np.uint8), AFFINE)
    (work / "constraint_maps" / "sub-4.nii.gz").unlink()
    write_nifti(work / "constraint_maps" / "sub-5.nii.gz", np.full(SHAPE, 9, np.uint8), AFFINE)
    done = as_from_shell("generate_h5_pretraining", "--config", config)
    assert done.code == 2
    lines = [line for line in done.said if line.startswith("sub-")]
    assert [line.split(":")[0] for line in lines] == ["sub-1", "sub-3", "sub-4", "sub-5"]
    for line, expected in zip(
        lines, ["truncated", "values 5", "no constraint map", "classes from 9 to 9"], strict=True
    ):
        assert expected in line
    assert "Traceback" not in "\n".join(done.said)
    assert not (work / "h5").exists()


def test_other_mistakes(config):
    with pytest.raises(InputError, match="slices.min_foreground: no slice of pretrain_train.h5 has 90.00% foreground"):
        run(config, "--set", "slices.min_foreground=0.9")
    assert not list((config.parent / "work").rglob("*.h5"))
    with pytest.raises(InputError, match="--jobs 0: expected at least 1"):
        run(config, "--jobs", "0")
    with pytest.raises(InputError, match="this step needs the section 'slices:'"):
        run(config, "--set", "slices=null")
    split = json.dumps(SPLIT | {"test": ["sub-1", "sub-9"]})
    with pytest.raises(InputError) as error:
        run(config, "--set", f"data.splits={split}")
    assert [line.split(" of data.splits")[0] for line in error.value.lines] == [
        "sub-1: is in train and test",
        "sub-9: is in test",
    ]
