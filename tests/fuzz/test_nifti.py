"""NIfTI files with arbitrary headers and bytes are read and usable, or refused in one line."""

import gzip

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.geometry import SliceGrid
from data.scans.nifti import read_image

FIXED = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
SHAPE, AFFINE = (5, 4, 3), np.array([[-2, 0.1, 0, 4], [0.1, 2, 0, -4], [0, 0, 5, 0], [0, 0, 0, 1.0]])
FIELDS = nibabel.nifti1.header_dtype.fields
EXTREME = [
    0,
    1,
    -1,
    2,
    3,
    127,
    128,
    255,
    256,
    32767,
    -32768,
    2**31 - 1,
    1e-40,
    1e-20,
    1e20,
    3e38,
    np.inf,
    -np.inf,
    np.nan,
]


def sound(kind):
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
    image = kind(array, AFFINE)
    image.set_qform(AFFINE, code="scanner")
    return image.to_bytes()


SOUND = {kind: sound(kind) for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(folder, content, is_compressed):
    path = folder / ("scan.nii.gz" if is_compressed else "scan.nii")
    path.write_bytes(gzip.compress(content, 1) if is_compressed is True else content)
    image, problems = read_image(path, "sub-1")
    if problems:
        assert image is None and len(problems) == 1 and len(problems[0].splitlines()) == 1
        assert problems[0].startswith(f"sub-1: '{path}' ")
        return
    assert image.values.dtype.kind in "iuf" and image.values.size and np.isfinite(image.affine).all()
    if len(image.shape) == 3:
        grid = SliceGrid(image.shape, image.affine, None, (4, 4))
        assert grid.to_slices(image.values, order=0).shape == (grid.slices, 4, 4)


def field_values(name):
    dtype, shape = FIELDS[name][0].base, FIELDS[name][0].shape
    length = int(np.prod(shape)) if shape else 1
    if dtype.kind == "S":
        one = st.binary(max_size=dtype.itemsize)
    elif dtype.kind == "f":
        one = st.sampled_from(EXTREME) | st.floats(width=32)
    else:
        ends = np.iinfo(dtype)
        one = st.sampled_from([x for x in EXTREME[:12] if ends.min <= x <= ends.max]) | st.integers(ends.min, ends.max)
    return st.tuples(st.just(name), st.integers(0, length - 1), one)


@settings(max_examples=700, **FIXED)
@given(st.lists(st.sampled_from(sorted(FIELDS)).flatmap(field_values), min_size=1, max_size=4), st.booleans())
def test_header_fields_of_any_value(folder, changes, is_compressed):
    raw = bytearray(SOUND[nibabel.Nifti1Image])
    header = np.frombuffer(raw, nibabel.nifti1.header_dtype, 1)
    for name, place, value in changes:
        if FIELDS[name][0].shape:
            header[name][0, place] = value
        else:
            header[name][0] = value
    read(folder, bytes(raw), is_compressed)


@settings(max_examples=300, **FIXED)
@given(
    st.sampled_from(list(SOUND)),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
)
def test_bytes_of_any_value(folder, kind, changes, is_compressed):
    raw = bytearray(SOUND[kind])
    for place, value in changes:
        raw[place % len(raw)] = value
    read(folder, bytes(raw), is_compressed)


@settings(max_examples=250, **FIXED)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4),
    st.integers(0, 400),
    st.binary(max_size=20),
)
def test_compressed_bytes_changed_cut_and_added(folder, flips, cut, added):
    raw = SOUND[nibabel.Nifti1Image]
    content = bytearray(gzip.compress(raw))
    for place, bits in flips:
        content[place % len(content)] ^= bits
    content = bytes(content[: max(0, len(content) - cut)] if cut < 200 else content)
    read(folder, content + added, is_compressed="already")
    if content[10:] != gzip.compress(raw)[10:]:
        # Any change after gzip's header is detected, so nothing is misread.
        assert read_image(folder / "scan.nii.gz", "sub-1")[0] is None
