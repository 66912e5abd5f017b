"""Constraint maps: from the contrasts of one subject to one tissue class per voxel.

Principal components of the contrasts, total-variation denoising of the component images, k-means on the voxels.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from data.intensity import foreground_mask, scale_intensities
from utils.checks import InputError, check_axes

SAMPLE_VOXELS = 100_000  # that place the k-means centres; all voxels are then assigned to them
STARTS = 5  # of k-means; the best on the sample is kept


@dataclass(frozen=True)
class ConstraintMap:
    """A constraint map and how it came about.

    Attributes:
        classes: `(X, Y, Z)` unsigned integer; 0 outside the mask, 1...K inside, dark to bright along component 1.
        components: `(X, Y, Z, P)` float32, denoised principal components; 0 outside the mask.
        explained_variance: `(C,)` share of the variance inside the mask along each principal direction, sums to 1.
        class_sizes: `(K,)` voxels of class 1...K, none of them 0.
        inertia: Sum over foreground voxels of the squared distance to their class centre, in units of the common
            range of the components.
        seconds: Duration of each part: mask, pca, denoising, kmeans.
    """

    classes: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray
    class_sizes: np.ndarray
    inertia: float
    seconds: dict = field(default_factory=dict)


def constraint_map(volume, mask=None, *, clusters=20, components=4, tv_weight=40, percentiles=(1, 99), seed=0):
    """Cluster the contrasts of one subject; `describe_constraint_map` returns more than the classes.

    Args:
        volume: Intensities in any unit, `(X, Y, Z, C)`, axial slices along Z.
        mask: Foreground, boolean `(X, Y, Z)`; None: found in the images.
        clusters: Number of classes K; fewer when the foreground holds fewer distinct values.
        components: Principal components used, at most C.
        tv_weight: Weight of the denoising, relative to components in [0, 1]; higher means less smoothing.
        percentiles: Intensities inside the mask mapped to 0 and 1 first.
        seed: Seed of the sampling and of k-means.

    Returns:
        `(X, Y, Z)` unsigned integer: 0 outside the mask, 1...K inside.

    Raises:
        InputError: Shapes that do not fit, an empty mask, no foreground found.

    Reference:
        Umapathy et al. 2024 and the authors' code; differences in docs/deviations.md.
    """
    return describe_constraint_map(
        volume,
        mask,
        clusters=clusters,
        components=components,
        tv_weight=tv_weight,
        percentiles=percentiles,
        seed=seed,
    ).classes


def describe_constraint_map(volume, mask=None, *, clusters, components, tv_weight, percentiles, seed):
    """Do what `constraint_map` does and return a `ConstraintMap`, with the denoised components and the figures."""
    from threadpoolctl import threadpool_limits

    check_axes("volume", volume.shape, "X Y Z C")
    seconds = {}
    # One thread: the same classes on any number of cores, and workers side by side do not get in each other's way.
    with threadpool_limits(1):
        with _timed(seconds, "mask"):
            mask = foreground_mask(volume) if mask is None else np.asarray(mask, bool)
            box = _bounding_box(mask, volume.shape[:3])
        with _timed(seconds, "pca"):
            scaled = scale_intensities(volume[box], mask[box], percentiles)
            images, explained_variance = principal_components(scaled, mask[box], min(components, volume.shape[3]))
        with _timed(seconds, "denoising"):
            images = denoise(images, mask[box], tv_weight)
        with _timed(seconds, "kmeans"):
            labels, sizes, inertia = cluster(images[mask[box]], clusters, seed)
    classes = np.zeros(mask.shape, labels.dtype)
    classes[mask] = labels
    whole = np.zeros((*mask.shape, images.shape[3]), np.float32)
    whole[mask] = images[mask[box]]
    return ConstraintMap(classes, whole, explained_variance, sizes, inertia, seconds)


def principal_components(volume, mask, number):
    """Project every voxel on the principal directions of the foreground.

    Voxels outside the mask are projected too, so that the denoising sees real neighbours at the edge. A direction
    and its opposite are equally principal: the one along which the sum of the contrasts grows is taken.

    Args:
        volume: Scaled intensities, `(X, Y, Z, C)`.
        mask: Voxels that define mean and covariance, boolean `(X, Y, Z)`, not empty.
        number: Components to return, 1...C.

    Returns:
        Component images, `(X, Y, Z, number)` float32, and the explained variance of all components, `(C,)` float64,
        summing to 1 (all 0 when the foreground is flat).
    """
    inside = volume[mask].astype(np.float64)
    mean = inside.mean(axis=0)
    inside -= mean
    variances, directions = np.linalg.eigh(inside.T @ inside / len(inside))
    order = np.argsort(variances)[::-1]
    directions = directions[:, order] * np.where(directions[:, order].sum(axis=0) < 0, -1, 1)
    variances = np.maximum(variances[order], 0)
    projection = directions[:, :number].astype(np.float32)
    images = volume @ projection - mean.astype(np.float32) @ projection
    return images, variances / (variances.sum() or 1)


def denoise(images, mask, weight):
    """Smooth component images within axial slices and keep their edges: total variation, split Bregman.

    The components share one scale, the largest range among them, so that a weight means what it means for images in
    [0, 1] and a weak component is smoothed as the noise it mostly is. scikit-image treats the last axis of a volume
    as channels, that is, takes no differences between slices; so do the authors, and slices 5 to 9 mm apart want it.

    Args:
        images: `(X, Y, Z, P)` float32.
        mask: Boolean `(X, Y, Z)`; the range is taken inside it.
        weight: Positive; higher means closer to the input.

    Returns:
        `(X, Y, Z, P)` float32 in units of the common range (flat images come back as they are).
    """
    from skimage.restoration import denoise_tv_bregman

    foreground = images[mask]
    span = np.ptp(foreground, axis=0).max()
    if span <= 0:
        return images
    denoised = np.empty_like(images)
    for p in range(images.shape[3]):
        # scikit-image leaves the outermost rows and columns unsolved, hence the frame that is cut off again.
        framed = np.pad(images[..., p] / span, ((1, 1), (1, 1), (0, 0)), mode="edge")
        denoised[..., p] = denoise_tv_bregman(framed, weight).reshape(framed.shape)[1:-1, 1:-1]
    return denoised


def cluster(features, clusters, seed):
    """Assign every voxel to one of K classes by k-means, whose centres a sample of the voxels places.

    Lloyd's algorithm on a sample takes a fraction of a second, ends lower and depends less on the seed than the
    authors' mini-batches over all voxels do (docs/deviations.md has the figures).

    Args:
        features: `(voxels, P)` float32, at least one voxel.
        clusters: K; fewer classes result when the sample holds fewer distinct rows or a centre attracts no voxel.
        seed: Seed of the sample and of k-means.

    Returns:
        Classes 1...K `(voxels,)` in ascending order of the centre's first feature, uint8 (uint16 beyond 255 classes);
        class sizes `(K,)`; inertia.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import pairwise_distances_argmin

    rng = np.random.default_rng(seed)
    sample = features
    if len(features) > SAMPLE_VOXELS:
        sample = features[np.sort(rng.choice(len(features), SAMPLE_VOXELS, replace=False))]
    centres = np.unique(sample, axis=0)
    if len(centres) > clusters:
        kmeans = KMeans(clusters, n_init=STARTS, random_state=int(rng.integers(2**31)))
        centres = kmeans.fit(sample).cluster_centers_
        centres = centres[np.lexsort(centres.T[::-1])]
    nearest = pairwise_distances_argmin(features, centres)
    used, labels, sizes = np.unique(nearest, return_inverse=True, return_counts=True)
    inertia = float(np.sum((features - centres[nearest]) ** 2, dtype=np.float64))
    return (labels + 1).astype(np.uint8 if len(used) <= 255 else np.uint16), sizes, inertia


def _bounding_box(mask, shape):
    """Return the slices of the smallest box that holds the mask."""
    if mask.shape != tuple(shape):
        raise InputError(f"mask: shape {mask.shape} differs from the volume's {tuple(shape)}")
    if not mask.any():
        raise InputError("mask: no foreground voxel; check the mask, or leave it out to have it found in the images")
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(where[0], where[-1] + 1) for where in occupied)


@contextmanager
def _timed(seconds, part):
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started
