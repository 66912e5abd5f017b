"""Pictures of individual test subjects: the reference contour and each initialisation's prediction on the image.

Subjects are chosen by a fixed rule: test subjects are ranked by their Dice, averaged over labels, repeats and all
initialisations, and the median and the worst are shown, on the axial slice on which the reference labels together are
largest, each relative to its own largest slice (so that the liver does not outweigh the kidneys).
"""

import dataclasses

import numpy as np

from data.scans.nifti import read_image
from data.scans.volumes import read_label_map
from evaluation.report.figures import in_report_style, panels
from evaluation.scores.scores import MEAN
from utils.checks import InputError

PICTURE_INCHES = 2.3
LARGEST_CLASS = 255
MOST_COLUMNS = 4  # further pictures of a subject continue in the next row
WINDOW = (1, 99.5)  # percentiles of a slice that are shown black and white
RULE = (
    "Subjects are ranked by Dice averaged over labels, repeats and all initialisations at this N; the median and the "
    "worst are shown, on the axial slice on which the reference labels together are largest, each relative to its own "
    "largest slice. Radiological display: the patient's right (R) is on the left. Dashed: reference; solid: prediction "
    "of the first repeat, whose Dice (mean over labels) is given above (empty: it has no voxel)."
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One subject to be drawn.

    Attributes:
        title: Text to the left of the subject's row, such as "median: sub-01".
        image: Contrast, `(X, Y, Z)`.
        reference: Class index, `(X, Y, Z)`.
        predictions: Mapping from init to class index, `(X, Y, Z)`.
        dice: Mapping from init to the Dice (mean over labels) of the prediction shown.
        affine: Voxels to scanner coordinates, `(4, 4)`.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    predictions: dict
    dice: dict
    affine: np.ndarray


def read_pictures(scores, files, shown, wanted):
    """Choose the subjects of one figure and read their images.

    Args:
        scores: A `Scores` of one input set and one N.
        files: Mapping from subject to `SubjectFiles`.
        shown: Contrast to show; of a 4D series, the first volume.
        wanted: `config.data.wanted()`.

    Returns:
        List of `Picture`.

    Raises:
        InputError: If no subject has a Dice, or an image, label or prediction is missing or does not match the others.
    """
    chosen = choose_subjects(scores.per_subject())
    if not chosen:
        raise InputError("no test subject has a Dice, because no label is in its reference or its predictions")
    return [read_picture(f"{role}: {name}", name, scores, files, shown, wanted) for role, name in chosen.items()]


def read_picture(title, subject, scores, files, shown, wanted):
    """Read the images of one subject; arguments and errors as for `read_pictures`.

    Returns:
        A `Picture`.
    """
    from data.scans.subject import SubjectReader

    if subject not in files:
        raise InputError(f"{subject}: was a test subject, but is no longer below data.root")
    reader = SubjectReader(files[subject], wanted, [shown])
    image, reference, affine = reader.volume()[..., 0], reader.label(), reader.grid.affine
    predictions, dice = {}, {}
    for init in scores.present:
        first = first_repeat(scores, subject, init)
        path = first["folder"].iloc[0] / "predictions" / f"{subject}.nii.gz"
        predictions[init], dice[init] = read_prediction(path, image.shape, is_label=True), first["dice"].mean()
    return Picture(title, image, reference, predictions, dice, affine)


def first_repeat(scores, subject, init):
    """Return the rows of one subject and init in the first repeat; InputError if there are none."""
    rows = scores.of(subject=subject, init=init).frame
    if rows.empty:
        raise InputError(f"{subject}: no result with {init} initialisation yet")
    return rows[rows["repeat"] == rows["repeat"].min()]


def read_prediction(path, shape, *, is_label=False):
    """Read a prediction of step 4, `(X, Y, Z)` on the grid `shape`; InputError if it cannot be used.

    A label map is returned as integers, even if an editor has saved it as floats.
    """
    subject, again = path.name.split(".nii")[0], "run step 4 again with --overwrite"
    if not path.exists():
        raise InputError(f"{path}: not readable, because it does not exist; {again}")
    image, problems = (read_label_map(path, subject, LARGEST_CLASS), []) if is_label else read_image(path, subject)
    if problems:
        raise InputError([f"{line}; {again}" for line in problems])
    if image.shape != shape:
        raise InputError(f"{path}: {image.shape}, but the subject's image is {shape}; run step 4 again")
    return image.values


def choose_subjects(values):
    """Return `{"median": subject, "worst": subject}` by the rule above; only "worst" if there is one subject.

    For an even number of subjects, the median is the better of the two in the middle.

    Args:
        values: From `Scores.per_subject` of the Dice or another measure to rank by, one input set and one N.
    """
    ranking = values[values["label"] == MEAN].groupby("subject")["value"].mean().dropna()
    # Ties are broken by name, so that the choice does not depend on the order of files.
    names = sorted(ranking.index, key=lambda subject: (ranking[subject], subject))
    if len(names) < 2:
        return dict(zip(["worst"], names, strict=False))
    return {"median": names[len(names) // 2], "worst": names[0]}


@in_report_style
def draw_overlays(pictures, legend, title):
    """Draw, subject by subject, the image with the reference and then with each initialisation's prediction.

    Args:
        pictures: List of `Picture`, all with the same inits.
        legend: A `Label` for each class.
        title: Title of the figure.

    Returns:
        A matplotlib `Figure`.
    """
    from matplotlib.lines import Line2D

    count = 1 + len(pictures[0].predictions)
    rows = -(-count // MOST_COLUMNS)  # of each subject
    columns = -(-count // rows)
    shown = [slices_to_show([p.image, p.reference, *p.predictions.values()], p.affine) for p in pictures]
    tallest = max(aspect * image.shape[0] / image.shape[1] for aspect, (image, *_) in shown)
    figure, axes = panels(rows * len(pictures), columns, (PICTURE_INCHES, PICTURE_INCHES * tallest + 0.25))
    blocks = axes.reshape(len(pictures), rows * columns)
    for block, picture, (aspect, (image, reference, *predictions)) in zip(blocks, pictures, shown, strict=True):
        window = np.percentile(image, WINDOW)
        for axis in block[:count]:
            axis.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            _contours(axis, reference, legend, "dashed")
        for axis in block[count:]:
            axis.set_axis_off()
        block[0].set_ylabel(picture.title)
        block[0].set_title("reference")
        mark_right(block[0])
        for axis, init, prediction in zip(block[1:count], picture.predictions, predictions, strict=True):
            _contours(axis, prediction, legend, "solid")
            is_empty = not picture.predictions[init].any()
            axis.set_title(f"{init}: Dice {picture.dice[init]:.3f}" + " (empty)" * is_empty)
    handles = [Line2D([], [], color=label.colour, label=label.name) for label in legend]
    lines = {"reference": "dashed", "prediction": "solid"}
    handles += [Line2D([], [], color="0.3", linestyle=line, label=name) for name, line in lines.items()]
    lines_below = -(-len(handles) // (columns + 1))
    figure.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // lines_below))
    figure.suptitle(title)
    return figure


def mark_right(axis):
    """Write an R at the left border, which is the patient's right in radiological display."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=1.5, foreground="black")]  # the border may be bright
    style = {"color": "white", "fontsize": 7, "va": "center", "path_effects": outline}
    axis.text(0.015, 0.5, "R", transform=axis.transAxes, **style)


def slices_to_show(volumes, affine):
    """Cut the axial slice that shows the most of the reference from several volumes, in radiological display.

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
    position = int(np.argmax(_extent(turned[1])))
    # Without reference voxels, the predictions determine the slice.
    if not turned[1].any() and len(turned) > 2:
        position = int(np.argmax(sum(_extent(volume) for volume in turned[2:])))
    spacing = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))[np.argsort(start[:, 0])]
    # The spacing is now along left-right, posterior-anterior: rows run along the second, columns along the first.
    return spacing[1] / spacing[0], [volume[:, :, position] for volume in turned]


def _extent(classes):
    """Sum the areas of the classes in each slice, each relative to the largest area of its class."""
    extent = np.zeros(classes.shape[2])
    for index in np.unique(classes[classes > 0]):
        area = (classes == index).sum(axis=(0, 1))
        extent += area / area.max()
    return extent


def _contours(axis, classes, legend, linestyle):
    for label in legend:
        mask = classes == label.number
        if mask.any() and not mask.all():
            axis.contour(mask.astype(float), [0.5], colors=label.colour, linewidths=1.1, linestyles=linestyle)
