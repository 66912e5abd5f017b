"""Names and colours of the classes beside label maps, as viewers read them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from utils.label_colours import Label
from utils.runs import atomic_path

BACKGROUND = Label(0, "background", "#000000")
DSEG, SNAP, CTBL = "dseg.tsv", "labels.itksnap.txt", "labels.ctbl"


def write_label_tables(folder: Path, legend: Sequence[Label], prefix: str = "") -> None:
    """Write three tables beside label maps: for BIDS, ITK-SNAP and 3D Slicer.

    `dseg.tsv` has the columns of BIDS (index, name, color). `labels.itksnap.txt` is loaded in ITK-SNAP by
    Segmentation > Import Label Descriptions, `labels.ctbl` by 3D Slicer as a color table.

    Args:
        folder: Folder of the label maps.
        legend: Classes without background, which is added.
        prefix: Of the file names, such as `scan_` for a label map of its own.
    """
    labels = [BACKGROUND, *legend]
    for name, text in ((DSEG, bids_text(labels)), (SNAP, snap_text(labels)), (CTBL, slicer_text(labels))):
        path = Path(folder) / f"{prefix}{name}"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def bids_text(labels: Sequence[Label]) -> str:
    """Return the table of a discrete segmentation of BIDS 1.10 (Derivatives, "Common image-derived labels")."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerows([("index", "name", "color"), *labels])
    return file.getvalue()


def snap_text(labels: Sequence[Label]) -> str:
    """Return ITK-SNAP's label descriptions: `IDX R G B A VIS MSH "LABEL"`; the background is clear and hidden."""
    lines = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# File format:",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
    ]
    for label in labels:
        red, green, blue = label.rgb
        shown = int(label.number != BACKGROUND.number)
        name = label.name if shown else "Clear Label"
        lines.append(f'{label.number:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{name}"')
    return "\n".join(lines) + "\n"


def slicer_text(labels: Sequence[Label]) -> str:
    """Return 3D Slicer's color table: `number name R G B A`, 0 to 255; the background is transparent."""
    lines = ["# Color table file", f"# {len(labels)} values"]
    for label in labels:
        alpha = 255 if label.number != BACKGROUND.number else 0
        lines.append(f"{label.number} {label.name} {' '.join(map(str, label.rgb))} {alpha}")
    return "\n".join(lines) + "\n"
