"""Patches of packed slices or volumes: their selection, tissue and position."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from data.layouts.subjects import SubjectFiles
from data.scans.subject import SubjectReader
from data.store.crops import draw_crops, open_volumes
from utils.checks import InputError
from utils.config.data import Wanted

TRUTH = {"T1": "true_t1.nii.gz", "T2": "true_t2.nii.gz", "PD": "true_pd.nii.gz"}  # of simulate_cohort.py
FEWEST = 10  # patches; with fewer, results would be meaningless


@dataclasses.dataclass(frozen=True)
class Regions:
    """The regions of a store that a network sees: whole slices, or crops of volumes.

    Attributes:
        store: `SliceStore`.
        rows: Rows of the store that a region spans, those of one subject, `(S, d)`; d is 1 for slices.
        corners: First row and column of each region in its slices, `(S, 2)`.
        size: `(h, w)` of slices, `(h, w, d)` of crops.
    """

    store: object
    rows: np.ndarray
    corners: np.ndarray
    size: tuple[int, ...]

    @classmethod
    def of_slices(cls, store, rows):
        """Take whole slices."""
        rows = np.asarray(rows)[:, None]
        return cls(store, rows, np.zeros((len(rows), 2), int), tuple(store.image_size))

    @classmethod
    def of_crops(cls, store, subjects, generator, *, size, min_foreground, validation):
        """Draw crops of volumes, `validation` per subject, in the same way as validation crops; they may overlap."""
        rows, corners = [], []
        for volume in open_volumes(store, subjects, store.contrasts[:1], size):
            for *corner, place in draw_crops(volume, size, validation, generator, min_foreground=min_foreground):
                rows.append(volume.rows[place : place + size[2]])
                corners.append(corner)
        return cls(store, np.array(rows), np.array(corners), tuple(size))

    @classmethod
    def drawn(cls, store, subjects, generator, most, crops=None):
        """Draw slices, or crops as in the `crops` section of a config, at most `most` over all subjects.

        Raises:
            InputError: There are no slices of these subjects.
        """
        rows = store.rows_of(subjects)
        if not len(rows):
            named = ", ".join(subjects) or "a part of the split"
            raise InputError(
                f"{store.path}: holds no slices of {named}; correct data.splits, or add the missing labels"
            )
        if not crops:
            return cls.of_slices(store, np.sort(generator.permutation(rows)[:most]))
        regions = cls.of_crops(store, subjects, generator, **crops)
        return regions.take(np.sort(generator.permutation(len(regions.rows))[:most]))

    def take(self, places):
        """Select some of these regions."""
        return dataclasses.replace(self, rows=self.rows[places], corners=self.corners[places])

    def cut(self, read):
        """Cut the regions from slices, which `read` returns as `(d, H, W, ...)` for rows; `(S, h, w[, d], ...)`."""
        height, width = self.size[:2]
        pairs = zip(self.rows, self.corners, strict=True)
        parts = [np.moveaxis(read(rows)[:, y : y + height, x : x + width], 0, 2) for rows, (y, x) in pairs]
        return np.stack(parts)[:, :, :, 0] if len(self.size) == 2 else np.stack(parts)

    def subjects(self):
        """Return the subject of each region, `(S,)`."""
        return np.array(self.store.subjects)[self.store.subject_index[self.rows[:, 0]]]


@dataclasses.dataclass(frozen=True)
class Patches:
    """Some patches of some subjects.

    Attributes:
        images: Slices or crops that the patches are taken from, `(S, h, w[, d], C)` float32.
        table: DataFrame, a row for each patch: `image` (place in `images`), `patch` (row-major), `subject`,
            `constraint_class`, `label` (0: none) if there are labels, T1, T2 (ms) and PD (percent) if known, and means
            of the requested contrasts, in [0, 1].
        positions: Row, column and slice of each patch, from -1 to 1 in the whole slice and scan, `(n, 3)`.
    """

    images: np.ndarray
    table: object
    positions: np.ndarray

    def take(self, maps):
        """Return the rows of `(S, P, F)` that belong to the patches, `(n, F)`."""
        return maps[self.table["image"], self.table["patch"]]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Which patches are drawn.

    Attributes:
        most_images: Largest number of slices or crops, over all subjects.
        most_patches: Largest number of patches.
        seed: Integer; the same seed draws the same patches.
        crops: Section `crops` of the config, as a dictionary; None: whole slices.
    """

    most_images: int
    most_patches: int
    seed: int
    crops: dict | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is recorded for each patch, and how.

    Attributes:
        majority: Function `(maps (S, h, w[, d]), edge)` to the most frequent class of each patch, `(S, P)`.
        truth: From `find_truth`, or None. If given, every pixel must have protons: bowel gas has neither T1 nor T2.
        beside: Channels whose mean in each patch is also computed; columns `contrast <name>`.
    """

    majority: object
    truth: dict | None = None
    beside: tuple[str, ...] | list[str] = ()


def sample_patches(store, subjects, contrasts, edge, drawing, contents):
    """Draw slices or crops of some subjects, and patches in them that consist of foreground only.

    Args:
        store: `SliceStore`; without labels, patches have none.
        subjects: Identifiers.
        contrasts: Channels of the images.
        edge: Edge of a patch in pixels, along every axis.
        drawing: Which patches are drawn, a `Drawing`.
        contents: What is recorded for them, a `Contents`.

    Returns:
        `Patches`, in the order of the slices.

    Raises:
        InputError: There are no slices of these subjects, fewer than 10 patches, or true maps that cannot be used.
    """
    import pandas

    draw = np.random.default_rng(drawing.seed)
    regions = Regions.drawn(store, subjects, draw, drawing.most_images, drawing.crops)
    columns, is_inside = _contents(regions, edge, contents)
    places = draw.permutation(np.argwhere(is_inside))[: drawing.most_patches]
    if len(places) < FEWEST:
        shape = " x ".join([str(edge)] * len(regions.size))
        raise InputError(
            f"{store.path}: only {len(places)} patches of {shape} pixels are foreground throughout, expected "
            f"at least {FEWEST}; give the constrained stage a smaller patch_size or more decoder_levels"
        )
    images, numbers = places[np.lexsort(places.T[::-1])].T
    table = pandas.DataFrame({name: values[images, numbers] for name, values in columns.items()})
    table = table.assign(image=images, patch=numbers, subject=regions.subjects()[images])
    shown = regions.cut(functools.partial(store.images, contrasts))
    return Patches(shown, table, patch_positions(regions.take(images), numbers, edge))


def _contents(regions, edge, contents):
    """Return the contents of all patches, `{column: (S, P)}`, and which lie entirely inside, boolean `(S, P)`."""
    store, means = regions.store, functools.partial(patch_means, edge=edge, rank=len(regions.size))
    maps = regions.cut(store.constraint_maps)
    columns, is_inside = {"constraint_class": contents.majority(maps, edge)}, means(maps > 0) == 1
    if store.has_labels:
        columns["label"] = contents.majority(regions.cut(store.labels), edge)
    for name in contents.beside:
        columns[f"contrast {name}"] = means(regions.cut(functools.partial(store.images, [name])))[..., 0]
    if contents.truth:
        parameters, has_protons = true_parameters(regions, edge, contents.truth)
        columns, is_inside = columns | parameters, is_inside & has_protons
    return columns, is_inside


def patch_means(maps, edge, rank=2):
    """Average maps over square or cubic patches.

    Args:
        maps: `(S, H, W[, D])` or `(S, H, W[, D], F)`; `edge` divides H, W and D.
        edge: Edge of a patch in pixels.
        rank: 2 for slices, 3 for volumes.

    Returns:
        `(S, P)` or `(S, P, F)` float32, patches in row-major order.
    """
    count, sizes, features = len(maps), maps.shape[1 : rank + 1], maps.shape[rank + 1 :]
    split = [length for size in sizes for length in (size // edge, edge)]
    pixels = np.asarray(maps, np.float32).reshape(count, *split, *features)
    return pixels.mean(axis=tuple(range(2, 2 * rank + 1, 2))).reshape(count, -1, *features)


def patch_positions(regions, numbers, edge):
    """Compute the positions of patches.

    Args:
        regions: `Regions`, one for each of the `n` patches.
        numbers: Number of each patch in its region, row-major, `(n,)`.
        edge: Edge of a patch in pixels.

    Returns:
        `(n, 3)`: row, column and slice of the centre, -1 and 1 being the borders of the whole slice and of the scan.
    """
    store, size = regions.store, np.array([*regions.size, 1][:3])
    edges = np.array([edge, edge, edge][: len(regions.size)] + [1] * (3 - len(regions.size)))
    inside = np.stack(np.unravel_index(numbers, size // edges), axis=1)
    first = np.column_stack([regions.corners, store.slice_index[regions.rows[:, 0]]])
    lengths = np.array([store.grid(subject).slices for subject in store.subjects])
    whole = [np.full(len(numbers), length) for length in store.image_size]
    whole = np.column_stack([*whole, lengths[store.subject_index[regions.rows[:, 0]]]])
    return 2 * (first + (inside + 0.5) * edges) / whole - 1


def find_truth(scans, subjects):
    """Find the maps of true tissue parameters beside the scans of simulated subjects.

    Args:
        scans: Subject -> `SubjectFiles`, of all subjects.
        subjects: Identifiers.

    Returns:
        Subject -> `{quantity: file}`; None if no subject has any.

    Raises:
        InputError: Some subjects have them and others do not, or a subject has no scans.
    """
    unknown = [subject for subject in subjects if subject not in scans]
    if unknown:
        raise InputError([f"{subject}: has no scans below data.root; correct it" for subject in unknown])
    beside = {subject: next(iter(scans[subject].contrasts.values())) for subject in subjects}
    truth = {subject: {q: file.with_name(name) for q, name in TRUTH.items()} for subject, file in beside.items()}
    missing = [file for files in truth.values() for file in files.values() if not file.is_file()]
    if len(missing) == len(TRUTH) * len(truth):
        return None
    if missing:
        raise InputError([f"{file}: no such file, though other subjects have it; simulate again" for file in missing])
    return truth


def true_parameters(regions, edge, truth):
    """Average the true tissue parameters over the patches of regions.

    T1 and T2 of a voxel are means over its protons, as are those of a patch. Weighted by PD, they can be resampled like
    images, even across a boundary with air.

    Args:
        regions: `Regions`.
        edge: Edge of a patch in pixels.
        truth: From `find_truth`.

    Returns:
        `{"T1": ms, "T2": ms, "PD": percent}`, `(S, P)` each, with T1 and T2 0 where there are no protons; and whether
        every pixel of a patch has protons, boolean `(S, P)`.
    """
    store, rank = regions.store, len(regions.size)

    @functools.lru_cache(maxsize=1)
    def weighted(subject):
        grid = store.grid(subject)
        volume = SubjectReader(SubjectFiles(subject, truth[subject]), Wanted(Path(), TRUTH)).volume()
        if volume.shape[:3] != grid.shape:
            raise InputError(f"{subject}: true maps are {volume.shape[:3]}, the scans were {grid.shape}; pack again")
        volume[..., :2] *= volume[..., 2:]
        return grid.to_slices(volume)

    parts = regions.cut(lambda rows: weighted(store.subjects[store.subject_index[rows[0]]])[store.slice_index[rows]])
    t1, t2, protons = np.moveaxis(patch_means(parts, edge, rank), -1, 0)
    weight = np.where(protons > 0, protons, 1)
    return {"T1": t1 / weight, "T2": t2 / weight, "PD": protons}, patch_means(parts[..., 2] > 0, edge, rank) == 1


def draw_balanced(classes, number, seed):
    """Draw patches so that rare classes are represented: equal shares, with the remainder for class 0.

    Args:
        classes: `(n,)` integers.
        number: Largest number to draw.
        seed: Integer.

    Returns:
        Indices into `classes`, ascending.
    """
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    members = {value: shuffled[classes[shuffled] == value] for value in np.unique(classes)}
    drawn = [places[: number // len(members)] for value, places in members.items() if value]
    left_over = number - sum(map(len, drawn))
    return np.sort(np.concatenate([*drawn, members.get(0, shuffled[:0])[:left_over]]))
