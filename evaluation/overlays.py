"""Pictures of single test subjects: the reference contour and each initialisation's prediction on the image.

Which subjects are shown follows a rule, never taste: test subjects are ranked by their Dice, averaged over labels,
repeats and all initialisations, and the middle and the last one are shown, on the axial slice with most reference
voxels.
"""

import dataclasses

import numpy as np

from evaluation.figures import OKABE_ITO, panels
from evaluation.results import MEAN

RULE = (
    "Subjects are ranked by Dice averaged over labels, repeats and all initialisations at this N; the median and the "
    "worst are shown, on the axial slice with most reference voxels. Radiological display: the patient's right is on "
    "the left. Dashed: reference; solid: prediction of the first repeat."
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One subject as it is drawn.

    Attributes:
        title: What stands left of its row, such as "median: sub-01".
        image: Contrast, `(X, Y, Z)`.
        reference: Class index, `(X, Y, Z)`.
        predictions: Mapping of init to class index, `(X, Y, Z)`.
        dice: Mapping of init to the Dice (mean over labels) of the prediction shown.
        affine: Voxels to scanner coordinates, `(4, 4)`.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    predictions: dict
    dice: dict
    affine: np.ndarray


def choose_subjects(values, contrasts, n_annotated):
    """Return `{"median": subject, "worst": subject}` by the rule above; only "worst" when there is one subject.

    Args:
        values: From `results.per_subject` of the Dice.
        contrasts: Name of the input set.
        n_annotated: N.
    """
    is_cell = (values["contrasts"] == contrasts) & (values["n_annotated"] == n_annotated)
    ranking = values[is_cell & (values["label"] == MEAN)].groupby("subject")["value"].mean().dropna()
    # The name settles ties, so that the choice never depends on the order of files.
    names = sorted(ranking.index, key=lambda subject: (ranking[subject], subject))
    if len(names) < 2:
        return {"worst": name for name in names}
    return {"median": names[len(names) // 2], "worst": names[0]}


def draw_overlays(pictures, labels, title):
    """Draw one row per subject: the image with the reference, then with each initialisation's prediction.

    Args:
        pictures: List of `Picture`, all with the same inits.
        labels: Class names in the order of their indices 1, 2, ...
        title: Above the figure.

    Returns:
        A matplotlib `Figure`.
    """
    from matplotlib.lines import Line2D

    inits = list(pictures[0].predictions)
    figure, axes = panels(len(pictures), 1 + len(inits))
    for row, picture in zip(axes, pictures, strict=True):
        volumes = [picture.image, picture.reference, *picture.predictions.values()]
        aspect, (image, reference, *predictions) = slices_to_show(volumes, picture.affine)
        window = np.percentile(image, (1, 99.5))
        for axis in row:
            axis.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
            axis.set_xticks([])
            axis.set_yticks([])
            _contours(axis, reference, len(labels), "dashed")
        row[0].set_ylabel(picture.title)
        row[0].set_title("reference")
        for axis, init, prediction in zip(row[1:], inits, predictions, strict=True):
            _contours(axis, prediction, len(labels), "solid")
            axis.set_title(f"{init}: Dice {picture.dice[init]:.3f}")
    handles = [Line2D([], [], color=_colour(index), label=label) for index, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title)
    return figure


def slices_to_show(volumes, affine):
    """Cut the axial slice with most reference voxels out of several volumes, in radiological display.

    Args:
        volumes: List of `(X, Y, Z)`: the image, the reference, then predictions; all on one grid.
        affine: `(4, 4)` voxels to scanner coordinates; any orientation.

    Returns:
        `(aspect, slices)`: height of a pixel over its width, and one `(rows, columns)` array per volume, anterior at
        the top, the patient's right on the left.
    """
    from nibabel import orientations

    start = orientations.io_orientation(affine)
    turn = orientations.ornt_transform(start, orientations.axcodes2ornt("PLS"))
    turned = [orientations.apply_orientation(volume, turn) for volume in volumes]
    # Without a reference voxel the predictions say where to look; argmax of nothing is the lowest slice.
    sizes = (turned[1] > 0).sum(axis=(0, 1))
    if not sizes.any():
        sizes = sum((volume > 0).sum(axis=(0, 1)) for volume in turned[2:])
    position = int(np.argmax(sizes))
    spacing = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))[np.argsort(start[:, 0])]
    # spacing is now along left-right, posterior-anterior: rows run along the second, columns along the first.
    return spacing[1] / spacing[0], [volume[:, :, position] for volume in turned]


def _contours(axis, classes, count, linestyle):
    for index in range(count):
        mask = classes == index + 1
        if mask.any() and not mask.all():
            colour = _colour(index)
            axis.contour(mask.astype(float), [0.5], colors=colour, linewidths=1.1, linestyles=linestyle)


def _colour(index):
    # Black, the first of the palette, would vanish on a dark image.
    return OKABE_ITO[1:][::-1][index % (len(OKABE_ITO) - 1)]
