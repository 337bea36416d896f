"""How many channels does a latent need? Train notebook 10's small autoencoder with several, and
write what the notebook shows: diffusion_lib/weights/tables/compression.json, and the first fresh
drawings there and back, weights/progress/compression_<channels>.webp.

    python .ci/measure_compression.py --seeds 2        one thread; a quarter of an hour

The program itself stands in the notebook; here it is trained five times longer, equally long with
each number of channels (after the notebook's 300 steps all are equally bad: 19.5 to 20.4 dB). A
seed fixes the first weights. A table half done is gone on with.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from notebook_program import missing, program, table_of
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import ToyCats, read_attributes, to_float, to_uint8
from diffusion_lib.data.pictures import image_grid
from diffusion_lib.data.toycats import ATTRIBUTES
from diffusion_lib.measuring.reconstruction import psnr
from diffusion_lib.saving.files import whole
from diffusion_lib.saving.pretrained import WEIGHTS

TABLE, GRIDS = WEIGHTS / "tables/compression.json", WEIGHTS / "progress"
CHANNELS, STEPS, FRESH, SHOWN = (1, 2, 4, 8, 16), 1500, 300, 8


def own_program() -> dict[str, Any]:
    return program("10", "own-program-10", "encoder, decoder = train(", torch=torch)


def fresh() -> ToyCats:
    """Drawings that no run saw."""
    return ToyCats(32, n=FRESH, seed=1)


@torch.no_grad()
def there_and_back(encoder: nn.Module, decoder: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 32, 32) in [-1, 1], through the means of their latents."""
    return decoder(encoder(pictures)[0]).clamp(-1, 1)


def judged(back: Tensor, drawings: ToyCats) -> dict[str, float]:
    """PSNR in decibels, and of how many drawings each attribute is read as it was drawn."""
    seen = read_attributes(back)
    hits = (seen.attributes == drawings.attributes).sum(0).tolist()
    right = (seen.attributes == drawings.attributes).all(1) & seen.is_cat
    return {"psnr": round(psnr(to_uint8(back), drawings.images).value, 2),
            **dict(zip(ATTRIBUTES, hits, strict=True)), "all": int(right.sum())}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--grids", type=Path, default=GRIDS)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names, drawings = own_program(), fresh()
    setting = {"steps": STEPS, "fresh": FRESH}
    table = table_of(a.out, setting, CHANNELS)
    for channels, seed, runs in missing(table, a.seeds):
        pair = names["train"](c=int(channels), steps=STEPS, seed=seed)
        back = there_and_back(*pair, to_float(drawings.images))
        runs[str(seed)] = judged(back, drawings)
        print(channels, seed, runs[str(seed)], flush=True)
        if seed == 0:
            with whole(a.grids / f"compression_{int(channels):02d}.webp") as path:
                sheet = image_grid(back[:SHOWN], columns=SHOWN)
                sheet.save(path, format="webp", lossless=True)
        with whole(a.out) as path:
            path.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
