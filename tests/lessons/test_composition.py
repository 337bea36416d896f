""".ci/measure_composition.py: what is withheld is never shown; what is asked is what is said."""

import json

import measure_composition as program
import pytest
import torch

from diffusion_lib import ToyCats, shipped_table, to_float, wilson
from diffusion_lib.data import toycats
from diffusion_lib.data.toycats import make_cats

SAID = torch.ones(1, 5, dtype=torch.bool)


@pytest.mark.parametrize("name", program.ARMS)
def test_no_withheld_pair_is_drawn_and_every_other_is(name: str) -> None:
    arm = program.ARMS[name]._replace(pictures=600)
    pictures, labels = program.drawings(arm, seed=1)
    pairs = set(map(tuple, labels[:, [program.FURS, arm.column]].tolist()))
    assert pairs == set(program.all_pairs(arm.column)) - arm.withheld
    assert pictures.shape == (600, 3, 16, 16) and len(labels) == 600


def test_seven_pairs_are_seen_where_eight_are_withheld() -> None:
    assert len(program.FEW) == 8 and (program.WHITE, program.FOLDED) in program.FEW
    assert len(program.relatives(program.ARMS["14_of_15"])) == 6  # 2 of white, 4 of folded
    assert program.relatives(program.ARMS["7_of_15"]) == [(0, 0), (2, 2)]


def test_what_is_not_said_is_zero() -> None:
    labels = torch.tensor([[0, 1, 2, 2, 4]])
    told = program.one_hot(labels, SAID)
    assert told.sum() == 5 and told.shape == (1, 19)
    without = program.one_hot(labels, program.spoken(labels, program.EARS, [program.FURS]))
    assert (told - without).nonzero().tolist() == [[0, 5 + 3 + 3 + 2]]  # the ears alone


def test_a_row_for_each_pair_has_none_for_one_alone() -> None:
    labels = torch.tensor([[0, 1, 2, 2, 4]])
    alone = program.spoken(labels, program.EARS, [program.FURS])
    told = program.one_hot_combination(labels, alone)
    assert told[0, :15].sum() == 0 and told.sum() == 3
    assert program.one_hot_combination(labels, SAID)[0, :15].tolist().index(1) == 2


@pytest.mark.parametrize("scale", [1, 2])
def test_the_sum_of_guidances_is_liu_s(scale: float) -> None:
    def network(x: torch.Tensor, t: torch.Tensor, augment: torch.Tensor) -> torch.Tensor:
        return x * augment[:, :1, None, None]

    a, b, rest = (torch.full((2, 1), value) for value in (3.0, 5.0, 1.0))
    x, t = torch.ones(2, 3, 4, 4), torch.tensor([5, 6])
    both = program.Asked(network, [a, b], rest, scale, bf16=False)(x, t)  # type: ignore[arg-type]
    assert both.unique().tolist() == [1 + scale * 2 + scale * 4]
    one = program.Asked(network, [a], rest, scale, bf16=False)(x, t)  # type: ignore[arg-type]
    assert one.unique().tolist() == [1 + scale * 2]


def test_orange_tells_orange_from_cream_and_from_none(monkeypatch) -> None:
    seeds = range(30)

    def white(pattern: int) -> torch.Tensor:
        labels = torch.tensor([[program.WHITE, pattern, 0, 0, 0]]).repeat(30, 1)
        return program.orange(to_float(make_cats(labels, seeds, 16)))

    assert (white(program.PATCHES) > 0.7).all() and white(0).mean() < 0.2
    cream = toycats.PATCH.copy()
    cream[program.WHITE] = cream[4]  # that of brown cats, the strongest cream
    monkeypatch.setattr(toycats, "PATCH", cream)
    assert 0.1 < white(program.PATCHES).mean() < 0.5


def test_true_drawings_are_counted_right_and_shuffled_requests_are_not() -> None:
    cats = ToyCats(16, 30, seed=3)
    columns = [program.FURS, program.EARS]
    row = program.counted(to_float(cats.images), cats.attributes, columns)
    assert row["right"] == row["words"] == row["valid"] == row["fur"] == row["ears"] == 30
    assert row["shuffled"] < 10 and sum(n for _, n in row["pairs"].values()) == 30


def test_a_frozen_encoder_says_nothing_with_zeros_and_reads_each_caption_once() -> None:
    read: list[str] = []

    def encode(captions: list[str]) -> torch.Tensor:
        read.extend(captions)
        return torch.tensor([[float(len(text)), float(text.count("e"))] for text in captions])

    vectors = program.OfCaptions(encode)
    labels, before = torch.tensor([[0, 1, 2, 2, 4]] * 2), len(read)
    said = torch.stack([SAID[0], ~SAID[0]])
    told = vectors(labels, said)
    assert told[1].tolist() == [0, 0] and told[0].abs().sum() > 0
    assert torch.equal(vectors(labels, said), told) and len(read) == before + 2
    assert "a white cat" in program.captions_of(
        labels[:1], torch.tensor([[True, False, False, False, False]]))


def test_a_word_never_seen_takes_the_place_of_the_fur(monkeypatch) -> None:
    asked: list[str] = []

    def encode(captions: list[str]) -> torch.Tensor:
        asked.extend(captions)
        return torch.randn(len(captions), 3)

    monkeypatch.setattr(program, "drawn", lambda network, told, rest, scale, bf16: torch.zeros(
        len(rest), 3, program.SIZE, program.SIZE))
    vectors = program.OfCaptions(encode)
    asked.clear()
    rows = program.new_words(vectors, None, 4, False)  # type: ignore[arg-type]
    assert [row["asked"] for row in rows] == [f"word {word}" for word in program.NEVER_SEEN]
    for word, fur in program.NEVER_SEEN.items():
        told = [text for text in asked if f"a {word} cat" in text]
        assert told and not any(fur in text.split() for text in told), word


def test_sentence_vectors_tell_every_attribute_apart() -> None:
    vectors = shipped_table("sentences")["vectors"].double()
    labels = torch.cartesian_prod(*map(torch.arange, program.SIZES))
    x = torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1)
    for column, size in enumerate(program.SIZES):
        answers = torch.nn.functional.one_hot(labels[:, column], size).double()
        line = torch.linalg.lstsq(x, answers, driver="gelsd").solution
        assert ((x @ line).argmax(1) == labels[:, column]).all(), column


def test_a_run_that_is_in_the_table_is_not_repeated(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", [
        "measure_composition.py", "--arms", "patches", "--seeds", "1", "--steps", "1", "--n", "2",
        "--out", str(tmp_path / "table.json")])
    program.main()
    first = json.loads((tmp_path / "table.json").read_text("utf-8"))
    assert [run["arm"] for run in first["runs"]] == ["patches", "stripes_ceiling"]
    assert "orange" in first["runs"][0]["cells"][0]
    capsys.readouterr()
    program.main()
    assert capsys.readouterr().out == ""


def test_the_shipped_table_is_whole() -> None:
    table = shipped_table("composition")
    assert table["truth"]["right"] >= 0.99 * table["truth"]["n"]
    for run in table["runs"]:
        for cell in run["cells"]:
            assert cell["right"] <= min(cell["valid"], cell["words"]) <= cell["n"]


def test_the_shipped_table_says_what_notebook_09_says() -> None:
    runs = shipped_table("composition")["runs"]

    def counts(arm: str, how: str, scale: int, what: str, asked: str = "withheld") -> list[int]:
        found = [cell for run in runs if run["arm"] == arm for cell in run["cells"]
                 if (cell["asked"], cell["how"], cell["scale"]) == (asked, how, scale)]
        return [sum(cell[key] for cell in found) for key in (what, "n")]

    def span(*which) -> tuple[float, float]:
        count, n = counts(*which)
        return wilson(count / n, n)

    for arm in ("14_of_15", "7_of_15", "all_15", "stripes"):
        assert counts(arm, "joint", 2, "right")[1] >= 200  # three trainings of 72
    for arm in ("all_15", "stripes_ceiling", "patches_ceiling"):
        assert span(arm, "joint", 2, "right")[0] > 0.9  # skill is not what is missing
    plain, insisted = (span("14_of_15", "joint", scale, "right") for scale in (1, 6))
    assert plain[1] < 0.1 and insisted[0] > 0.4
    assert span("14_of_15", "sum", 2, "words")[0] > span("14_of_15", "joint", 2, "words")[1]
    assert span("14_of_15", "sum", 6, "fur")[1] < 0.7
    for how in ("joint", "sum"):
        for scale in program.SCALES:
            assert span("7_of_15", how, scale, "right")[1] < 0.15
            assert counts("patches", how, scale, "words")[0] <= 2
            for arm in ("combination", "shuffled", "7_of_15_more_pictures"):
                assert counts(arm, how, scale, "right")[0] <= 1, (arm, how, scale)
    few, many = span("14_of_15_fewer_pictures", "joint", 6, "right"), insisted
    assert few[1] > many[0]
    striped = [pair for run in runs if run["arm"] == "stripes" for cell in run["cells"]
               if (cell["asked"], cell["how"], cell["scale"]) == ("relatives", "joint", 4)
               for words, pair in cell["pairs"].items()
               if words.endswith("stripes") and not words.startswith("black")]
    right, n = map(sum, zip(*striped, strict=True))
    assert right / n > 0.95  # or the tiger's absence would mean nothing
    assert counts("sentence", "joint", 2, "fur", "word gray")[0] >= 70
    assert max(counts("sentence", "joint", 2, "fur", f"word {word}")[0]
               for word in ("snowy", "chocolate")) < 15
