"""Step 1 twice more, for the benchmark to compare with: the authors' recipe, and ours without its short cuts."""

import time

import numpy as np

CLUSTERS, TV_WEIGHT = 20, 40  # authors' code
STRETCH = (0.01, 99.9)  # percentiles, authors' code


def authors_recipe(paths):
    """Make the map of one subject by the recipe of Umapathy et al. (their code).

    Returns:
        Classes `(X, Y, Z)` from 0, the seconds of each part, and the number of mini-batches that k-means drew.
    """
    import nibabel
    from skimage.exposure import rescale_intensity
    from skimage.restoration import denoise_tv_bregman
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    clock, contrasts, inside = [time.perf_counter()], [], None
    for path in paths:
        contrast = unit_range(nibabel.load(path).get_fdata())
        inside = contrast > 0 if inside is None else inside
        ends = np.percentile(contrast[inside], STRETCH)
        contrasts.append(rescale_intensity(contrast, in_range=tuple(ends)))
    volume = np.stack(contrasts, axis=-1)
    clock.append(time.perf_counter())
    images = PCA(len(paths), svd_solver="full").fit_transform(volume.reshape(-1, len(paths))).reshape(volume.shape)
    images = unit_range(images)
    clock.append(time.perf_counter())
    for p in range(images.shape[3]):
        brightest = images[..., p].max()
        images[..., p] = denoise_tv_bregman(images[..., p] / brightest, TV_WEIGHT) * brightest
    clock.append(time.perf_counter())
    kmeans = MiniBatchKMeans(CLUSTERS, random_state=EqualDraws(0)).fit(images.reshape(-1, images.shape[3]))
    clock.append(time.perf_counter())
    names = ("reading and stretching", "pca", "denoising", "kmeans")
    seconds = {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return kmeans.labels_.reshape(volume.shape[:3]), seconds, kmeans.n_steps_


def unit_range(values):
    return (values - values.min()) / (values.max() - values.min())


class EqualDraws(np.random.RandomState):
    """Draws of equal probability without a pass over the probabilities: mini-batches as before scikit-learn 1.7."""

    def choice(self, a, size=None, replace=True, p=None):
        return self.randint(0, a, size)


def weighted_draw_s(voxels, draws=10):
    """Return the seconds that scikit-learn from 1.7 on takes to draw one mini-batch of 1024."""
    weights, generator = np.full(voxels, 1 / voxels), np.random.RandomState(0)
    started = time.perf_counter()
    for _ in range(draws):
        generator.choice(voxels, 1024, p=weights)
    return (time.perf_counter() - started) / draws


def plain_components(volume):
    """Return denoised principal components of the foreground `(voxels, P)` of `(X, Y, Z, C)`, and the foreground."""
    from skimage.restoration import denoise_tv_bregman
    from sklearn.decomposition import PCA

    from data.intensity import foreground_mask, intensity_ranges

    inside, ranges = foreground_mask(volume), intensity_ranges(volume, None)
    volume = np.clip((volume - ranges[:, 0]) / (ranges[:, 1] - ranges[:, 0]), 0, 1)
    pca = PCA().fit(volume[inside])
    images = pca.transform(volume.reshape(-1, volume.shape[3])).reshape(volume.shape)
    images /= np.ptp(images[inside], axis=0).max()
    components = [denoise_tv_bregman(images[..., p], TV_WEIGHT)[inside] for p in range(images.shape[3])]
    return np.stack(components, axis=-1), inside


def class_means(voxels, classes):
    """Return the mean of every class that occurs, `(K, P)`."""
    numbers = np.unique(classes, return_inverse=True)[1]
    sizes = np.bincount(numbers)
    return np.stack([np.bincount(numbers, column) / sizes for column in voxels.T], axis=-1)


def inertia(voxels, classes):
    """Return the sum over voxels of the squared distance to the mean of their class."""
    numbers = np.unique(classes, return_inverse=True)[1]
    return float(((voxels - class_means(voxels, classes)[numbers]) ** 2).sum())
