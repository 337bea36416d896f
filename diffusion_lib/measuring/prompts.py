"""Does a picture show what was asked for? Drawn cats, whose attributes can be read."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..data.toycats import ATTRIBUTES, ToyCats
from .metrics import Measure, check_pictures, wilson
from .toyreader import read_attributes

SEED = 1  # of the prompts: other cats than those trained on, which have seed 0


def prompts(n: int, exclude: Sequence[Mapping[str, str]] = ()) -> ToyCats:
    """n cats whose captions are to be asked for; of none that training left out."""
    return ToyCats(size=32, n=n, seed=SEED, exclude=exclude)


def agreement(images: Tensor, attributes: Tensor) -> list[Measure]:
    """Shares of pictures (n, 3, H, H) that are a cat, have each attribute of their caption (n, 5),
    and have all five; only a cat has attributes. Intervals are Wilson's; each note has what the
    captions of the pictures' neighbours get, as if nobody had listened. Raises ValueError for
    unusable pictures.
    """
    images = check_pictures(images, len(attributes))
    found = read_attributes(images)
    right = (found.attributes == attributes) & found.is_cat[:, None]
    deaf = (found.attributes == attributes.roll(1, 0)) & found.is_cat[:, None]
    shares = [(found.is_cat, None), *zip(right.T, deaf.T, strict=True),
              (right.all(dim=1), deaf.all(dim=1))]
    names = ["a cat", *(f"{name} as asked" for name in ATTRIBUTES), "all five as asked"]
    return [counted(name, hits, floor) for name, (hits, floor) in zip(names, shares, strict=True)]


def counted(name: str, hits: Tensor, by_chance: Tensor | None) -> Measure:
    """A share with its interval."""
    share, n = float(hits.double().mean()), len(hits)
    note = "" if by_chance is None else f"by chance {float(by_chance.double().mean()):.2g}"
    return Measure(f"{name} (share)", share, *wilson(share, n), n, note=note)
