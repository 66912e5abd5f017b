"""Single results of a `SubjectReader` in one call each, for tests of what it reads."""

from pathlib import Path

from data.layouts.subjects import SubjectFiles
from data.scans.grid import Grid
from data.scans.scan import grid_of_scan
from data.scans.subject import SubjectReader
from utils.checks import InputError
from utils.config.data import Wanted


def read_contrasts(files, names, contrasts):
    reader = SubjectReader(files, Wanted(Path(), contrasts), names)
    return reader.volume(), reader.grid.affine


def problems_of_subject(files, contrasts, names=None, *, labels=None, ignored=()):
    return SubjectReader(files, Wanted(Path(), contrasts, labels=labels or {}, ignored=ignored), names).problems()


def grid_of_subject(files, names, contrasts):
    grid = SubjectReader(files, Wanted(Path(), contrasts), names).grid
    return grid.shape, grid.affine


def read_label(files, labels, ignored=(), shape=None, affine=None):
    """Read a label map; without a shape, its grid is not checked, or it is resampled to that of one contrast."""
    reader = SubjectReader(files, Wanted(Path(), dict.fromkeys(files.contrasts, ""), labels=labels, ignored=ignored))
    if shape is not None:
        return SubjectReader(files, reader.wanted, grid=Grid(None, tuple(shape[:3]), affine)).label()
    classes, problems = reader.checked_label(reader.grid if reader.is_resampled else None)
    if problems:
        raise InputError(problems)
    return classes


def read_mask(files, shape, affine=None):
    affine = grid_of_scan(files.mask, files.subject).affine if affine is None else affine
    return SubjectReader(files, Wanted(Path(), {}), grid=Grid(None, tuple(shape[:3]), affine)).mask()


def read_constraint_map(path, subject, shape, affine, clusters):
    files = SubjectFiles(subject, {})
    return SubjectReader(files, Wanted(Path(), {}), grid=Grid(None, shape, affine)).constraint_map(path, clusters)
