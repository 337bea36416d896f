"""Notebook 08: the learner's own program with classes, and what its uncompared outputs claim."""

import re

import pytest
import torch
from notebook_cells import cell, printed

STEPS = 4


@pytest.fixture(scope="module")
def space() -> dict:
    """The names that the program leaves, run alone for a few steps."""
    source, count = re.subn(r"^(T, STEPS, c_1, c_2 = 1000), \d+,", rf"\1, {STEPS},",
                            cell("08", "own-program-08").source, flags=re.MULTILINE)
    assert count == 1
    names: dict = {}
    exec(compile(source, "own-program", "exec"), names)
    return names


def test_what_is_new_is_marked() -> None:
    lines = cell("08", "own-program-08").source.splitlines()
    new = [line for line in lines if line.endswith("# new")]
    assert len(new) == 5  # rows' names, the table, the sum, what hides a class, guidance


def turns(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each row's old and new direction."""
    return 1 - torch.cosine_similarity(before.double(), after.double())


def test_no_class_is_learnt_and_the_unused_row_is_not(space: dict) -> None:
    torch.manual_seed(0)
    before, after = space["SmallUNet"]().label.weight, space["network"].label.weight
    turned = turns(before, after)
    assert turned[:6].min() > 1e-7 > 1e-10 > turned[6]  # AdamW's decay shortens it, no more


def test_a_network_that_never_dropped_leaves_no_class_alone(space: dict) -> None:
    network = space["train"](drop=0.0, steps=STEPS)
    torch.manual_seed(0)
    turned = turns(space["SmallUNet"]().label.weight, network.label.weight)
    assert turned[:5].min() > 1e-7 > 1e-10 > turned[5]


def test_the_samplers_scale(space: dict) -> None:
    """0 ignores the class, 1 asks for it, and more goes on along the same difference."""
    sample, network, none = space["sample"], space["network"], space["NONE"]
    few = {"n": 2, "steps": 2}
    ignored, nothing = sample(network, 0, scale=0, **few), sample(network, none, **few)
    assert (ignored - nothing).abs().max() < 1e-4
    asked = sample(network, 0, **few)
    assert (asked - nothing).abs().max() > 1e-3
    assert (sample(network, 0, scale=3, **few) - asked).abs().max() > 1e-3


def test_asked_for_white_it_draws_white() -> None:
    white = {}
    for line in printed("08", "own-count-08").splitlines():
        (count,) = re.findall(r"white: +(\d+) of 64", line)
        white[line[:22].strip()] = int(count)
    assert white["not asked"] <= 26 and white["asked for white"] >= 58


def test_away_from_what_was_never_learnt_the_pictures_break() -> None:
    left = [float(x) for x in re.findall(r"left-over ([\d.]+)", printed("08", "never-count-08"))]
    assert len(left) == 2 and left[1] > left[0]
