"""Step 5 on a generated work dir: tables, figures, page, and missing input."""

import html.parser
import json
import re
import shutil

import nibabel
import numpy as np
import pandas
import pytest
import yaml

import reproduce_tables
from evaluation.report import segmentation as segmentation_report
from evaluation.report.segmentation import draw_galleries, draw_overlay_figures
from evaluation.scores.measures import SEGMENTATION
from evaluation.scores.metrics import score_subject
from evaluation.scores.scores import Scores, read_scores
from tests.bad_input.harness import run as as_from_shell
from utils.checks import InputError
from utils.config.load import load_config

pytestmark = pytest.mark.usefixtures("rough_figures")
SUBJECTS = [f"sub-{number:02d}" for number in range(1, 8)]
TEST = SUBJECTS[:5]
SHAPE, AFFINE = (20, 18, 5), np.diag([-2.0, 2.0, 6.0, 1.0])
LABELS = {"liver": [1], "kidneys": [2, 3]}
ERROR_RATE = {("random", 2): 0.5, ("random", 4): 0.3, ("constrained", 2): 0.2, ("constrained", 4): 0.1}


def make_dataset(root):
    """Write seven subjects: a liver left and two kidneys right of the middle, on a grid that starts at the right."""
    rng = np.random.default_rng(0)
    classes = {}
    for number, subject in enumerate(SUBJECTS):
        label = np.zeros(SHAPE, np.int16)
        label[3:8, 4 : 9 + number % 3, 1:4] = 1
        label[12:15, 3:6, 1:4] = 2
        label[12:15, 10:13, 2:4] = 3
        folder = root / subject
        folder.mkdir(parents=True)
        image = 100 * label + rng.normal(200, 20, SHAPE)
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), AFFINE), folder / "t2.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "label.nii.gz")
        classes[subject] = np.where(label == 3, 2, label).astype(np.uint8)
    return classes


def make_config(folder, paper=None, **data):
    # Nothing is pretrained here; only the stage's name matters.
    stage = {"method": "regression", "training": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3}}
    content = {
        "name": "tiny_renal",
        "seed": 1,
        "paper": paper,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": {"t2": "{subject}/t2.nii.gz"},
            "label": "{subject}/label.nii.gz",
            "labels": LABELS,
            "splits": {"train": SUBJECTS[5:6], "val": SUBJECTS[6:], "test": TEST},
        }
        | data,
        "pretraining": {"contrasts": ["t2"], "stages": {"constrained": stage}},
        "finetuning": {
            "contrasts": {"t2": ["t2"]},
            "subjects_n": [2, 4],
            "repeats": 2,
            "training": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3},
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_cell(config, classes, init, n, repeat, subjects=TEST, fold=""):
    """Write the files of step 4: metrics, predictions with some wrong voxels, a run record."""
    folder = config.work_dir / fold / "finetuning" / "t2" / init / f"n{n:02d}" / f"r{repeat}"
    (folder / "predictions").mkdir(parents=True)
    rng = np.random.default_rng(100 * n + repeat)
    rows = []
    for subject in subjects:
        is_lost = rng.random(SHAPE) < ERROR_RATE[init, n]
        prediction = np.where(is_lost, 0, classes[subject]).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(prediction, AFFINE), folder / "predictions" / f"{subject}.nii.gz")
        scores = score_subject(prediction, classes[subject], (2.0, 2.0, 6.0), list(LABELS), 2.0)
        rows += [{"subject": subject} | row for row in scores]
    metrics = {"config_hash": config.hash_of_cell("t2", init), "seed": 1, "contrasts": "t2", "init": init}
    metrics |= {"duration_s": 36.0, "compile_s": 9.0, "annotated_available": 5}
    metrics |= {"n_annotated": n, "repeat": repeat, "train_subjects": SUBJECTS[5:6], "per_subject": rows}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps({"backend": "tensorflow", "device": "cpu", "duration_s": 36.0}))
    (folder / "command.txt").write_text("python finetune_segmentation.py --config tiny & more\n")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return folder, make_dataset(folder / "scans")


def make_work(dataset, tmp_path, **data):
    """Write a config and a complete work dir for it."""
    folder, classes = dataset
    path = make_config(tmp_path, root=str(folder / "scans"), **data)
    config = load_config(path)
    for init, n in ERROR_RATE:
        for repeat in range(2):
            write_cell(config, classes, init, n, repeat)
    history = config.work_dir / "pretraining" / "constrained" / "history.csv"
    history.parent.mkdir(parents=True)
    history.write_text("epoch,loss,val_loss\n1,3.0,3.1\n2,2.5,\n3,2.2,2.4\n")
    return path, config


@pytest.fixture
def work(dataset, tmp_path):
    """Return a config and a work dir that one test may change."""
    return make_work(dataset, tmp_path)


@pytest.fixture(scope="module")
def report(dataset, tmp_path_factory):
    """Return the report of a complete work dir, made once and not to be changed."""
    path, config = make_work(dataset, tmp_path_factory.mktemp("report"), paper="renal_ismrm2024")
    done = as_from_shell("reproduce_tables", "--config", path)
    assert done.code == 0, done.said
    return config.work_dir / "report", "\n".join(done.printed)


def test_a_complete_grid_from_the_shell(report):
    report, output = report
    assert str(report / "index.html") in output.splitlines()[-1]
    assert "±" in output and "95 % CI" in output
    names = {"dice", "dice_differences", "dice_differences_by_label", "hd95_mm", "surface_dice", "volume_error_ml"}
    names |= {"annotation_saved", "bland_altman", "durations", "paper"}
    assert {file.name for file in (report / "tables").iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("csv", "md", "tex")
    } | {"scores.csv"}
    figures = {"dice_against_n", "dice_by_label", "dice_violins", "bland_altman_liver", "bland_altman_kidneys"}
    figures |= {"overlay_t2_n02", "overlay_t2_n04", "pretraining_curves"}
    assert {file.name for file in (report / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf")
    }
    page = (report / "index.html").read_text()
    thumbnails = len(TEST) * 2  # inits, at the largest limited N
    assert len(re.findall("data:image/(?:png|jpeg);base64,", page)) == len(figures) + thumbnails
    assert "t2 (image: t2), N = 4 annotated subjects: 5 subjects" in page
    assert "--config tiny &amp; more" in page
    assert 'class="notes"' not in page and "Simulated scans" not in page


class References(html.parser.HTMLParser):
    """The references of a page: attributes that load or link something, and the text of its styles."""

    def __init__(self):
        super().__init__()
        self.found, self.anchors, self.code, self._inside = [], set(), "", ""

    def handle_starttag(self, tag, attributes):
        self._inside = tag
        self.anchors.add(dict(attributes).get("id"))
        loading = ("src", "href", "srcset", "data", "action", "poster", "background")
        self.found += [value for name, value in attributes if name in loading]

    def handle_data(self, text):
        self.code += text if self._inside in ("style", "script") else ""


def test_the_page_needs_no_other_file_and_its_links_lead_to_the_runs(report):
    report, _ = report
    page = References()
    page.feed((report / "index.html").read_text())
    assert not re.search(r"url\(|@import|https?:|fetch|XMLHttpRequest|import\s*\(", page.code)
    links = {reference for reference in page.found if not reference.startswith("data:")}
    assert {link[1:] for link in links if link.startswith("#")} <= page.anchors
    folders = {(report / link).resolve() for link in links if not link.startswith("#")}
    assert all((folder / "environment.json").exists() for folder in folders)
    assert len(folders) == 8 + 1  # runs and the report


def test_the_tables_hold_the_right_numbers(report):
    tables = report[0] / "tables"
    scores = pandas.read_csv(tables / "scores.csv")
    dice = pandas.read_csv(tables / "dice.csv").set_index(["init", "n_annotated", "label"])
    by_hand = []
    for subject in TEST:
        own = scores[(scores.subject == subject) & (scores.init == "random") & (scores.n_annotated == 2)]
        by_hand.append(np.mean([own[own.label == label].dice.mean() for label in LABELS]))
    row = dice.loc["random", 2, "mean over labels"]
    assert (row["mean"], row["sd"]) == pytest.approx((np.mean(by_hand), np.std(by_hand, ddof=1)))
    assert (row["subjects"], row["repeats"], row["missing"]) == (5, 2, 0)
    differences = pandas.read_csv(tables / "dice_differences.csv")
    assert list(differences["n_annotated"]) == [2, 4]
    assert (differences["mean_difference"] > 0).all() and (differences["comparisons"] == 2).all()


def test_missing_cells_and_predictions_are_named_and_the_rest_is_shown(work, tmp_path):
    _, config = work
    cells = config.work_dir / "finetuning" / "t2"
    (cells / "constrained" / "n04" / "r1" / "metrics.json").unlink()
    for file in (cells / "random" / "n02" / "r0" / "predictions").iterdir():
        file.unlink()
    results = read_scores(config.work_dir)
    assert reproduce_tables.grid_gaps(config, results) == [
        "Missing: t2/constrained/n04: 1 of 2 runs; run finetune_segmentation.py"
    ]
    (figure,), notes = draw_overlay_figures(results, reproduce_tables.scans_of(config), config.data.legend(), tmp_path)
    assert [png.name for png in figure.pngs] == ["overlay_t2_n04.png"]
    assert len(notes) == 1 and "No overlay of t2 at N = 2" in notes[0] and "not readable" in notes[0]
    (gallery,), notes = draw_galleries(results, reproduce_tables.scans_of(config), config.data.legend())
    assert not notes and {len(thumbnails) for thumbnails in gallery.subjects.values()} == {2}
    assert sorted(gallery.subjects) == TEST


def test_thumbnails_are_of_the_largest_limited_n(work):
    _, config = work
    results = read_scores(config.work_dir)
    for available, n in ((4, 2), (5, 4), (2, 4), (None, 4)):
        scores = Scores(results.frame.assign(annotated_available=available or np.nan), inits=results.inits)
        (gallery,), _ = draw_galleries(scores, reproduce_tables.scans_of(config), config.data.legend())
        assert f"N = {n} annotated" in gallery.title


def test_figures_show_contrasts_as_the_config_lists_them(work):
    config = load_config(work[0], overrides=["finetuning.contrasts={t2: [t2], b: [t2], a: [t2]}"])
    scores = Scores(pandas.DataFrame({"contrasts": ["a", "t2", "old", "b", "t2"], "row": range(5)}))
    assert list(reproduce_tables.in_config_order(config, scores).frame["row"]) == [1, 4, 3, 0, 2]


def test_cells_of_another_config_are_pointed_out(work):
    path, config = work
    other = load_config(path, overrides=["evaluation.surface_tolerance_mm=5"])
    gaps = reproduce_tables.grid_gaps(other, read_scores(config.work_dir))
    assert len(gaps) == 4 and all("was made with another config than this one" in gap for gap in gaps)


def test_without_scans_there_are_tables_but_no_pictures(work, tmp_path):
    path, _ = work
    config = load_config(path, overrides=["data.root=/nowhere"])
    results = read_scores(config.work_dir)
    figures, notes = draw_overlay_figures(results, reproduce_tables.scans_of(config), config.data.legend(), tmp_path)
    galleries, more = draw_galleries(results, reproduce_tables.scans_of(config), config.data.legend())
    assert not figures and not galleries
    assert "No overlay of t2 at N = 2" in notes[0] and "is not a folder" in notes[0]
    assert "No pictures of the test subjects of t2: data.root" in more[0]


def test_simulated_scans_are_called_simulated_everywhere(work, tmp_path):
    path, _ = work
    config = load_config(path, overrides=["data.simulated=true"])
    results = read_scores(config.work_dir, **reproduce_tables.about(config, SEGMENTATION))
    tables = reproduce_tables.make_tables(config, results, tmp_path / "tables")
    shown = reproduce_tables.Shown(tables, [], [], [])
    reproduce_tables.write_page(config, results, None, shown, tmp_path / "index.html")
    assert 'class="simulated"' in (tmp_path / "index.html").read_text()
    for table in tables:
        assert "Simulated scans." in (tmp_path / "tables" / f"{table.name}.md").read_text()


def test_without_a_voxel_size_there_are_no_volumes(work, tmp_path, monkeypatch):
    path, _ = work
    config = load_config(path, overrides=["data.voxel_size_known=false"])
    results = read_scores(config.work_dir)
    results.frame[["hd95_mm", "surface_dice", "volume_ml", "volume_ml_reference", "volume_error_ml"]] = np.nan
    names = {table.name for table in reproduce_tables.make_tables(config, results, tmp_path)}
    assert names == {"dice", "dice_differences", "dice_differences_by_label", "annotation_saved", "durations"}
    monkeypatch.setattr(segmentation_report, "draw_dice", lambda *_: [])
    monkeypatch.setattr(segmentation_report, "draw_overlay_figures", lambda *_: ([], []))
    figures, (note,) = reproduce_tables.make_figures(config, results, tmp_path)
    assert not figures and "no Bland-Altman plots" in note


def test_cross_validation_pools_the_folds(dataset, tmp_path):
    folder, classes = dataset
    path = make_config(tmp_path, root=str(folder / "scans"), splits={"folds": 2, "validation": 1})
    config = load_config(path)
    for init, n in ERROR_RATE:
        for repeat in range(2):
            write_cell(config, classes, init, n, repeat, TEST[:3], "fold0")
            write_cell(config, classes, init, n, repeat, TEST[3:], "fold1")
    results = read_scores(config.work_dir)
    reproduce_tables.make_tables(config, results, tmp_path)
    dice = pandas.read_csv(tmp_path / "dice.csv")
    assert (dice["subjects"] == 5).all() and (dice["repeats"] == 2).all()
    assert not reproduce_tables.grid_gaps(config, results)


def test_an_empty_work_dir_says_what_to_run(dataset, tmp_path):
    path = make_config(tmp_path, root=str(dataset[0] / "scans"))
    done = as_from_shell("reproduce_tables", "--config", path)
    assert done.code == 2
    (line,) = done.said
    assert re.fullmatch(r".*no finetuning/.*; run finetune_segmentation.py first", line)
    assert not (tmp_path / "work").exists()


def test_mixed_configs_are_refused(work):
    path, config = work
    file = config.work_dir / "finetuning" / "t2" / "random" / "n02" / "r1" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config_hash": "other"}))
    with pytest.raises(InputError, match="t2/random/n02: made with different configs"):
        reproduce_tables.main(["--config", str(path)])
    assert not (config.work_dir / "report").exists()


def contents_of(folder):
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


def test_the_scores_alone_give_the_same_tables_and_figures(report, tmp_path):
    """Only scores.csv and config.yaml are copied; there are no scans, predictions or metrics.json."""
    made, _ = report
    shutil.copy(made / "tables" / "scores.csv", tmp_path)
    config = yaml.safe_load((made / "resolved_config.yaml").read_text())
    config["data"]["root"] = "/nowhere"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    reproduce_tables.main(["--scores", str(tmp_path / "scores.csv")])
    again = tmp_path / "report"
    assert contents_of(again / "tables") == contents_of(made / "tables")
    figures = {file.name for file in (again / "figures").iterdir()}
    left_out = {"overlay_t2_n02", "overlay_t2_n04", "pretraining_curves"}
    assert figures == {file.name for file in (made / "figures").iterdir() if file.stem not in left_out}
    assert reproduce_tables.ALONE in (again / "index.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="dice"), "no column dice"),
        (lambda table: table.assign(dice="high"), "could not convert string to float: 'high'; expected a number"),
        (lambda table: table.assign(dice=1.5), "dice of sub-01 is 1.5, expected 0 to 1"),
        (lambda table: table.assign(repeat=0), "subject sub-01 is tested more than once in repeat 0"),
        (lambda table: table[:0], "holds no score"),
    ],
)
def test_scores_that_cannot_be_right_are_refused(report, tmp_path, change, message):
    change(pandas.read_csv(report[0] / "tables" / "scores.csv")).to_csv(tmp_path / "scores.csv", index=False)
    done = as_from_shell(
        "reproduce_tables", "--scores", tmp_path / "scores.csv", "--config", report[0] / "resolved_config.yaml"
    )
    assert done.code == 2 and message in "".join(done.said)


def test_config_or_scores_must_be_given():
    done = as_from_shell("reproduce_tables")
    assert done.code == 2 and "give --config FILE or --scores FILE" in "".join(done.said)
