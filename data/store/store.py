"""The HDF5 schema: slices of many subjects in one file, written and read in constant memory.

Datasets: `img` (N, H, W, C) float16, `param` (N, H, W, 1) unsigned integer (the constraint map; without one, 1 in the
foreground), `param_<space>` for each further contrast space, `label` (N, H, W) uint8 (class index, only in files with
labels), `subject_index` and `slice_index` (N,), `subject_grid` (subjects,) JSON text, to map slices back to the grid of
the scan, `subject_intensities` (subjects,) JSON text, to map values back to the intensities of the scan, and
`subject_hashes` (subjects,) JSON text, hashes of the subject's files. The texts are datasets because attributes of an
HDF5 object are limited to 64 KiB, about 200 subjects. Attributes: `schema_version`, `contrasts`, `subjects`, and those
of the caller. Names, axes and order of `img` and `param` are those of the authors' data loader.
"""

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from data.geometry import SliceGrid
from data.store.checks import DAMAGE, TEXTS, check_grid, check_hashes, check_store, parse_texts, plain_attribute
from data.store.room import ask_for_room
from data.store.rows import RowReader
from data.store.texts import fixed_length, write_attribute
from utils.checks import InputError
from utils.runs import atomic_path

SCHEMA_VERSION = 1
CHUNK_BYTES = 256 * 1024
AGAIN = "make it again with generate_h5_pretraining.py --overwrite, or give another --work-dir"


@dataclass(frozen=True)
class SubjectSlices:
    """Slices of one subject to be written to a store.

    Args:
        subject: Identifier.
        grid: The mapping to the subject's scan.
        slice_index: `(n,)`, number of each slice in the scan, inferior to superior.
        images: `(n, H, W, C)`, in [0, 1].
        constraint_maps: Contrast space (None: the default one) -> `(n, H, W)` integer, 0 is background.
        labels: `(n, H, W)` class index, or None.
        intensities: Channel -> the two intensities mapped to 0 and 1.
        hashes: From `data.identity.hashes_of_subject`; empty if scans need not be distinguished.
    """

    subject: str
    grid: SliceGrid
    slice_index: np.ndarray
    images: np.ndarray
    constraint_maps: dict
    labels: np.ndarray | None = None
    intensities: dict = field(default_factory=dict)
    hashes: dict = field(default_factory=dict)


class StoreWriter:
    """Writes one store, subject by subject; a context manager that leaves nothing behind if it fails.

    Args:
        path: The file; it appears once it is complete.
        contrasts: Channel names of `img`, in order.
        image_size: `(H, W)`.
        attributes: Name -> text, number, list of texts, or any JSON value.
        has_labels: Whether every subject has labels.
        spaces: Contrast spaces whose maps every subject has, besides the default one.
    """

    def __init__(self, path, *, contrasts, image_size, attributes, has_labels, spaces=()):
        self.path, self.contrasts, self.image_size = Path(path), list(contrasts), tuple(image_size)
        self.attributes, self.has_labels, self.spaces = attributes, has_labels, (None, *spaces)
        self.subjects, self.slices = [], 0

    def __enter__(self):
        self._texts = {name: [] for name in TEXTS}
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._parts = stack.pop_all()  # on exit, the file is closed, then renamed
        return self

    def _open(self, stack):
        temporary = stack.enter_context(atomic_path(self.path))
        ask_for_room(self.path, 0)
        # This format has checksums for all metadata: without them, one wrong byte can send HDF5 into an endless loop.
        # HDF5 1.10 and later can read it.
        self._file = stack.enter_context(h5py.File(temporary, "w", libver=("v110", "v110")))
        plane = self.image_size
        self._create("img", (*plane, len(self.contrasts)), np.float16)
        for space in self.spaces:
            self._create(_maps_of(space), (*plane, 1), np.min_scalar_type(self.attributes.get("clusters", 2**16 - 1)))
        if self.has_labels:
            self._create("label", plane, np.uint8)
        self._create("subject_index", (), np.int32)
        self._create("slice_index", (), np.int32)

    def __exit__(self, kind, error, trace):
        if kind is not None:
            return self._parts.__exit__(kind, error, trace)
        with self._parts:
            ask_for_room(self.path, sum(len(line) for lines in self._texts.values() for line in lines))
            self._write_attributes()

    def add(self, subject):
        """Append the slices of one subject (`SubjectSlices`); a subject without slices is listed too."""
        count = len(subject.slice_index)
        parts = {
            "img": np.asarray(subject.images, np.float16),
            "subject_index": np.full(count, len(self.subjects), np.int32),
            "slice_index": subject.slice_index,
        }
        parts |= {_maps_of(space): np.asarray(subject.constraint_maps[space])[..., None] for space in self.spaces}
        if self.has_labels:
            parts["label"] = subject.labels
        if subject.subject in self.subjects:
            raise ValueError(f"{subject.subject}: added twice to {self.path}")
        for name, values in parts.items():
            dataset = self._file[name]
            if values is None or values.shape != (count, *dataset.shape[1:]):
                raise ValueError(
                    f"{subject.subject}: {name} is {None if values is None else values.shape}, "
                    f"expected {(count, *dataset.shape[1:])}"
                )
        ask_for_room(self.path, sum(values.nbytes for values in parts.values()))
        for name, values in parts.items():
            self._file[name].resize(self.slices + count, axis=0)
            self._file[name][self.slices :] = values
        self._file.flush()  # data left in the buffers of HDF5 would need space later
        self.slices += count
        self.subjects.append(subject.subject)
        intensities = {name: list(ends) for name, ends in subject.intensities.items()}
        for name, content in zip(TEXTS, (subject.grid.to_dict(), intensities, subject.hashes), strict=True):
            self._texts[name].append(json.dumps(content))

    def _create(self, name, shape, dtype):
        bytes_each = int(np.prod(shape)) * np.dtype(dtype).itemsize
        chunk = (max(1, CHUNK_BYTES // bytes_each), *shape) if shape else (4096,)
        self._file.create_dataset(name, (0, *shape), dtype, chunks=chunk, maxshape=(None, *shape))

    def _write_attributes(self):
        for name, lines in self._texts.items():
            self._file.create_dataset(name, data=fixed_length(lines))
        described = {"schema_version": SCHEMA_VERSION, "contrasts": self.contrasts, "subjects": self.subjects}
        for name, value in {**self.attributes, **described}.items():
            write_attribute(self._file.attrs, name, value)


class SliceStore:
    """Reads a store. The file is opened at the first access, once per process, so a store can be pickled.

    Attributes:
        path: The file.
        contrasts: Channel names of the images.
        subjects: Identifiers, in the order of `subject_index`.
        image_size: `(H, W)`.
        subject_index: `(N,)`, place of each slice's subject in `subjects`.
        slice_index: `(N,)`, number of each slice in its scan.
        has_labels: Whether there are labels.
        spaces: Contrast spaces with constraint maps, None (the default one) first.
        hashes: Subject -> hashes of its files (`data.identity`); empty for older files.
        attributes: All other attributes of the file (`clusters`, `config_hash`, `labels`, ...).

    Raises:
        InputError: The file is missing or truncated, has another schema, or lacks a dataset.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._readers, self._file, self._process = {}, None, None
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; run generate_h5_pretraining.py first")
        try:
            with h5py.File(self.path, "r") as file:
                self._read_description(file)
        except InputError:
            raise
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path}: not a complete HDF5 store ({reason}); {AGAIN}") from None

    def __len__(self):
        return len(self.subject_index)

    def __getstate__(self):
        return {**self.__dict__, "_readers": {}, "_file": None, "_process": None}

    def check_hash(self, config_hash):
        """Raise InputError if the file was made with a config of a different hash."""
        if self.attributes.get("config_hash") != config_hash:
            raise InputError(f"{self.path}: made with another config; {AGAIN}")

    def check_origin(self, **expected):
        """Raise InputError if attributes of the file differ from these values."""
        for name, value in expected.items():
            if self.attributes.get(name) != value:
                raise InputError(f"{self.path}: made with another {name}; {AGAIN}")

    def images(self, contrasts=None, rows=None):
        """Return the named contrasts in the given order (None: all in the file), `(n, H, W, C)` float32."""
        contrasts = self.contrasts if contrasts is None else list(contrasts)
        unknown = [name for name in contrasts if name not in self.contrasts]
        if unknown:
            held = ", ".join(self.contrasts)
            raise InputError([f"{self.path}: has no contrast '{name}', it holds {held}" for name in unknown])
        channels = [self.contrasts.index(name) for name in contrasts]
        return self._read("img", rows, np.float32, None if contrasts == self.contrasts else channels)

    def constraint_maps(self, rows=None, space=None):
        """Return the maps of a contrast space (None: the default), `(n, H, W)` int32: 0 background, classes from 1."""
        if space not in self.spaces:
            held = ", ".join(self.spaces[1:]) or "only those of the default one"
            raise InputError(f"{self.path}: has no maps of contrast space '{space}', it holds {held}; {AGAIN}")
        return self._in_range(self._read(_maps_of(space), rows, np.int32)[..., 0], self.attributes.get("clusters"))

    def labels(self, rows=None):
        """Return class indices, `(n, H, W)` uint8; 0 is background."""
        if not self.has_labels:
            raise InputError(f"{self.path}: holds no labels; annotated.h5 does")
        names = self.attributes.get("labels")
        return self._in_range(self._read("label", rows, np.uint8), len(names) if isinstance(names, list) else None)

    def rows_of(self, subjects):
        """Return the rows of these subjects' slices, ascending, as an integer array."""
        unknown = [subject for subject in subjects if subject not in self.subjects]
        if unknown:
            raise InputError([f"{subject}: is not in {self.path}; {AGAIN}" for subject in unknown])
        return np.flatnonzero(np.isin(self.subject_index, [self.subjects.index(subject) for subject in subjects]))

    def grid(self, subject):
        """Return the `SliceGrid` of a subject."""
        if subject not in self.subjects:
            raise InputError(f"{subject}: is not in {self.path}; {AGAIN}")
        return SliceGrid.from_dict(self._grids[self.subjects.index(subject)])

    def intensities(self, subject):
        """Return, by channel, the two intensities of a subject that are mapped to 0 and 1, in the unit of the scan."""
        found = self._intensities[self.subjects.index(subject)] if subject in self.subjects else {}
        if not found:
            raise InputError(f"{self.path}: does not say how the intensities of {subject} were scaled; {AGAIN}")
        return {name: tuple(ends) for name, ends in found.items()}

    def _read_description(self, file):
        version = plain_attribute(file.attrs.get("schema_version"))
        if version != SCHEMA_VERSION:
            raise InputError(f"{self.path}: schema version {version!r}, expected {SCHEMA_VERSION}; {AGAIN}")
        self.attributes = {name: plain_attribute(value) for name, value in file.attrs.items()}
        self.contrasts, self.subjects = self.attributes.pop("contrasts"), self.attributes.pop("subjects")
        check_store(file)
        self.has_labels = "label" in file
        self.spaces = (None, *(name.removeprefix("param_") for name in file if name.startswith("param_")))
        self.image_size = tuple(int(length) for length in file["img"].shape[1:3])
        self.subject_index, self.slice_index = (file[name][:] for name in ("subject_index", "slice_index"))
        self._grids, self._intensities, hashes = (parse_texts(file[name][:]) for name in TEXTS)
        for values in self._grids:
            check_grid(values, self.image_size)
        for values in hashes:
            check_hashes(values)
        self.hashes = dict(zip(self.subjects, hashes, strict=True)) if any(hashes) else {}

    def _in_range(self, classes, largest):
        """Return the classes; InputError if one exceeds the largest class declared in the file."""
        if largest is not None and classes.size and classes.max() > largest:
            raise InputError(f"{self.path}: holds class {classes.max()}, expected 0 to {largest}; {AGAIN}")
        return classes

    def _read(self, name, rows, dtype, channels=None):
        """Read rows (None: all; any order, repeats allowed) of one dataset, which is opened once per process."""
        try:
            # HDF5 handles must not cross a fork.
            if self._process != os.getpid():
                self._readers, self._file, self._process = {}, h5py.File(self.path, "r"), os.getpid()
            reader = self._readers.get(name)
            if reader is None:
                reader = self._readers[name] = RowReader(self._file[name])
            rows = rows if rows is None else np.asarray(rows, np.int64)
            if rows is not None and rows.size and (rows.min() < 0 or rows.max() >= len(reader)):
                raise IndexError(f"{self.path}: rows {rows.min()} to {rows.max()} requested, there are {len(reader)}")
            return reader.read(rows, dtype, channels)
        except (OSError, RuntimeError) as error:  # corrupt data in a file with a valid description
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path}: {name} cannot be read ({reason}); {AGAIN}") from None


def _maps_of(space):
    return f"param_{space}" if space else "param"
