"""Figures of a report: scores against N, and the curves of pretraining. Overlays are in `overlays.py`.

The colours (Okabe and Ito) can be distinguished with all common kinds of colour blindness; initialisations also differ
in marker and line style.
"""

import functools
import itertools

import numpy as np

from evaluation.scores.comparisons import BASELINE
from evaluation.scores.measures import DICE
from evaluation.scores.scores import in_grid_order, mean_interval
from utils.label_colours import OKABE_ITO
from utils.runs import atomic_path

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("--", "-", "-.", (0, (6, 1, 1, 1, 1, 1)))  # dotted lines are reserved for the supervised baseline
NAMES_AS_THEY_ARE = {"text.parse_math": False}  # otherwise matplotlib would render a subject A$1$B as a formula
STYLE = NAMES_AS_THEY_ARE | {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.edgecolor": "none",  # a translucent white background keeps names legible above curves
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
PANEL_INCHES = (3.4, 2.8)
LONE_PANEL_INCHES, LOW_PANEL_INCHES = (5.1, 3.1), (3.4, 2.1)  # of many initialisations; where several are stacked
LEGEND_ROW_INCHES, INIT_INCHES, FOLDS_BELOW = 0.17, 1.7, 4  # of a legend below the panels: width; entries a panel
WIDEST = 0.6  # of the distance between two N, for all initialisations side by side
MOST_BANDS = 3  # more of them would overlap, and the bars show the same
AGAINST_N_SHOWS = (
    "Small points: single test subjects, repeats averaged. Lines: means over subjects; bars (and bands): 95 % "
    "confidence interval of the mean (t distribution). Dotted, where it was run: mean of random initialisation on all "
    "{subjects} subjects, the supervised baseline; random initialisation has a point there only if others do."
)
CURVES_SHOW = (
    "Loss on training slices and on the fixed validation slices. Beside it, where a stage contrasts, the health of its "
    "representations on the validation slices: spread (0: collapsed), anchors without positive or negative, alignment "
    "and uniformity."
)

# The columns of panels of `training_curves`: {column of a history: (name in the legend, line style)}.
LOSSES = {"loss": ("training", "--"), "val_loss": ("validation", "-")}
SHARES = {
    "val_feature_spread": ("feature spread (0: collapsed)", "-"),
    "val_share_without_positive": ("anchors without positive", "--"),
    "val_share_without_negative": ("anchors without negative", ":"),
}
DISTANCES = {
    "val_alignment": ("alignment (0: positives agree)", "-"),
    "val_uniformity": ("uniformity (0: collapsed)", "--"),
}
CURVES = {"loss [dimensionless]": LOSSES, "share or spread (0 to 1)": SHARES, "alignment, uniformity": DISTANCES}


def drawn_with(style):
    """Decorate a function that draws or writes a figure with the matplotlib settings."""

    def decorate(function):
        @functools.wraps(function)
        def styled(*arguments, **options):
            import matplotlib

            with matplotlib.rc_context(style):
                return function(*arguments, **options)

        return styled

    return decorate


in_report_style = drawn_with(STYLE)  # fonts and sizes are the same everywhere


def style_numbers(scores):
    """Number the styles of the inits in a figure, `{init: number}`; those of the config are the same in all figures."""
    return {init: k for k, init in enumerate(in_grid_order({*scores.present, *scores.inits}, scores.inits))}


def colour_of(number):
    """Return the colour of the init with this number."""
    return OKABE_ITO[number % len(OKABE_ITO)]


@in_report_style
def against_n(scores, measure=DICE, labels=()):
    """Draw a measure against the number of annotated subjects, as described in `AGAINST_N_SHOWS`.

    Random initialisation on all available annotated training subjects is the dotted line, and also a point of its curve
    if others have a point there.

    Args:
        scores: A `Scores`.
        measure: One of the measures of `scores`.
        labels: One panel for each: class names or `MEAN`; empty: all class names.

    Returns:
        A matplotlib `Figure` with two panels per row.

    Reference:
        The dotted line: Umapathy et al., arXiv 2205.13109, Figs. 3 and 5. Bands and points: ours.
    """
    values, order, styles = scores.per_subject(measure), scores.present, style_numbers(scores)
    shown = list(itertools.product(dict.fromkeys(values["contrasts"]), labels or scores.labels))
    is_lone = len(shown) == 1 and len(order) > MOST_BANDS
    figure, axes = panels(-(-len(shown) // 2), min(2, len(shown)), LONE_PANEL_INCHES if is_lone else PANEL_INCHES)
    used, unused = np.split(axes.ravel(), [len(shown)])
    for axis in unused:
        axis.set_axis_off()
    for axis, (contrasts, label) in zip(used, shown, strict=True):
        panel = values[(values["contrasts"] == contrasts) & (values["label"] == label)]
        curves = _draw_panel(axis, panel, order, styles, scores.available)
        _label_axes(axis, curves, scores.task.panel.format(contrasts=contrasts, label=label))
        axis.set(xlabel=f"{scores.task.subjects} subjects N", ylabel=measure.axis)
    share_limits(used, "y")
    if (measure.low, measure.high) == (0, 1):
        lowest = used[0].get_ylim()[0]  # of points and intervals
        for axis in used:
            axis.set_ylim(max(-0.02, np.floor(10 * lowest) / 10 - 0.02), 1.02)
    _share_legend(figure, axes)
    if scores.note:
        figure.suptitle(scores.note)
    return figure


def _draw_panel(axis, panel, order, styles, all_subjects):
    """Draw the curves and the supervised baseline; return the rows of the curves, with the `place` of their N."""
    has_all = panel["n_annotated"] == all_subjects
    is_baseline = has_all & (panel["init"] == BASELINE)
    is_baseline &= not is_baseline.all()  # on its own, it is drawn as a curve with one point
    curves, baseline = panel if (has_all & ~is_baseline).any() else panel[~is_baseline], panel[is_baseline]
    places = _places(curves["n_annotated"])
    curves = curves.assign(place=curves["n_annotated"].map(places))
    for place, init in enumerate(order):
        _draw_init(axis, curves[curves["init"] == init], init, styles[init], (place, len(order)))
    if len(baseline):
        name, colour = f"{BASELINE}, all {all_subjects:g}", colour_of(styles[BASELINE])
        axis.axhline(baseline["value"].mean(), linestyle=":", linewidth=1.5, color=colour, label=name)
    return curves


def _places(numbers):
    """Return the position of each N on the logarithmic axis; 0, which has no logarithm, is left of all others."""
    least = min((n for n in numbers if n > 0), default=2)
    return {n: n or least / 2 for n in sorted(set(numbers))}


def share_limits(axes, sides):
    """Give panels common axes, "x", "y" or "xy", wide enough for all, for visual comparison."""
    for side in sides:
        low, high = np.transpose([getattr(axis, f"get_{side}lim")() for axis in axes])
        for axis in axes:
            getattr(axis, f"set_{side}lim")(low.min(), high.max())


def _share_legend(figure, axes):
    """Draw one legend below the panels, from the panel with the most initialisations."""
    fullest = max(axes.flat, key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    # The dotted baseline comes last, although matplotlib lists lines first.
    samples = sorted(zip(*fullest.get_legend_handles_labels(), strict=True), key=lambda sample: "," in sample[1])
    handles, names = zip(*samples, strict=True)
    _legend_below(figure, handles, names, int(figure.get_figwidth() / INIT_INCHES), 2, title="initialisation")


def _legend_below(figure, handles, names, columns, rows_there, title=None):
    """Draw a legend below all panels; beyond `rows_there` rows the figure grows, so that panels do not shrink."""
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * max(0, rows - rows_there))
    figure.legend(handles, names, loc="outside lower center", ncols=-(-len(names) // rows), title=title)


def _draw_init(axis, values, init, number, place_of_count):
    if values.empty:
        return
    style, (place, count) = {"color": colour_of(number)}, place_of_count
    # On the logarithmic axis, a constant factor is a constant shift, so initialisations are side by side.
    shift = 2 ** (min(0.16, WIDEST / count) * (place - (count - 1) / 2))
    cells = list(values.groupby("place")["value"])
    intervals = np.array([mean_interval(cell) for _, cell in cells])
    x = np.array([position for position, _ in cells]) * shift
    for position, (_, cell) in zip(x, cells, strict=True):
        spread = 2 ** (np.linspace(-0.05, 0.05, len(cell)))
        axis.scatter(position * spread, cell, s=6, alpha=0.45, linewidths=0, **style)
    mean, _, low, high = intervals.T
    if count <= MOST_BANDS:
        axis.fill_between(x, low, high, alpha=0.15, linewidth=0, **style)
    error = np.nan_to_num([mean - low, high - mean])
    line, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
    axis.errorbar(x, mean, yerr=error, label=init, marker=marker, linestyle=line, markersize=5, capsize=2, **style)


def _label_axes(axis, values, title):
    places = _places(values["n_annotated"])
    numbers = list(places.values())
    subjects, absent = values["subject"].nunique(), int(values["missing"].sum())
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [str(n) for n in places])
    axis.set_xticks([], minor=True)
    axis.set_xlim(numbers[0] / 2**0.5, numbers[-1] * 2**0.5)
    axis.grid(axis="y", alpha=0.3)
    axis.set_title(f"{title} ({subjects} test subjects" + (f", {absent} NaN)" if absent else ")"))


@in_report_style
def training_curves(histories, note=""):
    """Draw losses and the health of representations against epochs.

    There is one row of panels per stage, one colour per fold and one line style per measure. Columns of panels: losses;
    spread and shares; alignment and uniformity. Columns that no stage needs, and panels without values, are left out.

    Args:
        histories: Mapping from stage name to a mapping from fold name ("" without folds) to a DataFrame with the
            columns `epoch` and `loss`, `val_loss` if there was validation, and any other column of `CURVES`.
        note: First words of the title.

    Returns:
        A matplotlib `Figure`.
    """
    order = sorted({fold for folds in histories.values() for fold in folds})
    colours = {fold: colour_of(number + 1) for number, fold in enumerate(order)}
    every = [history for folds in histories.values() for history in folds.values()]
    columns = {label: group for label, group in CURVES.items() if any(_columns(history, group) for history in every)}
    figure, axes = panels(len(histories), len(columns), PANEL_INCHES if len(histories) == 1 else LOW_PANEL_INCHES)
    for row, (stage, folds) in zip(axes, histories.items(), strict=True):
        for panel in zip(row, columns.items(), strict=True):
            _draw_curves(*panel, folds, colours)
        row[0].set_title(stage)
    if len(order) > 1:
        handles = [_sample(label=fold, color=colours[fold]) for fold in order]
        _legend_below(figure, handles, order, FOLDS_BELOW * len(columns), rows_there=1)
    if note:
        figure.suptitle(note)
    return figure


def _columns(history, group):
    """Return the columns of a group (drawn in one panel) for which a history has values."""
    return [column for column in group if column in history and history[column].notna().any()]


def _draw_curves(axis, labelled_group, folds, colours):
    """Draw one panel, or leave it blank if no fold has any of its columns."""
    label, group = labelled_group
    found = {column for history in folds.values() for column in _columns(history, group)}
    if not found:
        axis.set_axis_off()
        return
    for fold, history in folds.items():
        for column in _columns(history, group):
            # Validation may run only every few epochs; lines connect the epochs that have a value.
            values = history.dropna(subset=column)
            marker = "." if len(values) < 3 else None
            axis.plot(values["epoch"], values[column], group[column][1], color=colours[fold], marker=marker)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if group is SHARES:
        axis.set_ylim(-0.03, 1.03)
    # With several folds, a line style applies to all their colours, so the legend shows it in grey.
    colour = "0.3" if len(colours) > 1 else next(iter(colours.values()))
    styles = [group[column] for column in group if column in found]
    axis.legend(handles=[_sample(label=name, linestyle=line, color=colour) for name, line in styles], fontsize=6)


def _sample(**style):
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def save_training_curves(history, path, title=""):
    """Write the curves of one run as PNG.

    Args:
        history: List with one dictionary per epoch, with columns as for `training_curves`.
        path: PNG file to write.
        title: Title of the figure.
    """
    import pandas

    _save(training_curves({title: {"": pandas.DataFrame(history)}}), path)


def panels(rows, columns, inches=PANEL_INCHES, last_column_inches=None):
    """Return an empty matplotlib `Figure` and its axes, `(rows, columns)`, each `inches` (width, height)."""
    from matplotlib.figure import Figure

    widths = [inches[0]] * (columns - 1) + [last_column_inches or inches[0]]
    # The object interface needs no window system and leaves no global state behind.
    figure = Figure((sum(widths), inches[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, width_ratios=widths)


def save_figure(figure, folder, name):
    """Write a matplotlib `Figure` as `<name>.png` and `<name>.pdf` in a folder.

    Returns:
        Path of the PNG.
    """
    _save(figure, folder / f"{name}.pdf")
    return _save(figure, folder / f"{name}.png")


@in_report_style
def _save(figure, path):
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        # The layout is computed once: matplotlib would do so twice per file, which takes most of the time.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    # Without date and program name, the same results give the same file.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata=metadata)
    return path
