"""Strings in HDF5: names, numbers and JSON as attributes, with checksums and within the size limit."""

import json

import h5py
import numpy as np

LONGEST_LIST = 4000  # strings in one attribute: HDF5 allows 64 KiB at 16 bytes each; more become one JSON string


def fixed_length(texts):
    """Convert texts to fixed-length strings; HDF5 stores variable-length ones in a heap without a checksum."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded), 1)))


def write_attribute(attributes, name, value):
    """Write text, number, list of texts, or any JSON value.

    Args:
        attributes: `h5py.AttributeManager`.
        name: Name of the attribute.
        value: Its value; `data.store.checks.plain_attribute` reads it back.
    """
    is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if is_list and len(value) <= LONGEST_LIST:
        attributes.create(name, fixed_length(value))
    elif isinstance(value, int | float):
        attributes[name] = value
    else:
        text = fixed_length([value if isinstance(value, str) else json.dumps(value)])
        attributes.create(name, text[0], dtype=text.dtype)
