"""Figures of the renal paper: violins of the Dice by label and contrasts, and Bland-Altman plots of volumes."""

import numpy as np

from evaluation.report.figures import MARKERS, colour_of, in_report_style, panels, share_limits, style_numbers
from evaluation.scores.comparisons import BASELINE
from evaluation.scores.measures import DICE
from evaluation.statistics import bland_altman, stars

NARROW, WIDE = 3.4, 7.0  # inches: one and two journal columns
VIOLIN_INCHES = 0.3
PANEL_HEIGHT = 2.3
GROUP_WIDTH = 0.84  # of the distance between two contrasts, for all initialisations together
WIDEST_VIOLIN = 0.3
BAR_STEP = 0.075  # between stacked significance bars, in units of Dice
MOST_COLUMNS = 3
AGREEMENT_INCHES = (1.75, 2.2)
VIOLINS_SHOW = (
    "Distribution over test subjects (repeats averaged), all of them as points; open circles: further than 1.5 "
    "interquartile ranges from the quartiles. Markers: medians; thick lines: quartiles. Bars with stars: differs from "
    "random initialisation across the same subjects in a paired two-sided t-test (* p ≤ 0.05, ** p ≤ 0.01, "
    "*** p ≤ 0.001); no bar: not shown to differ."
)
AGREEMENT_SHOWS = (
    "Bland-Altman plot at the largest N: segmented minus reference volume against their mean, one point per test "
    "subject (repeats averaged). Solid: bias; dashed: limits of agreement (bias ± 1.96 standard deviations of the "
    "differences); bands: their 95 % confidence intervals; dotted: no difference; numbers in mL."
)


def at_largest_n(values):
    """Keep, for each input set, the rows with the largest number of annotated subjects."""
    return values[values["n_annotated"] == values.groupby("contrasts")["n_annotated"].transform("max")]


@in_report_style
def dice_violins(scores, differences=None):
    """Draw the distribution of the Dice over test subjects, one violin per initialisation, at the largest N.

    One panel per label (two per row if each has few violins), as described in `VIOLINS_SHOW`.

    Args:
        scores: A `Scores` of segmentation.
        differences: DataFrame with `contrasts`, `init`, `n_annotated`, `label` and `p_bonferroni` of each
            initialisation against the baseline; significant ones get a bar with stars. None draws no bars.

    Returns:
        A matplotlib `Figure`.

    Reference:
        Ghoul et al., ISMRM 2024, Fig. 1. Points, medians and quartiles: ours.
    """
    values, labels = at_largest_n(scores.per_subject()).dropna(subset="value"), scores.labels
    order, styles = [init for init in scores.present if init in set(values["init"])], style_numbers(scores)
    contrasts = list(dict.fromkeys(values["contrasts"]))
    width = np.clip(VIOLIN_INCHES * len(order) * len(contrasts) + 0.7, NARROW, WIDE)
    columns = 2 if len(labels) > 1 and width == NARROW else 1
    figure, axes = panels(-(-len(labels) // columns), columns, (width, PANEL_HEIGHT))
    lowest = values.loc[values["label"].isin(labels), "value"].min()
    for axis in axes.flat[len(labels) :]:
        axis.set_axis_off()
    tops = [1.0]
    for axis, label in zip(axes.flat, labels, strict=False):
        panel = values[values["label"] == label]
        for place, name in enumerate(contrasts):
            group = panel[panel["contrasts"] == name]
            _draw_violins(axis, group, place, order, styles)
            tops.append(_draw_bars(axis, group, place, order, differences))
        _label_violin_axes(axis, panel, label, contrasts)
    for axis in axes.flat[: len(labels)]:
        _limit_dice(axis, lowest, max(tops))
    _add_legend(figure, order, styles)
    if scores.note:
        figure.suptitle(scores.note)
    return figure


def _add_legend(figure, order, styles):
    from matplotlib.lines import Line2D

    looks = {init: {"color": colour_of(styles[init]), "marker": _marker(styles[init])} for init in order}
    samples = [Line2D([], [], linestyle="", label=init, **look) for init, look in looks.items()]
    figure.legend(handles=samples, loc="outside lower center", ncols=min(len(order), int(figure.get_figwidth() / 1.4)))


def _marker(number):
    return MARKERS[number % len(MARKERS)]


def _position(place, number, count):
    return place + GROUP_WIDTH * ((number + 0.5) / count - 0.5)


def _draw_violins(axis, group, place, order, styles):
    width = min(WIDEST_VIOLIN, GROUP_WIDTH / len(order))
    for number, init in enumerate(order):
        values = group.loc[group["init"] == init, "value"].to_numpy()
        if not len(values):
            continue
        x, colour, marker = _position(place, number, len(order)), colour_of(styles[init]), _marker(styles[init])
        if len(values) > 1:
            (body,) = axis.violinplot([values], [x], widths=0.92 * width, showextrema=False)["bodies"]
            body.set(facecolor=colour, edgecolor=colour, alpha=0.25)
        low, median, high = np.percentile(values, (25, 50, 75))
        is_outlier = (values < low - 1.5 * (high - low)) | (values > high + 1.5 * (high - low))
        # Subjects are spread out in order, not at random, so that the same results give the same figure.
        spread = x + 0.3 * width * np.linspace(-1, 1, len(values))
        axis.scatter(spread[~is_outlier], values[~is_outlier], s=4, color=colour, alpha=0.6, linewidths=0)
        axis.scatter(spread[is_outlier], values[is_outlier], s=13, facecolors="none", edgecolors=colour, linewidths=0.8)
        axis.vlines(x, low, high, color=colour, linewidth=2)
        axis.plot(x, median, marker=marker, color=colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.7)


def _draw_bars(axis, group, place, order, differences):
    """Draw a bar with stars over each significant pair; return the height of the highest, or 0."""
    if differences is None or differences.empty or group.empty or BASELINE not in order:
        return 0.0
    rows = differences[
        (differences["contrasts"] == group["contrasts"].iloc[0])
        & (differences["n_annotated"] == group["n_annotated"].iloc[0])
        & (differences["label"] == group["label"].iloc[0])
    ]
    adjusted = rows.set_index("init")["p_bonferroni"].to_dict()
    height = 1.0
    for number, init in enumerate(order):
        text = stars(adjusted.get(init))
        if not text:
            continue
        height += BAR_STEP
        start, end = (_position(place, index, len(order)) for index in (order.index(BASELINE), number))
        axis.plot([start, start, end, end], [height - 0.02, height, height, height - 0.02], color="0.2", linewidth=0.8)
        axis.text((start + end) / 2, height - 0.012, text, ha="center", va="bottom", fontsize=7)
    return height


def _label_violin_axes(axis, panel, label, contrasts):
    numbers = panel.groupby("contrasts")["n_annotated"].first()
    axis.set_xticks(range(len(contrasts)), [f"{name}\nN = {numbers.get(name, '-')}" for name in contrasts])
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, len(contrasts) - 0.5)
    axis.grid(axis="y", alpha=0.3)
    axis.set_ylabel(DICE.axis)
    axis.set_title(f"{label} ({panel['subject'].nunique()} test subjects)")


def _limit_dice(axis, lowest, top):
    """Set the Dice axis from below the lowest value to above the highest bar of all panels, which may exceed 1."""
    floor = max(0.0, np.floor(10 * np.nan_to_num(lowest)) / 10)
    axis.set_yticks(np.arange(1.0, floor - 0.001, -0.1 if floor >= 0.5 else -0.2))
    axis.set_ylim(floor - 0.02, top + (0.02 if top <= 1.0 else 0.07))


@in_report_style
def bland_altman_plots(scores, both, label):
    """Draw the agreement of segmented and reference volumes of one label at the largest N.

    One panel per contrasts and initialisation, all with the same axes, as described in `AGREEMENT_SHOWS`.

    Args:
        scores: A `Scores` of segmentation.
        both: Segmented and reference volumes, from `agreement.volumes`.
        label: Class name.

    Returns:
        A matplotlib `Figure`, or None if no subject has both volumes.

    Reference:
        Ghoul et al., ISMRM 2024, Fig. 2; Bland and Altman, Stat. Methods Med. Res. 1999;8:135-160.
    """
    both = at_largest_n(both[both["label"] == label]).dropna(subset=["measured", "reference"])
    if both.empty:
        return None
    order = [init for init in scores.present if init in set(both["init"])]
    contrasts, styles = list(dict.fromkeys(both["contrasts"])), style_numbers(scores)
    places = _panel_places(len(contrasts), len(order))
    figure, axes = panels(*(1 + np.max(places, axis=(0, 1))), AGREEMENT_INCHES)
    for axis in axes.flat:
        axis.set_axis_off()
    drawn = []
    for name, row in zip(contrasts, places, strict=True):
        for number, place in enumerate(row):
            part = both[(both["contrasts"] == name) & (both["init"] == order[number])]
            if len(part):
                drawn.append(axes[place])
                _draw_agreement(axes[place], part, colour_of(styles[order[number]]))
                axes[place].tick_params(labelleft=place[1] == 0)
    share_limits(drawn, "xy")
    figure.supxlabel("mean of segmented and reference volume [mL]", fontsize=8)
    figure.supylabel("segmented \N{MINUS SIGN} reference volume [mL]", fontsize=8)
    figure.suptitle(f"{scores.note} {label} ({both['subject'].nunique()} test subjects)".strip())
    return figure


def _panel_places(contrasts, inits):
    """Return row and column of every panel, by contrasts and init; two inits with many contrasts use four per row."""
    columns = min(MOST_COLUMNS, inits)
    rows = -(-inits // columns)
    sets = 2 if columns <= 2 and contrasts > 3 else 1
    return [
        [(rows * (c // sets) + i // columns, columns * (c % sets) + i % columns) for i in range(inits)]
        for c in range(contrasts)
    ]


def _draw_agreement(axis, part, colour):
    """Draw the panel of one input set and init, with its numbers in the title."""
    axis.set_axis_on()
    agreement = bland_altman(part["measured"], part["reference"])
    mean, difference = (part["measured"] + part["reference"]) / 2, part["measured"] - part["reference"]
    axis.axhline(0, color="0.3", linewidth=0.8, linestyle=":")
    axis.scatter(mean, difference, s=10, color=colour, alpha=0.7, linewidths=0)
    for name, line, alpha in (("bias", "-", 0.35), ("lower", "--", 0.15), ("upper", "--", 0.15)):
        value, low, high = (getattr(agreement, field) for field in (name, f"{name}_low", f"{name}_high"))
        if value is not None:
            axis.axhline(value, linestyle=line, linewidth=1, color="0.15")
        if low is not None:
            axis.axhspan(low, high, color=colour, alpha=alpha, linewidth=0)
    bias = f"bias {_ml(agreement.bias)} ({_ml(agreement.bias_low)} to {_ml(agreement.bias_high)})"
    one = part.iloc[0]
    limits = f"limits {_ml(agreement.lower)} to {_ml(agreement.upper)}"
    axis.set_title(f"{one['contrasts']}, N = {one['n_annotated']}\n{one['init']}\n{bias}\n{limits}", fontsize=7)
    axis.locator_params(axis="x", nbins=4)
    axis.tick_params(labelsize=7)


def _ml(value):
    if value is None:
        return "-"
    return f"{value:.{0 if abs(value) >= 10 else 1}f}".replace("-", "\N{MINUS SIGN}")  # as on the axes
