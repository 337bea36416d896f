"""What each minute of a training bought: every kept checkpoint of a run, measured with the same
seeds; written to RUN/moments.json, which `ship.py` puts on the card.

    python .ci/measure_moments.py runs/catfaces128 --data folder:data/catfaces128#train --n 300
"""

import argparse
import json
import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import GaussianDiffusion, Reference, evaluate, load_model, sample
from diffusion_lib.measuring.report import real_pictures
from diffusion_lib.saving.files import whole
from diffusion_lib.training.run_folder import CsvLog


class Measures:
    """What `evaluate` says of n consecutive seeds of a network, whatever it has learnt so far."""

    def __init__(self, data: str, features: str, n: int) -> None:
        self.data, self.features, self.n = data, features, n
        self.reference: Reference | None = None  # its size is that of the first pictures

    def __call__(self, model: nn.Module, diffusion: GaussianDiffusion) -> dict[str, list]:
        """Name -> [value, low, high, floor]."""
        pictures = sample(
            model, diffusion, self.n, sampler="dpm_solver_pp", steps=25, batch_size=50)
        if self.reference is None:
            real = real_pictures(self.data, None, pictures.shape[-1])
            self.reference = Reference.of(*real, name=self.data, features=self.features)
        return {m.name: [m.value, m.low, m.high, m.floor]
                for m in evaluate(pictures, self.reference, n=self.n)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", default="catface")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--every", type=int, default=1, help="every how manieth checkpoint")
    a = parser.parse_args()
    log, rows = list(CsvLog.read(a.run / "log.csv")), []
    measures = Measures(a.data, a.features, a.n)
    folders = sorted((a.run / "checkpoints").glob("step_*"))
    for folder in folders[:: -a.every][::-1]:  # the last one too
        model, diffusion, info = load_model(folder)
        step = int(folder.name.removeprefix("step_"))
        seconds = max(float(row["seconds"]) for row in log if int(row["step"]) <= step)
        rows.append({"step": step, "seen": step * info["train"]["batch_size"],
                     "minutes": round(seconds / 60, 1), "measures": measures(model, diffusion)})
        print(*list(rows[-1].values())[:3], short(rows[-1]["measures"]), flush=True)
        with whole(a.run / "moments.json") as path:
            path.write_text(json.dumps({"n": a.n, "features": a.features, "rows": rows}, indent=1))


def short(measures: dict[str, list]) -> str:
    """One line of them."""
    return ", ".join(f"{name} {row[0]:.3f}" for name, row in measures.items())


if __name__ == "__main__":
    main()
