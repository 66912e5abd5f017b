"""The figures of a report: Dice against N, and the curves of pretraining. Overlays are in `overlays.py`.

Colours are those of Okabe and Ito, which stay apart in all common kinds of colour blindness; each initialisation also
has a marker and a line style of its own.
"""

import functools

import numpy as np

from evaluation.results import MEAN, in_grid_order
from evaluation.statistics import mean_interval
from utils.runs import atomic_path

OKABE_ITO = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("--", "-", "-.", ":")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
PANEL_INCHES = (3.4, 2.8)


def in_report_style(function):
    """Decorate a function that draws or writes a figure: fonts and sizes are the same everywhere."""

    @functools.wraps(function)
    def styled(*arguments, **options):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*arguments, **options)

    return styled


@in_report_style
def dice_against_n(values, labels, inits=(), note=""):
    """Draw Dice against the number of annotated subjects, one line per initialisation.

    Small points are single test subjects (repeats averaged), so that a mean of 0.5 made of zeros and ones shows as
    such; lines join the means over subjects; bands are the 95 % confidence intervals of these means.

    Args:
        values: From `results.per_subject`.
        labels: One panel for each: class names or `MEAN`.
        inits: Initialisations in the order of the legend.
        note: Beginning of the title, such as "Simulated scans.".

    Returns:
        A matplotlib `Figure`, two panels a row.
    """
    order = in_grid_order(set(values["init"]), inits)
    shown = [(contrasts, label) for contrasts in dict.fromkeys(values["contrasts"]) for label in labels]
    figure, axes = panels(-(-len(shown) // 2), min(2, len(shown)))
    lowest = values.loc[values["label"].isin(labels), "value"].min()
    for axis, (contrasts, label) in zip(axes.flat, shown, strict=False):
        panel = values[(values["contrasts"] == contrasts) & (values["label"] == label)]
        for number, init in enumerate(order):
            _draw_init(axis, panel[panel["init"] == init], init, number, len(order))
        _label_dice_axes(axis, panel, f"{contrasts}: {label}", lowest)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    # All panels share one legend, drawn from a panel that has every initialisation if there is one.
    fullest = max(axes.flat, key=lambda axis: len(axis.get_legend_handles_labels()[1]))
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside lower center", ncols=4, title="initialisation")
    if note:
        figure.suptitle(note)
    return figure


def _draw_init(axis, values, init, number, count):
    if values.empty:
        return
    style = {"color": OKABE_ITO[number % len(OKABE_ITO)]}
    # On the logarithmic axis a constant factor is a constant shift: initialisations stand side by side.
    shift = 2 ** (0.16 * (number - (count - 1) / 2))
    cells = list(values.groupby("n_annotated")["value"])
    intervals = np.array([mean_interval(cell) for _, cell in cells])
    x = np.array([n for n, _ in cells]) * shift
    for position, (_, cell) in zip(x, cells, strict=True):
        spread = 2 ** (np.linspace(-0.05, 0.05, len(cell)))
        axis.scatter(position * spread, cell, s=6, alpha=0.45, linewidths=0, **style)
    mean, _, low, high = intervals.T
    axis.fill_between(x, low, high, alpha=0.15, linewidth=0, **style)
    error = np.nan_to_num([mean - low, high - mean])
    line, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
    axis.errorbar(x, mean, yerr=error, label=init, marker=marker, linestyle=line, markersize=5, capsize=2, **style)


def _label_dice_axes(axis, values, title, lowest):
    numbers = sorted(values["n_annotated"].unique())
    subjects = values["subject"].nunique()
    absent = int(values["missing"].sum())
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [str(n) for n in numbers])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("annotated subjects N")
    axis.set_ylabel("Dice (0 to 1)")
    axis.set_ylim(max(-0.02, np.floor(10 * np.nan_to_num(lowest)) / 10 - 0.02), 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.set_title(f"{title} ({subjects} test subjects" + (f", {absent} NaN)" if absent else ")"))


@in_report_style
def training_curves(histories, note=""):
    """Draw training and validation loss against epochs, one panel per stage, one pair of lines per fold.

    Args:
        histories: Mapping of stage name to a mapping of fold name ("" without folds) to DataFrame with the columns
            `epoch` and `loss`, and `val_loss` where there was validation.
        note: Beginning of the title.

    Returns:
        A matplotlib `Figure`.
    """
    figure, axes = panels(1, len(histories))
    for axis, (stage, folds) in zip(axes[0], histories.items(), strict=True):
        for number, (fold, history) in enumerate(folds.items()):
            colour = OKABE_ITO[(number + 1) % len(OKABE_ITO)]
            for column, name, line in (("loss", "training", "--"), ("val_loss", "validation", "-")):
                if column in history:
                    # Validation may be looked at every few epochs only; lines join the epochs that have a value.
                    rows = history.dropna(subset=column)
                    marker = "." if len(rows) < 3 else None
                    axis.plot(rows["epoch"], rows[column], line, color=colour, marker=marker, label=f"{fold} {name}")
        axis.set_title(stage)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss [dimensionless]")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(ncols=1 if len(folds) < 3 else 2, fontsize=6)
    if note:
        figure.suptitle(note)
    return figure


def save_training_curves(history, path, title=""):
    """Write the curves of one run as PNG.

    Args:
        history: List with one dictionary per epoch: `epoch`, `loss`, and `val_loss` where there was validation.
        path: PNG file to write.
        title: Above the panel.
    """
    import pandas

    _save(training_curves({title: {"": pandas.DataFrame(history)}}), path)


def panels(rows, columns, inches=PANEL_INCHES):
    """Return an empty matplotlib `Figure` and its axes, `(rows, columns)`, each `inches` (width, height)."""
    from matplotlib.figure import Figure

    # The object interface: no window system is asked for and no global state is left behind.
    figure = Figure((inches[0] * columns, inches[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure, folder, name):
    """Write a figure as `<name>.png` and `<name>.pdf`.

    Args:
        figure: A matplotlib `Figure`.
        folder: Target folder.
        name: File name without suffix.

    Returns:
        Path of the PNG.
    """
    _save(figure, folder / f"{name}.pdf")
    return _save(figure, folder / f"{name}.png")


@in_report_style
def _save(figure, path):
    # Without date and program name the same results give the same file.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata=metadata)
    return path


def all_labels(values):
    """Class names of a table of `results.per_subject`, without the mean over them."""
    return [label for label in dict.fromkeys(values["label"]) if label != MEAN]
