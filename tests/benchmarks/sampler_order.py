"""How fast the samplers' errors fall with the number of steps, on Gaussian data whose exact answer
is known.

    python tests/benchmarks/sampler_order.py [--points 40000]

First table: ddim, heun and dpm_solver_pp on four independent Gaussians (T = 10,080, float64, steps
that divide T, so that
no rounding of timesteps interferes). The error is the largest one against the exact path, at three
moments: halfway
(t = T/2 - 1), near the end (t = T/10 - 1) and of the finished picture. The order is log2 of an
error over the next one,
steps doubling. The picture's includes the last step, from t = T/steps - 1 to no noise at all, which
is first order in all.

Second table: mean and covariance of points drawn by all from two correlated Gaussian channels
at T = 1000, in standard
errors of that many points: chance alone stays below 4. Beyond it is the sampler's own error at that
number of steps.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from references import gaussian_errors, order_errors

from diffusion_lib.core.diffusion import GaussianDiffusion
from diffusion_lib.core.schedules import make_betas

STEPS = (10, 20, 40, 80, 160, 30, 60, 120, 240, 480)  # two runs of doublings
RECOVERY_STEPS = {
    "ddpm": (50, 250, 1000),
    "ddim": (50, 250, 1000),
    "heun": (25, 100, 250),
    "dpm_solver_pp": (20, 50, 100),
    "sde_dpm_solver_pp": (25, 50, 100),
}
SCHEDULES = (("linear", False), ("linear", True), ("cosine", False))


def title(schedule: str, snr0: bool) -> str:
    return schedule + (", zero terminal SNR" if snr0 else "")


def orders() -> None:
    for schedule, snr0 in SCHEDULES:
        diffusion = GaussianDiffusion(make_betas(schedule, 10_080, zero_terminal_snr=snr0), "x0")
        print(
            f"\n{title(schedule, snr0)}, T = 10,080: largest error (order since half as many steps)"
        )
        print(f"{'sampler':15}{'steps':>6}{'evaluations':>13}"
              f"{'halfway':>18}{'near the end':>18}{'picture':>18}")
        for name in ("ddim", "heun", "dpm_solver_pp"):
            errors = order_errors(name, diffusion, STEPS)
            for i, steps in enumerate(STEPS):
                cells = []
                for found in errors.values():
                    order = (
                        f"({math.log2(found[i - 1] / found[i]):.2f})"
                        if i and steps == 2 * STEPS[i - 1]
                        else ""
                    )
                    cells.append(f"{found[i]:11.2e}{order:>7}")
                evaluations = 2 * steps - 1 if name == "heun" else steps
                print(f"{name:15}{steps:6}{evaluations:13}{''.join(cells)}")


def recovery(points: int) -> None:
    size = math.isqrt(points // 4)
    print(f"\nmean and covariance of {4 * size * size:,} points, T = 1000: largest errors")
    print(f"{'schedule':28}{'prediction':>11}  {'sampler':15}{'steps':>6}{'mean':>10}"
          f"{'covariance':>12}{'standard errors':>17}  within 4")
    for schedule, snr0, prediction in (
        ("linear", False, "epsilon"),
        ("cosine", False, "epsilon"),
        ("cosine", True, "v"),
    ):
        diffusion = GaussianDiffusion(
            make_betas(schedule, 1000, zero_terminal_snr=snr0), prediction
        )
        for name, counts in RECOVERY_STEPS.items():
            for steps in counts:
                mean, covariance, off = gaussian_errors(diffusion, name, steps, size)
                print(
                    f"{title(schedule, snr0):28}{prediction:>11}  {name:15}{steps:6}"
                    f"{mean.abs().max():10.4f}{covariance.abs().max():12.4f}{off:17.1f}  "
                    f"{'yes' if off < 4 else 'no'}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=40_000, help="of the second table")
    arguments = parser.parse_args()
    if arguments.points < 4:
        parser.error(f"--points is {arguments.points}; take at least 4, 40000 say")
    print(f"torch {torch.__version__}")
    orders()
    recovery(arguments.points)


if __name__ == "__main__":
    main()
