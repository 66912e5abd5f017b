"""Crops of volumes, read from a slice store without loading whole subjects.

A crop has the axes rows, columns, slices: `(h, w, d)`, slices upwards. Its slices are consecutive in the scan: if a
store excludes slices (pretraining files do), a crop never spans a gap.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from data.store.store import SliceStore
from utils.checks import InputError

HELD_BYTES = 4 * 1024**3  # most bytes of volumes kept in memory


@dataclass(frozen=True, eq=False)
class SubjectVolume:
    """The packed slices of one subject as a volume that is read in parts.

    `volume[rows, columns, places]` with three slices of step 1 gives `(h, w, d, C)` float32, read from the file
    unless the volume is held in memory; `places` count packed slices, which must be consecutive in the scan.

    Attributes:
        store: The open `SliceStore`.
        subject: Identifier.
        contrasts: Names of the channels, in order.
        rows: Rows of the store, inferior to superior, `(S,)`.
        slice_index: Number of each of these slices in the scan, ascending, `(S,)`.
    """

    store: SliceStore
    subject: str
    contrasts: tuple[str, ...]
    rows: np.ndarray
    slice_index: np.ndarray
    _held: dict = field(default_factory=dict, repr=False)

    @property
    def shape(self):
        """`(H, W, S, C)`."""
        return (*self.store.image_size, len(self.rows), len(self.contrasts))

    @property
    def longest_run(self):
        """Largest number of slices that follow one another in the scan without a gap."""
        gaps = np.flatnonzero(np.diff(self.slice_index) != 1) + 1
        return int(np.diff([0, *gaps, len(self.rows)]).max())

    def __getitem__(self, region):
        return self._cut(region, "images", np.float32, lambda rows: self.store.images(self.contrasts, rows))

    def constraint_map(self, region, space=None):
        """Return the classes of a region, `(h, w, d)` int32, 0 background; `space` as in `SliceStore`."""
        return self._cut(region, space, np.int32, lambda rows: self.store.constraint_maps(rows, space))

    def held(self, *spaces):
        """Return the volume held in memory: images as stored, float16, and the maps of some spaces.

        The map of the default space is always included, because its foreground is used to draw crops.
        """
        held = {"images": self.store.images(self.contrasts, self.rows).astype(np.float16)}
        for space in {None, *spaces}:
            maps = self.store.constraint_maps(self.rows, space)
            held[space] = maps.astype(np.min_scalar_type(maps.max(initial=0)))
        return replace(self, _held=held)

    def starts(self, depth):
        """Return the first places of all runs of `depth` consecutive slices, ascending."""
        places = np.arange(len(self.rows) - depth + 1)
        return places[self.slice_index[places + depth - 1] - self.slice_index[places] == depth - 1]

    def check_crop(self, size):
        """Raise InputError if a crop `(h, w, d)` does not fit between the gaps."""
        height, width, depth = size
        if height <= self.shape[0] and width <= self.shape[1] and depth <= self.longest_run:
            return
        packed, run = len(self.rows), self.longest_run
        gaps = f", of which at most {run} follow one another without a gap" if run < packed else ""
        more = depth > run and self.store.attributes.get("min_foreground", 1) > 0  # 0: all slices are already packed
        cure = "use a smaller crop" + (", or lower slices.min_foreground and pack again" if more else "")
        raise InputError(
            f"{self.subject}: a crop of {tuple(size)} does not fit into {self.shape[:2]} pixels and {packed} packed "
            f"slices{gaps} ({self.store.path}); {cure}"
        )

    def _cut(self, region, name, dtype, read):
        *plane, places = region
        first, stop, step = places.indices(len(self.rows))
        index = self.slice_index[first:stop]
        if step != 1 or (np.diff(index) != 1).any():
            raise InputError(
                f"{self.subject}: the packed slices {index[0]} to {index[-1]} of {self.store.path} do not follow one "
                "another in the scan; read them run by run, or pack with slices.min_foreground: 0"
            )
        slices = self._held[name][first:stop] if name in self._held else read(self.rows[first:stop])
        return np.moveaxis(slices[(slice(None), *plane)], 0, 2).astype(dtype)


def open_volumes(store, subjects, contrasts, crop_size=None):
    """Open the packed slices of subjects as volumes; only the description of the file is read.

    Args:
        store: `SliceStore`.
        subjects: Identifiers.
        contrasts: Channels to read, in order.
        crop_size: `(h, w, d)` of the crops to draw; None: any.

    Returns:
        List of `SubjectVolume`, in the order of `subjects`.

    Raises:
        InputError: Names every contrast that the store lacks, or every subject that is missing, has no slices, or
            into which the crop does not fit.
    """
    store.images(contrasts, rows=[])  # names every unknown contrast
    store.rows_of(subjects)  # names every unknown subject
    volumes, lines = [], []
    for subject in subjects:
        rows = store.rows_of([subject])
        rows = rows[np.argsort(store.slice_index[rows], kind="stable")]
        if not len(rows):
            lines.append(f"{subject}: has no slices in {store.path}; leave it out, or lower slices.min_foreground")
            continue
        volumes.append(SubjectVolume(store, subject, tuple(contrasts), rows, store.slice_index[rows]))
        try:
            if crop_size is not None:
                volumes[-1].check_crop(crop_size)
        except InputError as error:
            lines += error.lines
    if lines:
        raise InputError(lines)
    return volumes


def held_if_small(volumes, *spaces, resident="auto", limit=HELD_BYTES):
    """Load volumes into memory, or return them unchanged to be read crop by crop.

    Args:
        volumes: List of `SubjectVolume`.
        *spaces: Contrast spaces whose maps are loaded too.
        resident: `"always"`, `"never"`, or `"auto"`: only if all volumes together fit into `limit`.
        limit: Most bytes of images, which are float16.
    """
    fits = sum(2 * math.prod(volume.shape) for volume in volumes) <= limit
    is_held = resident == "always" or resident == "auto" and fits
    return [volume.held(*spaces) for volume in volumes] if is_held else volumes


def draw_crops(volume, size, count, generator, *, min_foreground=0.25, draws=10):
    """Draw positions of crops with enough foreground.

    Every position where a crop fits is equally likely. A position with less foreground than requested is redrawn; after
    the last draw, the one with the most foreground is taken. Only the constraint maps of the slices in question are
    read from the file.

    Args:
        volume: `SubjectVolume`.
        size: `(h, w, d)` of a crop.
        count: Number of crops n.
        generator: numpy random generator.
        min_foreground: Smallest share of voxels in the foreground of the default constraint map.
        draws: Largest number of draws.

    Returns:
        First row, column and packed slice of each crop, `(n, 3)` int64.

    Raises:
        InputError: The crop does not fit into the volume.
    """
    volume.check_crop(size)
    starts = volume.starts(size[2])
    corners = np.empty((count, 3), np.int64)
    for place in range(count):
        best = -1.0
        for _ in range(draws):
            row, column = (generator.integers(n - m + 1) for n, m in zip(volume.shape[:2], size[:2], strict=True))
            corner = (row, column, starts[generator.integers(len(starts))])
            share = float((volume.constraint_map(region_of(corner, size)) > 0).mean())
            if share > best:
                best, corners[place] = share, corner
            if share >= min_foreground:
                break
    return corners


def region_of(corner, size):
    """Return the three slices, one per axis, of a crop of `size` that begins at `corner`."""
    return tuple(slice(int(first), int(first) + int(length)) for first, length in zip(corner, size, strict=True))
