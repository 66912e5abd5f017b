"""Checks of HDF5 files before their slices are used; each raises a ValueError that states the problem."""

import json
import math

import h5py
import numpy as np

# Name -> kinds of numbers (numpy's letters) and number of axes.
FORMS = {"img": ("f", 4), "param": ("ui", 4), "label": ("ui", 3), "subject_index": ("ui", 1), "slice_index": ("ui", 1)}
TEXTS = ("subject_grid", "subject_intensities", "subject_hashes")
# All exceptions that HDF5, JSON and numpy raise on corrupt bytes.
DAMAGE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError, OverflowError)
LARGEST_COMPRESSION = 1032  # the limit of deflate


def check_store(file):
    """Check datasets, attributes and numbering of an open file.

    Args:
        file: `h5py.File`.

    Raises:
        ValueError: A dataset is missing, is in another file, differs from the schema in type or shape, or declares more
            than the file holds; names are not strings or occur twice; a slice belongs to no subject.
    """
    for name in ("contrasts", "subjects"):
        _check_names(name, plain_attribute(file.attrs.get(name)))
    if not isinstance(plain_attribute(file.attrs.get("clusters", 1)), int):
        raise ValueError("attribute 'clusters' is not a number")
    names = [*FORMS, *(name for name in file if name.startswith("param_")), *TEXTS]
    needed = [name for name in names if name in file or name != "label"]
    for name in needed:
        _check_dataset(name, file)
    contrasts, subjects = (len(plain_attribute(file.attrs[name])) for name in ("contrasts", "subjects"))
    slices, height, width, _ = file["img"].shape
    for name in (name for name in needed if name not in TEXTS):
        expected = (slices, height, width, contrasts if name == "img" else 1)[: FORMS[_form_of(name)][1]]
        if file[name].shape != expected:
            raise ValueError(f"{name} is {file[name].shape}, expected {expected}")
    for name in TEXTS:
        if file[name].shape != (subjects,):
            raise ValueError(f"{name} is {file[name].shape}, expected {(subjects,)}, one text for each subject")
    for name, end in (("subject_index", subjects), ("slice_index", math.inf)):
        numbers = file[name][:]
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < end:
            raise ValueError(f"{name} goes from {numbers.min()} to {numbers.max()}, with {subjects} subjects")


def check_grid(values, image_size):
    """Check the grid of one subject, as read from JSON.

    Args:
        values: What `SliceGrid.to_dict` returned.
        image_size: `(H, W)` of the slices.

    Raises:
        ValueError: The values are not such a dictionary, or describe the grid of other slices.
    """
    if not isinstance(values, dict) or not {"shape", "affine", "pixel_size", "image_size"} <= values.keys():
        raise ValueError("a grid needs shape, affine, pixel_size and image_size")
    affine = np.array(values["affine"], np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        raise ValueError("the affine of a grid is not 4 x 4 finite numbers that span space")
    shape, pixel_size = values["shape"], values["pixel_size"]
    if len(shape) != 3 or not all(isinstance(length, int) and length > 0 for length in shape):
        raise ValueError(f"the shape of a grid is {shape}, expected three lengths")
    if pixel_size is not None and not 0 < pixel_size < math.inf:
        raise ValueError(f"the pixel size of a grid is {pixel_size}")
    if list(values["image_size"]) != list(image_size):
        raise ValueError(f"a grid makes slices of {values['image_size']}, the file holds {list(image_size)}")


def check_hashes(values):
    """Raise ValueError if these are not the hashes of one subject, as `data.identity` writes them."""
    parts = [values.get(name, {}) for name in ("images", "maps")] + [
        {name: values.get(name) or "" for name in ("label", "mask")}
    ]
    if not all(isinstance(part, dict) and all(isinstance(digest, str) for digest in part.values()) for part in parts):
        raise ValueError("the hashes of a subject are not strings")


def parse_texts(lines):
    """Convert the JSON strings of a dataset to dictionaries, one for each subject."""
    values = [json.loads(line) for line in lines]
    if not all(isinstance(value, dict) for value in values):
        raise ValueError("the entry of a subject is not a dictionary")
    return values


def plain_attribute(value):
    """Convert an HDF5 attribute to text, number, list, or the content of its JSON string."""
    if isinstance(value, np.ndarray):
        return [item.decode() if isinstance(item, bytes) else item for item in value.tolist()]
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value.item() if isinstance(value, np.generic) else value


def _form_of(name):
    return "param" if name.startswith("param") else name


def _check_names(name, found):
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"attribute '{name}' is not a list of strings")
    if len(set(found)) != len(found):
        raise ValueError(f"attribute '{name}' holds a name twice")


def _check_dataset(name, file):
    if name not in file:
        raise ValueError(f"no dataset '{name}'")
    # Data in another file would be neither checked nor moved with this file.
    dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"'{name}' is not a dataset of this file")
    if name in TEXTS:
        if h5py.check_string_dtype(dataset.dtype) is None:
            raise ValueError(f"{name} holds {dataset.dtype} values, expected texts")
        return
    kinds, axes = FORMS[_form_of(name)]
    if dataset.dtype.kind not in kinds:
        raise ValueError(f"{name} holds {dataset.dtype} values, expected {'floats' if kinds == 'f' else 'integers'}")
    if len(dataset.shape or ()) != axes:
        raise ValueError(f"{name} is {dataset.shape}, expected {axes} axes")
    # Chunks that were never written would be read as zeros and waste memory.
    held = dataset.id.get_storage_size() * (LARGEST_COMPRESSION if dataset.id.get_create_plist().get_nfilters() else 1)
    if dataset.nbytes > held:
        raise ValueError(f"{name} declares {dataset.nbytes} bytes, the file holds {held}")
