"""HDF5 files with arbitrary content are read, or refused in one line that names the file."""

import os
import string

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.geometry import SliceGrid
from data.store.store import SliceStore, SubjectSlices
from tests.stores import write_store
from utils.checks import InputError

FIXED = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
DATASETS = ["img", "param", "param_t2", "label", "subject_index", "slice_index", "subject_grid", "subject_intensities"]
DATASETS += ["subject_hashes"]
ATTRIBUTES = ["schema_version", "contrasts", "subjects", "clusters", "labels", "split", "config_hash", "image"]
TYPES = [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.uint16, np.complex64, bool, "S3"]


def subject(name, slices, seed):
    rng, grid = np.random.default_rng(seed), SliceGrid((6, 5, 4), np.diag([2, 2, 4, 1.0]), None, (4, 3))
    maps = {space: rng.integers(0, 4, (slices, 4, 3)) for space in (None, "t2")}
    labels = rng.integers(0, 2, (slices, 4, 3)).astype(np.uint8)
    images, ranges = rng.random((slices, 4, 3, 2)).astype(np.float32), {"t1": (0, 1), "t2": (0, 3)}
    return SubjectSlices(name, grid, np.arange(slices), images, maps, labels, ranges)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "sound.h5"
    attributes = {"clusters": 4, "config_hash": "x", "labels": ["kidney"], "split": {"train": ["a"]}}
    form = {"contrasts": ["t1", "t2"], "image_size": (4, 3), "attributes": attributes, "spaces": ["t2"]}
    write_store(path, [subject("a", 3, 1), subject("b", 2, 2)], **form)
    return path


def read(path):
    """Read everything that steps 3 to 5 read; `path` is deleted."""
    try:
        store = SliceStore(path)
        images, maps = store.images(), [store.constraint_maps(space=space) for space in store.spaces]
        assert images.shape == (len(store), *store.image_size, len(store.contrasts))
        assert all(one.shape == images.shape[:3] for one in maps)
        assert not store.has_labels or store.labels().shape == images.shape[:3]
        assert sum(len(store.rows_of([name])) for name in store.subjects) == len(store)
        for name in store.subjects:
            store.grid(name)
            store.intensities(name)
    except InputError as error:
        assert all(str(path) in line and len(line.splitlines()) == 1 for line in error.lines)
    finally:
        path.unlink()  # HDF5 caches a file that is still open under this name


arrays = st.tuples(st.lists(st.integers(0, 5), max_size=5), st.sampled_from(TYPES), st.integers(-3, 300))
texts = st.text(string.printable, max_size=12) | st.sampled_from(["{}", "[]", "[1", "null", '{"shape": 3}', "[" * 5000])
scalars = st.integers(-(2**63), 2**63 - 1) | st.floats() | texts | st.lists(texts, max_size=3)
changes = st.one_of(
    st.tuples(st.just("delete"), st.sampled_from(DATASETS), st.none()),
    st.tuples(st.just("replace"), st.sampled_from(DATASETS), arrays),
    st.tuples(st.just("texts"), st.sampled_from(DATASETS[-2:]), st.lists(texts, min_size=1, max_size=3)),
    st.tuples(st.just("attribute"), st.sampled_from(ATTRIBUTES), scalars | arrays),
    st.tuples(st.just("forget"), st.sampled_from(ATTRIBUTES), st.none()),
    st.tuples(st.just("entry"), st.sampled_from(DATASETS[:6]), st.integers(-5, 300)),
    st.tuples(st.just("resize"), st.sampled_from(DATASETS[:6]), st.sampled_from([0, 1, 4, 6, 10**4, 10**9])),
)


def array_of(form):
    shape, dtype, value = form
    with np.errstate(all="ignore"):
        return np.full(shape, value % 128 if dtype in (np.int8, np.uint8) else value).astype(dtype)


def apply(file, kind, name, value):
    if kind == "attribute":
        file.attrs[name] = array_of(value) if isinstance(value, tuple) else value
    elif kind == "forget":
        file.attrs.pop(name, None)
    elif name not in file:
        return
    elif kind in ("delete", "replace", "texts"):
        del file[name]
        if kind != "delete":
            file[name] = array_of(value) if kind == "replace" else value
    elif kind == "resize" and file[name].maxshape[:1] == (None,):
        file[name].resize(value, axis=0)
    elif kind == "entry" and file[name].size:
        file[name][(0,) * file[name].ndim] = abs(value) if file[name].dtype.kind == "u" else value


@settings(max_examples=500, **FIXED)
@given(st.lists(changes, min_size=1, max_size=3))
def test_datasets_and_attributes_of_any_kind(sound, changes):
    path = sound.with_name("changed.h5")
    path.write_bytes(sound.read_bytes())
    with h5py.File(path, "a") as file:
        for change in changes:
            try:
                apply(file, *change)
            except (TypeError, ValueError, OverflowError):  # HDF5 cannot store it
                continue
    read(path)


@settings(max_examples=200, **FIXED)
@given(st.floats(0, 1), st.binary(max_size=8))
def test_files_cut_off_and_lengthened(sound, share, added):
    path = sound.with_name("cut.h5")
    path.write_bytes(sound.read_bytes())
    os.truncate(path, int(share * path.stat().st_size))
    with open(path, "ab") as file:
        file.write(added)
    read(path)


@settings(max_examples=150, **FIXED)
@given(st.binary(max_size=200), st.booleans())
def test_bytes(sound, content, has_signature):
    path = sound.with_name("bytes.h5")
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * has_signature + content)
    read(path)


@settings(max_examples=300, **FIXED)
@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 255)), min_size=1, max_size=4), st.booleans())
def test_bytes_changed(sound, flips, only_used):
    """Change bytes anywhere, or only non-zero ones, which mostly describe the data."""
    content = np.frombuffer(sound.read_bytes(), np.uint8).copy()
    places = np.flatnonzero(content) if only_used else np.arange(len(content))
    for place, bits in flips:
        content[places[place % len(places)]] ^= bits
    path = sound.with_name("flipped.h5")
    path.write_bytes(content.tobytes())
    read(path)
