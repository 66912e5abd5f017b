"""Small pictures of every test subject for the HTML report, so that failures can be found.

Drawn with array arithmetic instead of matplotlib: a study with 15 subjects, five contrasts and six initialisations
needs 450 of them.
"""

import dataclasses
import io

import numpy as np

from evaluation.pictures.overlays import WINDOW, read_picture, slices_to_show
from evaluation.scores.scores import MEAN
from utils.checks import InputError

HEIGHT_PX = 150
FINER = 2  # drawn at this multiple of the size and downsampled, for smooth contours
MARGIN = 0.2  # of the labels' extent, kept around them
LEAST_SHARE = 0.5  # of the slice, in either direction
BRIGHTEST = 190  # of 255: the white reference must stay visible on bright tissue
QUALITY = 82
BUDGET_BYTES = 6_000_000  # for all pictures; 8 MB as text in the page
RULE = (
    "The axial slice on which the reference labels together are largest, each relative to its own largest slice; shown "
    "is the part of it around the labels, at least half of each side. The patient's right is on the left. White: "
    "reference; coloured: prediction of the first repeat, whose Dice (mean over labels) is given below. Worst subject "
    "first, by Dice averaged over labels, repeats and all initialisations at this N. Each number links to the "
    "folder of its run."
)


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One prediction of one subject.

    Attributes:
        init: Initialisation.
        dice: Dice (mean over labels) of this prediction; NaN where there is none.
        folder: Folder of the run that made it.
        jpeg: The picture.
    """

    init: str
    dice: float
    folder: object
    jpeg: bytes


def draw_thumbnails(scores, files, shown, wanted, legend, budget=BUDGET_BYTES):
    """Draw all test subjects of one input set and one N, the worst first.

    Args:
        scores: A `Scores` of one input set and one N; arguments not listed are those of `overlays.read_pictures`.
        legend: A `Label` for each class.
        budget: Largest size of all pictures together, in bytes; beyond it, the best subjects are left out.

    Returns:
        `(thumbnails, notes)`: mapping from subject to a list of `Thumbnail`, and a sentence on each subject that is not
        shown, or not with every initialisation.
    """
    thumbnails, notes, size = {}, [], 0
    subjects = worst_first(scores.per_subject())
    for place, subject in enumerate(subjects):
        own = scores.of(subject=subject)
        try:
            picture = read_picture(subject, subject, own, files, shown, wanted)
        except InputError as error:
            notes.append(f"No thumbnail: {error.lines[0]}")
            continue
        jpegs = dict(zip(own.present, draw_predictions(picture, legend), strict=True))
        size += sum(map(len, jpegs.values()))
        if size > budget:
            notes.append(
                f"Thumbnails of the worst {place} of {len(subjects)} subjects; more would not fit on the page."
            )
            break
        first = own.frame.sort_values("repeat", kind="stable").drop_duplicates("init").set_index("init")["folder"]
        thumbnails[subject] = [Thumbnail(init, picture.dice[init], first[init], jpegs[init]) for init in jpegs]
    return thumbnails, notes


def worst_first(values):
    """List subjects from worst to best Dice, averaged over labels, repeats and inits; those without a value first.

    Args:
        values: From `Scores.per_subject` of the Dice.
    """
    means = values[values["label"] == MEAN].groupby("subject")["value"].mean()
    return sorted(means.index, key=lambda subject: (-1.0 if np.isnan(means[subject]) else means[subject], subject))


def draw_predictions(picture, legend):
    """Draw each prediction of a subject on its image.

    Args:
        picture: An `overlays.Picture`.
        legend: A `Label` for each class.

    Returns:
        List of JPEG files as bytes, in the order of the predictions.
    """
    volumes = [picture.image, picture.reference, *picture.predictions.values()]
    aspect, slices = slices_to_show(volumes, picture.affine)
    box = crop_around(np.any([one > 0 for one in slices[1:]], axis=0))
    image, reference, *predictions = (one[box] for one in slices)
    low, high = np.percentile(slices[0], WINDOW)
    grey = np.clip((image - low) / max(high - low, 1e-12), 0, 1) * BRIGHTEST
    height = HEIGHT_PX * FINER
    size = (max(1, round(height * image.shape[1] / (image.shape[0] * aspect))), height)
    return [_draw(grey, reference, prediction, legend, size) for prediction in predictions]


def crop_around(mask):
    """Return the index ranges (rows, columns) of a box around a mask, with a margin and at least half of each side.

    Args:
        mask: Boolean, `(rows, columns)`; the whole image when it is empty.
    """
    box = []
    for axis, length in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        if not len(found):
            return slice(None), slice(None)
        extent = found[-1] + 1 - found[0]
        wanted = int(min(length, max(LEAST_SHARE * length, (1 + 2 * MARGIN) * extent)))
        start = int(np.clip((found[0] + found[-1] + 1 - wanted) // 2, 0, length - wanted))
        box.append(slice(start, start + wanted))
    return tuple(box)


def _draw(grey, reference, prediction, legend, size):
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    pen = ImageDraw.Draw(canvas)
    scale = np.divide(size, (grey.shape[1], grey.shape[0]))
    for label in legend:
        _contour(pen, reference == label.number, scale, (255, 255, 255))
    for label in legend:
        _contour(pen, prediction == label.number, scale, label.rgb)
    file = io.BytesIO()
    small = canvas.resize((max(1, size[0] // FINER), size[1] // FINER), Image.Resampling.BOX)
    small.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def _contour(pen, mask, scale, colour):
    from skimage.measure import find_contours

    for line in find_contours(np.pad(mask, 1).astype(float), 0.5):
        points = (line[:, ::-1] - 0.5) * scale  # minus the padding, plus half a pixel to its middle
        pen.line([tuple(point) for point in points], fill=colour, width=1 + FINER, joint="curve")
