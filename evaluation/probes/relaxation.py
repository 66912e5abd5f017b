"""How much of a relaxation time constraint maps separate, by the number of images they are made from.

A fitted map of T2*, T2 or T1 is no independent truth: it shares the noise of the images it was fitted to. So the maps
are also compared with a fit to the other images of the scan only, those that k-means has not seen.
"""

from dataclasses import dataclass

import numpy as np

from data.constraint_maps import cluster, contrast_space
from evaluation.probes.map_agreement import SAMPLE_VOXELS, explained_variance, mutual_information, stability

CANDIDATES = 300  # relaxation times tried per fit, on a logarithmic scale
FEWEST = {"decay": 2, "recovery": 4}  # images that determine a fit: amplitude and time; offset, amplitude, time, signs
COLUMNS = ["images", "made_from", "reference", "measure", "seed", "value"]
ALL, HIDDEN = "all images", "hidden images"  # what the reference was fitted to
MAP, FIT, SHIFTED, POSITION, CEILING = (
    "constraint map",
    "fit to the same images",
    "shifted map",
    "position",
    "fitted map",
)


@dataclass(frozen=True)
class Relaxometry:
    """One scan: images at several echo or inversion times, and the relaxation time that was fitted to all of them.

    Attributes:
        volume: `(X, Y, Z, C)` float32.
        mask: Foreground, boolean `(X, Y, Z)`.
        affine: `(4, 4)`, voxel to world, mm.
        times_ms: Echo or inversion time of each image, `(C,)`; in recovery the shortest first.
        fitted_ms: Fitted relaxation time, `(X, Y, Z)`.
        chosen: Voxels that are compared, boolean `(X, Y, Z)`, inside the mask.
        limits_ms: Lowest and highest time of a fit.
        model: `decay` or `recovery`.
    """

    volume: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    times_ms: np.ndarray
    fitted_ms: np.ndarray
    chosen: np.ndarray
    limits_ms: tuple
    model: str

    @property
    def reference_ms(self):
        """Fitted relaxation time of the chosen voxels."""
        return self.fitted_ms[self.chosen]

    def fit(self, images):
        """Fit the relaxation time of the chosen voxels to some images; `(voxels,)` ms, within the limits.

        Args:
            images: Ascending indices of images.
        """
        signals = self.volume[self.chosen][:, images]
        return best_times(signals, self.times_ms[images], np.geomspace(*self.limits_ms, CANDIDATES), self.model)


def spread_images(number, total, choice="inner"):
    """Return ascending indices of `number` of `total` images, evenly spread.

    Args:
        number: At most `total`; at least 2 for `ends`.
        total: Number of images.
        choice: `ends`: the first and the last image are among them. `inner`: the middles of equal parts, so that the
            others cover nearly all times.
    """
    if choice == "ends":
        return np.round(np.linspace(0, total - 1, number)).astype(int)
    return (np.arange(number) * 2 + 1) * total // (2 * number)


def best_times(signals, times, candidates, model):
    """Fit magnitude images by least squares, trying every candidate of the relaxation time.

    decay:     S = a exp(-t / T)
    recovery:  S = |a - b exp(-t / T)|, where the sign changes once, from negative to positive, or never; a delay of all
               times changes b only

    Args:
        signals: `(voxels, C)`.
        times: `(C,)` ms, ascending.
        candidates: `(M,)` ms.
        model: `decay` or `recovery`.

    Returns:
        The candidate with the smallest sum of squared residuals, `(voxels,)`.
    """
    signals = np.asarray(signals, np.float64)
    most, best = np.full(len(signals), -1.0), np.zeros(len(signals))
    for candidate in candidates:
        basis = np.exp(-np.asarray(times) / candidate)[:, None]
        if model == "recovery":
            basis = np.hstack([np.ones_like(basis), basis])
        # The residual is what lies outside the span of the basis, so the largest projection has the smallest residual.
        explained = _largest_projection(signals, np.linalg.qr(basis)[0], model)
        better = explained > most
        most[better], best[better] = explained[better], candidate
    return best


def _largest_projection(signals, basis, model):
    """Return the squared length of the projection of each signal; in recovery, with the best signs."""
    projected = signals @ basis
    explained = np.sum(projected**2, axis=1)
    for early in range(signals.shape[1] if model == "recovery" else 0):
        projected -= 2 * signals[:, early, None] * basis[early]  # from here on, this image is negative
        explained = np.maximum(explained, np.sum(projected**2, axis=1))
    return explained


def agreement_by_images(scan, chosen, recipe, clusters, seeds):
    """Compare maps made from some of the images with the relaxation time.

    Beside them: a fit to the same images; and what could explain the agreement trivially, the same map at a wrong
    position, and the position.

    Args:
        scan: A `Relaxometry`.
        chosen: List of the images of each map, ascending indices.
        recipe: `components`, `tv_weight` and `percentiles` of `data.constraint_maps.contrast_space`.
        clusters: Number of classes K.
        seeds: Seeds of k-means.

    Returns:
        List of rows in the order of `COLUMNS`. Measures: `variance`, the share of the variance of ln T between classes;
        `ami`, adjusted mutual information with K classes of the reference; `stability`, the adjusted Rand index of two
        seeds.
    """
    rows = []
    place_mm = (np.argwhere(scan.chosen) @ scan.affine[:3, :3].T).astype(np.float32)
    by_place = [cluster(place_mm, clusters, seed)[0] for seed in seeds]
    shift = int(np.random.default_rng(seeds[0]).integers(len(place_mm) // 4, 3 * len(place_mm) // 4 + 1))
    for images in chosen:
        maps = classes_of_images(scan, images, recipe, clusters, seeds)
        shifted = [np.roll(classes, shift) for classes in maps]
        references = references_beside(scan, images)
        for name, reference in references.items():
            for made_from, classes in {MAP: maps, SHIFTED: shifted, POSITION: by_place}.items():
                rows += _rows([len(images), made_from, name], classes, reference, clusters, seeds)
        if HIDDEN in references and len(images) >= FEWEST[scan.model]:
            fits = classes_of_values(np.log(scan.fit(images)), clusters, seeds)
            rows += _rows([len(images), FIT, HIDDEN], fits, references[HIDDEN], clusters, seeds)
        rows += [[len(images), MAP, "", "stability", f"{i}-{j}", value] for (i, j), value in stability(maps).items()]
    return rows


def agreement_of_single_images(scan, names, recipe, clusters, seeds):
    """Compare maps of one image each, and K classes of the fitted map itself, the most that K classes can reach.

    Args:
        scan: A `Relaxometry`.
        names: Name of each image.
        recipe: As in `agreement_by_images`, like `clusters` and `seeds`.

    Returns:
        Rows as from `agreement_by_images`, made from the name of an image.
    """
    rows = []
    for number, name in enumerate(names):
        maps = classes_of_images(scan, [number], recipe, clusters, seeds)
        for of, reference in references_beside(scan, [number]).items():
            rows += _rows([1, name, of], maps, reference, clusters, seeds)
    fitted = classes_of_values(np.log(scan.reference_ms), clusters, seeds)
    return rows + _rows([len(names), CEILING, ALL], fitted, scan.reference_ms, clusters, seeds)


def references_beside(scan, images):
    """Return what a map of some images is compared with: the fitted map, and a fit to the other images (if enough)."""
    hidden = np.setdiff1d(np.arange(scan.volume.shape[3]), images)
    fits = {HIDDEN: scan.fit(hidden)} if len(hidden) >= FEWEST[scan.model] else {}
    return {ALL: scan.reference_ms} | fits


def classes_of_images(scan, images, recipe, clusters, seeds):
    """Cluster some images as step 1 does, on the whole foreground; returns the classes of the chosen voxels by seed."""
    space = contrast_space(scan.volume[..., images], scan.mask, **recipe, affine=scan.affine)
    return [space.restore(cluster(space.features, clusters, seed)[0])[scan.chosen] for seed in seeds]


def classes_of_values(values, clusters, seeds):
    """Cluster single values, `(voxels,)`; returns the classes by seed."""
    return [cluster(np.asarray(values, np.float32)[:, None], clusters, seed)[0] for seed in seeds]


def _rows(what, maps, reference, clusters, seeds):
    """Measure maps against one reference, `(voxels,)` ms; `what` holds the first columns."""
    logs, rows = np.log(reference), []
    sample = np.random.default_rng(seeds[0]).choice(len(logs), min(SAMPLE_VOXELS, len(logs)), replace=False)
    (of_reference,) = classes_of_values(logs, clusters, seeds[:1])
    for place, classes in enumerate(maps):
        rows.append([*what, "variance", str(place), explained_variance(classes, logs)])
        rows.append([*what, "ami", str(place), mutual_information(classes[sample], of_reference[sample])])
    return rows
