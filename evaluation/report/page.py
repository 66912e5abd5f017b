"""Self-contained HTML report: tables, figures, every subject, and how everything was made."""

import base64
import dataclasses
import datetime
import io
import json
import os
import urllib.parse
from pathlib import Path

from evaluation.scores.measures import CELL
from evaluation.scores.scores import MEAN
from utils.runs import atomic_path, read_json

TEMPLATE = "report.html.jinja"
PAGE_SCALE = 0.68  # CSS pixels per pixel of a figure
JPEG_QUALITY = 80
FIRST_TABLES, LONGEST_OPEN, LONGEST_LATER = 3, 40, 16  # rows; longer tables are folded until a reader opens them
LONGEST_CAPTION, MOST_NOTES = 160, 6  # characters, notes; longer captions and more notes are folded


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """One or more pictures on the page that share a title and a caption.

    Attributes:
        title: Heading; also the alternative text of the pictures.
        caption: What they show.
        pngs: PNG files.
        is_first: Whether the page shows it before all other figures, next to the findings.
    """

    title: str
    caption: str
    pngs: tuple[Path, ...]
    is_first: bool = False

    @property
    def images(self):
        """Yield `(kind, content, width in CSS pixels)` of each, all to one scale, so that text has the same size."""
        for png in self.pngs:
            content = png.read_bytes()
            width = int.from_bytes(content[16:20], "big")  # where a PNG stores its width
            jpeg = _as_jpeg(content)
            is_photograph = len(jpeg) < len(content) / 2  # drawings gain little and would lose their sharp lines
            yield "jpeg" if is_photograph else "png", jpeg if is_photograph else content, PAGE_SCALE * width


def _as_jpeg(png):
    """Convert a picture to JPEG; pictures of scans become far smaller, which keeps the page quick to open."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Small pictures of the test subjects: a title, and subject -> list of `thumbnails.Thumbnail`."""

    title: str
    subjects: dict


@dataclasses.dataclass(frozen=True)
class Report:
    """The contents of the page.

    Attributes:
        title: Name of the dataset.
        is_simulated: Whether the scans are simulated; the page then says so at the top.
        facts: Mapping from a short name to a value, shown as the first lines.
        notes: What is missing or needs caution, one sentence each.
        tables: List of `tables.Table`.
        figures: List of `ReportFigure`.
        subjects: From `subject_grid`, for the Dice; None without segmentation.
        galleries: List of `Gallery`.
        gallery_rule: How their subjects, slices and colours were chosen.
        label_colours: Mapping from label to colour in the galleries.
        runs: From `collect_runs`.
        config_text: The config as YAML.
        subtitle: What the work dir is about.
        synthesis_subjects: From `subject_grid`, for the SSIM inside the mask; None without synthesis.
        answers: From `answers.answers`, one pair of sentences and rule for each task.
    """

    title: str
    is_simulated: bool
    facts: dict
    notes: list
    tables: list
    figures: list
    subjects: dict
    galleries: list
    gallery_rule: str
    label_colours: dict
    runs: dict
    config_text: str
    subtitle: str = ""
    synthesis_subjects: dict | None = None
    answers: tuple = ()


def write_report(path, report):
    """Write the page: one self-contained file without network requests.

    Args:
        path: HTML file to write; links to the folders of runs are relative to it.
        report: A `Report`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["href"] = lambda folder: urllib.parse.quote(os.path.relpath(folder, path.parent))
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    page = environment.get_template(TEMPLATE).render(
        {field.name: getattr(report, field.name) for field in dataclasses.fields(report)},
        longest_open=lambda place: LONGEST_OPEN if place <= FIRST_TABLES else LONGEST_LATER,
        longest_caption=LONGEST_CAPTION,
        most_notes=MOST_NOTES,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def subject_grid(scores, measure):
    """Arrange a measure for every test subject (mean over labels and repeats), lowest first.

    Args:
        scores: A `Scores`.
        measure: One of the measures of `scores`.

    Returns:
        Dictionary with `columns` (list of `(contrasts, init, N)`) and `rows`, a list of `(subject, [Dice or None])`.
    """
    values, columns = scores.per_subject(measure), scores.cells
    wide = values[values["label"] == MEAN].pivot(index="subject", columns=CELL, values="value")
    subjects = wide.mean(axis=1).sort_values(kind="stable", na_position="first").index
    rows = [(name, [None if value != value else value for value in wide.loc[name, columns]]) for name in subjects]
    return {"columns": columns, "rows": rows}


def subtitle(segmentation, synthesis):
    """Name the tasks of a page; arguments as for `page_facts`."""
    if synthesis is None:
        return "Segmentation with few annotated subjects"
    both = "" if segmentation is None else "Segmentation with few annotated subjects, and contrast synthesis"
    return both or "Contrast synthesis with few finetuning subjects"


def page_facts(segmentation, synthesis, runs, seed):
    """Return the facts at the top of a page, `{name: value}`.

    Args:
        segmentation: `Scores`, or None.
        synthesis: `Scores` of synthesis, or None.
        runs: From `collect_runs`.
        seed: Seed of the config, for run records without one.
    """
    parts = [scores.frame for scores in (segmentation, synthesis) if scores is not None]
    has_runs = all(scores.work_dir for scores in (segmentation, synthesis) if scores is not None)
    splits = {split for part in parts for split in part["split"] if split}
    facts = {
        "Test subjects": len({subject for part in parts for subject in part["subject"]}),
        "Runs": sum(part["folder"].nunique() for part in parts),
        "Folds": len(splits) or "none",
    }
    if segmentation is not None:
        facts["Dice scores"] = _count_of(segmentation)
    if synthesis is not None:
        facts["Synthesis"] = f"{', '.join(synthesis.labels)} from {', '.join(synthesis.by_contrasts())}"
        facts["Synthesised volumes"] = _count_of(synthesis)
    return facts | {
        "Seed": ", ".join(map(str, runs["seeds"])) or seed,
        "Software": "; ".join(runs["software"]) or "not recorded",
        "Device": ", ".join(runs["devices"]) or "not recorded",
        "Hours in all": f"{runs['hours']:.2f}" if has_runs else "not recorded",
    }


def _count_of(scores):
    """Return how many scores there are, and how many have no value in the first measure of their task."""
    return f"{len(scores.frame)}, {scores.frame[scores.task.measures[0].key].isna().sum()} NaN"


def collect_histories(work_dir, stages):
    """Read the curves of the pretraining stages that have run.

    Args:
        work_dir: Folder with `pretraining/<stage>/history.csv`, or `fold<K>/pretraining/`.
        stages: Names of the stages.

    Returns:
        Mapping from heading to a mapping from fold ("" without folds) to DataFrame, for `figures.training_curves`.
    """
    import pandas

    histories = {}
    for stage in stages:
        files = [*work_dir.glob(f"pretraining/{stage}/history.csv")]
        files += sorted(work_dir.glob(f"fold*/pretraining/{stage}/history.csv"))
        folds = {file.relative_to(work_dir).parts[0].replace("pretraining", ""): file for file in files}
        if folds:
            histories[f"stage '{stage}'"] = {fold: pandas.read_csv(file) for fold, file in folds.items()}
    return histories


def collect_runs(work_dir):
    """Gather the run records of a work dir.

    Args:
        work_dir: Folder below which files `environment.json` and `command.txt` are searched for.

    Returns:
        Dictionary with `commands`, a list of `{"command", "runs", "hours", "unfinished"}` in the order of their first
        start; `environments`, a list of `{"runs", "scripts", "text"}`, one for each distinct set of versions and
        device; `records`, a list of `{"folder", "name", "started", "minutes", "device", "seed", "commit"}`, one per
        run; sorted lists of the distinct `devices`, `seeds` and `software`; and `hours`.
    """
    records = []
    for file in sorted(work_dir.rglob("environment.json")):
        if "trials" in file.relative_to(work_dir).parts[:2]:  # trials do not appear in the report
            continue
        command = file.with_name("command.txt")
        text = command.read_text().strip() if command.exists() else "not recorded"
        records.append(read_json(file) | {"command": text, "folder": file.parent})
    commands, environments = {}, {}
    for record in sorted(records, key=lambda record: record.get("started", "")):
        entry = commands.setdefault(record["command"], {"runs": 0, "hours": 0.0, "unfinished": 0})
        entry["runs"] += 1
        entry["hours"] += record.get("duration_s", 0.0) / 3600
        # The run that writes this report is not finished yet.
        entry["unfinished"] += "duration_s" not in record and "reproduce_tables.py" not in record["command"]
        keys = ("python", "packages", "backend", "device", "cpu_count", "machine", "git", "seed")
        text = json.dumps({key: record[key] for key in keys if key in record}, indent=1)
        environments.setdefault(text, []).append(record["command"])
    return {
        "commands": [{"command": command} | entry for command, entry in commands.items()],
        "environments": [
            {"text": text, "runs": len(made), "scripts": sorted({_script_of(command) for command in made})}
            for text, made in environments.items()
        ],
        "records": [_row_of(record, work_dir) for record in records],
        "devices": sorted({record["device"] for record in records if record.get("device")}),
        "seeds": sorted({record["seed"] for record in records if "seed" in record}),
        "software": sorted({_software_of(record) for record in records if record.get("backend")}),
        "hours": sum(entry["hours"] for entry in commands.values()),
    }


def _row_of(record, work_dir):
    """Render one run record as a row of the page."""
    git, duration = record.get("git") or {}, record.get("duration_s")
    commit = git["commit"][:9] + (" (with changes)" if git.get("dirty") else "") if "commit" in git else "-"
    return {
        "folder": record["folder"],
        "name": record["folder"].relative_to(work_dir).as_posix(),
        "started": record.get("started", "-"),
        "minutes": None if duration is None else duration / 60,
        "device": record.get("device") or "-",
        "seed": record.get("seed", "-"),
        "commit": commit,
    }


def _software_of(record):
    versions = record.get("packages", {})
    names = ("keras", record["backend"])
    return ", ".join(f"{name} {versions[name]}" if name in versions else name for name in names)


def _script_of(command):
    return next((word for word in command.split() if word.endswith(".py") or word.startswith("tools.")), command)
