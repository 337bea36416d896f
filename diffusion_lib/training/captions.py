"""What a network that reads is told about the pictures of a batch: whole captions, captions with
attributes left out, empty ones.
"""

from collections.abc import Sequence

from torch import Tensor

from ..data.toycats import ATTRIBUTES, caption
from .batches import Batch

PATTERN = list(ATTRIBUTES).index("pattern")


def told(
    batch: Batch, captions: Sequence[str], attributes: Tensor | None, attribute_drop: float
) -> list[str]:
    """One text a picture. captions: of the whole data set. Of drawn cats a share, attribute_drop,
    is told with some of its attributes (N, 5) only, so that "a white cat" is a prompt like any
    other. Whole captions are forgotten ("") as labels are, for guidance.
    """
    index = batch.index.cpu()
    texts = [captions[i] for i in index.tolist()]
    if attribute_drop and attributes is not None:
        rows = attributes[index].masked_fill(left_out(batch.words, attribute_drop), -1)
        texts = [caption(row) for row in rows.tolist()]
    return ["" if gone else text for gone, text in zip(batch.drop.tolist(), texts, strict=True)]


def left_out(words: Tensor, attribute_drop: float) -> Tensor:
    """Which attributes a caption leaves out, bool (B, 5), from uniform numbers (B, 7): none, or
    each with a chance that is a new one for each caption, so that one left out is as usual as all.

    A caption without a word about the pattern, and with all else, speaks of a plain cat; so the
    pattern is never left out alone.
    """
    out = (words[:, :1] < attribute_drop) & (words[:, 2:] < words[:, 1:2])
    out[out.sum(dim=1) == 1, PATTERN] = False
    return out


def check_captions(
    captions: Sequence[str], attributes: Tensor | None, reads: bool, attribute_drop: float, n: int,
    fault: str = "",
) -> None:
    """Raises ValueError where a network that reads has nothing to read. fault: why, if known."""
    if reads and fault:
        raise ValueError(fault)
    if reads and len(captions) != n:
        raise ValueError(f"the network reads captions, and the data has {len(captions)} for {n} "
                         "pictures; put a captions.csv (file,caption) into the folder, or leave "
                         "model.cross_attention_dim out")
    if attribute_drop and (attributes is None or not reads):
        raise ValueError("attribute_drop leaves attributes of drawn cats out of their captions; "
                         "set it to 0 for a network that reads none, and for other data")
