"""The scripts, modules and files in the flow figure exist."""

from pathlib import Path

from docs import flow_figure
from utils.work_dir import METRICS, PREDICTIONS, WorkDir

ROOT = Path(__file__).resolve().parents[1]


def test_scripts_and_modules_of_the_flow_exist():
    for step in flow_figure.STEPS:
        assert all((ROOT / name).exists() for name in (step.script, *step.modules)), step


def test_files_of_the_flow_lie_where_the_steps_write_them():
    work = WorkDir(Path("runs/x"))
    cell = work.cell("finetuning", "CONTRASTS", "INIT", n="NN", repeat="K")
    made = [work.map_of("SUBJECT"), *map(work.store, ("pretrain_train", "pretrain_val", "annotated"))]
    made += [work.stage_weights("STAGE"), cell / METRICS, work.report / "tables", work.report / "figures"]
    made += [work.report / "index.html"]
    told = [path for step in flow_figure.STEPS for path in step.writes if not path.startswith("and ")]
    expected = {path.relative_to(work.root).as_posix() for path in made}
    assert {path.rstrip("/") for path in told} == expected
    assert f"and {PREDICTIONS}/ beside it" in flow_figure.STEPS[3].writes


def test_the_picture_is_drawn(tmp_path):
    flow_figure.main(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 10_000
