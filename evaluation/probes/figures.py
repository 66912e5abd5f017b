"""Representations in the plane: one column per initialisation, one row per tissue property."""

import numpy as np

from evaluation.report.figures import in_report_style, panels
from utils.label_colours import OKABE_ITO

PANEL_INCHES = (1.7, 1.6)
LEGEND_INCHES, SCALE_INCHES = 1.7, 0.85  # width of the legends: with names of labels, or only colour scales
BAR_INCHES = 0.12
SPREAD = (5, 95)  # percentiles of T1, T2 and contrasts covered by the colour scale
OTHER = "#C8C8C8"


@in_report_style
def draw_embeddings(points, patches, labels, title=""):
    """Draw patches in the plane of their representations, the same patches in every panel.

    Args:
        points: Mapping from initialisation to positions, `(n, 2)`, dimensionless.
        patches: DataFrame, a row for each patch: `constraint_class`; if known, `label` (0: none), `T2` and
            `T1` in ms, and contrasts in [0, 1], in columns `contrast <name>`.
        labels: Names of the labels 1, 2, ...
        title: Title of the figure.

    Returns:
        A matplotlib `Figure`.
    """
    rows = ["constraint_class", *(name for name in ("label", "T2", "T1") if name in patches)]
    rows += [name for name in patches if name.startswith("contrast ")]
    key_inches = LEGEND_INCHES if "label" in rows else SCALE_INCHES
    figure, axes = panels(len(rows), len(points) + 1, PANEL_INCHES, key_inches)  # the last column holds the legends
    for axis, init in zip(axes[0], points, strict=False):
        axis.set_title(init)
    for (*row, key), name in zip(axes, rows, strict=True):
        row[0].set_ylabel(f"by true {name}" if name in ("T2", "T1") else f"by {name}".replace("_", " "))
        key.set_axis_off()
        for axis, places in zip(row, points.values(), strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[["left", "bottom"]].set_color(OTHER)
            values = patches[name].to_numpy()
            if name == "label":
                _draw_labels(axis, key, places, values, labels)
            else:
                _draw_values(axis, key, places, values, name, BAR_INCHES / key_inches)
    if title:
        figure.suptitle(title)
    return figure


def _draw_values(axis, key, places, values, name, bar_width):
    is_class = name == "constraint_class"
    low, high = (1, values.max()) if is_class else np.percentile(values, SPREAD)
    style = {"c": values, "vmin": low, "vmax": high, "cmap": "viridis", "s": 4, "linewidths": 0}
    drawn = axis.scatter(*places.T, **style, rasterized=True)
    if not key.child_axes:
        label = "class, dark to bright" if is_class else f"{name} [ms]" if name in ("T2", "T1") else "scaled, 0 to 1"
        extend = "neither" if is_class else "both"
        axis.figure.colorbar(drawn, cax=key.inset_axes([0, 0.05, bar_width, 0.9]), label=label, extend=extend)


def _draw_labels(axis, key, places, values, labels):
    for number, name in enumerate(["other foreground", *labels]):
        here = values == number
        colour = OKABE_ITO[number % len(OKABE_ITO)] if number else OTHER
        axis.scatter(*places[here].T, color=colour, s=4 if number else 2, linewidths=0, label=name, rasterized=True)
    handles = axis.get_legend_handles_labels()
    key.legend(*handles, loc="center left", bbox_to_anchor=(-0.1, 0.5), markerscale=2, handletextpad=0.1)
