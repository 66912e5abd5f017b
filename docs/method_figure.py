"""Draw docs/method.png from the demo's work dir: PYTHONPATH=. python docs/method_figure.py [runs/renal_demo]"""

import sys
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.h5_store import SliceStore
from training.patches import assign_patch_classes

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
    explain(figure.add_subplot(grid[0, 5]))
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
    axes.imshow(np.ma.masked_equal(constraint_map, 0), cmap="nipy_spectral", interpolation="nearest")
    axes.axis("off")
    classes = assign_patch_classes(constraint_map[None], PATCH)[0]
    columns = constraint_map.shape[1] // PATCH
    generator = np.random.default_rng(4)
    kidneys = constraint_map[np.isin(label, (1, 2)) & (constraint_map > 0)]
    chosen = int(np.argmax(np.bincount(kidneys)))
    same = generator.permutation(np.flatnonzero(classes == chosen))[:6]
    others = generator.permutation(np.flatnonzero((classes > 0) & (classes != chosen)))[:9]
    for patches, colour, width in ((others, "crimson", 1.2), (same[1:], "limegreen", 2), (same[:1], "white", 2.6)):
        for patch in patches:
            corner = np.array([patch % columns, patch // columns]) * PATCH - 0.5
            axes.add_patch(rectangle(corner, colour, width))
    axes.set_title("anchor (white): patches of its class attract (green), others repel (red)", fontsize=9)


def rectangle(corner, colour, width):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, PATCH, PATCH, fill=False, edgecolor=colour, linewidth=width)


def show_label(axes, image, label, title):
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.imshow(np.ma.masked_equal(label, 0), cmap="Set1", vmin=1, vmax=9, alpha=0.6, interpolation="nearest")
    axes.set_title(title if title == "reference" else f"{title}, N = 2", fontsize=9)
    axes.axis("off")


def explain(axes):
    axes.axis("off")
    text = "U-Net pretrained on\nunlabelled scans,\nthen finetuned on\nN annotated subjects\n(simulated scans)"
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)


if __name__ == "__main__":
    main(*sys.argv[1:])
