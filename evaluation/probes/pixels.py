"""Label probes on pixels: the label information at each level of a network, as a quick test before finetuning.

A probe is fitted on pixels of training subjects and scored on pixels of validation subjects, so that it can be used to
choose settings without touching the test subjects.
"""

import dataclasses
import functools

import numpy as np

from evaluation.probes.patches import FEWEST, Regions, patch_positions
from evaluation.probes.representations import balanced_accuracy, by_subject, with_spread
from evaluation.report.tables import Table
from utils.checks import InputError, counted

PER_CLASS = {"train": 1000, "val": 2000}  # largest number of pixels per class
PENALTIES = (1e-3, 1e-2, 1e-1)  # of the probe, relative to its mean cost per pixel; chosen among training subjects
USUAL = 1e-2  # penalty if there is only one training subject, so that it cannot be chosen
FOLDS = 3  # of training subjects, to choose the penalty
TOGETHER = "all together"


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Some pixels of some subjects, with an equal share for every class.

    Attributes:
        images: Slices or crops that the pixels are taken from, `(S, h, w[, d], C)` float32.
        image: Index in `images` of each pixel's slice or crop, `(n,)`.
        place: Row, column (and depth) of each pixel in its slice or crop, `(n, rank)`.
        label: Class of each pixel, 0 for foreground without a label, `(n,)`.
        subject: Subject of each pixel, `(n,)`.
        positions: Row, column and slice from -1 to 1 in the whole slice and scan, `(n, 3)`.
    """

    images: np.ndarray
    image: np.ndarray
    place: np.ndarray
    label: np.ndarray
    subject: np.ndarray
    positions: np.ndarray

    def intensities(self):
        """Return the contrasts of each pixel, `(n, C)`."""
        return self.images[(self.image, *self.place.T)]


def sample_pixels(store, subjects, contrasts, *, most_images, per_class, seed, crops=None):
    """Draw slices or crops of some subjects and, from all of them together, the same number of pixels per class.

    Class 0 is the unlabelled foreground; air outside the body is left out, because any feature separates it.

    Args:
        store: `SliceStore` with labels.
        subjects: Identifiers.
        contrasts: Channels of the images.
        most_images: Largest number of slices or crops, over all subjects.
        per_class: Number of pixels per class; classes with fewer contribute all of theirs.
        seed: Integer; the same seed draws the same pixels.
        crops: Section `crops` of the config, as a dictionary; None: whole slices.

    Returns:
        `Pixels`.

    Raises:
        InputError: There are no labelled slices of these subjects, or pixels of only one class.
    """
    draw = np.random.default_rng(seed)
    regions = Regions.drawn(store, subjects, draw, most_images, crops)
    labels = regions.cut(store.labels)
    is_foreground = (regions.cut(store.constraint_maps) > 0) | (labels > 0)
    members = [np.flatnonzero(is_foreground & (labels == value)) for value in range(labels.max() + 1)]
    drawn = [draw.choice(places, min(per_class, len(places)), replace=False) for places in members]
    flat = np.sort(np.concatenate(drawn))
    if sum(len(places) > 0 for places in members) < 2 or len(flat) < FEWEST:
        named = ", ".join(subjects)
        raise InputError(f"{store.path}: {named}: no pixels of two classes to tell apart; check data.labels")
    image, *place = np.unravel_index(flat, labels.shape)
    numbers = flat % np.prod(labels.shape[1:])
    return Pixels(
        images=regions.cut(functools.partial(store.images, contrasts)),
        image=image,
        place=np.stack(place, axis=1),
        label=labels.ravel()[flat].astype(int),
        subject=regions.subjects()[image],
        positions=patch_positions(regions.take(image), numbers, 1),
    )


def level_features(network, pixels, channels, batch_size):
    """Read the features of each level of a network at some pixels.

    A coarser level has one feature vector for all pixels of a cell, which is used without interpolation. All levels
    must predict the labels of the same pixels at image resolution.

    Args:
        network: Anything with `predict_on_batch`, `(batch_size, H, W[, D], C)` to one map `(batch_size, h, w[, d], F)`
            per level (`models.unet.feature_levels`); h divides H.
        pixels: `Pixels`.
        channels: Channels of the images that the network sees, an index into the last axis.
        batch_size: Images per call.

    Returns:
        `(n, F)` float32 for each level. Only one batch of maps is held at a time.
    """
    images, read = pixels.images[..., channels], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
        maps = [np.asarray(one, np.float32) for one in network.predict_on_batch(padded)]
        rows = np.flatnonzero((pixels.image >= start) & (pixels.image < start + batch_size))
        read.append([_at(one, pixels.image[rows] - start, pixels.place[rows], images.shape[1]) for one in maps])
    # Pixels are in the order of their images, so the batches return them in order.
    return [np.concatenate(level) for level in zip(*read, strict=True)]


def _at(maps, image, place, height):
    """Return the feature vectors of the cells that contain the pixels, `(n, F)`."""
    return maps[(image, *(place // (height // maps.shape[1])).T)]


def probe_pixels(train, labels, subjects, test):
    """Predict labels from features: logistic regression on standardised features with equal class weights.

    The penalty is the one with the best balanced accuracy in cross-validation over training subjects, or the strongest
    of several equally good ones.

    Args:
        train: Features of training pixels, `(n, F)`.
        labels: Labels of these pixels, `(n,)`.
        subjects: Subjects of these pixels, `(n,)`.
        test: Features of the pixels to predict for, `(m, F)`.

    Returns:
        Predicted labels, `(m,)`, and the penalty.
    """
    groups = np.unique(subjects, return_inverse=True)[1]
    folds = min(FOLDS, groups.max() + 1)
    held_out = [groups % folds == fold for fold in range(folds)] if folds > 1 else []
    # The training part of a fold needs at least two classes.
    held_out = [out for out in held_out if len(np.unique(labels[~out])) > 1]
    scores = {
        penalty: [
            balanced_accuracy(labels[out], _fit(train[~out], labels[~out], train[out], penalty)) for out in held_out
        ]
        for penalty in sorted(PENALTIES, reverse=True)
    }
    penalty = max(scores, key=lambda one: np.mean(scores[one])) if held_out else USUAL
    return _fit(train, labels, test, penalty), penalty


def _fit(train, labels, test, penalty):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn's C weighs the sum of the costs against half the squared weights.
    regression = LogisticRegression(C=1 / (penalty * len(train)), class_weight="balanced", max_iter=1000, tol=1e-3)
    return make_pipeline(StandardScaler(), regression).fit(train, labels).predict(test)


def pixel_scores(about, levels, train, validation):
    """Probe the labels from each of several sets of features.

    Args:
        about: Description of the representation, copied to every row.
        levels: Level -> its features at the training and the validation pixels, `{name: ((n, F), (m, F))}`.
        train: `Pixels` of training subjects.
        validation: `Pixels` of validation subjects.

    Yields:
        Dictionaries with `level`, `features`, `penalty` and the result of `by_subject` for the balanced accuracy.
    """
    for name, (known, asked) in levels.items():
        found, penalty = probe_pixels(known, train.label, train.subject, asked)
        score = by_subject(balanced_accuracy, validation.subject, validation.label, found)
        score["pixels"] = score.pop("patches")
        yield about | {"level": name, "features": known.shape[1], "penalty": penalty} | score


def without_network(train, validation):
    """Yield the probes without a network, on intensity and position; pretraining must exceed the former to help."""
    parts = (train, validation)
    intensity = [part.intensities() for part in parts]
    place = [np.hstack([part.positions, part.positions**2]) for part in parts]
    both = [*map(np.hstack, zip(intensity, place, strict=True))]
    for name, values in (("intensity", intensity), ("position", place), ("intensity + position", both)):
        about = {"representation": name, "draw": 0, "pretrained": "-"}
        yield from pixel_scores(about, {TOGETHER: values}, train, validation)


def network_scores(about, network, inputs, parts, batch_size):
    """Probe each level of a network, and all its decoder levels concatenated.

    Args:
        about: Description of the representation.
        network: As for `level_features`; the first map is that of the encoder.
        inputs: Inputs of the network, indices of channels; features of several inputs are concatenated.
        parts: `Pixels` of training and of validation subjects.
        batch_size: Images per call.

    Returns:
        List of rows, as `pixel_scores` yields them.
    """
    read = [[level_features(network, part, channels, batch_size) for channels in inputs] for part in parts]
    train, validation = ([np.hstack(level) for level in zip(*part, strict=True)] for part in read)
    names = ["deepest encoder level"] + [f"decoder level {number}" for number in range(1, len(train))]
    levels = dict(zip(names, zip(train, validation, strict=True), strict=True))
    levels[TOGETHER] = np.hstack(train[1:]), np.hstack(validation[1:])
    return [*pixel_scores(about, levels, *parts)]


def pixel_table(rows, parts, labels, note=""):
    """Arrange the scores in a table with a row for each representation and a column for each level.

    Args:
        rows: From `without_network` and `network_scores`. Draws of untrained layers are averaged.
        parts: `Pixels` of training and of validation subjects.
        labels: Names of the labels, without background.
        note: First words of the caption.

    Returns:
        A `Table`, named `pixel_probe`.
    """
    import pandas

    scores = pandas.DataFrame(rows)
    columns = [*dict.fromkeys(level for level in scores["level"] if level != TOGETHER), TOGETHER]
    text = []
    # A stage may have the name of a probe without a network: `position`.
    for (name, pretrained), part in scores.groupby(["representation", "pretrained"], sort=False):
        cells = {level: _cell(part[part["level"] == level]["value"].to_numpy()) for level in columns}
        text.append({"Representation": name, "Pretrained": pretrained} | cells)
    chance = 1 / len(np.unique(parts[0].label))
    numbers = with_spread(scores).assign(chance=chance)
    caption = _caption(parts, ["other foreground", *labels], chance, note)
    return Table("pixel_probe", "What pixels know of labels", caption, numbers, pandas.DataFrame(text).astype(str))


def _cell(values):
    """Write the mean over draws, and the range if there are several."""
    if not len(values):
        return "-"
    return f"{values.mean():.3f}" + (f" [{values.min():.3f}, {values.max():.3f}]" if len(values) > 1 else "")


def _caption(parts, classes, chance, note):
    """Write the caption of the table."""
    counts = [
        f"{len(part.label)} pixels of {counted(len(np.unique(part.subject)), f'{name} subject')}"
        for name, part in zip(("training", "validation"), parts, strict=True)
    ]
    missing = [classes[value] for value in np.setdiff1d(parts[0].label, parts[1].label)]
    sentences = [
        note,
        f"Balanced accuracy of linear label probes of pixels ({', '.join(classes)}; chance {chance:.2f}), fitted on "
        f"{counts[0]}, scored on {counts[1]}; no test subject is used.",
        "Every class has the same number of pixels if there are enough; air is left out.",
        f"Not among the validation pixels: {', '.join(missing)}." if missing else "",
        "Logistic regression on standardised features; penalty chosen by cross-validation over training subjects.",
        "Decoder level 1 is the deepest. A pixel has the features of the cell of that level in which it lies; all "
        "together: those of all decoder levels side by side, or the contrasts of the pixel, or row, column, slice and "
        "their squares.",
        "Where layers are not pretrained: means over draws of them, with the smallest and the largest.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)
