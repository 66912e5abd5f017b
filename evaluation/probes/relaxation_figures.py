"""The figures of `relaxation.py`: agreement against the number of images; a constraint map beside the fitted map."""

import numpy as np
from nibabel import orientations

from evaluation.pictures.overlays import mark_right
from evaluation.probes.relaxation import ALL, FIT, HIDDEN, MAP, POSITION, SHIFTED
from evaluation.probes.relaxation_tables import BEST, WORST
from evaluation.report.figures import MARKERS, in_report_style, panels
from utils.label_colours import OKABE_ITO
from utils.runs import atomic_path

# (classes, reference): (line style, colour)
CURVES = {
    (MAP, ALL): ("-", OKABE_ITO[1]),
    (MAP, HIDDEN): ("-", OKABE_ITO[2]),
    (FIT, HIDDEN): ("--", OKABE_ITO[3]),
    (POSITION, HIDDEN): (":", OKABE_ITO[0]),
    (SHIFTED, HIDDEN): (":", OKABE_ITO[6]),
}
LEVELS = {BEST: OKABE_ITO[4], WORST: OKABE_ITO[5]}  # against hidden images
INCHES, LONE_INCHES, PICTURE_INCHES = (2.6, 3.1), (4.2, 3.1), 2.4
TICKS = (1, 2, 5, 10, 20, 30, 50, 70, 100, 150, 300, 500, 700, 1000, 1500, 2000, 3000)  # of the colour bar, ms
SLICE_AXES = ("I", "L", "A")  # rows run down from the head, columns from the patient's right


@in_report_style
def agreement_against_images(numbers, note=""):
    """Draw the share of the variance of ln T between classes against the number of images, a panel per subject.

    Args:
        numbers: From `relaxation_tables.summarised`.
        note: First words of the title.

    Returns:
        A matplotlib `Figure`. Bars show the range over seeds.
    """
    numbers = numbers[numbers["measure"] == "variance"]
    subjects = list(dict.fromkeys(numbers["subject"]))
    figure, axes = panels(1, len(subjects), INCHES if len(subjects) > 1 else LONE_INCHES)
    for axis, subject in zip(axes.flat, subjects, strict=True):
        part = numbers[numbers["subject"] == subject]
        _draw_curves(axis, part)
        _draw_levels(axis, part)
        ticks = sorted(part.loc[part["made_from"] == MAP, "images"].unique())
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set(xlabel="images clustered", title=subject, ylim=(-0.02, 1.02))
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("share of the variance of ln T")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=6, ncols=2 if len(subjects) == 1 else 4, loc="outside lower center")
    figure.suptitle(f"{note}\nClasses; reference. Mean and range over seeds of k-means.".strip(), fontsize=7)
    return figure


def _draw_curves(axis, part):
    for number, ((made_from, reference), (line, colour)) in enumerate(CURVES.items()):
        curve = part[(part["made_from"] == made_from) & (part["reference"] == reference)].sort_values("images")
        spread = [curve["mean"] - curve["lowest"], curve["highest"] - curve["mean"]]
        style = {"color": colour, "marker": MARKERS[number], "markersize": 3.5, "linewidth": 1.2, "linestyle": line}
        name = f"{made_from}; {reference}"
        axis.errorbar(curve["images"], curve["mean"], np.array(spread), label=name, **style)


def _draw_levels(axis, part):
    for name, colour in LEVELS.items():
        level = part.loc[(part["made_from"] == name) & (part["reference"] == HIDDEN), "mean"]
        if len(level):
            axis.axhline(level.iloc[0], color=colour, linestyle="--", linewidth=1.0, label=f"{name}; {HIDDEN}")


@in_report_style
def draw_maps(path, scan, classes, title):
    """Draw the middle coronal slice: first and last image, fitted map, median fitted time of each class.

    Args:
        path: PNG to write.
        scan: A `Relaxometry`.
        classes: Constraint map, `(X, Y, Z)`, 0 outside the mask.
        title: Heading.
    """
    from matplotlib.colors import LogNorm

    fitted = np.where(scan.chosen, scan.fitted_ms, np.nan)
    low, high = np.nanpercentile(fitted, (2, 98))
    medians = medians_of_classes(classes, scan)
    first, *_, last = (scan.volume[..., number] for number in (0, -1))
    shown = [middle_slice(volume, scan.affine) for volume in (first, last, fitted, medians)]
    height, width = shown[0].shape
    aspect = pixel_aspect(scan.affine)
    figure, axes = panels(1, 4, (PICTURE_INCHES, PICTURE_INCHES * aspect * height / width + 0.5))
    times = [f"{scan.times_ms[number]:g} ms" for number in (0, -1)]
    for axis, image, time in zip(axes.flat, shown[:2], times, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.5), aspect=aspect)
        axis.set_title(f"image at {time}")
    norm = LogNorm(low, high)
    for axis, image, name in zip(axes.flat[2:], shown[2:], ("fitted map", "median of each class"), strict=True):
        axis.set_facecolor("0.6")
        drawn = axis.imshow(image, cmap="viridis", norm=norm, aspect=aspect, interpolation="nearest")
        axis.set_title(name)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    bar = figure.colorbar(drawn, ax=axes[0, 2:], ticks=ticks, format="%g", label="ms (log scale)", shrink=0.8)
    bar.minorticks_off()
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    mark_right(axes[0, 0])
    figure.suptitle(f"{title}. R: the patient's right; grey in the fitted map: not compared")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def medians_of_classes(classes, scan):
    """Replace each class by the median fitted time of its chosen voxels, ms, `(X, Y, Z)`; NaN outside the mask."""
    medians = np.full(int(classes.max()) + 1, np.nan)
    for number in np.unique(classes[scan.chosen]):
        medians[number] = np.median(scan.fitted_ms[scan.chosen & (classes == number)])
    medians[0] = np.nan
    return medians[classes]


def middle_slice(volume, affine):
    """Return the middle coronal slice as it is displayed: head at the top, patient's right on the left."""
    turned = orientations.apply_orientation(volume, _turn(affine))
    return turned[..., turned.shape[2] // 2]


def pixel_aspect(affine):
    """Return the ratio of height to width of a displayed pixel."""
    rows, columns = (int(np.flatnonzero(_turn(affine)[:, 0] == place)[0]) for place in (0, 1))
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return float(spacing[rows] / spacing[columns])


def _turn(affine):
    """Return the orientation change to rows, columns and slices as displayed."""
    now = orientations.io_orientation(affine)
    return orientations.ornt_transform(now, orientations.axcodes2ornt(SLICE_AXES))
