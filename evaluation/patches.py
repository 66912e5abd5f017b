"""Patches of packed slices: which are looked at, what tissue they hold, where they lie."""

import dataclasses

import numpy as np

from data.layouts import SubjectFiles, find_subjects
from data.volumes import read_contrasts
from utils.checks import InputError

TRUTH = {"T1": "true_t1.nii.gz", "T2": "true_t2.nii.gz", "PD": "true_pd.nii.gz"}  # of simulate_cohort.py
FEWEST = 10  # patches; with fewer there is nothing to see


@dataclasses.dataclass(frozen=True)
class Patches:
    """Some patches of some subjects.

    Attributes:
        images: Slices that the patches are taken from, `(S, H, W, C)` float32.
        table: DataFrame, a row for each patch: `slice` (place in `images`), `patch` (row-major), `subject`,
            `constraint_class`, `label` (0: none), and T1, T2 (ms) and PD (percent) where they are known.
        positions: Row, column and slice of each patch, from -1 to 1 in its image or scan, `(n, 3)`.
    """

    images: np.ndarray
    table: object
    positions: np.ndarray

    def take(self, maps):
        """Return the rows of `(S, P, F)` that belong to the patches, `(n, F)`."""
        return maps[self.table["slice"], self.table["patch"]]


def sample_patches(store, subjects, contrasts, edge, *, majority, most_slices, most_patches, seed, truth=None):
    """Draw slices of some subjects, and patches of them that are foreground in every pixel.

    With `truth`, every pixel must have protons too: bowel gas has neither T1 nor T2.

    Args:
        store: `SliceStore` with labels.
        subjects: Whose patches.
        contrasts: Channels of the images.
        edge: Edge of a patch in pixels.
        majority: Function `(maps (S, H, W), edge)` to the commonest class of each patch, `(S, P)`.
        most_slices: Slices drawn at most, of all subjects together.
        most_patches: Patches drawn at most.
        seed: Integer; the same seed draws the same patches.
        truth: From `find_truth`, or None.

    Returns:
        `Patches`, in the order of the slices.

    Raises:
        InputError: Fewer than 10 patches, or true maps that cannot be used.
    """
    import pandas

    draw = np.random.default_rng(seed)
    rows = np.sort(draw.permutation(store.rows_of(subjects))[:most_slices])
    maps = store.constraint_maps(rows)
    columns = {"constraint_class": majority(maps, edge), "label": majority(store.labels(rows), edge)}
    is_inside = patch_means(maps > 0, edge) == 1
    if truth:
        parameters, has_protons = true_parameters(store, rows, edge, truth)
        columns, is_inside = columns | parameters, is_inside & has_protons
    places = draw.permutation(np.argwhere(is_inside))[:most_patches]
    if len(places) < FEWEST:
        raise InputError(
            f"{store.path}: only {len(places)} patches of {edge} x {edge} pixels are foreground throughout, expected "
            f"at least {FEWEST}; give the constrained stage a smaller patch_size or more decoder_levels"
        )
    slices, numbers = places[np.lexsort(places.T[::-1])].T
    table = pandas.DataFrame({name: values[slices, numbers] for name, values in columns.items()})
    table = table.assign(slice=slices, patch=numbers, subject=_subjects(store, rows)[slices])
    return Patches(store.images(contrasts, rows), table, patch_positions(store, rows[slices], numbers, edge))


def patch_means(maps, edge):
    """Average maps over square patches.

    Args:
        maps: `(S, H, W)` or `(S, H, W, F)`; `edge` divides H and W.
        edge: Edge of a patch in pixels.

    Returns:
        `(S, P)` or `(S, P, F)` float32, patches in row-major order.
    """
    slices, height, width, *features = maps.shape
    pixels = np.asarray(maps, np.float32).reshape(slices, height // edge, edge, width // edge, edge, *features)
    return pixels.mean(axis=(2, 4)).reshape(slices, -1, *features)


def patch_positions(store, rows, numbers, edge):
    """Tell where patches lie.

    Args:
        store: `SliceStore`.
        rows: Slice of each patch, `(n,)`.
        numbers: Number of each patch in its slice, row-major, `(n,)`.
        edge: Edge of a patch in pixels.

    Returns:
        `(n, 3)`: row, column and slice of the centre, -1 and 1 being the borders of the image and of the scan.
    """
    shape = [size // edge for size in store.image_size]
    in_plane = (np.stack(np.unravel_index(numbers, shape), axis=1) + 0.5) / shape
    lengths = np.array([store.grid(subject).slices for subject in store.subjects])
    height = (store.slice_index[rows] + 0.5) / lengths[store.subject_index[rows]]
    return 2 * np.column_stack([in_plane, height]) - 1


def find_truth(root, contrasts, subjects):
    """Find the maps of true tissue parameters beside the scans of simulated subjects.

    Args:
        root: Folder of the data set.
        contrasts: `data.contrasts` of the config.
        subjects: Identifiers.

    Returns:
        Subject to `{quantity: file}`; None when no subject has any.

    Raises:
        InputError: Some subjects have them and others do not, or a subject has no scans.
    """
    scans = find_subjects(root, contrasts)
    unknown = [subject for subject in subjects if subject not in scans]
    if unknown:
        raise InputError([f"{subject}: has no scans below {root}; correct data.root" for subject in unknown])
    beside = {subject: next(iter(scans[subject].contrasts.values())) for subject in subjects}
    truth = {subject: {q: file.with_name(name) for q, name in TRUTH.items()} for subject, file in beside.items()}
    missing = [file for files in truth.values() for file in files.values() if not file.is_file()]
    if len(missing) == len(TRUTH) * len(truth):
        return None
    if missing:
        raise InputError([f"{file}: no such file, though other subjects have it; simulate again" for file in missing])
    return truth


def true_parameters(store, rows, edge, truth):
    """Average the true tissue parameters over the patches of slices.

    T1 and T2 of a voxel are means over its protons, and so are those of a patch here. Weighted by PD they can be
    resampled like images, across an edge to air too.

    Args:
        store: `SliceStore`.
        rows: Slices, `(S,)`.
        edge: Edge of a patch in pixels.
        truth: From `find_truth`.

    Returns:
        `{"T1": ms, "T2": ms, "PD": percent}`, `(S, P)` each, T1 and T2 0 without protons; and whether every pixel of a
        patch has protons, boolean `(S, P)`.
    """
    slices = np.empty((len(rows), *store.image_size, len(TRUTH)), np.float32)
    subjects = _subjects(store, rows)
    for subject in np.unique(subjects):
        here, grid = subjects == subject, store.grid(subject)
        volume, _ = read_contrasts(SubjectFiles(subject, truth[subject]), list(TRUTH), TRUTH)
        if volume.shape[:3] != grid.shape:
            raise InputError(f"{subject}: true maps are {volume.shape[:3]}, the scans were {grid.shape}; pack again")
        volume[..., :2] *= volume[..., 2:]
        slices[here] = grid.to_slices(volume)[store.slice_index[rows[here]]]
    t1, t2, protons = np.moveaxis(patch_means(slices, edge), -1, 0)
    weight = np.where(protons > 0, protons, 1)
    return {"T1": t1 / weight, "T2": t2 / weight, "PD": protons}, patch_means(slices[..., 2] > 0, edge) == 1


def draw_balanced(classes, number, seed):
    """Draw patches so that rare classes are seen: an equal share for each, what is left over goes to class 0.

    Args:
        classes: `(n,)` integers.
        number: How many to draw at most.
        seed: Integer.

    Returns:
        Places in `classes`, ascending.
    """
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    members = {value: shuffled[classes[shuffled] == value] for value in np.unique(classes)}
    drawn = [places[: number // len(members)] for value, places in members.items() if value]
    left_over = number - sum(map(len, drawn))
    return np.sort(np.concatenate([*drawn, members.get(0, shuffled[:0])[:left_over]]))


def _subjects(store, rows):
    return np.array(store.subjects)[store.subject_index[rows]]
