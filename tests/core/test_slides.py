"""What a teacher puts on a slide fits one, and the heart of the library stays small."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_lib import (
    EMA,
    GaussianDiffusion,
    Guided,
    Trainer,
    UNet,
    cosine_beta_schedule,
    ddim,
    ddpm,
    noise_prediction_loss,
)
from diffusion_lib.core.text import EncoderLayer, Tokenizer
from diffusion_lib.core.transformer import Attention, ReadingLayer
from diffusion_lib.core.unet import AttentionBlock, ResBlock

CORE = Path(inspect.getfile(GaussianDiffusion)).parent
SLIDE = 30  # lines of code
CONCEPTS = {
    "schedule": cosine_beta_schedule,
    "q_sample": GaussianDiffusion.q_sample,
    "loss": noise_prediction_loss,
    "reverse step": ddpm,
    "posterior": GaussianDiffusion.q_posterior,
    "DDIM": ddim,
    "residual block": ResBlock,
    "attention": AttentionBlock,
    "attention to words": Attention,
    "reading layer": ReadingLayer,
    "text encoder's layer": EncoderLayer,
    "tokenizer": Tokenizer,
    "U-Net forward": UNet.forward,
    "training step": Trainer.train_step,
    "EMA update": EMA.update,
    "guidance": Guided.__call__,
}


def code_lines(source: str, *, checks: bool = True) -> int:
    """Lines that are code: no docstrings, comments, blank lines; with checks=False no `check_…`
    functions either.
    """
    tree = ast.parse(textwrap.dedent(source))
    skipped = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            skipped.update(range(node.lineno, node.end_lineno + 1))
        if not checks and isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
            skipped.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(textwrap.dedent(source).splitlines(), 1)
    return sum(
        1
        for number, line in lines
        if number not in skipped and line.strip() and not line.strip().startswith("#")
    )


@pytest.mark.parametrize("concept", CONCEPTS)
def test_it_fits_a_slide(concept: str) -> None:
    thing: Callable = CONCEPTS[concept]
    assert code_lines(inspect.getsource(thing)) <= SLIDE, concept


def test_the_heart_stays_small() -> None:
    """What reads a text is a subject of its own, with a limit of its own."""
    lines = {
        path.stem: code_lines(path.read_text(encoding="utf-8"), checks=False)
        for path in CORE.glob("*.py")
    }
    text = lines.pop("text") + lines.pop("transformer")
    assert sum(lines.values()) < 1000, f"core has {sum(lines.values())} lines of code"
    assert text < 200, f"text has {text} lines of code"
