"""Paths in a work dir."""

from pathlib import Path

import pytest

from utils.checks import InputError
from utils.work_dir import WorkDir

WORK = WorkDir(Path("runs/x"))


def test_what_splits_share_and_what_they_do_not():
    fold = WORK.of("fold2")
    assert fold.store("annotated") == Path("runs/x/fold2/h5/annotated.h5")
    assert WORK.store("annotated") == Path("runs/x/h5/annotated.h5")
    for shared in ("volumes", "report", "trials"):
        assert getattr(fold, shared) == getattr(WORK, shared)
    assert fold.map_of("sub-1", "t2") == WORK.map_of("sub-1", "t2") == Path("runs/x/constraint_maps/t2/sub-1.nii.gz")
    assert WORK.map_picture("sub-1") == Path("runs/x/constraint_maps/qc/sub-1.png")
    assert fold.stage_weights("global") == Path("runs/x/fold2/pretraining/global/weights.npz")
    assert (WORK.number, fold.number) == (-1, 2)


def test_cells_have_n_in_two_digits_at_least():
    cell = WORK.of("fold0").cell("finetuning", "t1", "random", n=4, repeat=1)
    assert cell == Path("runs/x/fold0/finetuning/t1/random/n04/r1")
    assert WORK.name_of(cell) == "fold0/finetuning/t1/random/n04/r1"
    assert WORK.cell("synthesis", "random", n=120, repeat=0).parent.name == "n120"
    pattern = WORK.cell("synthesis", "{init}", n="{n}", repeat="{repeat}")
    assert pattern == Path("runs/x/synthesis/{init}/n{n}/r{repeat}")


def test_splits_that_hold_a_store_come_in_the_order_of_their_numbers(tmp_path):
    work = WorkDir(tmp_path)
    with pytest.raises(InputError, match="no h5/annotated.h5; run generate_h5_pretraining.py first"):
        work.splits_with("annotated")
    for number in (10, 2, 0):
        path = work.of(f"fold{number}").store("annotated")
        path.parent.mkdir(parents=True)
        path.touch()
    assert [split.split for split in work.splits_with("annotated")] == ["fold0", "fold2", "fold10"]
