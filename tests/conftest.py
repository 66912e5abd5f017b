"""The two tiers of the suite, the cost of each test, and shared fixtures.

`make test` leaves out the tests in `LONG`; `make test-all` runs all. A test belongs in `LONG` if it costs more than a
few seconds of CPU and a smaller test in `make test` guards the same promise.
"""

import collections
import contextlib
import fcntl
import gc
import os
import resource
import shutil
import tempfile
from pathlib import Path

from utils.environment import prepare_backend

prepare_backend()  # as the scripts do, before anything imports Keras

import keras  # noqa: E402
import pytest  # noqa: E402

from tests.bad_input.harness import run  # noqa: E402
from tests.cheaply import coarse_figures, steps_uncompiled  # noqa: E402
from tests.cohort import FIRST_FOUR, write_cohort, write_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

# Files, tests in them (`file::test`) or cases (`file::test[case]`; in all tests of a file `file[case]`), in the order
# in which they begin: the longest first, so that neither of two processes idles at the end.
LONG = (
    "tests/test_tutorials.py",
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
    "tests/training/test_finetuning.py::test_with_less_memory_the_weights_are_the_same",
    "tests/training/test_schedules.py::test_an_interrupted_schedule_ends_like_an_uninterrupted_one",
    "tests/training/test_tensorboard.py::test_an_encoder_alone_has_no_picture",
    "tests/training/test_synthesis.py::test_with_less_memory_the_weights_are_the_same",
    "tests/training/test_synthesis.py::test_a_head_phase_freezes_all_but_the_head_and_resumes",
    "tests/test_finetune_schedules.py",
    "tests/reliability/test_full_disk.py",
    "tests/reliability/test_repeatability.py",
    "tests/test_finetune_synthesis.py",
    "tests/test_pipeline.py::test_every_method_runs_from_a_config_and_warm_starts_finetuning",
    "tests/test_pipeline.py::test_a_stopped_pretraining_resumes[SIGTERM]",
    "tests/test_export_model.py::test_the_lines_of_the_documentation_work_in_plain_keras",
    "tests/test_export_model.py::test_onnx_gives_the_same_for_batches_of_any_size",
    "tests/evaluation/report/test_synthesis.py",
    "tests/test_trials.py",
    "tests/test_evaluate_constraint_maps.py",
    "tests/fuzz/test_config.py",
    "tests/fuzz/test_h5.py",
    "tests/fuzz/test_nifti.py",
    "tests/bad_input/test_cures.py::test_each_step_names_the_step_that_is_missing",
    "tests/bad_input/test_cures.py::test_overwrite_is_the_cure_of_results_of_another_config",
    "tests/bad_input/test_labels.py::test_healthy_subjects_train_and_are_scored_when_the_config_says_so",
    "tests/reliability/test_changed_inputs.py::test_synthesis_refuses_references_and_masks_that_changed",
    "tests/reliability/test_changed_inputs.py::test_step_5_refuses_two_references_of_one_subject_and_label",
    "tests/reliability/test_changed_inputs.py::test_a_reference_whose_file_only_looks_different_is_taken",
    "tests/reliability/test_changed_inputs.py::test_a_learning_rate_far_too_high_is_what_the_line_says",
    "tests/reliability/test_changed_inputs.py::test_measures_of_maps_are_made_again_of_a_label_that_changed",
    "tests/reliability/test_one_bad_file.py::test_steps_2_and_4_continue_without_a_subject",
    "tests/reliability/test_one_bad_file.py::test_step_4_scores_the_others_where_a_reference_is_spoiled",
    "tests/reliability/test_two_runs.py::test_a_second_run_that_is_to_redo_all_removes_nothing",
    "tests/reliability/test_two_runs.py::test_a_checkpoint_beside_a_finished_result_goes_and_is_not_resumed",
    "tests/reliability/test_security.py::test_the_report_shows_names_and_runs_none",
    "tests/data/scans/test_air.py::test_steps_1_and_2_warn_unless_a_mask_is_given",
    "tests/test_predict_fields.py::test_steps_1_and_2_tell_what_slices_do_not_show_and_step_4_notes_it",
    "tests/test_predict_synthesis.py::test_a_test_subject_gets_what_it_got_in_step_4",
    "tests/test_visualize_representations.py::test_every_representation_is_measured_on_the_same_patches",
    "tests/test_visualize_representations.py::test_synthesis_without_labels_in_slices_and_in_volumes",
    "tests/test_visualize_representations.py::test_contrasts_that_were_shown_one_by_one_are_represented_one_by_one",
    "tests/test_visualize_representations.py::test_a_config_without_constraint_maps",
    "tests/test_visualize_representations.py::test_a_representation_depends_neither_on_the_others_nor_on_chance",
    "tests/test_visualize_representations.py::test_scans_of_persons_are_never_called_simulated",
    "tests/test_generate_constraint_maps.py::test_the_script_from_the_shell_and_any_number_of_jobs",
    "tests/test_generate_h5.py::test_several_workers_write_the_same_as_one",
    "tests/test_reproduce_tables.py::test_a_complete_grid_from_the_shell",
    "tests/test_reproduce_tables.py::test_without_a_voxel_size_there_are_no_volumes",
    "tests/test_reproduce_tables.py::test_cross_validation_pools_the_folds",
    "tests/test_constrained_contrastive_learning.py::test_a_network_of_one_channel_goes_through_to_step_4",
    "tests/evaluation/report/test_tables.py::test_shuffled_repeats_and_subjects_leave_every_table_unchanged",
    "tests/training/test_synthesis.py::test_networks_of_both_ranks_learn_a_contrast",
    "tests/training/test_crops.py::test_training_learns_and_an_interrupted_run_ends_like_an_uninterrupted_one",
    "tests/training/test_tensorboard.py::test_scalars_and_pictures_of_representations",
    "tests/training/test_tracking.py::test_a_run_has_config_losses_and_records",
    "tests/training/test_loop.py::test_a_training_on_one_class_warns",
    "tests/training/test_training.py::test_every_method_learns_from_slices_and_logs_its_health[global]",
    "tests/training/test_training.py::test_every_method_learns_from_slices_and_logs_its_health[constrained]",
    "tests/training/test_training.py::test_every_method_learns_from_slices_and_logs_its_health[anatomical]",
    "tests/training/test_effective.py::test_shares_train_and_resume_to_the_bit",
    "tests/training/test_synthesis.py::test_a_cell_taken_up_from_a_checkpoint_ends_like_one_that_went_through[3]",
    "tests/training/test_schedules.py::test_scales_of_one_are_adam_to_the_bit",
    "tests/training/test_folding.py::test_the_default_never_folds_in_10000_draws",
    "tests/training/test_finetuning.py::test_a_fixed_schedule_trains_without_validation_subjects_and_to_the_same_weights",
    "tests/training/test_finetuning.py::test_a_loss_that_is_not_finite_is_named_without_validation_subjects_too",
    "tests/training/test_stopped_training.py::test_a_loss_that_is_not_finite_stops_the_run",
    "tests/training/test_tracking.py::test_a_resumed_run_has_the_losses_of_earlier_epochs",
    "tests/training/test_augmented_training.py::test_cells_with_all_changes_share_one_step_and_repeat_exactly",
    "tests/training/test_augmentation.py::test_where_the_image_of_a_class_is_clear_the_label_says_so",
    "tests/training/test_augmentation.py::test_augmentation_compiles_with_xla[3]",
    "tests/models/test_remat.py::test_frozen_layers_stay_and_the_others_learn_the_same",
    "tests/models/test_unet.py::test_feature_levels_are_those_of_the_network_stopped_at_each_level[3]",
    "tests/test_predict_synthesis.py[volumes, mask]",
    "tests/test_predict_segmentation.py::test_a_model_trained_with_bias_correction_corrects_new_scans",
    "tests/test_visualize_representations.py::test_pixels_are_probed_in_validation_subjects_and_test_subjects_stay_unseen",
    "tests/test_generate_h5.py::test_the_script_from_the_shell",
    "tests/test_results.py::test_a_committed_model_repeats_its_score_on_a_real_scan[lgg_tcga]",
    "tests/test_export_model.py::test_predict_makes_the_same_of_a_scan_from_the_folder_alone[both-cells1]",
    "tests/data/store/test_store.py::test_a_thousand_subjects_fit_the_attributes",
    "tests/data/scans/test_common_grid.py::test_n4_makes_one_tissue_equally_bright",
    "tests/data/simulation/test_subjects.py::test_resolution_does_not_change_the_anatomy",
    "tests/evaluation/pictures/test_error_maps.py::test_the_figures_of_all_n_have_the_same_scale",
    "tests/evaluation/probes/test_pixels.py::test_a_pixel_has_the_features_of_its_cell_at_every_level[3]",
    "tests/evaluation/probes/test_pixels.py::test_a_pixel_has_the_features_of_its_cell_at_every_level[12]",
    "tests/evaluation/pictures/test_quality_control.py::test_pyplot_is_not_loaded",
    "tests/evaluation/pictures/test_quality_control.py::test_picture_is_written_whatever_the_number_of_panels[9-4]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[False-local]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[False-regression]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[False-constrained]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[False-constrained_in_mm]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[False-partial]",
    "tests/models/test_remat.py::test_output_and_gradients_are_those_of_the_plain_network[partial-2]",
    "tests/models/test_remat.py::test_output_and_gradients_are_those_of_the_plain_network[patches-2]",
    "tests/models/test_remat.py::test_output_and_gradients_are_those_of_the_plain_network[patches-3]",
    "tests/models/test_remat.py::test_output_and_gradients_are_those_of_the_plain_network[no head-2]",
    "tests/models/test_remat.py::test_output_and_gradients_are_those_of_the_plain_network[no head-3]",
    "tests/training/test_training.py::test_every_method_learns_from_slices_and_logs_its_health[local]",
    "tests/training/test_schedules.py::test_the_last_weights_stay_where_the_last_are_asked_for",
    "tests/training/test_augmentation.py::test_no_change_leaves_image_and_label_as_they_are",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[True-regression]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[True-constrained]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[True-constrained_in_mm]",
    "tests/test_export_model.py::test_the_encoder_of_any_stage_is_exported[True-partial]",
    "tests/data/simulation/test_anatomy.py",
    "tests/test_visualize_representations.py::test_table_figure_and_run_record_are_written",
    "tests/test_reproduce_tables.py::test_the_scores_alone_give_the_same_tables_and_figures",
    "tests/test_results.py::test_the_scores_of_a_study_give_the_numbers_of_its_page[renal_simulated]",
    "tests/test_results.py::test_the_scores_of_a_study_give_the_numbers_of_its_page[chaos_mr]",
    "tests/test_results.py::test_the_scores_of_a_study_give_the_numbers_of_its_page[liver_chaos]",
    "tests/test_results.py::test_a_committed_model_repeats_its_score_on_a_real_scan[chaos_mr]",
    "tests/training/test_synthesis.py::test_a_cell_taken_up_from_a_checkpoint_ends_like_one_that_went_through[2]",
    "tests/training/test_stopped_training.py::test_the_subjects_of_a_batch_that_breaks_the_loss_are_named[training]",
    "tests/training/test_training.py::test_a_frozen_encoder_stays_and_the_decoder_learns",
    "tests/training/test_training.py::test_every_method_learns_from_slices_and_logs_its_health[masked]",
    "tests/training/test_schedules.py::test_the_head_phase_trains_what_is_not_pretrained_and_nothing_else",
    "tests/training/test_tensorboard.py::test_pictures_of_a_segmentation_show_image_result_and_reference",
    "tests/reliability/test_security.py::test_an_archive_of_weights_writes_nothing",
    "tests/evaluation/report/test_figures.py::test_all_folds_fit_into_the_legend[2-10]",
    "tests/evaluation/probes/test_representations.py::test_the_figure_colours_the_same_patches_in_every_panel[False]",
    "tests/evaluation/pictures/test_quality_control.py::test_picture_is_written_whatever_the_number_of_panels[4-4]",
    "tests/models/test_unet.py::test_feature_levels_are_those_of_the_network_stopped_at_each_level[2]",
    "tests/data/scans/test_common_grid.py::test_only_the_named_contrasts_are_corrected",
    "tests/test_simulate_cohort.py::test_processes_do_not_change_the_result",
    "tests/bad_input/test_names.py::test_subjects_of_any_name_have_their_pictures",
    "tests/training/test_grid.py::test_cells_of_all_folds_run_trainer_by_trainer_and_each_is_built_once",
    "tests/test_evaluate_relaxometry.py::test_what_is_written",
    "tests/test_evaluate_relaxometry.py::test_the_map_of_the_first_seed_is_that_of_step_1",
)
PLACES = {entry: place for place, entry in enumerate(LONG)}
SLOWER = {"tests", "training", "models"}  # folders of tests that train networks or start scripts
FIGURES_IN_FULL = {"test_names.py"}  # besides those of tests/evaluation
NOTABLE_S = 1.0  # of CPU; slower tests in `make test` are listed at the end


def pytest_configure(config):
    config.addinivalue_line("markers", "long: left out of `make test`; chosen by LONG in tests/conftest.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    """Mark the long tests, and put the tests that are chosen into the order of `in_two_halves`."""
    for item in items:
        if place_in_long(item.nodeid) < len(LONG):
            item.add_marker("long")
    yield  # pytest leaves out what `-m` does not choose
    files = collections.defaultdict(list)
    for item in items:
        files[item.path].append(item)
    items[:] = in_two_halves(files)


def in_two_halves(files):
    """Order tests for two processes, of which each starts with one half and takes over the end of the other's.

    Each half starts with every second of the files that take long, the longest first, so that only quick files are
    ever divided between the processes: the fixtures of a divided file are made twice.

    Args:
        files: Tests of each file.

    Returns:
        All tests, as one list.
    """
    place = {file: min(place_in_long(item.nodeid) for item in tests) for file, tests in files.items()}
    slow = [file for file in files if place[file] < len(LONG) or file.parent.name in SLOWER]
    slow.sort(key=lambda file: (file.name != "test_pipeline.py", place[file]))
    halves = [[item for file in slow[start::2] for item in files[file]] for start in (0, 1)]
    for file in sorted(files.keys() - set(slow), key=lambda file: (-len(files[file]), file)):
        min(halves, key=len).extend(files[file])
    return halves[0] + halves[1]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Exclude the loaded libraries from garbage collection, which saves a twentieth of the suite's time."""
    gc.collect()
    gc.freeze()


def place_in_long(nodeid):
    """Return the position of a test in LONG, or the length of LONG for other tests."""
    name, bracket, case = nodeid.partition("[")
    file = name.partition("::")[0]
    return min(PLACES.get(entry, len(LONG)) for entry in (file, name, nodeid, f"{file}{bracket}{case}"))


class CpuSeconds:
    """User and system seconds of this process and its finished children between two calls."""

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
    report.cpu_seconds = CLOCK.since_last_call()  # setup, call or teardown; a fixture counts where it is first used
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
    """Make figures coarse unless they are what is tested."""
    is_tested = "evaluation" in request.path.parts or request.path.name in FIGURES_IN_FULL
    with contextlib.nullcontext() if is_tested else coarse_figures():
        yield


@pytest.fixture(scope="module", autouse=True)
def graphs_as_they_are(request):
    """Skip TensorFlow's rewriting of graphs, a fifth of a small training run, except in the pipeline test."""
    if keras.backend.backend() != "tensorflow" or request.path.name == "test_pipeline.py":
        yield
        return
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture(scope="module")
def uncompiled():
    """Run training steps eagerly, which is faster for tests with few steps."""
    with steps_uncompiled():
        yield


@pytest.fixture
def as_user():
    """Yield a world-readable folder in which a test may become an ordinary user; root ignores permissions."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        os.seteuid(os.getuid())


@pytest.fixture(scope="module")
def rough_figures():
    """Draw figures with few pixels and fonts as outlines; test_figures.py writes them in full."""
    from evaluation.report.figures import STYLE

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STYLE, "savefig.dpi", 50)
        patch.setitem(STYLE, "pdf.fonttype", 3)
        yield


def made_once(factory, name, make):
    """Return a folder that the first test process makes while the others wait for it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by the processes
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a failed process
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
    """Return the folder of the tiny cohort with its work dir after two steps, one copy per process."""
    made, folder = made_once(tmp_path_factory, "packed", pack), tmp_path_factory.mktemp("copy")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    write_config(folder)
    return folder


@pytest.fixture(scope="session")
def finished(packed, tmp_path_factory):
    """Return the same after four steps, to be read, or to be copied and changed."""

    def train(folder):
        shutil.copytree(packed, folder, dirs_exist_ok=True)
        write_config(folder)
        with steps_uncompiled():
            run_steps(FIRST_FOUR[2:], folder)

    return made_once(tmp_path_factory, "finished", train)
