"""The HTML page is complete and escaped."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pandas
import pytest
from PIL import Image

from evaluation.pictures.thumbnails import Thumbnail
from evaluation.report.figures import save_training_curves
from evaluation.report.page import Gallery, Report, ReportFigure, collect_runs, subject_grid, write_report
from evaluation.report.tables import Table
from evaluation.scores.measures import DICE
from tests.evaluation.made_scores import as_dice

OTHER = {"device": "gpu", "git": {"commit": "0123456789abcdef", "dirty": True}}


def write_record(folder, command, **environment):
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "command.txt").write_text(command + "\n")


def test_run_records_are_gathered_once_each(tmp_path):
    versions = {"keras": "3.15", "tensorflow": "2.21"}
    same = {"backend": "tensorflow", "device": "cpu", "seed": 1, "packages": versions}
    write_record(
        tmp_path / "finetuning" / "r0", "python finetune_segmentation.py", **same, started="2", duration_s=1800
    )
    write_record(tmp_path / "finetuning" / "r1", "python finetune_segmentation.py", **same, started="3")
    write_record(
        tmp_path / "pretraining",
        "python pretrain.py",
        **same | OTHER,
        started="1",
        duration_s=3600,
    )
    runs = collect_runs(tmp_path)
    assert [(entry["command"], entry["runs"], entry["unfinished"]) for entry in runs["commands"]] == [
        ("python pretrain.py", 1, 0),
        ("python finetune_segmentation.py", 2, 1),
    ]
    assert runs["hours"] == pytest.approx(1.5)
    assert runs["devices"] == ["cpu", "gpu"] and runs["seeds"] == [1]
    assert runs["software"] == ["keras 3.15, tensorflow 2.21"]
    assert [(record["name"], record["minutes"], record["commit"]) for record in runs["records"]] == [
        ("finetuning/r0", 30, "-"),
        ("finetuning/r1", None, "-"),
        ("pretraining", 60, "0123456789"[:9] + " (with changes)"),
    ]
    assert [(entry["runs"], entry["scripts"]) for entry in runs["environments"]] == [
        (1, ["pretrain.py"]),
        (2, ["finetune_segmentation.py"]),
    ]


def test_subjects_are_listed_worst_first():
    rows = [("a", "random", 0.9), ("b", "random", 0.3), ("b", "constrained", 0.4), ("c", "random", float("nan"))]
    values = pandas.DataFrame(
        [{"contrasts": "t2", "init": i, "n_annotated": 2, "subject": s, "label": "x", "value": v} for s, i, v in rows]
    )
    grid = subject_grid(as_dice(values), DICE)
    assert grid["columns"] == [("t2", "random", 2), ("t2", "constrained", 2)]
    assert grid["rows"] == [("c", [None, None]), ("b", [0.3, 0.4]), ("a", [0.9, None])]


def make_report(tmp_path, **changes):
    """Make a small page with everything on it; returns the arguments of `Report`."""
    png, noisy = tmp_path / "curves.png", tmp_path / "scan.png"
    save_training_curves([{"epoch": 1, "loss": 1.0}], png, title="x")
    scan = np.random.default_rng(0).normal(100, 4, (160, 240))  # noise without edges, as in a scan
    Image.fromarray(scan.astype(np.uint8)).convert("RGB").save(noisy)
    numbers = pandas.DataFrame({"A": ["1 < 2"], "Note": ["word " * 20]})
    folder = tmp_path / "finetuning" / "t2 & more" / "r0"
    record = {"folder": folder, "name": "finetuning/r0", "started": "2026-01-01", "minutes": None, "device": "cpu"}
    content = {
        "title": "tiny & small",
        "is_simulated": False,
        "facts": {"Test subjects": 3},
        "notes": ["Missing: t2/random/n02"],
        "tables": [Table("dice", "Dice", "how it was averaged", numbers, numbers)],
        "figures": [ReportFigure("Curves", "what they show", (png, noisy))],
        "subjects": {"columns": [("t2", "random", 2)], "rows": [("sub-01", [0.25]), ("sub-02", [None])]},
        "galleries": [Gallery("t2, N = 2", {"sub-02": [Thumbnail("random", 0.75, folder, b"jpeg")]})],
        "gallery_rule": "the worst first",
        "label_colours": {"liver": "#F0E442"},
        "runs": {
            "commands": [{"command": "python a.py --set x=<y>", "runs": 1, "hours": 0.5, "unfinished": 0}],
            "environments": [{"text": '{"device": "cpu"}', "runs": 1, "scripts": ["a.py"]}],
            "records": [record | {"seed": 1, "commit": "abc"}],
        },
        "config_text": "seed: 1",
    }
    return content | changes


@pytest.mark.parametrize("is_simulated", [True, False])
def test_the_page_is_complete_and_escaped(tmp_path, is_simulated):
    content = make_report(tmp_path, is_simulated=is_simulated)
    path = tmp_path / "report" / "index.html"
    write_report(path, Report(**content))
    page = path.read_text()
    for piece in ("tiny &amp; small", "1 &lt; 2", "x=&lt;y&gt;", "Missing: t2/random/n02", "0.250", "sub-02", "0.750",
                  "how it was averaged", "what they show", "seed: 1", "the worst first", "background: #F0E442",
                  'href="../finetuning/t2%20%26%20more/r0/"', base64.b64encode(b"jpeg").decode()):  # fmt: skip
        assert piece in page
    assert ("Simulated scans." in page) == is_simulated


def test_pictures_of_scans_become_smaller_and_drawings_stay_exact(tmp_path):
    (figure,) = make_report(tmp_path)["figures"]
    (kind, content, width), (other_kind, other, _) = figure.images
    assert (kind, content) == ("png", figure.pngs[0].read_bytes())
    assert width == pytest.approx(0.68 * Image.open(figure.pngs[0]).width)
    assert other_kind == "jpeg" and len(other) < len(figure.pngs[1].read_bytes())
    assert Image.open(io.BytesIO(other)).size == (240, 160)


@pytest.mark.parametrize(("place", "rows", "is_open"), [(1, 40, 1), (3, 41, 0), (4, 16, 1), (4, 17, 0)])
def test_long_tables_are_folded_later_ones_sooner(tmp_path, place, rows, is_open):
    numbers = pandas.DataFrame({"A": ["1"] * rows})
    path = tmp_path / "index.html"
    short = Table("a", "A", "", numbers[:2], numbers[:2])
    tables = [*[short] * (place - 1), Table("b", "B", "", numbers, numbers)]
    write_report(path, Report(**make_report(tmp_path, tables=tables, galleries=[])))
    page = path.read_text()
    assert page.count('<details class="rows" open><summary>2 rows') == place - 1
    assert page.count(f'<details class="rows" open><summary>{rows} rows') == is_open


COLUMNS = {
    "score": ["0.523 ± 0.249", "-", "0.061 ± 0.1*", "1.000 ± 0.0", "-0.2 ± 0.1", "10.5**"],
    "p": ["0.001", "< 0.001", "-", "1.000", "0.03", "0.2"],
    "saved": ["≥ 75%", "not reached", "-50%", "12.5%", "-", "0%"],
    "name": ["sub-10", "sub-9", "b", "a", "", "sub-1"],
    "started": [
        "2026-11-02T10:00",
        "2026-11-01T23:00",
        "2025-12-31T01:00",
        "-",
        "2026-01-01T00:00",
        "2026-11-02T09:59",
    ],
}
SORTED = {  # row numbers in ascending order; then those that stay last, in the order of the page
    "score": ([4, 2, 0, 3, 5], [1]),
    "p": ([1, 0, 4, 5, 3], [2]),
    "saved": ([2, 5, 3, 0], [1, 4]),
    "name": ([3, 2, 5, 1, 0], [4]),
    "started": ([2, 4, 1, 5, 0], [3]),
}
PRESS = """
<script>
const seen = {orders: {}, buttons: 0, requests: performance.getEntriesByType("resource").map((one) => one.name)};
const table = document.querySelector("table");
for (const header of table.tHead.rows[0].cells) {
  const button = header.querySelector("button");
  seen.buttons += button.tabIndex === 0 && button.type === "button";
  seen.orders[button.textContent] = [1, 2, 3].map(() => {
    button.click();
    const marked = [...table.querySelectorAll("[aria-sort]")].map((one) => one.getAttribute("aria-sort"));
    return [header.getAttribute("aria-sort"), marked.filter((one) => one !== "none").length,
            [...table.tBodies[0].rows].map((row) => Number(row.cells[row.cells.length - 1].textContent))];
  });
}
const [first, second] = table.querySelectorAll("th");
first.firstChild.click();
second.firstChild.click();
seen.two = [first, second].map((one) => one.getAttribute("aria-sort"));
document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
</script>
"""


def test_headers_sort_in_a_browser_and_nothing_is_requested(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    table = pandas.DataFrame(COLUMNS | {"row": [str(number) for number in range(6)]})
    path = tmp_path / "index.html"
    write_report(path, Report(**make_report(tmp_path, tables=[Table("a", "A", "", table, table)])))
    path.write_text(path.read_text().replace("</body>", PRESS + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    options += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]  # its own requests
    done = subprocess.run([browser, *options, path.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["buttons"] == 6 and seen["two"] == ["none", "ascending"]
    assert not [name for name in seen["requests"] if not name.startswith("data:")]
    for column, (ascending, last) in SORTED.items():
        up, down, back = seen["orders"][column]
        assert up == ["ascending", 1, ascending + last], column
        assert down == ["descending", 1, ascending[::-1] + last], column
        assert back == ["none", 0, list(range(6))], column


def test_the_answer_stands_first_and_long_captions_are_folded(tmp_path):
    content = make_report(tmp_path)
    numbers = pandas.DataFrame({"A": ["1"]})
    (figure,) = content["figures"]
    first = dataclasses.replace(figure, title="Dice against N", caption="x " * 100, is_first=True)
    content["figures"] = [figure, first]
    content["tables"] += [Table("annotation_saved", "Annotation saved", "y " * 100, numbers, numbers, is_first=True)]
    content["notes"] = [f"note {number}" for number in range(9)]
    write_report(tmp_path / "index.html", Report(**content, answers=((["t2: <ahead>."], "what ahead means"),)))
    page = (tmp_path / "index.html").read_text()
    order = ["t2: &lt;ahead&gt;.", "note 0", "Dice against N", "Annotation saved", "Test subjects", 'id="tables"',
             ">Dice<", 'id="figures"', ">Curves<"]  # fmt: skip
    places = [page.index(piece) for piece in order]
    assert places == sorted(places) and page.count("Annotation saved</h3>") == page.count("Dice against N</h3>") == 1
    assert page.count('<details class="about">') == 2, "the two long captions; the short ones are open"
    assert "9 notes" in page and '<details class="notes" open>' not in page
