"""Bad scans: each function damages the file of one contrast of one subject; the text is the expected message.

The subject's name precedes the text, and `{path}` stands for the file.
"""

import gzip

import nibabel
import numpy as np

from tests.cohort import AFFINE, SHAPE, save, volumes

AGAIN = "copy or export it again"
CASES = {}  # name -> (function of the path, expected text)


def bad(text):
    def add(function):
        CASES[function.__name__] = function, text
        return function

    return add


def t1():
    return volumes(1)["t1"]


def raw_of(array=None, kind=nibabel.Nifti1Image):
    """Return the bytes of a valid uncompressed file."""
    array = t1() if array is None else array
    return bytearray(kind(array, AFFINE, dtype=array.dtype).to_bytes())


def with_header(path, array=None, **fields):
    """Write a file with a changed header."""
    raw = raw_of(array)
    header = np.frombuffer(raw, nibabel.nifti1.header_dtype, 1)
    for name, value in fields.items():
        header[name][0] = value
    path.write_bytes(gzip.compress(bytes(raw)))


def dim(*lengths):
    return [len(lengths), *lengths, *[1] * (7 - len(lengths))]


@bad(f"'{{path}}' is truncated; {AGAIN}")
def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


@bad(f"'{{path}}' is truncated; {AGAIN}")
def checksum_cut_off(path):
    save(path, np.random.default_rng(0).random((40, 40, 20)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-8])


@bad(f"'{{path}}' is truncated: it ends before the last voxel; {AGAIN}")
def truncated_before_compression(path):
    path.write_bytes(gzip.compress(bytes(raw_of()[:-100])))


@bad(f"'{{path}}' ends after 200 bytes, within its header; {AGAIN}")
def truncated_in_header(path):
    path.write_bytes(gzip.compress(bytes(raw_of()[:200])))


@bad(f"'{{path}}' is empty (0 bytes); {AGAIN}")
def zero_size(path):
    path.write_bytes(b"")


@bad(f"'{{path}}' ends after 0 bytes, within its header; {AGAIN}")
def compressed_nothing(path):
    path.write_bytes(gzip.compress(b""))


@bad(f"'{{path}}' is not a NIfTI file; {AGAIN}")
def wrong_magic(path):
    with_header(path, magic=b"abc")


@bad(f"'{{path}}' is not a gzip file, although its name ends in .gz; {AGAIN}")
def web_page_instead_of_scan(path):
    path.write_text("<!DOCTYPE html><title>404 Not Found</title>" * 20)


@bad(f"'{{path}}' is not a gzip file, although its name ends in .gz; {AGAIN}")
def uncompressed_under_compressed_name(path):
    path.write_bytes(bytes(raw_of()))


@bad(f"'{{path}}' is damaged (other data follow its end); {AGAIN}")
def garbage_behind_gzip(path):
    path.write_bytes(path.read_bytes() + b"garbage" * 10)


@bad(f"'{{path}}' is damaged (its checksum does not match); {AGAIN}")
def one_bit_flipped(path):
    """In a stored block, so that decompression alone does not notice."""
    content = bytearray(gzip.compress(bytes(raw_of(np.random.default_rng(0).random((40, 40, 20), np.float32))), 0))
    content[-5000] ^= 1
    path.write_bytes(bytes(content))


@bad(f"'{{path}}' is damaged; {AGAIN}")
def bytes_overwritten(path):
    """With bytes that no compressor writes."""
    content = bytearray(gzip.compress(bytes(raw_of())))
    content[10] = 7
    path.write_bytes(bytes(content))


@bad("'{path}' has 2 voxels that are NaN or infinite; export it again or set them to 0")
def nan_and_infinity(path):
    array = t1()
    array[3, 3, 3], array[4, 4, 2] = np.nan, -np.inf
    save(path, array)


@bad("'{path}' holds complex64 values; export it as integers or floats")
def complex_numbers(path):
    save(path, t1().astype(np.complex64))


@bad("'{path}' holds colours; export it as integers or floats")
def colours(path):
    save(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


@bad("'{path}' has values from 0 to 6.<any>e+40, beyond 32-bit floats; fix its scl_slope")
def slope_beyond_floats(path):
    with_header(path, t1().astype(np.int16), scl_slope=1e38, scl_inter=0)


@bad("'{path}' has values from 0 to 6.<any>e+302, beyond 32-bit floats; fix its scl_slope")
def values_beyond_floats(path):
    save(path, np.where(t1() > 100, 1e300 * t1().astype(float), 0))


@bad(f"'{{path}}' cannot be read (Valid slope but invalid intercept nan); {AGAIN}")
def intercept_nan(path):
    with_header(path, scl_slope=1, scl_inter=np.nan)


@bad("'{path}' is constant (7 everywhere); replace the file")
def constant(path):
    save(path, np.full(SHAPE, 7, np.int16))


@bad("'{path}' is (16, 14, 4, 2), expected 3 axes; list it as {{file: ..., volumes: n}} if it is a series")
def four_axes(path):
    save(path, np.stack([t1()] * 2, axis=-1))


@bad("'{path}' is (16, 14, 4, 1, 3), expected 3 axes; list it as {{file: ..., volumes: n}} if it is a series")
def five_axes(path):
    save(path, np.stack([t1()[..., None]] * 3, axis=-1))


@bad("'{path}' is (16, 14), expected 3 axes; list it as {{file: ..., volumes: n}} if it is a series")
def two_axes(path):
    save(path, t1()[..., 0])


@bad(f"'{{path}}' has an axis of length 0 or less; {AGAIN}")
def axis_of_length_zero(path):
    with_header(path, dim=dim(16, 0, 4))


@bad(f"'{{path}}' has an axis of length 0 or less; {AGAIN}")
def axis_of_negative_length(path):
    with_header(path, dim=dim(16, -14, 4))


@bad(f"'{{path}}' is truncated: its header declares 140724603847004 bytes, the file has <any> compressed; {AGAIN}")
def header_announces_128_terabytes(path):
    with_header(path, dim=dim(32767, 32767, 32767), datatype=16)


@bad(f"'{{path}}' says that its data begin at byte 0, within its header; {AGAIN}")
def data_begin_in_header(path):
    with_header(path, vox_offset=0)


@bad(f"'{{path}}' cannot be read (cannot convert float infinity to integer); {AGAIN}")
def data_begin_at_infinity(path):
    with_header(path, vox_offset=np.inf)


@bad(f"'{{path}}' cannot be read (data code 999 not recognized); {AGAIN}")
def unknown_type(path):
    with_header(path, datatype=999)


@bad("'{path}' has no usable affine (voxel axes of length 0, NaN, or in one plane); fix its header")
def singular_affine(path):
    with_header(path, srow_z=[0, 0, 0, 0])


@bad("'{path}' has no usable affine (voxel axes of length 0, NaN, or in one plane); fix its header")
def affine_of_nan(path):
    with_header(path, srow_x=[np.nan] * 4)


@bad("'{path}' gives lengths in micron; convert its affine to mm and set xyzt_units")
def lengths_in_micron(path):
    with_header(path, xyzt_units=3)


def with_two_affines(path, qform):
    image = nibabel.Nifti1Image(t1(), AFFINE)
    image.set_sform(AFFINE, code="scanner")
    image.set_qform(qform, code="scanner")
    nibabel.save(image, path)


DIFFER = "'{path}' has an sform and a qform that differ in"


@bad(f"{DIFFER} the direction of its axes (LAS and RAS); set the wrong one to the other")
def sform_and_qform_swap_left_and_right(path):
    with_two_affines(path, np.diag([-1, 1, 1, 1]) @ AFFINE)


@bad(f"{DIFFER} the size of a voxel (2 x 2 x 5 and 2 x 2 x 3 mm); set the wrong one to the other")
def sform_and_qform_differ_in_voxel_size(path):
    with_two_affines(path, AFFINE @ np.diag([1, 1, 0.6, 1]))


ONE_GRID = 'all files of a subject must share one grid, or set data.resample_to (README, "Preparing data")'


@bad(f"'{{path}}' is (16, 14, 3) but 't1.nii.gz' is (16, 14, 4); {ONE_GRID}")
def another_number_of_slices_in_t2(path):
    save(path, t1()[..., :3])


@bad(f"'{{path}}' and 't1.nii.gz' differ in origin by 0.5 voxels; {ONE_GRID}")
def another_origin_in_t2(path):
    shifted = AFFINE.copy()
    shifted[1, 3] += 1
    save(path, t1(), shifted)


@bad(f"'{{path}}' and 't1.nii.gz' differ in voxel axes by 2 voxels; {ONE_GRID}")
def mirrored_affine_in_t2(path):
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    save(path, t1(), mirrored)


def scaled(path, factor, offset=0.0):
    """Store a scan in 64 bits with changed values."""
    save(path, t1().astype(np.float64) * factor + offset)


@bad("'{path}' has values from <any> to 6.<any>e-40, too small to calculate with in 32-bit floats; fix its scl_slope")
def subnormal(path):
    scaled(path, 1e-42)


@bad("'{path}' has values from <any> to 6.<any>e-58, too small to calculate with in 32-bit floats; fix its scl_slope")
def smaller_than_any_32_bit_float(path):
    scaled(path, 1e-60)


@bad("'{path}' has values from <any> to 6.<any>e+34, too large to calculate with in 32-bit floats; fix its scl_slope")
def near_the_largest_32_bit_float(path):
    scaled(path, 1e32)


@bad("'{path}' has values from 1<any> to 1<any>, which 32-bit floats hardly tell apart; subtract an offset")
def small_differences_of_large_numbers(path):
    scaled(path, 1e-3, 1e10)
