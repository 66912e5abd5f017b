"""One self-contained HTML page: tables, figures, every subject, and how all of it was made."""

import base64
import dataclasses
import datetime
import json
from pathlib import Path

from evaluation.results import CELL, MEAN, in_grid_order
from utils.runs import atomic_path, read_json

TEMPLATE = "report.html.jinja"
PAGE_SCALE = 0.68  # CSS pixels per pixel of a figure


@dataclasses.dataclass(frozen=True)
class ReportFigure:
    """A figure on the page: its title, what it shows, and its PNG file."""

    title: str
    caption: str
    png: Path

    @property
    def data(self):
        """The PNG as text, so that the page needs no other file."""
        return base64.b64encode(self.png.read_bytes()).decode("ascii")

    @property
    def width(self):
        """Width on the page in CSS pixels: the same scale, and so the same size of text, for every figure."""
        pixels = int.from_bytes(self.png.read_bytes()[16:20], "big")  # where a PNG keeps its width
        return round(PAGE_SCALE * pixels)


def write_report(path, *, title, is_simulated, facts, notes, tables, savings, figures, subjects, runs, config_text):
    """Write the page.

    Args:
        path: HTML file to write.
        title: Name of the dataset.
        is_simulated: Whether the scans are simulated; the page then says so at the top.
        facts: Mapping of a short name to a value, shown as the first lines.
        notes: What is missing or needs care, one sentence each.
        tables: List of `tables.Table`.
        savings: Sentences on annotation saved.
        figures: List of `ReportFigure`.
        subjects: From `subject_grid`.
        runs: From `collect_runs`.
        config_text: The config as YAML.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        title=title,
        is_simulated=is_simulated,
        facts=facts,
        notes=notes,
        tables=tables,
        savings=savings,
        figures=figures,
        subjects=subjects,
        runs=runs,
        config_text=config_text,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def subject_grid(values, inits=()):
    """Arrange the Dice of every test subject (mean over labels and repeats), worst subject first.

    Args:
        values: From `results.per_subject`.
        inits: Initialisations in the order of the columns.

    Returns:
        Dictionary with `columns` (list of `(contrasts, init, N)`) and `rows`, a list of `(subject, [Dice or None])`.
    """
    values = values[values["label"] == MEAN]
    wide = values.pivot(index="subject", columns=CELL, values="value")
    order = in_grid_order(set(values["init"]), inits)
    columns = sorted(wide.columns, key=lambda cell: (cell[0], cell[2], order.index(cell[1])))
    subjects = wide.mean(axis=1).sort_values(kind="stable", na_position="first").index
    rows = [(name, [None if value != value else value for value in wide.loc[name, columns]]) for name in subjects]
    return {"columns": columns, "rows": rows}


def collect_runs(work_dir):
    """Gather the run records of a work dir.

    Args:
        work_dir: Folder below which `environment.json` and `command.txt` lie.

    Returns:
        Dictionary with `commands`, a list of `{"command", "runs", "hours", "unfinished"}` in the order of their first
        start; `environments`, a list of `{"runs", "scripts", "text"}`, each distinct set of versions and device once;
        `devices` and `hours`.
    """
    records = []
    for file in sorted(work_dir.rglob("environment.json")):
        command = file.with_name("command.txt")
        records.append(
            read_json(file) | {"command": command.read_text().strip() if command.exists() else "not recorded"}
        )
    commands, environments = {}, {}
    for record in sorted(records, key=lambda record: record.get("started", "")):
        entry = commands.setdefault(record["command"], {"runs": 0, "hours": 0.0, "unfinished": 0})
        entry["runs"] += 1
        entry["hours"] += record.get("duration_s", 0.0) / 3600
        # The report itself is being written at this moment.
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
        "devices": sorted({record["device"] for record in records if record.get("device")}),
        "hours": sum(entry["hours"] for entry in commands.values()),
    }


def _script_of(command):
    return next((word for word in command.split() if word.endswith(".py")), command)
