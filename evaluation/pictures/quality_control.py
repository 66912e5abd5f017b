"""The quality-control picture of step 1: whether the foreground is correct and the classes follow the tissues."""

import numpy as np
from nibabel import orientations

from data.geometry import SLICE_AXES
from evaluation.pictures.overlays import mark_right
from evaluation.report.figures import NAMES_AS_THEY_ARE, drawn_with
from utils.runs import atomic_path

MOST_COLUMNS = 5
PANEL_INCHES, GAP_INCHES, TITLE_INCHES, HEADING_INCHES, BAR_INCHES = 2.6, 0.05, 0.2, 0.42, 0.55
WINDOW = (1, 99)  # percentiles of the foreground shown as black and white
ENOUGH = 200_000  # voxels for these percentiles
OUTLINE = "#ffb000"
EXPLANATION = "orange: border of the foreground; R: the patient's right"
NEARLY_MOST = 0.8  # smallest share of the largest foreground area for a slice to be shown


@drawn_with(NAMES_AS_THEY_ARE)
def draw_constraint_map(path, volume, names, details, affine, title):
    """Draw one axial slice with much foreground: contrasts, and below them principal components and constraint map.

    The slice is the middle one of those with nearly the most foreground; the one with the very most is often at the end
    of the scan, in the lungs or the base of the skull.
    Radiological display: anterior at the top, the patient's right on the left, true aspect ratio.

    Args:
        path: PNG to write; it appears only once complete.
        volume: Contrasts as read, `(X, Y, Z, C)`.
        names: Name of each contrast, C of them.
        details: `data.constraint_maps.ConstraintMap` on the same grid, made with the same affine.
        affine: Voxels to world in RAS+, `(4, 4)`.
        title: Heading, such as the subject.
    """
    panels, classes, number = _panels(volume, names, details, affine)
    rows, columns, below = _places(len(names), len(panels) + 1 - len(names))
    height, width = classes.shape
    aspect = _pixel_aspect(affine)
    slices = details.classes.shape[_slice_axis(affine)]
    figure, axes = _axes(rows, columns, PANEL_INCHES * aspect * height / width)
    figure.suptitle(
        f"{title}, slice {number + 1} of {slices} from below\n{EXPLANATION}",
        fontsize=9,
        y=1 - 0.06 / figure.get_figheight(),
    )
    used = [*axes[: len(names)], *axes[below:]]  # components and map start a new line
    for axis, (name, image, window, has_outline) in zip(used, panels, strict=False):
        axis.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect, interpolation="nearest")
        if has_outline:
            axis.contour(classes > 0, levels=[0.5], colors=OUTLINE, linewidths=0.7)
        axis.set_title(name, fontsize=8, pad=3)
    _draw_classes(figure, used[len(panels)], classes, len(details.class_sizes), aspect)
    mark_right(axes[0])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, pil_kwargs={"compress_level": 3})  # as small as 6 here, in 0.6 of the time


def _axes(rows, columns, panel_height):
    """Return a figure and the axes of its panels, line by line, with room for titles and a colour bar on the right.

    pyplot is avoided, because it keeps global state and figures alive, which a worker with many subjects must not do.
    Sizes are known, so no layout has to be computed.
    """
    from matplotlib.figure import Figure

    across, down = PANEL_INCHES + GAP_INCHES, panel_height + TITLE_INCHES
    width, height = columns * across + BAR_INCHES, rows * down + HEADING_INCHES
    figure, axes = Figure((width, height), dpi=100), []
    for row in range(rows):
        for column in range(columns):
            left, bottom = GAP_INCHES + column * across, (rows - 1 - row) * down + GAP_INCHES
            place = (left / width, bottom / height, PANEL_INCHES / width, panel_height / height)
            axes.append(figure.add_axes(place, xticks=[], yticks=[], frame_on=False))
    return figure, axes


def _places(contrasts, others):
    """Return rows, columns and the number of the first panel of the others, which are below the contrasts."""
    columns = min(MOST_COLUMNS, max(contrasts, others))
    rows_above = -(-contrasts // columns)
    return rows_above - (-others // columns), columns, rows_above * columns


def _panels(volume, names, details, affine):
    """Return `[(name, image (H, W), (black, white), has outline)]`, the classes `(H, W)` and the slice's number."""
    space, inside, panels = details.space, details.classes > 0, []
    number = _representative_slice(space.inside.sum(axis=(0, 1)))
    some = np.unravel_index(np.flatnonzero(inside)[:: max(1, inside.sum() // ENOUGH)], inside.shape)
    ends, shown = np.percentile(volume[some], WINDOW, axis=0), _turned(volume, affine)[:, :, number]
    for c, name in enumerate(names):
        panels.append((name, shown[..., c], _window(*ends[:, c]), True))
    ends = np.percentile(space.features[:: max(1, len(space.features) // ENOUGH)], WINDOW, axis=0)
    shown, is_inside = space.components_of_slice(number), space.inside[..., number]
    for p, share in enumerate(space.explained_variance[: shown.shape[2]]):
        window = _window(*ends[:, p])
        # Outside the foreground, where components are 0, the image is black, or air would look like average tissue.
        image = np.where(is_inside, shown[..., p], window[0])
        panels.append((f"PC {p + 1}, {share:.1%} of the variance", image, window, False))
    return panels, _turned(details.classes, affine)[..., number], number


def _window(black, white):
    return black, max(white, black + 1e-6)


def _draw_classes(figure, axis, classes, number, aspect):
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ["black", *colormaps["nipy_spectral"](np.linspace(0.08, 0.96, number))]
    norm = BoundaryNorm(np.arange(-0.5, number + 1), number + 1)
    image = axis.imshow(classes, cmap=ListedColormap(colours), norm=norm, aspect=aspect, interpolation="nearest")
    axis.set_title(f"constraint map, {number} classes", fontsize=8, pad=3)
    place, width = axis.get_position(), figure.get_figwidth()
    beside = figure.add_axes((place.x1 + 0.06 / width, place.y0, 0.12 / width, place.height))
    bar = figure.colorbar(image, cax=beside, ticks=np.unique(np.linspace(0, number, 6).astype(int)))
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=6, length=0)
    bar.set_label("class (0: background)", fontsize=6)


def _representative_slice(areas):
    """Return the middle slice of those with nearly the largest foreground."""
    candidates = np.flatnonzero(areas >= NEARLY_MOST * areas.max())
    return int(candidates[len(candidates) // 2])


def _turned(volume, affine):
    """Reorient a volume to rows (from anterior), columns (from the patient's right) and slices (from below)."""
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(SLICE_AXES))
    return orientations.apply_orientation(volume, turn)


def _slice_axis(affine):
    """Return the axis on disk along which axial slices are stacked."""
    return int(np.flatnonzero(orientations.io_orientation(affine)[:, 0] == 2)[0])


def _pixel_aspect(affine):
    """Return the ratio of height to width of a displayed pixel."""
    axes = orientations.io_orientation(affine)[:, 0]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return float(spacing[axes == 1][0] / spacing[axes == 0][0])
