"""Texts in HDF5: names, numbers and JSON as attributes, in a form that carries checksums and fits."""

import json

import h5py
import numpy as np

LONGEST_LIST = 4000  # texts in one attribute: 16 bytes each, and HDF5 ends at 64 KiB; more of them become one JSON text


def fixed_length(texts):
    """Texts as HDF5 stores them beside one another; those of variable length lie in a heap without a checksum."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded), 1)))


def write_attribute(attributes, name, value):
    """Write text, number, list of texts, or anything JSON can hold.

    Args:
        attributes: `h5py.AttributeManager`.
        name: Name of the attribute.
        value: Its value; `data.h5_checks.plain_attribute` gives it back.
    """
    is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if is_list and len(value) <= LONGEST_LIST:
        attributes.create(name, fixed_length(value))
    elif isinstance(value, int | float):
        attributes[name] = value
    else:
        text = fixed_length([value if isinstance(value, str) else json.dumps(value)])
        attributes.create(name, text[0], dtype=text.dtype)
