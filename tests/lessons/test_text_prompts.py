"""Notebook 09: the learner's own program that reads, and what its uncompared outputs claim."""

import re

import pytest
import torch
from notebook_cells import cell, printed

from diffusion_lib import shipped_table
from diffusion_lib.data.toycats import ATTRIBUTES

PROGRAMS = ("tokens-09", "binding-09", "attend-09", "clip-program-09", "cross-09", "own-program-09")


@pytest.fixture(scope="module")
def space() -> dict:
    """The names that the learner's programs leave, trained for a few steps only."""
    names: dict = {"shipped_table": shipped_table}  # the first cell imports it
    for identity in PROGRAMS:
        source = cell("09", identity).source.replace("range(300)", "range(3)")
        source = source.replace("2e-3, 300", "2e-3, 3")
        source = re.sub(r"^(T, STEPS, c_1, c_2 = 1000), \d+,", r"\1, 2,", source, flags=re.M)
        exec(compile(source, identity, "exec"), names)
    return names


def test_what_is_new_is_marked() -> None:
    lines = cell("09", "own-program-09").source.splitlines()
    new = [line for line in lines if line.endswith("# new")]
    assert len(new) == 8  # four blocks, states, two places to read, the empty caption, three uses


def test_neither_network_sees_a_white_cat_with_folded_ears(space: dict) -> None:
    labels = space["cat_labels"]
    assert len(labels) == len(space["cats"]) == len(space["cat_tokens"]) > 3500
    assert not ((labels[:, 0] == space["WHITE"]) & (labels[:, 3] == space["FOLDED"])).any()
    assert ATTRIBUTES["fur"][space["WHITE"]] == "white"
    assert ATTRIBUTES["ears"][space["FOLDED"]] == "folded"


def test_padding_changes_nothing_that_is_read(space: dict) -> None:
    rows = space["tokens"](["a black cat with green eyes and round ears on blue"])
    cut = rows[:, : int((rows != 0).sum())]
    place = space["clip"].text.place.weight
    space["clip"].text.place.weight = torch.nn.Parameter(place[: cut.shape[1]], requires_grad=False)
    short = space["clip"].read(cut)
    space["clip"].text.place.weight = place
    torch.testing.assert_close(space["clip"].read(rows), short)


def test_the_samplers_scale(space: dict) -> None:
    """1 asks, 2 goes on along the same difference, and an empty caption is what u is."""
    sample, network = space["sample"], space["network"]
    for block in network.read:
        torch.nn.init.normal_(block.out.weight)  # it would read nothing yet
    asked = ["a white cat with green eyes and round ears on blue"] * 2
    plain, more = (sample(network, asked, scale=s, steps=2) for s in (1, 2))
    assert (plain - more).abs().max() > 1e-4
    empty = [sample(network, [""] * 2, scale=s, steps=2) for s in (1, 2)]
    torch.testing.assert_close(*empty, rtol=0, atol=1e-4)


def shares(identity: str, pattern: str) -> list[int]:
    return [int(x) for x in re.findall(pattern, printed("09", identity))]


def test_clip_finds_its_own_captions_and_not_others() -> None:
    own, shuffled = shares("retrieval-09", r"found +(\d+)%")
    assert own >= 80 and shuffled <= 10
    everything, hard = shares("retrieval-09", r"(\d+)%(?:, of|$)")[-2:]
    assert everything >= 99 and hard >= 95


def test_a_wrong_word_costs_little_and_a_shuffled_caption_all() -> None:
    found = [float(x) for x in re.findall(r"(-?\d\.\d+)", printed("09", "score-09"))]
    own, ears, shuffled = found[:3]  # of true drawings
    assert own > 0.85 and 0.5 < ears < own - 0.1 and abs(shuffled) < 0.2


def test_your_own_network_reads() -> None:
    found = {}
    for line in printed("09", "own-count-09").splitlines():
        found[line.split(" of ")[0].strip()] = [
            int(x) for x in re.findall(r"(?:fur|ears) +(\d+)", line)]
    assert found["seen"][0] >= 36 > 24 > found["seen, shuffled"][0]


def test_without_the_mask_fewer_are_right() -> None:
    masked, unmasked = shares("mask-count-09", r"right: (\d+) of")
    assert masked > unmasked
