"""What each minute of a training bought: every kept checkpoint of a run, measured with the same
seeds; written to RUN/moments.json, which `ship.py` puts on the card.

    python .ci/measure_moments.py runs/catfaces128 --data folder:data/catfaces128#train --n 300
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion_lib import Reference, evaluate, load_model, sample
from diffusion_lib.measuring.report import real_pictures
from diffusion_lib.saving.files import whole
from diffusion_lib.training.run_folder import CsvLog

WANTED = ("Fréchet distance", "recall", "share with a cat's face", "mean probability of cat")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", default="catface")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--every", type=int, default=1, help="every how manieth checkpoint")
    a = parser.parse_args()
    log, reference, rows = list(CsvLog.read(a.run / "log.csv")), None, []
    folders = sorted((a.run / "checkpoints").glob("step_*"))
    for folder in folders[a.every - 1 :: a.every]:
        model, diffusion, info = load_model(folder)
        pictures = sample(model, diffusion, a.n, sampler="dpm_solver_pp", steps=25, batch_size=50)
        if reference is None:
            real = real_pictures(a.data, None, pictures.shape[-1])
            reference = Reference.of(*real, name=a.data, features=a.features)
        step = int(folder.name.removeprefix("step_"))
        seconds = max(float(row["seconds"]) for row in log if int(row["step"]) <= step)
        measures = {m.name: [m.value, m.low, m.high, m.floor]
                    for m in evaluate(pictures, reference, n=a.n) if m.name in WANTED}
        seen = step * info["train"]["batch_size"]
        rows.append({"step": step, "seen": seen, "minutes": round(seconds / 60, 1),
                     "measures": measures})
        print(step, seen, rows[-1]["minutes"], {k: round(v[0], 3) for k, v in measures.items()},
              flush=True)
        with whole(a.run / "moments.json") as path:
            path.write_text(json.dumps({"n": a.n, "features": a.features, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
