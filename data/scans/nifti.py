"""Reading one NIfTI file: voxel values and affine; corrupt, implausible and contradictory files give one line each.

Everything legal is accepted: any orientation, oblique or anisotropic voxels, either byte order, NIfTI-1 and -2.
"""

import contextlib
import gzip
import hashlib
import io
import logging
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError, SerializableImage
from nibabel.imageclasses import all_image_classes
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

log = logging.getLogger("mrccl")
AGAIN = "copy or export it again"
GZIP = b"\x1f\x8b"
COMPRESSED = (".gz", ".mgz")
HEADER_BYTES, LOOKED_AT = 348, 1024  # nibabel detects the format from 1024 bytes
# The limit of deflate: a header that declares more than this times the file's size is wrong, and reading it would
# exhaust the memory.
LARGEST_COMPRESSION = 1032
BLOCK_BYTES = 1 << 20
TOLD: list[str] = []  # the first file without orientation; often a whole dataset lacks it, so only one is reported
NO_MM = {1: "metres", 3: "micron"}  # codes of xyzt_units; the common code for unknown is taken as mm
# The two affines of a file may differ by a registration, but not in axis order or voxel size.
LARGEST_TURN_DEGREES = 45
LARGEST_STRETCH = 0.01


LABEL_TOLERANCE = 1e-4  # scaling by a slope in 32 bits may turn label 1 into 1.0000001


class Image(NamedTuple):
    """Voxel values and affine of one file, its header, and the hash of its bytes if all of them were read."""

    values: np.ndarray
    affine: np.ndarray
    header: Any = None
    digest: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


class _Unusable(Exception):
    """States, after the name of the file, what is wrong with it and what to do."""


def read_image(path: Path | str, subject: str) -> tuple[Image | None, list[str]]:
    """Read one file completely, including its checksum.

    Args:
        path: `.nii` or `.nii.gz`.
        subject: Identifier, for messages.

    Returns:
        `(Image, [])`: values with the axes of the file, without trailing axes of length 1 beyond the third, unscaled
        integers as integers; affine `(4, 4)` float64, voxel to world in RAS+, mm. `(None, [line])` for an unusable
        file.
    """
    path, problems = Path(path), list[str]()
    with _explained(f"{subject}: '{path}'", problems), LoggingOutputSuppressor(), np.errstate(all="ignore"):
        content, head = _checked_content(path)
        # ISA-L decompresses in half the time of zlib.
        with io.BytesIO(content) as raw, igzip.open(raw) if content else contextlib.nullcontext() as stream:
            file = _opened(path, head, stream)
            _check_header(file, path)
            affine = _affine_of(file, path)
            try:
                values = np.asanyarray(file.dataobj)
            except OSError as error:
                if not content or isinstance(error, gzip.BadGzipFile) or "bytes" not in str(error):
                    raise
                raise _Unusable(f"is truncated: it ends before the last voxel; {AGAIN}") from None
            while stream and stream.read(BLOCK_BYTES):  # read to the end, where the checksum is
                pass
        while values.ndim > 3 and values.shape[-1] == 1:
            values = values[..., 0]
        digest = hash_of([hashlib.blake2b(content).digest()]) if content else None
        return Image(values, affine, file.header, digest), []
    return None, problems


def hash_of(digests: Iterable[bytes]) -> str:
    """Return 16 hexadecimal digits for several files, given the BLAKE2 digest of each."""
    return hashlib.blake2b(b"".join(digests), digest_size=8).hexdigest()


@contextlib.contextmanager
def _explained(where, problems):
    """Turn any error within the `with` statement into a line of `problems`."""
    try:
        yield
        return
    except _Unusable as error:
        problem = str(error)
    except EOFError:
        problem = f"is truncated; {AGAIN}"
    except gzip.BadGzipFile as error:
        what = "its checksum does not match" if "check" in str(error) else "other data follow its end"
        problem = f"is damaged ({what}); {AGAIN}"
    except (zlib.error, isal_zlib.error):
        problem = f"is damaged; {AGAIN}"
    except ImageFileError:
        problem = f"is not a NIfTI file; {AGAIN}"
    except MemoryError:
        problem = "does not fit into memory; crop it, or work on a larger machine"
    except (OSError, ValueError, TypeError, OverflowError, HeaderDataError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        problem = f"cannot be read ({reason}); {AGAIN}"
    problems.append(f"{where} {problem}")


def whole_number(value: float) -> float:
    """Return the whole number that a label value represents, or the value itself if it represents none."""
    is_near = math.isfinite(value) and abs(value - round(value)) <= LABEL_TOLERANCE
    return round(value) if is_near else value


def _checked_content(path):
    """Return the bytes of a compressed file (None for others), and the first bytes of its uncompressed content."""
    if path.is_symlink() and not path.exists():
        raise _Unusable(f"is a link to '{os.readlink(path)}', which does not exist; fix the link")
    if not path.exists():
        raise _Unusable("does not exist; add it")
    if not path.is_file():
        raise _Unusable(f"is {'a folder' if path.is_dir() else 'not a regular file'}; put the scan in its place")
    if path.stat().st_size == 0:
        raise _Unusable(f"is empty (0 bytes); {AGAIN}")
    is_compressed = path.suffix in COMPRESSED
    with open(path, "rb") as raw:
        content = raw.read(None if is_compressed else LOOKED_AT)
    is_gzip = content.startswith(GZIP)
    if is_compressed and not is_gzip:
        raise _Unusable(f"is not a gzip file, although its name ends in {path.suffix}; {AGAIN}")
    if is_gzip and not is_compressed:
        raise _Unusable("is a gzip file, although its name does not end in .gz; rename it")
    with gzip.open(io.BytesIO(content)) if is_compressed else io.BytesIO(content) as stream:
        head = stream.read(LOOKED_AT)
    if len(head) < HEADER_BYTES:
        raise _Unusable(f"ends after {len(head)} bytes, within its header; {AGAIN}")
    return content if is_compressed else None, head


def _opened(path, head, stream):
    """Open an image as nibabel.load does, from the stream of its uncompressed bytes if there is one."""
    sniff = head, str(path)
    for kind in all_image_classes if stream else ():
        is_valid, sniff = kind.path_maybe_image(path, sniff)
        if is_valid and issubclass(kind, SerializableImage):
            return kind.from_stream(stream)
    return nibabel.load(path)


def _check_header(file, path):
    header, shape, dtype = file.header, file.shape, file.get_data_dtype()
    if min(shape, default=0) < 1:
        raise _Unusable(f"has an axis of length 0 or less; {AGAIN}")
    if dtype.kind not in "iuf":
        what = "colours" if dtype.fields else f"{dtype} values"
        raise _Unusable(f"holds {what}; export it as integers or floats")
    if isinstance(file, nibabel.Nifti1Image):
        if units := NO_MM.get(int(header["xyzt_units"]) & 7):
            raise _Unusable(f"gives lengths in {units}; convert its affine to mm and set xyzt_units")
        if file.dataobj.offset < header.single_vox_offset:
            raise _Unusable(f"says that its data begin at byte {file.dataobj.offset}, within its header; {AGAIN}")
    _check_size(dtype.itemsize * math.prod(map(int, shape)), file, path)


def _check_size(announced, file, path):
    """Refuse a file that cannot hold what its header declares, before memory is allocated."""
    if not isinstance(file, SerializableImage):
        return  # a pair of files
    announced, size = announced + int(getattr(file.dataobj, "offset", 0)), path.stat().st_size
    is_compressed = path.suffix in COMPRESSED
    if announced > size * (LARGEST_COMPRESSION if is_compressed else 1):
        held = f"{size} compressed" if is_compressed else size
        raise _Unusable(f"is truncated: its header declares {announced} bytes, the file has {held}; {AGAIN}")


def _affine_of(file, path):
    affine = np.asarray(file.affine, np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6:
        raise _Unusable("has no usable affine (voxel axes of length 0, NaN, or in one plane); fix its header")
    if isinstance(file, nibabel.Nifti1Image):
        if int(file.header["sform_code"]) > 0:
            _check_forms(affine, _qform_of(file.header))
        elif int(file.header["qform_code"]) == 0:
            _warn_of_no_orientation(str(path))
    return affine


def _warn_of_no_orientation(path):
    """Warn of a file without orientation information, which NIfTI readers treat like an Analyze file."""
    if not TOLD:
        TOLD.append(path)
        log.warning(
            "'%s' has no orientation (sform_code and qform_code are 0); its axes are assumed to run to the patient's "
            "left, front and head. Otherwise slices are not axial, or left and right are swapped; set its affine. "
            "Only the first such file is reported",
            path,
        )


def _qform_of(header):
    try:
        return header.get_qform(coded=True)[0]
    except (ValueError, HeaderDataError):
        return None  # a valid sform needs no qform


def _check_forms(sform, qform):
    """Refuse a file whose two affines disagree about axis order, left and right, or voxel size."""
    if qform is None or not np.isfinite(qform).all():
        return
    lengths = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (sform, qform)]
    if not (lengths[1] > 0).all():
        return
    cosines = (sform[:3, :3] * qform[:3, :3]).sum(axis=0) / (lengths[0] * lengths[1])
    if cosines.min() < math.cos(math.radians(LARGEST_TURN_DEGREES)):
        codes = ["".join(nibabel.aff2axcodes(affine)) for affine in (sform, qform)]
        what = f"the direction of its axes ({codes[0]} and {codes[1]})"
    elif np.abs(lengths[0] / lengths[1] - 1).max() > LARGEST_STRETCH:
        sizes = [" x ".join(f"{length:.3g}" for length in each) for each in lengths]
        what = f"the size of a voxel ({sizes[0]} and {sizes[1]} mm)"
    else:
        return
    raise _Unusable(f"has an sform and a qform that differ in {what}; set the wrong one to the other")
