"""Trials in a config: what they change, what is refused; hashes cover the settings of a cell."""

import pytest
import yaml

from tests.utils.config.test_load import HASHES_BEFORE_SYNTHESIS, SMALL
from utils.checks import InputError
from utils.config.load import load_config

TRIALS = {
    "as_it_stands": {},
    "faster": {"training.learning_rate": "1e-2", "loss.class_weights.kidney": 2, "training.mixed_precision": True},
    "balanced": {"loss.cross_entropy_weight": 0.5, "loss.class_weights": {"kidney": 2}, "augmentation.scale": 0},
}
PLAIN = {  # the same settings in the section itself
    "as_it_stands": {},
    "faster": {
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "mixed_precision": True},
        "loss": {"class_weights": {"kidney": 2}},
    },
    "balanced": {
        "loss": {"cross_entropy_weight": 0.5, "class_weights": {"kidney": 2}},
        "augmentation": {"scale": 0},
    },
}


@pytest.fixture
def load(tmp_path):
    """Return a function that loads the small config with other keys in its section `finetuning`."""

    def loaded(**keys):
        content = yaml.safe_load(SMALL)
        content["finetuning"] |= keys
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load_config(path)

    return loaded


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_is_the_section_with_some_keys_changed(load, name):
    expected = load(**PLAIN[name])
    config = load(trials=TRIALS)
    found = config.finetuning.settings_of("random", name)
    assert found == expected.finetuning and found.trials == {} == found.chosen
    for init in ("random", "constrained"):
        assert config.hash_of_cell("t1", init, name) == expected.hash_of_cell("t1", init)
        assert config.hash_of_cell("t1", init) == load().hash_of_cell("t1", init), "until it is chosen"


def test_each_init_is_finetuned_with_what_was_chosen_for_it(load):
    config = load(trials=TRIALS, chosen={"random": "faster", "global": "balanced"})
    assert config.finetuning.settings_of("random").training.learning_rate == 0.01
    assert config.finetuning.settings_of("global").loss.cross_entropy_weight == 0.5
    assert config.finetuning.settings_of("constrained") == load().finetuning
    assert config.finetuning.settings_of("random", "as_it_stands") == load().finetuning, "a trial that is named counts"
    assert config.hash_of_cell("t1", "random") == load(**PLAIN["faster"]).hash_of_cell("t1", "random")
    assert config.hash_of_cell("t1", "constrained") == load().hash_of_cell("t1", "constrained")


@pytest.mark.parametrize(("overrides", "before"), HASHES_BEFORE_SYNTHESIS, ids=["plain", "keys in use"])
def test_trials_leave_the_hashes_from_before_them(load, tmp_path, overrides, before):
    load(trials={"faster": {"training.learning_rate": 0.01}}, chosen={"random": "faster"})
    config = load_config(tmp_path / "small.yaml", overrides)
    found = [config.hash_of_maps(), config.hash_of_slices(), config.hash_of_stage("constrained")]
    assert [*found, config.hash_of_cell("t1", "constrained")] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.learning_rte": 1}, "training.learning_rte: unknown key; did you mean 'learning_rate'?"),
        ({"trainig.epochs": 1}, "trainig: unknown key; did you mean 'training'?"),
        ({"training.learning_rate": -1}, "training.learning_rate: Input should be greater than 0 (found -1)"),
        ({"training.epochs": True}, "training: epochs: found yes (true or false), expected another value"),
        ({"repeats": 2}, "repeats: is the same for every trial; remove it (found 2)"),
        ({"chosen.random": "x"}, "chosen.random: is the same for every trial; remove it (found 'x')"),
        (
            {"training": {"epochs": 1}},
            "training: is a section; name single keys of it, such as 'training.epochs'",
        ),
        (
            {"evaluate_every.x": 2},
            "evaluate_every.x: no such key: what stands before the last dot is a single value, not a section (found 2)",
        ),
        ({"evaluate_every": 3}, ": evaluate_every: 3 is more than training.epochs"),
        ({"loss.class_weights": {"kidny": 2}}, "loss.class_weights: 'kidny' is not one of data.labels (kidney)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_trial_is_refused_where_it_stands(load, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        load(trials={"good": {"training.epochs": 2}, "bad": changes})
    dot = "" if message.startswith(":") else "."
    assert caught.value.lines == [f"{tmp_path}/small.yaml: finetuning.trials.bad{dot}{message}"]


def test_all_mistakes_of_all_trials_are_listed(load):
    with pytest.raises(InputError) as caught:
        load(trials={"a": {"x": 1}, "b": {"training.epochs": 0, "inits": []}}, chosen={"random": "c"})
    assert len(caught.value.lines) == 3


def test_what_is_chosen_must_exist(load):
    with pytest.raises(InputError, match=r"finetuning.chosen.random: not one of finetuning.trials \(a\) \(found 'b'\)"):
        load(trials={"a": {}}, chosen={"random": "b"})
    with pytest.raises(InputError, match="finetuning.chosen: 'local' is neither random nor a stage of pretraining"):
        load(trials={"a": {}}, chosen={"local": "a"})
