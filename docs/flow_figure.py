"""Draw docs/flow.png, the way from a scan to a table: PYTHONPATH=. python docs/flow_figure.py [FILE]

A test asks that every script, module and file named here exists, so that the picture cannot grow old unnoticed.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch


class Step(NamedTuple):
    """One script: what it is called, the modules that do its work, and what it writes below the work dir."""

    title: str
    script: str
    modules: tuple[str, ...]
    writes: tuple[str, ...]


STEPS = (
    Step(
        "1  cluster",
        "generate_constraint_maps.py",
        ("data/layouts", "data/scans", "data/constraint_maps.py"),
        ("constraint_maps/SUBJECT.nii.gz",),
    ),
    Step(
        "2  pack",
        "generate_h5_pretraining.py",
        ("data/splits.py", "data/geometry.py", "data/store"),
        ("h5/pretrain_train.h5", "h5/pretrain_val.h5", "h5/annotated.h5"),
    ),
    Step(
        "3  pretrain",
        "constrained_contrastive_learning.py",
        ("models/unet.py", "losses", "training/pretraining.py"),
        ("pretraining/STAGE/weights.npz",),
    ),
    Step(
        "4  finetune",
        "finetune_segmentation.py",
        ("models/weights.py", "training/grid.py", "evaluation/prediction"),
        ("finetuning/CONTRASTS/INIT/nNN/rK/metrics.json", "and predictions/ beside it"),
    ),
    Step(
        "5  report",
        "reproduce_tables.py",
        ("evaluation/scores", "evaluation/statistics.py", "evaluation/report"),
        ("report/tables/", "report/figures/", "report/index.html"),
    ),
)
BLUE, GREY, GREEN = "#dbe9f6", "#f2f2f2", "#e2f0d9"
WIDTH, GAP = 3.1, 0.8
ROWS = (("script", 3.6, 0.9), ("done by", 1.9, 1.3), ("written below the work dir", 0.2, 1.3))  # bottom, height


def draw():
    """Return the figure: a column for each step, and arrows along what passes on."""
    figure = Figure(figsize=(17, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(-1.6, left_of(len(STEPS)) - GAP + 0.1)
    axes.set_ylim(-0.6, 4.6)
    axes.axis("off")
    for name, bottom, height in ROWS:
        axes.text(-0.3, bottom + height / 2, name.replace(" below", "\nbelow"), ha="right", va="center", color="0.35")
    for number, step in enumerate(STEPS):
        (_, top, _), (_, middle, height), (_, _, low) = ROWS
        contents = (f"{step.title}\n{step.script}", "\n".join(step.modules), "\n".join(map(shown, step.writes)))
        for (_, bottom, tall), colour, text in zip(ROWS, (BLUE, GREY, GREEN), contents, strict=True):
            box(axes, left_of(number), bottom, tall, colour, text)
        centre = left_of(number) + WIDTH / 2
        arrow(axes, [(centre, top), (centre, middle + height)])
        arrow(axes, [(centre, middle), (centre, 0.2 + low)])
        if number:
            corner = left_of(number) - GAP / 2
            arrow(axes, [(left_of(number) - GAP, 0.85), (corner, 0.85), (corner, 4.05), (left_of(number), 4.05)])
    # Images and labels skip the step in between.
    start, end, turn = left_of(1) + WIDTH / 2, left_of(3) - 0.25, -0.25
    arrow(axes, [(start, 0.2), (start, turn), (end, turn), (end, 3.85), (left_of(3), 3.85)])
    axes.text(left_of(2) + WIDTH / 2, turn - 0.08, "annotated.h5", ha="center", va="top", fontsize=9.5, color="0.35")
    return figure


def left_of(number):
    """Left edge of a column."""
    return number * (WIDTH + GAP)


def shown(path):
    """A long path in two lines."""
    return path if len(path) < 34 else path.replace("/nNN", "\n/nNN")


def box(axes, left, bottom, height, colour, text):
    shape = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((left, bottom), WIDTH, height, shape, facecolor=colour, linewidth=0.8))
    axes.text(left + WIDTH / 2, bottom + height / 2, text, ha="center", va="center", fontsize=9.5)


def arrow(axes, places):
    """A line through places, with its head at the last one."""
    axes.plot(*zip(*places, strict=True), color="0.35", linewidth=1)
    axes.annotate("", places[-1], places[-2], arrowprops={"arrowstyle": "-|>", "color": "0.35", "linewidth": 1})


def main(path=None):
    draw().savefig(path or Path(__file__).with_name("flow.png"), dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
