"""The order of cells, and the trainers in memory."""

from types import SimpleNamespace

from training.grid import Grid, by_trainer


class Work:
    """Cells are pairs of settings and a number; equal settings share a trainer."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def trainer_key(self, cell):
        return cell[0]

    def build_trainer(self, cell):
        self.log.append(cell[0])
        return SimpleNamespace(settings=cell[0])


def grid_of(name, todo, trainers, log):
    grid = Grid.__new__(Grid)  # no config, no files
    grid.task, grid.todo, grid.trainers, grid.name = Work(name, log), todo, trainers, name
    return grid


def test_cells_of_all_folds_run_trainer_by_trainer_and_each_is_built_once():
    log, trainers = [], {}
    first = grid_of("fold0", [("a", 0), ("b", 0), ("a", 1), ("c", 0)], trainers, log)
    second = grid_of("fold1", [("b", 0), ("a", 0), ("a", 1)], trainers, log)
    parts = by_trainer([first, second])
    assert [(grid.name, cells) for grid, cells in parts] == [
        ("fold0", [("a", 0), ("a", 1)]),
        ("fold1", [("a", 0), ("a", 1)]),
        ("fold0", [("b", 0)]),
        ("fold1", [("b", 0)]),
        ("fold0", [("c", 0)]),
    ]
    for grid, cells in parts:
        for cell in cells:
            assert grid._trainer(cell).settings == cell[0] and list(trainers) == [cell[0]]
    assert log == ["a", "b", "c"]


def test_one_trainer_leaves_the_order_of_folds_and_cells():
    first, second = (grid_of(name, [("a", n) for n in range(3)], {}, []) for name in ("fold0", "fold1"))
    assert by_trainer([first, second]) == [(first, first.todo), (second, second.todo)]
    assert by_trainer([grid_of("fold0", [], {}, [])]) == []
