"""What a cell of step 4 is, and what each kind of cell must provide for `training.grid.Grid` to run it.

No backend is loaded here, so that scripts can define their kinds of cells and still answer --help at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import keras

    from data.layouts.subjects import SubjectFiles
    from data.splits import Split
    from data.store.store import SliceStore
    from training.finetuning import Trainer
    from training.loop import RunOptions
    from utils.config.schema import Config
    from utils.model_description import ModelDescription
    from utils.work_dir import WorkDir


MOST_KEPT = 2**28  # bytes of references kept in memory, per split


class Cell(NamedTuple):
    """One network of the grid.

    Attributes:
        init: `random`, or a stage of pretraining.
        n: Number of annotated subjects.
        repeat: Number of the draw of annotated subjects, from 0.
        contrasts: Name of the input set; empty where there is only one.
        trial: Name of a trial of settings; empty where test subjects are scored.
    """

    init: str
    n: int
    repeat: int
    contrasts: str = ""
    trial: str = ""


class CellTask(ABC):
    """What the cells of one split train on, predict and write.

    Attributes:
        config: The `Config`.
        split: The `Split`.
        work: The `WorkDir` of the split.
        files: Subject -> `SubjectFiles`.
        store: The packed slices of the subjects.
        train_subjects: Subjects from which the annotated ones are drawn.
        val_subjects: Annotated validation subjects.
        test_subjects: Subjects that no network may have seen.
        scored: Subjects that cells predict.
        reference: `read_reference`, cached per subject while the total is small.
        made_of: Further things a cell is made from, written to metrics.json and compared before the cell is reused.
        sizes_key: Key of the config that lists the values of N.
    """

    config: "Config"
    split: "Split"
    work: "WorkDir"
    files: "Mapping[str, SubjectFiles]"
    store: "SliceStore"
    train_subjects: list[str]
    val_subjects: list[str]
    test_subjects: list[str]
    scored: list[str]
    made_of: Mapping[str, Any]
    sizes_key: str

    def __init__(self) -> None:
        self.reference = kept_while_small(self.read_reference)

    @abstractmethod
    def folder(self, cell: Cell) -> Path:
        """Folder that a cell is written to."""

    @abstractmethod
    def names(self, cell: Cell) -> dict[str, Any]:
        """Keys that identify a cell in metrics.json."""

    @abstractmethod
    def inputs(self, cell: Cell) -> list[str]:
        """Input channels of the network of a cell."""

    @abstractmethod
    def hash_of(self, cell: Cell) -> str:
        """Hash of everything that shapes the result of a cell."""

    @abstractmethod
    def seed_of(self, cell: Cell) -> int:
        """Seed of the order of slices and of the augmentation, the same for every init."""

    @abstractmethod
    def trainer_key(self, cell: Cell) -> Any:
        """Key that is equal for cells which share a trainer."""

    @abstractmethod
    def build_trainer(self, cell: Cell) -> "Trainer":
        """Build the trainer of a cell."""

    @abstractmethod
    def train(self, trainer: "Trainer", cell: Cell, subjects: Sequence[str], run: "RunOptions") -> None:
        """Train on these subjects, leaving the weights to keep in `trainer.network`."""

    @abstractmethod
    def score(self, network: "keras.Model", cell: Cell, folder: Path) -> list[dict[str, Any]]:
        """Predict the subjects in `scored`, write the predictions to a folder, and return the rows of metrics.json."""

    @abstractmethod
    def judge(self, network: "keras.Model", cell: Cell) -> dict[str, Any]:
        """What metrics.json records about the validation subjects."""

    @abstractmethod
    def describe_model(self, cell: Cell, subjects: Sequence[str]) -> "ModelDescription":
        """What is written to model.json, for predict.py."""

    @abstractmethod
    def read_reference(self, subject: str) -> Any:
        """Read what the prediction of a subject is compared with; InputError if it changed since step 2 packed it."""

    @abstractmethod
    def absent(self) -> Iterable[str]:
        """One line for each subject that should be packed and is not, or vice versa."""

    def describe_data(self, cell: Cell, subjects: Iterable[str]) -> dict[str, Any]:
        """Keys of a `ModelDescription` that every kind of cell has."""
        from data.field_of_view import field_of_training
        from data.splits import hash_of_split

        subjects, plain = list(subjects), self.config.plain()
        field = field_of_training(
            map(self.store.grid, subjects),
            is_size_known=self.config.data.voxel_size_known,
            foreground_outside=self.store.attributes.get("foreground_outside"),
        )
        return {
            "name": self.config.name,
            "simulated": plain["data"]["simulated"],
            "contrasts": self.inputs(cell),
            "files": plain["data"]["contrasts"],
            **self.config.reading(),
            "mask": plain["data"]["mask"],
            "percentiles": list(self.config.percentiles()),
            "slices": plain["slices"],
            "filters": self.config.network.filters,
            "field": field,
            "volumes": {name: list(found) for name, found in self.files[subjects[0]].volumes.items()},
            "trained_on": subjects,
            "config_hash": self.hash_of(cell),
            "split_hash": hash_of_split(self.split.to_dict()),
        }


def kept_while_small(read: Callable[[str], Any], most_bytes: int = MOST_KEPT) -> Callable[[str], Any]:
    """Cache what a function reads by name, as long as everything in the cache is small.

    Args:
        read: Function of a name that returns an array or a tuple of arrays, which are read-only once cached.
        most_bytes: Size of the cache; what does not fit is read again each time.
    """
    kept: dict[str, Any] = {}
    free = most_bytes

    def once(name: str) -> Any:
        nonlocal free
        if name not in kept:
            found = read(name)
            arrays = found if isinstance(found, tuple) else (found,)
            if (size := sum(array.nbytes for array in arrays)) > free:
                return found
            for array in arrays:
                array.flags.writeable = False
            kept[name], free = found, free - size
        return kept[name]

    return once
