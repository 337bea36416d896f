"""What all tests share: one thread (so that numbers repeat), and a way to say how an error must
read.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# programs that tests try
sys.path[:0] = [str(ROOT / ".ci"), str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]
torch.set_num_threads(1)


@pytest.fixture
def refuses() -> Callable[..., contextlib.AbstractContextManager]:
    """`with refuses(ValueError, "-3", "at least 1"):` the block must raise just that, one line,
    holding these pieces.

    The pieces are the bad value and the remedy.
    """

    @contextlib.contextmanager
    def check(kind: type[Exception], *pieces: str) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message.strip(), f"more than one line: {message}"
        assert 10 < len(message) < 500, message
        for piece in pieces:
            assert piece in message, f"{piece!r} is not in: {message}"

    return check


@pytest.fixture
def toy_images() -> torch.Tensor:
    """Twelve 8-pixel pictures, uint8 (12, 3, 8, 8): bright squares on dark grounds, all different.
    """
    generator = torch.Generator().manual_seed(5)
    images = torch.empty(12, 3, 8, 8, dtype=torch.uint8)
    for i in range(12):
        images[i] = torch.randint(0, 90, (3, 1, 1), generator=generator)
        row, column = torch.randint(0, 5, (2,), generator=generator).tolist()
        images[i, :, row : row + 3, column : column + 3] = torch.randint(
            160, 256, (3, 1, 1), generator=generator
        )
    return images
