"""One picture of a dataset: some subjects, all contrasts, with the labels as overlay."""

import numpy as np

from evaluation.pictures.overlays import WINDOW, mark_right, slices_to_show
from evaluation.report.figures import in_report_style, panels
from utils.runs import atomic_path

PANEL_INCHES = 1.5
MOST_CHANNELS = 8
MOST_SIDE_BY_SIDE = 4  # labels per row of the legend
LEAST_INCHES = 6  # of width, needed by title and legend


@in_report_style
def draw_montage(path, subjects, channels, legend, title):
    """Draw a column of axial slices for each subject; radiological display, true aspect ratio.

    The slice shown is the one with the largest labels or, without labels, with the most bright voxels. If there are few
    subjects, they are drawn larger.

    Args:
        path: PNG to write.
        subjects: List of `(name, volume (X, Y, Z, C), classes (X, Y, Z) or None, affine (4, 4))`.
        channels: Names of the C channels; only the first eight are drawn.
        legend: A `Label` for each class.
        title: Heading.
    """
    from matplotlib.lines import Line2D

    names = channels[:MOST_CHANNELS]
    shown = [_slices(volume[..., : len(names)], classes, affine) for _, volume, classes, affine in subjects]
    tallest = max(aspect * images[0].shape[0] / images[0].shape[1] for aspect, images, _ in shown)
    width = max(PANEL_INCHES, LEAST_INCHES / len(subjects))
    figure, axes = panels(len(names), len(subjects), (width, min(width, 2 * PANEL_INCHES) * tallest))
    for column, (subject, *_), (aspect, images, classes) in zip(axes.T, subjects, shown, strict=True):
        for axis, image in zip(column, images, strict=True):
            black, white = np.percentile(image, WINDOW)
            axis.imshow(image, cmap="gray", vmin=black, vmax=max(white, black + 1e-6), aspect=aspect)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            for label in legend if classes is not None else ():
                mask = (classes == label.number).astype(float)
                if mask.any():
                    axis.contour(mask, [0.5], colors=label.colour, linewidths=0.8)
        column[0].set_title(subject, fontsize="small")
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name)
    mark_right(axes[0, 0])
    if any(classes is not None for *_, classes in shown):
        handles = [Line2D([], [], color=label.colour, label=label.name) for label in legend]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(legend), MOST_SIDE_BY_SIDE))
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _slices(volume, classes, affine):
    """Return `(aspect, images, classes or None)` of the slice to show."""
    where = (volume[..., 0] > volume[..., 0].mean()).astype(np.uint8) if classes is None else classes
    parts = [volume[..., 0], where, *np.moveaxis(volume[..., 1:], -1, 0)]
    aspect, (first, marked, *others) = slices_to_show(parts, affine)
    return aspect, [first, *others], None if classes is None else marked
