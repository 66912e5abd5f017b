"""Error maps of contrast synthesis: the acquired contrast, the synthesis of each initialisation, and |difference|.

Subjects and slices are chosen by a rule, as in `overlays`: test subjects are ranked by SSIM, and the median and the
worst are shown, on a slice that depends only on the reference.
"""

import dataclasses

import numpy as np

from evaluation.pictures.overlays import choose_subjects, first_repeat, mark_right, read_prediction, slices_to_show
from evaluation.report.figures import in_report_style, panels
from evaluation.scores.measures import MASK, measures_in
from utils.checks import InputError

MOST_SIDE_BY_SIDE = 3  # initialisations whose images and errors share one row
WIDEST_INCHES, PICTURE_INCHES, BAR_INCHES = 13.0, 1.9, 0.9
CLEAR = 99.5  # percentile of all errors shown at which the colour scale ends
RULE = (
    "Subjects are ranked by SSIM inside the mask, averaged over target contrasts, repeats and all initialisations at "
    "this N; the median and the worst are shown, on the axial slice on which the reference labels (without labels: the "
    "foreground) are largest. Radiological display: the patient's right (R) is on the left. Acquired and synthesised "
    "images (of the first repeat, whose SSIM inside the mask is given above) have one grey scale, 0 to 1 of the data "
    "range. Errors, |synthesised - acquired| in units of the data range, have one colour scale in all figures; it ends "
    "at the 99.5th percentile of the errors shown."
)


@dataclasses.dataclass(frozen=True)
class ErrorMaps:
    """One subject to be drawn, all images on one slice and in units of the data range.

    Attributes:
        title: Text to the left of the subject's rows, such as "median: sub-01".
        aspect: Height of a pixel over its width.
        acquired: Mapping from target contrast to `(rows, columns)`.
        synthesised: Mapping from target contrast to a mapping from init to `(rows, columns)`.
        ssim: Mapping from target contrast to a mapping from init to the SSIM, inside the mask, of the images shown.
    """

    title: str
    aspect: float
    acquired: dict
    synthesised: dict
    ssim: dict

    def errors(self, contrast):
        """|synthesised - acquired| of a target contrast, `{init: (rows, columns)}`."""
        return {init: np.abs(made - self.acquired[contrast]) for init, made in self.synthesised[contrast].items()}


def read_error_maps(scores, files, wanted):
    """Choose the subjects of one figure and read their images.

    Args:
        scores: A `Scores` of synthesis, one input set and one N.
        files: Mapping from subject to `SubjectFiles`.
        wanted: `config.data.wanted()`.

    Returns:
        List of `ErrorMaps`.

    Raises:
        InputError: If a scan or a prediction is missing or does not match the others.
    """
    ssim, *_ = measures_in(MASK)
    return [
        _read_subject(f"{role}: {subject}", subject, scores, files, wanted)
        for role, subject in choose_subjects(scores.per_subject(ssim)).items()
    ]


def _read_subject(title, subject, scores, files, wanted):
    from data.intensity import scale_between
    from data.scans.subject import SubjectReader

    if subject not in files:
        raise InputError(f"{subject}: was a test subject, but is no longer below data.root")
    inits = scores.present
    rows = {init: first_repeat(scores, subject, init).set_index("label") for init in inits}
    targets = list(rows[inits[0]].index)
    reader = SubjectReader(files[subject], wanted, targets)
    volume, affine = reader.volume(), reader.grid.affine
    reference = _reference(reader, volume)
    pictures = {}
    for number, target in enumerate(targets):
        for init in (None, *inits):  # None: as acquired
            low_high = rows[init or inits[0]].loc[target, ["intensity_low", "intensity_high"]].to_numpy(float)
            path = None if init is None else rows[init].loc[target, "folder"] / "predictions"
            one = volume[..., number] if path is None else _synthesised(path, subject, target, volume.shape[:3])
            scaled = scale_between(one[..., None], [low_high])[..., 0]
            aspect, (pictures[target, init], _) = slices_to_show([scaled, reference], affine)
    return ErrorMaps(
        title,
        aspect,
        acquired={target: pictures[target, None] for target in targets},
        synthesised={target: {init: pictures[target, init] for init in inits} for target in targets},
        ssim={target: {init: rows[init].loc[target, "ssim_mask"] for init in inits} for target in targets},
    )


def _synthesised(folder, subject, target, shape):
    return read_prediction(folder / f"{subject}_{target}.nii.gz", shape)


def _reference(reader, volume):
    """Return what determines the slice: the label map, or else the given mask, or else the segmented foreground."""
    from data.intensity import foreground_mask

    if reader.wanted.labels and reader.files.label is not None:
        return reader.label()
    mask = reader.mask()
    return (foreground_mask(volume, reader.grid.affine) if mask is None else mask).astype(np.uint8)


def largest_error(pictures):
    """Return the end of the colour scale for a list of `ErrorMaps`, exceeded by few errors; at least 0.01."""
    errors = [error.ravel() for one in pictures for contrast in one.acquired for error in one.errors(contrast).values()]
    return max(0.01, float(np.ceil(100 * np.percentile(np.concatenate(errors), CLEAR)) / 100))


@in_report_style
def draw_error_maps(pictures, title, highest):
    """Draw, subject by subject and contrast by contrast: acquired, synthesised and |error| of each initialisation.

    Args:
        pictures: List of `ErrorMaps`, all with the same contrasts and inits.
        title: Title of the figure.
        highest: End of the colour scale of all errors, in units of the data range.

    Returns:
        A matplotlib `Figure`; with more than three initialisations, the errors are below the images.

    Reference:
        Poster on contrast synthesis, Fig. 4. Choice of subjects and slices: ours.
    """
    blocks = [(one, contrast) for one in pictures for contrast in one.acquired]
    inits = list(pictures[0].synthesised[blocks[0][1]])
    lines = 1 if len(inits) <= MOST_SIDE_BY_SIDE else 2
    columns = 1 + len(inits) * (2 if lines == 1 else 1)
    width = min(PICTURE_INCHES, WIDEST_INCHES / columns)
    tallest = max(one.aspect * image.shape[0] / image.shape[1] for one in pictures for image in one.acquired.values())
    figure, axes = panels(lines * len(blocks), columns, (width, width * tallest + 0.2))
    figure.set_figwidth(figure.get_figwidth() + BAR_INCHES)
    for axis in axes.flat:
        axis.set_axis_off()
    for block, (one, contrast) in zip(axes.reshape(len(blocks), -1), blocks, strict=True):
        images = {"acquired": one.acquired[contrast]}
        images |= {f"{init}: SSIM {one.ssim[contrast][init]:.3f}": one.synthesised[contrast][init] for init in inits}
        for axis, (name, image) in zip(block, images.items(), strict=False):
            _show(axis, image, name, one.aspect, cmap="gray", vmax=1)
        block[0].set_ylabel(f"{one.title}\n{contrast}")
        mark_right(block[0])
        for axis, (init, error) in zip(block[-len(inits) :], one.errors(contrast).items(), strict=True):
            shown = _show(axis, error, f"|error|: {init}", one.aspect, cmap="inferno", vmax=highest)
    label = "|synthesised - acquired|, units of the data range"
    figure.colorbar(shown, ax=axes, label=label, extend="max", shrink=min(1, 3 / axes.shape[0]), aspect=30, pad=0.01)
    figure.suptitle(title)
    return figure


def _show(axis, image, title, aspect, **style):
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title)
    return axis.imshow(image, vmin=0, aspect=aspect, **style)
