"""HDF5 files: any part that was written can be read back, and broken files are refused."""

import dataclasses
import functools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from data.geometry import SliceGrid
from data.store.checks import TEXTS
from data.store.store import SliceStore, StoreWriter, SubjectSlices
from tests.stores import write_store
from utils.checks import InputError

CONTRASTS = ["t1", "echoes_1", "echoes_2"]
ATTRIBUTES = {
    "clusters": 300,
    "config_hash": "abc",
    "normalization": "0 to 1",
    "labels": ["liver"],
    "split": {"train": ["sub-1"], "val": [], "test": ["sub-2"]},
    "min_foreground": 0.05,
}


def make_subject(name, slices, seed, has_labels=True):
    rng = np.random.default_rng(seed)
    grid = SliceGrid((12, 10, slices + 3), np.diag([2, 2, 4, 1.0]), 2.5, (8, 6))
    return SubjectSlices(
        name,
        grid,
        np.arange(2, 2 + slices),
        rng.random((slices, 8, 6, 3)).astype(np.float32),
        {space: rng.integers(0, 301, (slices, 8, 6)) for space in (None, "t2")},
        rng.integers(0, 2, (slices, 8, 6)).astype(np.uint8) if has_labels else None,
    )


SUBJECTS = [make_subject("sub-1", 7, 1), make_subject("sub-2", 0, 2), make_subject("10", 4, 3)]
IMAGES = np.concatenate([subject.images for subject in SUBJECTS]).astype(np.float16)
MAPS, T2_MAPS = (np.concatenate([subject.constraint_maps[space] for subject in SUBJECTS]) for space in (None, "t2"))
LABELS = np.concatenate([subject.labels for subject in SUBJECTS])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "h5" / "annotated.h5"
    write_store(path, iter(SUBJECTS), contrasts=CONTRASTS, image_size=(8, 6), attributes=ATTRIBUTES)
    return path


def test_the_schema_is_that_of_the_authors_loader(path):
    with h5py.File(path) as file:
        assert file["img"].shape == (11, 8, 6, 3)
        assert file["img"].dtype == np.float16
        assert file["param"].shape == (11, 8, 6, 1)
        assert file["param"].dtype == np.uint16, "301 classes do not fit 8 bits"
        assert file["label"].dtype == np.uint8
        assert file["subject_index"][:].tolist() == [0] * 7 + [2] * 4
        assert file["slice_index"][:].tolist() == [2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5]
        assert [name.decode() for name in file.attrs["contrasts"]] == CONTRASTS
        assert [name.decode() for name in file.attrs["subjects"]] == ["sub-1", "sub-2", "10"]
        assert file.attrs["schema_version"] == 1
        assert file.attrs["clusters"] == 300
        assert file["img"].chunks[1:] == (8, 6, 3), "a chunk holds whole slices"
        assert 0.9 * 2**18 < np.prod(file["img"].chunks) * 2 <= 2**18


def test_everything_is_read_back(path):
    store = SliceStore(path)
    assert len(store) == 11
    assert (store.contrasts, store.subjects, store.image_size) == (CONTRASTS, ["sub-1", "sub-2", "10"], (8, 6))
    assert {name: store.attributes[name] for name in ATTRIBUTES} == ATTRIBUTES
    assert np.array_equal(store.images(), IMAGES.astype(np.float32))
    assert np.array_equal(store.constraint_maps(), MAPS)
    assert np.array_equal(store.labels(), LABELS)
    assert [a.dtype for a in (store.images(), store.constraint_maps(), store.labels())] == [
        np.float32,
        np.int32,
        np.uint8,
    ]
    assert store.grid("10").to_dict() == SUBJECTS[2].grid.to_dict()


@pytest.mark.parametrize("rows", [[0], [10, 0, 3], [5, 5, 5], [3, 4, 5, 9], np.arange(11)[::-1], []])
@pytest.mark.parametrize("contrasts", [None, CONTRASTS, ["echoes_2"], ["echoes_2", "t1"]])
def test_any_rows_and_contrasts_in_any_order(path, monkeypatch, rows, contrasts):
    monkeypatch.setattr("data.store.rows.BLOCK_BYTES", 2 * 8 * 6 * 3 * 2)  # two slices at a time
    store, rows = SliceStore(path), np.array(rows, int)
    channels = [CONTRASTS.index(name) for name in contrasts or CONTRASTS]
    assert np.array_equal(store.images(contrasts, rows), IMAGES[rows][..., channels].astype(np.float32))
    assert np.array_equal(store.images(contrasts), IMAGES[..., channels].astype(np.float32))
    assert np.array_equal(store.constraint_maps(rows), MAPS[rows])
    assert np.array_equal(store.labels(rows), LABELS[rows])


def test_rows_of_subjects(path):
    store = SliceStore(path)
    assert store.rows_of(["10"]).tolist() == [7, 8, 9, 10]
    assert store.rows_of(["10", "sub-1"]).tolist() == list(range(11))
    assert store.rows_of(["sub-2"]).tolist() == []
    with pytest.raises(InputError, match="sub-9: is not in .*annotated.h5"):
        store.rows_of(["sub-9"])
    with pytest.raises(InputError, match="sub-9: is not in .*annotated.h5"):
        store.grid("sub-9")


def test_an_open_store_can_be_pickled(path):
    store = SliceStore(path)
    store.images(rows=[1])
    assert np.array_equal(pickle.loads(pickle.dumps(store)).images(), store.images())


def test_threads_and_processes_read_one_store(path):
    store = SliceStore(path)
    wanted = [np.random.default_rng(seed).integers(0, 11, 5) for seed in range(200)]
    for pool in ThreadPoolExecutor(4), ProcessPoolExecutor(2, multiprocessing.get_context("spawn")):
        with pool:
            for rows, images in zip(wanted, pool.map(functools.partial(store.images, None), wanted), strict=True):
                assert np.array_equal(images, IMAGES[rows].astype(np.float32))


def test_a_store_without_labels(tmp_path):
    subject = make_subject("a", 3, 1, has_labels=False)
    write_store(tmp_path / "a.h5", [subject], contrasts=CONTRASTS, image_size=(8, 6), attributes={"clusters": 20})
    store = SliceStore(tmp_path / "a.h5")
    assert not store.has_labels
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["param"].dtype == np.uint8
    with pytest.raises(InputError, match="holds no labels; annotated.h5 does"):
        store.labels()


def test_a_thousand_subjects_fit_the_attributes(tmp_path):
    subjects = (
        SubjectSlices(
            f"BraTS2021_{number:05d}",
            SliceGrid((240, 240, 155), np.eye(4) * 1.000001 / 3, None, (2, 2)),
            np.array([7]),
            np.zeros((1, 2, 2, 1)),
            {None: np.zeros((1, 2, 2), np.uint8)},
        )
        for number in range(1251)
    )
    write_store(tmp_path / "a.h5", subjects, contrasts=["t1"], image_size=(2, 2), attributes={"clusters": 20})
    store = SliceStore(tmp_path / "a.h5")
    assert store.subjects[-1] == "BraTS2021_01250"
    assert store.grid("BraTS2021_01250").shape == (240, 240, 155)


@pytest.mark.parametrize("count", [4000, 4001, 20_000])
def test_names_of_any_number_fit_the_attributes(tmp_path, count):
    names = [f"BraTS2021_{number:05d}" for number in range(count)]
    attributes = {"clusters": 20, "labels": names, "split": {"train": names}}
    write_store(tmp_path / "a.h5", [SUBJECTS[2]], contrasts=CONTRASTS, image_size=(8, 6), attributes=attributes)
    assert {name: SliceStore(tmp_path / "a.h5").attributes[name] for name in attributes} == attributes


def test_how_intensities_were_scaled_is_read_back(tmp_path):
    ranges = {"t1": (-3.25, 1e-300), "echoes_1": (0.1, 900.0), "echoes_2": (7, 7)}
    subjects = [
        dataclasses.replace(SUBJECTS[0], intensities=ranges),
        dataclasses.replace(SUBJECTS[2], intensities=dict.fromkeys(CONTRASTS, (0, 2))),
    ]
    write_store(tmp_path / "a.h5", subjects, contrasts=CONTRASTS, image_size=(8, 6), attributes=ATTRIBUTES)
    store = SliceStore(tmp_path / "a.h5")
    assert store.intensities("sub-1") == ranges and store.intensities("10") == dict.fromkeys(CONTRASTS, (0, 2))
    with pytest.raises(InputError, match="a.h5: does not say how the intensities of sub-9 were scaled; make it again"):
        store.intensities("sub-9")


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_without_grids_intensities_or_hashes_is_refused(name, path):
    with h5py.File(path, "a") as file:
        del file[name]
    with pytest.raises(InputError, match=f"annotated.h5: .*no dataset '{name}'"):
        SliceStore(path)


def test_maps_of_further_contrast_spaces(path, tmp_path):
    assert SliceStore(path).spaces == (None,)
    with pytest.raises(InputError, match="no maps of contrast space 't2', it holds only those of the default one"):
        SliceStore(path).constraint_maps(space="t2")
    form = {"contrasts": CONTRASTS, "image_size": (8, 6), "attributes": ATTRIBUTES}
    write_store(tmp_path / "a.h5", SUBJECTS, **form, spaces=["t2"])
    store = SliceStore(tmp_path / "a.h5")
    assert store.spaces == (None, "t2")
    np.testing.assert_array_equal(store.constraint_maps(), MAPS)
    np.testing.assert_array_equal(store.constraint_maps(space="t2"), T2_MAPS)
    np.testing.assert_array_equal(store.constraint_maps([9, 1], "t2"), T2_MAPS[[9, 1]])
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["param_t2"].shape == (11, 8, 6, 1) and file["param_t2"].dtype == np.uint16
    with pytest.raises(InputError, match="no maps of contrast space 't1', it holds t2; make it again"):
        store.constraint_maps(space="t1")


def test_a_failure_leaves_the_old_file_and_nothing_else(path):
    before = path.read_bytes()

    def breaks_down():
        yield SUBJECTS[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_store(path, breaks_down(), contrasts=CONTRASTS, image_size=(8, 6), attributes=ATTRIBUTES)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (make_subject("sub-1", 2, 1), "sub-1: added twice"),
        (make_subject("b", 2, 1, has_labels=False), "b: label is None, expected"),
    ],
)
def test_subjects_that_do_not_fit(tmp_path, subject, message):
    settings = {"contrasts": CONTRASTS, "image_size": (8, 6), "attributes": ATTRIBUTES, "has_labels": True}
    with pytest.raises(ValueError, match=message), StoreWriter(tmp_path / "a.h5", **settings) as store:
        store.add(SUBJECTS[0])
        store.add(subject)
    assert not list(tmp_path.iterdir())


def test_contrasts_must_match_the_images(tmp_path):
    with pytest.raises(ValueError, match=r"sub-1: img is \(7, 8, 6, 3\), expected \(7, 8, 6, 1\)"):
        write_store(tmp_path / "a.h5", SUBJECTS, contrasts=["t1"], image_size=(8, 6), attributes=ATTRIBUTES)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5000])


def change(edit):
    def spoil(path):
        with h5py.File(path, "a") as file:
            edit(file)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "not a complete HDF5 store .*truncated.*; make it again with generate_h5_pretraining.py"),
        (lambda path: path.write_bytes(b"no HDF5"), "not a complete HDF5 store"),
        (lambda path: path.unlink(), "no such file; run generate_h5_pretraining.py first"),
        (change(lambda f: f.attrs.modify("schema_version", 2)), "schema version 2, expected 1; make it again"),
        (change(lambda f: f.attrs.__delitem__("schema_version")), "schema version None, expected 1"),
        (change(lambda f: f.attrs.__delitem__("contrasts")), "not a complete HDF5 store .'contrasts'"),
        (change(lambda f: f.__delitem__("param")), "not a complete HDF5 store .*param"),
        (
            change(lambda f: f["param"].resize(5, axis=0)),
            r"not a complete HDF5 store \(param is \(5, 8, 6, 1\), expected \(11, 8, 6, 1\)\); make it again",
        ),
        (change(lambda f: f.__delitem__("subject_grid")), "not a complete HDF5 store .*subject_grid"),
    ],
)
def test_broken_files_are_refused(path, spoil, message):
    spoil(path)
    with pytest.raises(InputError, match=message):
        SliceStore(path)


def test_unknown_contrasts_and_rows_and_other_configs(path):
    store = SliceStore(path)
    with pytest.raises(InputError, match="has no contrast 'flair', it holds t1, echoes_1, echoes_2"):
        store.images(["t1", "flair"])
    with pytest.raises(IndexError, match="rows 3 to 11 requested, there are 11"):
        store.images(rows=[3, 11])
    store.check_hash("abc")
    with pytest.raises(InputError, match="annotated.h5: made with another config; make it again"):
        store.check_hash("other")
