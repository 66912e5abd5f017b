"""The two tiers of the suite, what each test costs, and fixtures that every folder uses.

`make test` leaves out what `LONG` names; `make test-all` runs everything. A test belongs in `LONG` when it costs more
than a few seconds of CPU and another one, in `make test`, guards the same promise in small.
"""

import collections
import contextlib
import fcntl
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.bad_input.harness import run
from tests.cheaply import coarse_figures, steps_uncompiled
from tests.cohort import FIRST_FOUR, write_cohort, write_config

ROOT = Path(__file__).resolve().parents[1]

# Files, or tests in them (`file::test`), in the order in which they begin: the longest first, so that neither of two
# processes idles at the end.
LONG = (
    "tests/test_tutorials.py::test_a_page_does_what_it_says",
    "tests/reliability/test_kills.py",
    "tests/test_snakefile.py",
    "tests/test_presets.py",
    "tests/test_backend_trainings.py",
    "tests/training/test_devices.py",
    "tests/training/test_training.py::test_volumes_are_learned_from_as_well",
    "tests/training/test_training.py::test_several_steps_in_a_dispatch_train_like_one_by_one",
    "tests/training/test_training.py::test_a_partial_decoder_learns_and_logs_its_health",
    "tests/training/test_training.py::test_a_run_repeats_itself_to_the_bit_from_the_device_and_from_a_file",
    "tests/training/test_training.py::test_slices_of_one_part_that_look_alike_learn_to_attract",
    "tests/models/test_remat.py::test_a_compiled_step_needs_less_memory",
    "tests/models/test_remat.py::test_steps_compiled_by_xla_train_the_same_weights",
    "tests/training/test_pretraining_crops.py::test_every_method_learns_from_crops_and_resumes_to_the_bit",
    "tests/training/test_schedules.py::test_an_interrupted_schedule_ends_like_an_uninterrupted_one",
    "tests/training/test_tensorboard.py::test_an_encoder_alone_has_no_picture",
    "tests/training/test_synthesis.py::test_with_less_memory_the_weights_are_the_same",
    "tests/training/test_synthesis.py::test_a_head_phase_freezes_all_but_the_head_and_resumes",
    "tests/test_finetune_schedules.py",
    "tests/reliability/test_full_disk.py",
    "tests/reliability/test_repeatability.py",
    "tests/test_finetune_synthesis.py::test_the_grid_is_complete_and_says_what_it_is_made_of",
    "tests/test_finetune_synthesis.py::test_model_json_holds_what_predicting_needs",
    "tests/test_finetune_synthesis.py::test_the_scores_are_those_of_the_written_predictions_against_the_acquired_scans",
    "tests/test_finetune_synthesis.py::test_what_is_synthesised_lies_where_the_head_lies",
    "tests/test_finetune_synthesis.py::test_pretrained_cells_start_from_the_pretrained_network",
    "tests/test_finetune_synthesis.py::test_finished_cells_are_kept_and_those_of_another_config_refused",
    "tests/test_finetune_synthesis.py::test_an_interrupted_cell_ends_like_one_that_went_through",
    "tests/test_pipeline.py::test_every_method_runs_from_a_config_and_warm_starts_finetuning",
    "tests/test_export_model.py::test_the_lines_of_the_documentation_work_in_plain_keras",
    "tests/test_export_model.py::test_onnx_gives_the_same_for_batches_of_any_size",
)
SOONER = {"tests", "training", "models"}  # folders of tests that train networks or start scripts
NOTABLE_S = 1.0  # of CPU: a test in `make test` that takes more is named at the end


def pytest_configure(config):
    config.addinivalue_line("markers", "long: left out of `make test`; chosen by LONG in tests/conftest.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if place_in_long(item.nodeid) < len(LONG):
            item.add_marker("long")
    items.sort(key=lambda item: (place_in_long(item.nodeid), item.path.parent.name not in SOONER))


def place_in_long(nodeid):
    """Position of a test in LONG; its length for a test that is not there."""
    name = nodeid.split("[")[0]
    return next((n for n, entry in enumerate(LONG) if name == entry or name.startswith(f"{entry}::")), len(LONG))


class CpuSeconds:
    """User and system seconds of this process and of all that it has waited for, from one call to the next."""

    def __init__(self):
        self.before = self.total()

    @staticmethod
    def total():
        spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in spent)

    def since_last_call(self):
        now = self.total()
        spent, self.before = now - self.before, now
        return spent


CLOCK = CpuSeconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.cpu_seconds = CLOCK.since_last_call()  # of setup, call or teardown; fixtures count where they are first used
    return report


def pytest_terminal_summary(terminalreporter):
    spent, is_long = collections.Counter(), {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "cpu_seconds"):
                spent[report.nodeid] += report.cpu_seconds
                is_long[report.nodeid] = "long" in report.keywords
    notable = [(test, seconds) for test, seconds in spent.most_common() if seconds > NOTABLE_S and not is_long[test]]
    in_long = sum(seconds for test, seconds in spent.items() if is_long[test])
    parts = f"{sum(spent.values()) - in_long:.0f} s in the tests of `make test`, {in_long:.0f} s in the long ones"
    terminalreporter.section("CPU seconds")
    terminalreporter.line(f"{parts}; above {NOTABLE_S:.0f} s in `make test`:")
    for test, seconds in notable or [("none", 0.0)]:
        terminalreporter.line(f"{seconds:7.1f} s  {test}")


@pytest.fixture(scope="module", autouse=True)
def figures(request):
    """Figures are coarse where they are not what is tested."""
    with contextlib.nullcontext() if request.path.parent.name == "evaluation" else coarse_figures():
        yield


@pytest.fixture(scope="module")
def uncompiled():
    """Training steps of these tests run operation by operation: fewer seconds where the steps are few."""
    with steps_uncompiled():
        yield


@pytest.fixture
def as_user():
    """A folder that everybody may read, to be an ordinary user in for a while: root may read and write everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        os.seteuid(os.getuid())


@pytest.fixture(scope="module")
def rough_figures():
    """Figures of few pixels and fonts as drawings, for tests of what is drawn; test_figures.py writes them in full."""
    from evaluation.figures import STYLE

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STYLE, "savefig.dpi", 50)
        patch.setitem(STYLE, "pdf.fonttype", 3)
        yield


def made_once(factory, name, make):
    """Return a folder that the first of all test processes makes; the others wait for it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which the processes share
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def run_steps(steps, folder):
    for step in steps:
        outcome = run(step, "--config", folder / "tiny.yaml", seconds=400)
        assert outcome.code == 0, outcome.said


def pack(folder):
    write_cohort(folder)
    run_steps(FIRST_FOUR[:2], folder)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """The folder of the tiny cohort and of its work dir after two steps, a copy for each process."""
    made, folder = made_once(tmp_path_factory, "packed", pack), tmp_path_factory.mktemp("copy")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    write_config(folder)
    return folder


@pytest.fixture(scope="session")
def finished(packed, tmp_path_factory):
    """The same after four steps, to be read, or copied and changed."""

    def train(folder):
        shutil.copytree(packed, folder, dirs_exist_ok=True)
        write_config(folder)
        with steps_uncompiled(False):  # for whichever test it is made first
            run_steps(FIRST_FOUR[2:], folder)

    return made_once(tmp_path_factory, "finished", train)
