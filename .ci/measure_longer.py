"""Does the reader's own network of notebook 09 go on drawing what it has never seen when it trains
longer, and is it because pixels choose their words? Train its program for two lengths, and for the
longer one once more with the choice taken away: diffusion_lib/weights/tables/longer.json.

    python .ci/measure_longer.py --seeds 3        one thread; about forty minutes

The programs, the CLIP and the network, stand in the notebook. In the kind "mean" every pixel reads
the mean of the words' states; weights and all else are the same. A seed fixes the first weights and
the order of the drawings; the drawings are the notebook's. A table half done is gone on with.
"""

import argparse
import json
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from notebook_program import missing, program, source_of, table_of
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import read_attributes, shipped_table
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS

TABLE = WEIGHTS / "tables/longer.json"
KINDS, SCALES = ("1000", "5000", "5000 mean"), (1, 2, 4)
FUR, EARS = 0, 3  # columns of the attributes


def own_program() -> dict[str, Any]:
    """The notebook's names up to its network, its CLIP trained."""
    names: dict[str, Any] = {"shipped_table": shipped_table}
    for cell in ("tokens-09", "binding-09", "attend-09", "clip-program-09", "cross-09"):
        exec(source_of("09", cell), names)
    return program("09", "own-program-09", "network = train(", **names)


def mean_of_words(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`attend` without the choice: every one that asks gets the mean of the words (B, N, d)."""
    there = mask[..., None]
    return ((v * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)).expand(q.shape)


def counted(names: dict[str, Any], network: Any) -> dict[str, int]:
    """Of all cats of the withheld pair, and as many that were seen: both words there, whole."""
    labels, found = names["all_labels"], {}
    held = (labels[:, FUR] == names["WHITE"]) & (labels[:, EARS] == names["FOLDED"])
    others = labels[~held]
    groups = {"withheld": labels[held],
              "seen": others[:: len(others) // int(held.sum())][: int(held.sum())]}
    for group, asked in groups.items():
        captions = [names["caption"](row) for row in asked.tolist()]
        for scale in SCALES:
            said = read_attributes(names["sample"](network, captions, scale=scale))
            hits = (said.attributes == asked)[:, [FUR, EARS]].all(dim=1)
            found[f"{group}_{scale}"] = int(hits.sum())
            found[f"{group}_{scale}_whole"] = int((hits & said.is_cat).sum())
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TABLE)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = table_of(a.out, {"n": 45}, KINDS)
    names = own_program()
    read = names["Read"].forward
    for kind, seed, runs in missing(table, a.seeds):
        steps, _, how = kind.partition(" ")
        # only where pixels read: the text encoder's words go on looking at each other
        chosen = {"attend": mean_of_words} if how == "mean" else {}
        names["Read"].forward = FunctionType(read.__code__, read.__globals__ | chosen)
        network = names["train"](
            names["cats"], names["cat_tokens"], steps=int(steps), seed=seed)
        runs[str(seed)] = counted(names, network)
        print(kind, seed, runs[str(seed)], flush=True)
        with whole(a.out) as path:
            path.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
