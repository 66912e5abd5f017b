"""The picture of step 1 for one subject: was the foreground found, and do the classes follow the tissues?"""

import numpy as np
from nibabel import orientations

from data.geometry import SLICE_AXES
from evaluation.overlays import mark_right
from utils.runs import atomic_path

MOST_COLUMNS = 5
PANEL_INCHES = 2.6
WINDOW = (1, 99)  # percentiles of the foreground shown as black and white
ENOUGH = 200_000  # voxels for these percentiles
OUTLINE = "#ffb000"
EXPLANATION = "orange: border of the foreground; R: the patient's right"
NEARLY_MOST = 0.8  # share of the largest foreground area from which on a slice may be shown


def draw_constraint_map(path, volume, names, details, affine, title):
    """Draw contrasts, and below them principal components and constraint map, of one axial slice with much foreground.

    Shown is the middle one of the slices with nearly the most foreground; the very most lies often at the end of the
    scan, in the lungs or the base of the skull.
    Radiological display: anterior at the top, the patient's right on the left, true aspect ratio.

    Args:
        path: PNG to write; it appears complete or not at all.
        volume: Contrasts as read, `(X, Y, Z, C)`.
        names: Name of each contrast, C of them.
        details: `data.constraint_maps.ConstraintMap` on the same grid.
        affine: Voxels to world in RAS+, `(4, 4)`.
        title: Heading, such as the subject.
    """
    from matplotlib.figure import Figure

    panels, classes, number = _panels(volume, names, details, affine)
    rows, columns, below = _places(len(names), len(panels) + 1 - len(names))
    height, width = classes.shape
    aspect = _pixel_aspect(affine)
    # pyplot is left alone: it keeps global state and figures alive, which a worker of many subjects must not.
    panel_height = PANEL_INCHES * aspect * height / width
    figure = Figure((columns * (PANEL_INCHES + 0.05) + 0.3, rows * (panel_height + 0.25) + 0.45), dpi=100)
    figure.set_layout_engine("compressed")
    slices = details.classes.shape[_slice_axis(affine)]
    figure.suptitle(f"{title}, slice {number + 1} of {slices} from below\n{EXPLANATION}", fontsize=9)
    # Ticks would be laid out before the axes are switched off, which takes a third of the time of drawing.
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []}).ravel()
    used = [*axes[: len(names)], *axes[below:]]  # components and map begin a line
    for axis, (name, image, window, has_outline) in zip(used, panels, strict=False):
        axis.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect, interpolation="nearest")
        if has_outline:
            axis.contour(classes > 0, levels=[0.5], colors=OUTLINE, linewidths=0.7)
        axis.set_title(name, fontsize=8)
    _draw_classes(figure, used[len(panels)], classes, len(details.class_sizes), aspect)
    mark_right(axes[0])
    for axis in axes:
        axis.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _places(contrasts, others):
    """Return rows, columns and the panel with which the others begin, for contrasts above the others."""
    columns = min(MOST_COLUMNS, max(contrasts, others))
    rows_above = -(-contrasts // columns)
    return rows_above - (-others // columns), columns, rows_above * columns


def _panels(volume, names, details, affine):
    """Return `[(name, image (H, W), (black, white), has outline)]`, the classes `(H, W)` and the slice's number."""
    inside = details.classes > 0
    number = _representative_slice(_turned(inside, affine).sum(axis=(0, 1)))
    shares = details.explained_variance[: details.components.shape[3]]
    titles = [f"PC {p}, {share:.1%} of the variance" for p, share in enumerate(shares, start=1)]
    is_shown, panels = _turned(inside, affine)[..., number], []
    some = np.unravel_index(np.flatnonzero(inside)[:: max(1, inside.sum() // ENOUGH)], inside.shape)
    for images, its_names, has_outline in ((volume, names, True), (details.components, titles, False)):
        ends = np.percentile(images[some], WINDOW, axis=0)
        shown = _turned(images, affine)[:, :, number]
        for c, name in enumerate(its_names):
            black, white = ends[:, c]
            # Components are 0 outside the foreground: blank there, or the average tissue would look like air.
            image = shown[..., c] if has_outline else np.where(is_shown, shown[..., c], black)
            panels.append((name, image, (black, max(white, black + 1e-6)), has_outline))
    return panels, _turned(details.classes, affine)[..., number], number


def _draw_classes(figure, axis, classes, number, aspect):
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ["black", *colormaps["nipy_spectral"](np.linspace(0.08, 0.96, number))]
    norm = BoundaryNorm(np.arange(-0.5, number + 1), number + 1)
    image = axis.imshow(classes, cmap=ListedColormap(colours), norm=norm, aspect=aspect, interpolation="nearest")
    axis.set_title(f"constraint map, {number} classes", fontsize=8)
    bar = figure.colorbar(
        image, ax=axis, ticks=np.unique(np.linspace(0, number, 6).astype(int)), fraction=0.05, pad=0.02
    )
    bar.ax.tick_params(labelsize=6, length=0)
    bar.set_label("class (0: background)", fontsize=6)


def _representative_slice(areas):
    """Middle one of the slices with nearly the most foreground."""
    candidates = np.flatnonzero(areas >= NEARLY_MOST * areas.max())
    return int(candidates[len(candidates) // 2])


def _turned(volume, affine):
    """Turn a volume to rows (from anterior), columns (from the patient's right) and slices (from below)."""
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(SLICE_AXES))
    return orientations.apply_orientation(volume, turn)


def _slice_axis(affine):
    """Axis on disk along which the axial slices lie."""
    return int(np.flatnonzero(orientations.io_orientation(affine)[:, 0] == 2)[0])


def _pixel_aspect(affine):
    """Height of a displayed pixel over its width."""
    axes = orientations.io_orientation(affine)[:, 0]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return float(spacing[axes == 1][0] / spacing[axes == 0][0])
