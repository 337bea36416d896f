"""Grids of the same sixteen seeds at six moments of two runs, diffusion_lib/weights/progress:
`python .ci/make_progress.py runs` (needs both folders).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from diffusion_lib.__main__ import main  # noqa: E402

MOMENTS = {"cats32": {2: 250, 5: 750, 10: 1500, 16: 2500, 24: 3750,
                      36: 5600},  # epoch: step; 156 steps an epoch
           "cats128": {2: 100, 6: 300, 14: 700, 26: 1300, 41: 2000, 59: 2900}}   # 49 steps an epoch

if __name__ == "__main__":
    for name, moments in MOMENTS.items():
        for epoch, step in moments.items():
            main(["sample", f"{sys.argv[1]}/{name}/checkpoints/step_{step:08d}", "--n", "16",
                  "--sampler", "dpm_solver_pp", "--steps", "20",
                  "--columns", "4", "--grid",
                  str(ROOT / "diffusion_lib/weights/progress" / f"{name}_{epoch:02d}.webp")])
    wrong = f"{sys.argv[1]}/cats128_v"  # the wrong question, see notebook 06
    main(["sample", f"{wrong}/checkpoints/step_00001000", "--n", "8", "--sampler", "dpm_solver_pp",
          "--steps", "20", "--columns", "8",
          "--grid", str(ROOT / "figures/cats128_predicting_v.webp")])
