"""Does a network know its pictures by heart? Its loss on pictures that it learnt from, and on
held-out ones: the same timesteps, the same noise. A network that remembers is better on its own.

    python .ci/measure_held_out.py catfaces128 --data folder:data/catfaces128#train --n 1600
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import load_model, noise_prediction_loss, to_float
from diffusion_lib.measuring.report import real_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out")
    parser.add_argument("--n", type=int, default=1600)
    parser.add_argument("--timesteps", type=int, default=20)
    parser.add_argument("--box", type=float, nargs=4, default=(0, 0, 1, 1),
                        help="only in here: top, left, bottom, right, shares of the picture")
    a = parser.parse_args()
    trained = load_model(a.model)
    model, diffusion, autoencoder = trained.model, trained.diffusion, trained.autoencoder
    size = (autoencoder or model).image_size
    learnt, held_out, _ = real_pictures(a.data, a.held_out, size)
    chosen = torch.randperm(len(learnt), generator=torch.Generator().manual_seed(0))
    ts = [int((i + 0.5) * diffusion.T / a.timesteps) for i in range(a.timesteps)]
    for name, images in (("learnt from", learnt[chosen[: a.n]]), ("held out", held_out[: a.n])):
        parts = []
        with torch.inference_mode():
            for rows in to_float(images).split(50):
                x_0 = autoencoder.encode(rows) if autoencoder else rows
                top, left, bottom, right = (round(share * x_0.shape[2 + i % 2])
                                            for i, share in enumerate(a.box))
                box = torch.zeros(x_0.shape[2:])
                box[top:bottom, left:right] = 1
                noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
                parts.append(torch.stack([
                    noise_prediction_loss(diffusion, model, x_0, torch.full((len(x_0),), t), noise,
                                          places=box / box.mean()) for t in ts]))
        by_t, means = torch.stack(parts).mean(0), torch.stack(parts).mean(1)
        half = 1.96 * means.std() / len(means) ** 0.5
        quarters = " ".join(f"{q.mean():.4f}" for q in by_t.chunk(4))
        print(f"{name:12s} {means.mean():.4f} ± {half:.4f}; by quarter of t, from clean to noise: "
              f"{quarters}", flush=True)


if __name__ == "__main__":
    main()
