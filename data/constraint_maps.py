"""Constraint maps: from the contrasts of one subject to one tissue class per voxel.

Principal components of the contrasts, total-variation denoising of the component images, k-means on the voxels.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from skimage.restoration import denoise_tv_bregman
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from threadpoolctl import threadpool_limits

from data.geometry import axial_turns
from data.intensity import check_mask, foreground_mask, intensity_ranges, scale_between
from utils.checks import check_axes

SAMPLE_VOXELS = 100_000  # used to fit the k-means centres, to which all voxels are then assigned
STARTS = 5  # k-means runs; the best on the sample is kept
ROUNDS = 100  # at most, of Lloyd's algorithm; later ones move few voxels


@dataclass(frozen=True)
class ContrastSpace:
    """The foreground voxels of a subject as points in the space in which k-means clusters them.

    Attributes:
        features: `(voxels, P)` float32, denoised principal components, in the order of `inside`.
        explained_variance: `(C,)` share of the variance inside the mask along each principal direction, sums to 1.
        inside: Foreground, boolean `(rows, columns, slices)`, with the input reoriented to axial slices.
        turn_back: Function from these axes to those of the input, `(X, Y, Z, ...)`.
        seconds: Duration of each part: mask, scaling, pca, denoising.
    """

    features: np.ndarray
    explained_variance: np.ndarray
    inside: np.ndarray
    turn_back: Callable
    seconds: dict

    def restore(self, values):
        """Put values of the voxels, `(voxels, ...)`, into a volume `(X, Y, Z, ...)`, 0 outside the foreground."""
        whole = np.zeros((*self.inside.shape, *values.shape[1:]), values.dtype)
        whole[self.inside] = values
        return self.turn_back(whole)

    def components_of_slice(self, number):
        """Return the denoised components of one axial slice, `(rows, columns, P)`, 0 outside the foreground."""
        shown = self.inside[..., number]
        images = np.zeros((*shown.shape, self.features.shape[1]), np.float32)
        images[shown] = self.features[np.flatnonzero(self.inside) % self.inside.shape[2] == number]
        return images


@dataclass(frozen=True)
class ConstraintMap:
    """A constraint map and how it was made.

    Attributes:
        classes: `(X, Y, Z)` unsigned integer; 0 outside the mask, 1...K inside, dark to bright along component 1.
        space: `ContrastSpace` that was clustered.
        class_sizes: `(K,)` voxels of class 1...K, none of them 0.
        inertia: Sum over foreground voxels of the squared distance to their class centre, in units of the common
            range of the components.
        seconds: Duration of each part: mask, scaling, pca, denoising, kmeans.
    """

    classes: np.ndarray
    space: ContrastSpace
    class_sizes: np.ndarray
    inertia: float
    seconds: dict = field(default_factory=dict)

    @property
    def components(self):
        """Denoised principal components, `(X, Y, Z, P)` float32; 0 outside the mask. Computed at each access."""
        return self.space.restore(self.space.features)


def constraint_map(
    volume, mask=None, *, clusters=20, components=4, tv_weight=40, percentiles=(1, 99), seed=0, affine=None
):
    """Cluster the contrasts of one subject.

    Args:
        volume: Intensities in any unit, `(X, Y, Z, C)`.
        mask: Foreground, boolean `(X, Y, Z)`; None: segmented from the images.
        clusters: Number of classes K; fewer if the foreground has fewer distinct values.
        components: Principal components used, at most C.
        tv_weight: Weight of the denoising, relative to components in [0, 1]; higher means less smoothing.
        percentiles: Foreground intensities mapped to 0 and 1 first, as by `data.intensity.scale_intensities`.
        seed: Seed of the sampling and of k-means.
        affine: `(4, 4)`, voxel to world in RAS+, to find the axial slices; None: they lie along Z.

    Returns:
        `(X, Y, Z)` unsigned integer: 0 outside the mask, 1...K inside.

    Raises:
        InputError: Mismatched shapes, an empty mask, or no foreground.

    Reference:
        Umapathy et al. 2024 and the authors' code; differences in docs/deviations.md.
    """
    recipe = {"clusters": clusters, "components": components, "tv_weight": tv_weight, "percentiles": percentiles}
    return describe_constraint_map(volume, mask, **recipe, seed=seed, affine=affine).classes


def describe_constraint_map(volume, mask, *, clusters, seed, affine=None, **recipe):
    """Compute a `ConstraintMap`: the map of `constraint_map` with its contrast space and statistics.

    `recipe` holds `components`, `tv_weight` and `percentiles` of `contrast_space`.
    """
    space = contrast_space(volume, mask, **recipe, affine=affine)
    seconds = dict(space.seconds)
    with _timed(seconds, "kmeans"):
        labels, sizes, inertia = cluster(space.features, clusters, seed)
        classes = space.restore(labels)
    return ConstraintMap(classes, space, sizes, inertia, seconds)


def contrast_space(volume, mask, *, components, tv_weight, percentiles, affine=None):
    """Carry out every step before k-means and return a `ContrastSpace`; arguments as in `constraint_map`."""
    check_axes("volume", volume.shape, "X Y Z C")
    if mask is not None:
        check_mask(mask, volume.shape)
    turn, turn_back = axial_turns(affine)
    seconds = {}
    with _one_thread():
        with _timed(seconds, "mask"):
            inside = foreground_mask(turn(volume)) if mask is None else turn(np.asarray(mask, bool))
            box = _bounding_box(inside)
            in_box = inside[box]
        with _timed(seconds, "scaling"):
            scaled = scale_between(turn(volume)[box], intensity_ranges(volume, mask, percentiles, affine))
        with _timed(seconds, "pca"):
            images, explained_variance = principal_components(scaled, in_box, min(components, volume.shape[3]))
            del scaled
        with _timed(seconds, "denoising"):
            images = denoise(images, in_box, tv_weight)
    return ContrastSpace(voxels_of(images, in_box), explained_variance, inside, turn_back, seconds)


def voxels_of(volume, mask):
    """Return `volume[mask]`, `(voxels, C)`, from `(X, Y, Z, C)`, four times as fast."""
    return np.compress(mask.ravel(), volume.reshape(-1, volume.shape[3]), axis=0)


def principal_components(volume, mask, number):
    """Project every voxel onto the principal directions of the foreground.

    Voxels outside the mask are projected as well, so that the denoising sees real neighbours at the edge. Of the two
    opposite directions, the one along which the sum of the contrasts increases is taken.

    Args:
        volume: Scaled intensities, `(X, Y, Z, C)`.
        mask: Voxels that define mean and covariance, boolean `(X, Y, Z)`, not empty.
        number: Components to return, 1...C.

    Returns:
        Component images, `(X, Y, Z, number)` float32, and the explained variance of all components, `(C,)` float64,
        summing to 1 (all 0 if the foreground is constant).
    """
    inside = voxels_of(volume, mask).astype(np.float64)
    mean = inside.mean(axis=0)
    inside -= mean
    variances, directions = np.linalg.eigh(inside.T @ inside / len(inside))
    order = np.argsort(variances)[::-1]
    directions = directions[:, order] * np.where(directions[:, order].sum(axis=0) < 0, -1, 1)
    variances = np.maximum(variances[order], 0)
    projection = directions[:, :number].astype(np.float32)
    images = volume.reshape(-1, volume.shape[3]) @ projection
    images -= mean.astype(np.float32) @ projection
    return images.reshape(*volume.shape[:3], number), variances / (variances.sum() or 1)


def denoise(images, mask, weight):
    """Denoise component images within axial slices, preserving edges: total variation, split Bregman.

    The components share one scale, the largest range among them, so that a weight has the same effect as for images in
    [0, 1] and weak components, which are mostly noise, are smoothed. scikit-image treats the last axis of a volume as
    channels and so takes no differences between slices, as in the authors' code; this suits slices 5 to 9 mm apart.

    Args:
        images: `(X, Y, Z, P)` float32.
        mask: Boolean `(X, Y, Z)`; the range is taken inside it.
        weight: Positive; higher means closer to the input.

    Returns:
        `(X, Y, Z, P)` float32 in units of the common range (constant images are returned unchanged).
    """
    span = np.ptp(voxels_of(images, mask), axis=0).max()
    if span <= 0:
        return images
    denoised, frame = np.empty_like(images), ((1, 1), (1, 1), (0, 0))
    for p in range(images.shape[3]):
        # scikit-image does not update the outermost rows and columns, so they are padded and cropped again.
        framed = np.pad(images[..., p], frame, mode="edge")
        framed /= span
        denoised[..., p] = denoise_tv_bregman(framed, weight).reshape(framed.shape)[1:-1, 1:-1]
    return denoised


def cluster(features, clusters, seed):
    """Assign every voxel to one of K classes by k-means, with centres fitted to a sample of the voxels.

    Lloyd's algorithm on a sample takes a fraction of a second, reaches a lower inertia and depends less on the seed
    than the authors' mini-batches over all voxels (benchmarks/README.md).

    Args:
        features: `(voxels, P)` float32, at least one voxel.
        clusters: K; fewer classes result if the sample has fewer distinct rows or a centre has no voxels.
        seed: Seed of the sample and of k-means.

    Returns:
        Classes 1...K `(voxels,)` in ascending order of the centre's first feature, uint8 (uint16 beyond 255 classes);
        class sizes `(K,)`; inertia.
    """
    rng = np.random.default_rng(seed)
    sample = features
    if len(features) > SAMPLE_VOXELS:
        sample = features[np.sort(rng.choice(len(features), SAMPLE_VOXELS, replace=False))]
    # More distinct values than clusters? A few rows nearly always show this, and sorting all of them is slow.
    centres = np.unique(sample[: 50 * clusters], axis=0)
    if len(centres) <= clusters:
        centres = np.unique(sample, axis=0)
    with _one_thread():
        if len(centres) > clusters:
            kmeans = KMeans(clusters, n_init=STARTS, max_iter=ROUNDS, random_state=int(rng.integers(2**31)))
            centres = kmeans.fit(sample).cluster_centers_
            centres = centres[np.lexsort(centres.T[::-1])]
        nearest = pairwise_distances_argmin(features, centres)
    inertia = float(np.sum((features - np.take(centres, nearest, axis=0)) ** 2, dtype=np.float64))
    sizes = np.bincount(nearest, minlength=len(centres))
    used = np.flatnonzero(sizes)
    numbers = np.zeros(len(centres), np.uint8 if len(used) <= 255 else np.uint16)
    numbers[used] = np.arange(1, len(used) + 1)
    return numbers[nearest], sizes[used], inertia


def _one_thread():
    """Limit arithmetic to one thread: the same classes on any number of cores, and workers that do not compete.

    It affects only libraries already loaded, so this file has no deferred imports.
    """
    return threadpool_limits(1)


def _bounding_box(mask):
    """Return the index ranges of the smallest box that contains the mask."""
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(where[0], where[-1] + 1) for where in occupied)


@contextmanager
def _timed(seconds, part):
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started
