"""Packed slices as arrays that remain in their file."""

import numpy as np
import pytest

from data.geometry import SliceGrid
from data.store import slices
from data.store.slices import in_memory_if, stored_images, stored_labels, stored_maps
from data.store.store import SliceStore, SubjectSlices
from tests.stores import write_store
from utils.checks import InputError

CONTRASTS = ["t1", "t2", "flair"]
RNG = np.random.default_rng(0)
IMAGES = RNG.random((9, 8, 6, 3)).astype(np.float16)
MAPS = RNG.integers(0, 5, (9, 8, 6))
LABELS = RNG.integers(0, 3, (9, 8, 6)).astype(np.uint8)
SIZE = IMAGES.nbytes + LABELS.nbytes


@pytest.fixture
def store(tmp_path):
    grid = SliceGrid((8, 6, 9), np.eye(4), None, (8, 6))
    subject = SubjectSlices("sub-1", grid, np.arange(9), IMAGES, {None: MAPS}, LABELS)
    write_store(tmp_path / "a.h5", [subject], contrasts=CONTRASTS, image_size=(8, 6), attributes={})
    return SliceStore(tmp_path / "a.h5")


def test_rows_are_read_as_numpy_would_give_them(store, monkeypatch):
    monkeypatch.setattr(slices, "BLOCK", 4)
    for array, expected in (
        (stored_images(store, CONTRASTS), IMAGES),
        (stored_images(store, ["flair", "t1"]), IMAGES[..., [2, 0]]),
        (stored_maps(store), MAPS),
        (stored_labels(store), LABELS),
    ):
        assert array.shape == expected.shape and len(array) == 9
        for rows in ([3, 0, 8, 3], slice(2, 7), slice(None), np.array([], int), 4, -1):
            np.testing.assert_array_equal(array[rows], expected[rows])
        whole = array.whole()
        np.testing.assert_array_equal(whole, expected)
        assert whole.dtype == array.dtype and whole.nbytes == array.nbytes
    assert (
        stored_images(store, CONTRASTS)[[0]].dtype == np.float32 and stored_images(store, CONTRASTS).nbytes == 9 * 288
    )


def test_contrasts_one_by_one_are_all_of_the_first_then_all_of_the_second(store):
    array = stored_images(store, ["flair", "t1"], one_by_one=True)
    expected = np.concatenate([IMAGES[..., 2], IMAGES[..., 0]])[..., None]
    assert array.shape == (18, 8, 6, 1)
    np.testing.assert_array_equal(array.whole(), expected)
    np.testing.assert_array_equal(array[[17, 2, 9, 2]], expected[[17, 2, 9, 2]])


def test_an_unknown_contrast_is_named_before_anything_is_read(store):
    with pytest.raises(InputError, match="has no contrast 'dwi', it holds t1, t2, flair"):
        stored_images(store, ["t1", "dwi"])


@pytest.mark.parametrize(
    ("resident", "limit", "in_memory"),
    [("auto", SIZE, True), ("auto", SIZE - 1, False), ("always", 0, True), ("never", SIZE, False)],
)
def test_what_fits_goes_into_memory(store, resident, limit, in_memory):
    arrays = [stored_images(store, CONTRASTS), stored_labels(store)]
    for array in in_memory_if(arrays, resident, limit):
        assert isinstance(array, np.ndarray) == in_memory
