"""Rows read by address equal those that HDF5 reads; if addresses are unknown, HDF5 reads them."""

import os

import h5py
import numpy as np
import pytest

from data.store.rows import RowReader, convert, runs
from utils.checks import InputError

VALUES = np.random.default_rng(1).random((11, 4, 6, 3)).astype(np.float16)
WHOLE_ROWS = {"chunks": (2, 4, 6, 3), "maxshape": (None, 4, 6, 3)}
LAYOUTS = {
    "whole rows": (True, WHOLE_ROWS),
    "one chunk": (True, {"chunks": (11, 4, 6, 3)}),
    "compressed": (False, WHOLE_ROWS | {"compression": "gzip"}),
    "checksums": (False, WHOLE_ROWS | {"fletcher32": True}),
    "contiguous": (False, {}),
    "cut rows": (False, {"chunks": (5, 2, 6, 3)}),
    "other byte order": (True, WHOLE_ROWS | {"dtype": ">f2"}),
}


def write(path, layout, values=VALUES, **file):
    with h5py.File(path, "w", **file) as opened:
        dataset = opened.create_dataset("img", values.shape, layout.pop("dtype", values.dtype), **layout)
        for start in range(0, len(values), 3):  # as a store grows, with other data in between
            dataset[start : start + 3] = values[start : start + 3]
            opened[f"other_{start}"] = np.arange(1000)


@pytest.fixture
def reader_of(tmp_path):
    opened = []

    def read(layout, **file):
        write(tmp_path / "a.h5", dict(layout), **file)
        opened.append(h5py.File(tmp_path / "a.h5"))
        return RowReader(opened[-1]["img"])

    yield read
    for file in opened:
        file.close()


@pytest.mark.parametrize("block_bytes", [1, 300, 2**20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_hdf5_whatever_the_layout(reader_of, monkeypatch, layout, block_bytes):
    monkeypatch.setattr("data.store.rows.BLOCK_BYTES", block_bytes)
    is_direct, settings = LAYOUTS[layout]
    reader = reader_of(settings)
    assert (reader.addresses is not None) == is_direct
    assert len(reader) == 11
    for rows in ([0], [10, 0, 3], [5, 5, 6], [3, 4, 5, 9], [10, 9, 8], range(11), []):
        rows = np.array(rows, int)
        assert np.array_equal(reader.read(rows, np.float32), VALUES[rows])
        assert np.array_equal(reader.read(rows, np.float64, [2, 0]), VALUES[rows][..., [2, 0]])
    assert np.array_equal(reader.read(None, np.float16, [1]), VALUES[..., [1]])
    assert reader.read(None, np.float32).dtype == np.float32


def test_a_file_with_a_user_block_is_left_to_hdf5(reader_of):
    reader = reader_of(WHOLE_ROWS, userblock_size=512)
    assert reader.addresses is None
    assert np.array_equal(reader.read([7, 1], np.float32), VALUES[[7, 1]])


def test_chunks_that_were_never_written_are_left_to_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("img", (11, 4), np.uint8, chunks=(2, 4), fillvalue=7)[:3] = 1
    with h5py.File(tmp_path / "a.h5") as file:
        reader = RowReader(file["img"])
        assert reader.addresses is None
        assert reader.read([2, 9], np.int32).tolist() == [[1] * 4, [7] * 4]


def test_a_file_that_may_still_change_is_left_to_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("img", data=VALUES, **WHOLE_ROWS)
        assert RowReader(file["img"]).addresses is None


def test_an_empty_dataset(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("img", (0, 4, 2), np.float16, chunks=(1, 4, 2), maxshape=(None, 4, 2))
    with h5py.File(tmp_path / "a.h5") as file:
        reader = RowReader(file["img"])
        assert reader.read(None, np.float32, [1]).shape == (0, 4, 1)


def test_a_file_cut_short_while_it_is_open(reader_of, tmp_path):
    reader = reader_of(WHOLE_ROWS)
    os.truncate(tmp_path / "a.h5", reader.addresses[10] + 5)
    assert np.array_equal(reader.read([9], np.float32), VALUES[[9]])
    with pytest.raises(InputError, match="a.h5: shorter than when it was opened"):
        reader.read([10], np.float32)


def test_neighbours_in_the_file_are_read_at_once():
    assert list(runs(np.array([40, 50, 60, 10, 20, 20]), 10)) == [(0, 3), (3, 5), (5, 6)]
    assert list(runs(np.array([5]), 1)) == [(0, 1)]


ALL_HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize(
    "halves", [ALL_HALVES[:0x7C00], ALL_HALVES[:0x7C01], ALL_HALVES], ids=["finite", "infinite", "all"]
)
def test_every_half_is_widened_as_numpy_does(halves):
    widened = np.empty(halves.shape, np.float32)
    convert(halves, widened)
    np.testing.assert_array_equal(widened.view(np.uint32), halves.astype(np.float32).view(np.uint32))
