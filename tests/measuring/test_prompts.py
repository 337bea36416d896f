"""Agreement of drawn cats with their captions: exact on drawings, chance on shuffled ones."""

import torch

from diffusion_lib.data.toycats import ToyCats
from diffusion_lib.measuring.prompts import agreement, prompts


def test_true_drawings_agree_and_others_do_not(refuses):
    cats = prompts(40, [{"fur": "white", "ears": "folded"}])
    assert not ((cats.attributes[:, 0] == 0) & (cats.attributes[:, 3] == 2)).any()
    true = {each.name: each for each in agreement(cats.images, cats.attributes)}
    assert len(true) == 7 and all(each.value == 1 and each.n == 40 for each in true.values())
    assert true["all five as asked (share)"].low < 0.95 and "by chance" in str(true[
        "fur as asked (share)"])
    others = agreement(cats.images, cats.attributes.roll(7, 0))
    shuffled = {each.name: each.value for each in others}
    assert shuffled["a cat (share)"] == 1 and shuffled["all five as asked (share)"] < 0.1
    assert shuffled["fur as asked (share)"] < 0.6
    noise = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    assert agreement(noise, cats.attributes[:20])[-1].value == 0
    with refuses(ValueError, "exclude"):
        prompts(5, [{"fur": "red"}])
    assert ToyCats(n=5, seed=0).seeds[0] not in cats.seeds
