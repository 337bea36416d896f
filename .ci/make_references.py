"""Make what ships of the real pictures, and of many samples, in diffusion_lib/weights/references:
`make references`.

Needs data/ (the photographs) and the shipped models. Only descriptions are kept (features, spectra,
means and covariances, verdicts), never pictures. Notebook 07 and `evaluate --data
reference:cats32` read them.

    python .ci/make_references.py real        after the classifier has changed (minutes)
    python .ci/make_references.py real catfaces128        one of them
    python .ci/make_references.py rows        400 held-out cats seen by other features (a minute)
    python .ci/make_references.py samples runs/cats32     after cats32 has changed (five minutes)
"""

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import load_model, sample
from diffusion_lib.data.sources import in_batches, load_data
from diffusion_lib.measuring.classifier import Classifier, load_classifier
from diffusion_lib.measuring.report import SHIPPED, Reference, real_pictures

REAL = {  # name -> (data, size, features)
    "cats32": ("folder:data/cifar10/train/cat", 32, "classifier"),
    "catfaces128": ("folder:data/catfaces128#train", 128, "catface"),
}
SOME = {"catfaces128": 2000}  # rows that are kept: enough, and small
SAMPLES = {  # name -> (sampler, steps, weights, how many)
    "ema": ("dpm_solver_pp", 20, "ema", 1200), "raw": ("dpm_solver_pp", 20, "model", 300),
    "evaluations_5": ("dpm_solver_pp", 5, "ema", 300),
           "evaluations_10": ("dpm_solver_pp", 10, "ema", 300),
    "evaluations_50": ("dpm_solver_pp", 50, "ema", 300),
}


def coarse(pictures: Tensor) -> Tensor:
    """Pixels at 4 x 4, as rows: too small to be pictures, enough to compare colours and layout."""
    return F.interpolate(pictures, (4, 4), mode="bicubic", antialias=True).flatten(1)


def random_network() -> Classifier:
    """The classifier before any training."""
    torch.manual_seed(0)
    return Classifier().eval()


def real(*names: str) -> None:
    for name in names or REAL:
        data, size, features = REAL[name]
        train, held_out, others = real_pictures(data, None, size)
        made = Reference.of(train, held_out, others, name=data, features=features)
        some = SOME.get(name)
        made = made._replace(train=made.train[:some], held_out=made.held_out[:some])
        made.save(SHIPPED / name)
        print(name, len(train), len(held_out), made.verdicts, flush=True)
        if name == "cats32":
            moments = {}
            for kind, network in (("pixels", coarse), ("random", random_network().features)):
                for part, pictures in (("train", train), ("held_out", held_out)):
                    rows = in_batches(network, pictures).double()
                    moments |= {f"{kind}_{part}_mean": rows.mean(0).float(),
                                f"{kind}_{part}_covariance": torch.cov(rows.T).float()}
            save_file(moments, SHIPPED / "cats32_moments.safetensors")


def rows() -> None:
    """400 held-out cats in pixels and in random features, so that a floor can be had at small n."""
    data = REAL["cats32"][0].replace("train", "test")
    pictures = load_data(data, 32).images
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:400]
    made = {kind: in_batches(network, pictures[order]).half()
            for kind, network in (("pixels", coarse), ("random", random_network().features))}
    save_file(made, SHIPPED / "cats32_held_out_rows.safetensors")


def samples(run: str) -> None:
    network, rows = load_classifier().features, {}
    for name, (sampler, steps, weights, count) in SAMPLES.items():
        model, diffusion, _ = load_model(run, weights)
        start = time.perf_counter()
        pictures = sample(model, diffusion, count, sampler=sampler, steps=steps, batch_size=100,
                          progress=True)
        rows[name] = in_batches(network, pictures).half()
        print(f"{name}: {count} samples, {time.perf_counter() - start:.0f} s", flush=True)
        save_file(rows, SHIPPED / "cats32_samples.safetensors")


if __name__ == "__main__":
    {"real": real, "rows": rows, "samples": samples}[sys.argv[1]](*sys.argv[2:])
