"""The tables beside predictions: volumes of the classes, and units of synthesised contrasts.

Rows of subjects that are predicted again are replaced; all others are kept, including those that another run adds in
the meantime.
"""

import contextlib
import csv
import fcntl
import os

import numpy as np

from data.geometry import voxel_ml
from data.scans.volumes import read_label_map
from utils.checks import InputError
from utils.runs import atomic_path

VOLUMES, INTENSITIES = "volumes.csv", "intensities.csv"
ACQUIRED, SCALED = "acquired", "scaled 0 to 1"
VOLUME_COLUMNS = ("subject", "label", "voxels", "volume_ml")
INTENSITY_COLUMNS = ("subject", "contrast", "unit", "low", "high")


def write_volumes(table, paths, labels, is_size_known):
    """Write the volume of each class in some label maps.

    Args:
        table: CSV file.
        paths: Subject -> its label map, NIfTI.
        labels: Class name -> class index.
        is_size_known: False if the headers do not give the true voxel size, so that volumes would be meaningless.

    Raises:
        InputError: One line for each file that is not a label map of the model; nothing is written then.
    """
    measured, problems = {}, []
    for subject, path in paths.items():
        try:
            image = read_label_map(path, subject, max(labels.values()))
        except InputError as error:
            problems += error.lines
            continue
        voxels = np.bincount(image.values.ravel(), minlength=max(labels.values()) + 1)
        volumes = {n: f"{voxels[n] * voxel_ml(image.affine):.3f}" if is_size_known else "" for n in labels.values()}
        measured[subject] = [_row(VOLUME_COLUMNS, subject, name, voxels[n], volumes[n]) for name, n in labels.items()]
    if problems:
        raise InputError(problems)
    with one_after_the_other(table.parent):
        by_subject = {}
        for row in read_rows(table, VOLUME_COLUMNS).values():
            by_subject.setdefault(row["subject"], []).append(row)
        write_rows(table, VOLUME_COLUMNS, [row for rows in (by_subject | measured).values() for row in rows])


def write_intensities(table, subject, ranges):
    """Write the unit, lowest and highest intensity of synthesised contrasts of one subject.

    Args:
        table: CSV file.
        subject: Identifier.
        ranges: Contrast -> `(low, high)` of the acquired contrast, or None if there is none.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    with one_after_the_other(table.parent):
        rows = read_rows(table, INTENSITY_COLUMNS)
        for contrast, found in ranges.items():
            unit = ACQUIRED if found else SCALED
            rows[subject, contrast] = _row(INTENSITY_COLUMNS, subject, contrast, unit, *(found or (0, 1)))
        write_rows(table, INTENSITY_COLUMNS, rows.values())


def summary_of_units(table):
    """Count the rows of intensities.csv by unit, such as "3 acquired, 1 scaled 0 to 1"."""
    units = [row["unit"] for row in read_rows(table, INTENSITY_COLUMNS).values()]
    return ", ".join(f"{units.count(unit)} {unit}" for unit in (ACQUIRED, SCALED))


def read_rows(table, columns):
    """Read a table of this module: `{values of the first two columns: row}`, empty if there is none.

    Raises:
        InputError: The table has other columns.
    """
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(columns):
            raise InputError(
                f"{table}: its columns are not {', '.join(columns)}; move it away, or give another --output"
            )
        return {(row[columns[0]], row[columns[1]]): row for row in reader}


@contextlib.contextmanager
def one_after_the_other(folder):
    """Lock a folder so that runs add rows to its table one at a time; the lock ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _row(columns, *values):
    return dict(zip(columns, values, strict=True))


def write_rows(table, columns, rows):
    """Write a table atomically."""
    with atomic_path(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
