"""Draw docs/method.png from the demo's work dir: PYTHONPATH=. python docs/method_figure.py [runs/renal_demo]"""

import sys
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from data.store.store import SliceStore
from evaluation.pictures.overlays import mark_right
from training.patches import assign_patch_classes
from utils.label_colours import PALETTE

PATCH = 4  # pixels
SUBJECT = 0  # of the test subjects
CONTRASTS = ("dixon_in", "t1w", "t2_echoes_1", "t2_echoes_3")


def main(work_dir="runs/renal_demo"):
    work = Path(work_dir)
    store = SliceStore(work / "h5" / "annotated.h5")
    subject = store.attributes["split"]["test"][SUBJECT]
    rows = store.rows_of([subject])
    labels = store.labels(rows)
    best = int(np.argmax(((labels == 1) | (labels == 2)).sum((1, 2))))
    row = rows[[best]]
    images, constraint_map = store.images(CONTRASTS, row)[0], store.constraint_maps(row)[0]
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 6)
    for number, name in enumerate(CONTRASTS):
        show(figure.add_subplot(grid[number // 2, number % 2]), images[..., number], name)
    axes = figure.add_subplot(grid[:, 2:4])
    show_map(axes, constraint_map, labels[best])
    for number, init in enumerate(("reference", "random", "constrained")):
        place = [grid[0, 4], grid[1, 4], grid[1, 5]][number]
        predicted = labels[best] if init == "reference" else slice_of_prediction(work, store, subject, init, best)
        show_label(figure.add_subplot(place), images[..., 0], predicted, init)
    explain(figure.add_subplot(grid[0, 5]), store.attributes["labels"])
    mark_right(figure.axes[0])
    figure.suptitle(
        "contrast space     →     constraint map and constrained contrast     →     finetuning", fontsize=13
    )
    figure.savefig(Path(__file__).with_name("method.png"), dpi=90)


def slice_of_prediction(work, store, subject, init, number):
    cells = sorted((work / "finetuning" / "dixon_in" / init).glob("n*/r0"))
    image = nibabel.load(cells[0] / "predictions" / f"{subject}.nii.gz")
    return store.grid(subject).to_slices(np.asarray(image.dataobj), order=0)[number]


def show(axes, image, title):
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title.replace("_", " "), fontsize=9)
    axes.axis("off")


def show_map(axes, constraint_map, label):
    """The map, an anchor patch, and patches of its class (attract) and of other classes (repel)."""
    # Muted, so that the patches stand out.
    axes.imshow(np.ma.masked_equal(constraint_map, 0), cmap="nipy_spectral", interpolation="nearest", alpha=0.45)
    axes.axis("off")
    classes = assign_patch_classes(constraint_map[None], PATCH)[0]
    columns = constraint_map.shape[1] // PATCH
    generator = np.random.default_rng(4)
    kidneys = constraint_map[np.isin(label, (1, 2)) & (constraint_map > 0)]
    chosen = int(np.argmax(np.bincount(kidneys)))
    same = generator.permutation(np.flatnonzero(classes == chosen))[:6]
    others = generator.permutation(np.flatnonzero((classes > 0) & (classes != chosen)))[:9]
    # Signs and not colours alone: red and green are one colour to many readers.
    shown = ((others, "\N{MINUS SIGN}", "black"), (same[1:], "+", "white"), (same[:1], "a", "white"))
    for patches, sign, colour in shown:
        for patch in patches:
            corner = np.array([patch % columns, patch // columns]) * PATCH - 0.5
            draw_patch(axes, corner, sign, colour)
    axes.set_title("anchor (a): patches of its class attract (+), others repel (\N{MINUS SIGN})", fontsize=10)


def draw_patch(axes, corner, sign, colour):
    from matplotlib.patches import Rectangle

    other = "black" if colour == "white" else "white"
    text = {"ha": "center", "va": "center", "color": other, "fontsize": 9, "fontweight": "bold"}
    axes.add_patch(Rectangle(corner, PATCH, PATCH, facecolor=colour, edgecolor=other, linewidth=1.2))
    axes.text(*(corner + PATCH / 2), sign, **text)


def show_label(axes, image, label, title):
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    for index in range(label.max()):
        mask = label == index + 1
        colours = np.zeros((*mask.shape, 4))
        colours[mask] = to_rgba(PALETTE[index], 0.6)
        axes.imshow(colours, interpolation="nearest")
    axes.set_title(title if title == "reference" else f"{title}, N = 2", fontsize=9)
    axes.axis("off")


def explain(axes, labels):
    from matplotlib.patches import Patch

    axes.axis("off")
    handles = [Patch(color=PALETTE[index], label=name.replace("_", " ")) for index, name in enumerate(labels)]
    axes.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=9)
    text = "U-Net pretrained on\nunlabelled scans,\nthen finetuned on\nN annotated subjects\n(simulated scans)"
    axes.text(0.5, 0.95, text, ha="center", va="top", fontsize=11)


if __name__ == "__main__":
    main(*sys.argv[1:])
