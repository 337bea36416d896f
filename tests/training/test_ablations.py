"""The table that notebook 03 reads, made by .ci/measure_ablations.py, and what the notebook says of
it.
"""

import measure_ablations
import torch

from diffusion_lib import shipped_table


def interval(name: str) -> tuple[float, float]:
    """Of the error over that of the whole network of the same seed (Student's t, 95 %)."""
    errors = shipped_table("ablations")["errors"]
    ratio = (torch.tensor(errors[name]) / torch.tensor(errors["ours"])).log().mean(1)
    half = 3.18 * ratio.std() / 2
    return (ratio.mean() - half).exp().item(), (ratio.mean() + half).exp().item()


def test_every_network_was_trained_from_every_seed() -> None:
    table = shipped_table("ablations")
    assert set(table["errors"]) == set(measure_ablations.CHANGES)
    for errors in table["errors"].values():
        assert torch.tensor(errors).shape == (len(measure_ablations.SEEDS),
                                              len(measure_ablations.TIMESTEPS))


def test_the_skips_are_needed_and_the_time_is_not() -> None:
    low, high = interval("ours again")
    assert low < 1 < high and high - low < 0.05  # what chance does
    assert interval("without skips")[0] > 1.5
    assert interval("without time")[0] < high
    assert interval("without norm")[0] > high and interval("original")[0] > high
    assert interval("original")[0] < interval("without norm")[1]  # no difference seen
