"""Asking a learner's function and finding the best hint: what exercises.py is made of.

Learners call `check` from the library's front door, where it knows all exercises.
"""

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# name -> checker: returns what is shown, raises NotYet with a hint
CHECKERS: dict[str, Callable[[Callable], str]] = {}


class NotYet(Exception):
    """The hint for an answer that is not right yet."""


def exercise(checker: Callable[[Callable], str]) -> Callable[[Callable], str]:
    """Make a function the checker of the exercise that has its name."""
    CHECKERS[checker.__name__] = checker
    return checker


def check(name: str, function: Callable) -> None:
    """Print "Correct: …" or "Not yet: <hint>" for the exercise `name`: one line, no traceback.

    function: what the learner wrote, with the arguments that the exercise states. It gets copies,
    so it cannot harm the checker, and what it prints is not shown. Whatever it does ends in a hint;
    only KeyboardInterrupt (■) passes.
    """
    try:
        if not isinstance(name, str) or name not in CHECKERS:
            known = ", ".join(sorted(CHECKERS))
            raise NotYet(f"there is no exercise called {name!r}; known are {known}")
        if not callable(function):
            raise NotYet(f'give the function itself, check("{name}", my_function) without '
                         f"brackets, not {kind(function)}")
        line = "Correct: " + CHECKERS[name](function)
    except NotYet as hint:
        line = f"Not yet: {hint}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an answer that misbehaves while it is looked at
        line = (f"Not yet: the answer of your function cannot be compared ({words(error)}); "
                "return a plain tensor or number")
    print(" ".join(line.split()))


def compare(
    function: Callable, questions: Mapping[str, tuple], right: Callable,
    slips: Mapping[str, Callable | dict], within: tuple[float, float] | None = None,
) -> None:
    """Return if the function answers all questions as `right` does; else raise NotYet.

    questions: label -> arguments. slips: hint -> options of `right` that make this mistake, or a
    function that makes it. within: range of a right answer.
    """
    truths = [right(*question) for question in questions.values()]
    answers = [_sound(ask(function, q), truth)
               for q, truth in zip(questions.values(), truths, strict=True)]
    truths = [_plain(truth) for truth in truths]
    fits = [_close(a, b) for a, b in zip(answers, truths, strict=True)]
    if all(fits):
        return
    for answer, question in zip(answers, questions.values(), strict=True):
        again = _sound(ask(function, question), right(*question))
        if answer.shape == again.shape and not torch.equal(answer.nan_to_num(), again.nan_to_num()):
            raise NotYet("asked twice the same, your function gives two answers; no dice here, "
                         "use only what you are given")
    for hint, slip in slips.items():
        wrong, options = (right, slip) if isinstance(slip, dict) else (slip, {})
        if all(_close(a, _plain(wrong(*question, **options)))
               for a, question in zip(answers, questions.values(), strict=True)):
            raise NotYet(hint)
    for answer, truth in zip(answers, truths, strict=True):
        _look(answer, truth, within)
    if len({a.item() for a in answers if a.numel() == 1}) == 1 and len(answers) > 1:
        raise NotYet(f"the answer is {answers[0].item():.4g} whatever the question, a constant; "
                     "use all that you are given")
    if all(_close(-a, b) for a, b in zip(answers, truths, strict=True)):
        raise NotYet("only the sign is wrong, of every number")
    first = fits.index(False)
    off = (answers[first].double() - truths[first].double()).abs().max().item()
    raise NotYet(f"right for {sum(fits)} of {len(fits)} questions; "
                 f"for {list(questions)[first]} the answer is off by up to {off:.2g}")


def ask(function: Callable, question: tuple) -> Any:
    """One call of the learner's function, on copies, with its prints and warnings held back."""
    question, silence = copy.deepcopy(question), io.StringIO()
    try:
        with (contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence),
              warnings.catch_warnings(), torch.enable_grad()):
            warnings.simplefilter("ignore")
            return function(*question)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and endless recursion too: no slip ends a notebook
        said = words(error)
        if "must match the size" in said:
            said += "; a factor for each picture needs the shape (B, 1, 1, 1)"
        raise NotYet(f"your function stops with {said}. "
                     "Call it yourself on a small example to see where") from None


# -- looking at one answer -------------------------------------------------------------------------


def _sound(answer: object, truth: object) -> Tensor:
    """The answer as a tensor. Raises NotYet if it is no answer of this kind at all."""
    if answer is None or answer is ...:
        raise NotYet("your function returns nothing (None). Write it where the dots are, "
                     "and end it with return")
    if isinstance(answer, Tensor):
        if answer.device.type != "cpu":
            raise NotYet(f"the answer lies on the device {answer.device.type}, the question on "
                         "cpu; stay on the device of what you are given")
        if answer.layout != torch.strided or answer.is_complex():
            raise NotYet(f"the answer is a tensor of {answer.layout}, {answer.dtype}; asked for is "
                         "a plain one with real numbers")
    if isinstance(truth, Tensor):
        if truth.ndim == 0 and type(answer) in (int, float):
            answer = torch.tensor(answer, dtype=truth.dtype)  # .item() takes nothing away
        if not isinstance(answer, Tensor):
            raise NotYet(f"the answer is {kind(answer)}; asked for is a tensor of shape "
                         f"{tuple(truth.shape)}")
        return _plain(answer)
    wanted = f"asked for is a number ({type(truth).__name__})"
    if isinstance(answer, Tensor | np.ndarray | np.generic):
        if math.prod(answer.shape) != 1:
            raise NotYet(f"the answer has shape {tuple(answer.shape)}; {wanted}")
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise NotYet(f"the answer is {kind(answer)}; {wanted}")
    if isinstance(truth, int) and isinstance(answer, float) and math.isfinite(answer):
        raise NotYet(f"the answer {answer:.4g} is a float; asked for is a whole number (int)")
    return _plain(answer)


def _look(answer: Tensor, truth: Tensor, within: tuple[float, float] | None) -> None:
    """Raise NotYet for what can be seen in one answer: shape, dtype, NaN, a constant, range."""
    if answer.shape != truth.shape:
        raise NotYet(f"the answer has shape {tuple(answer.shape)}; asked for is "
                     f"{tuple(truth.shape)}")
    if not answer.is_floating_point():
        raise NotYet(f"the answer has dtype {answer.dtype}; asked for are floating-point numbers, "
                     f"{truth.dtype}")
    if not answer.isfinite().all():
        raise NotYet("there is NaN or infinity in the answer; look for a division by zero or the "
                     "root of a negative number")
    if torch.finfo(answer.dtype).eps > torch.finfo(truth.dtype).eps and answer.numel() > 1:
        raise NotYet(f"the answer has dtype {answer.dtype}, which is too coarse; stay with "
                     f"{truth.dtype}")
    if answer.numel() > 1 and answer.min() == answer.max() and truth.min() != truth.max():
        raise NotYet(f"every number of the answer is {answer.flatten()[0].item():.4g}, a constant; "
                     "use all that you are given")
    if within and (answer.min() < within[0] or answer.max() > within[1]):
        raise NotYet(f"the answer reaches from {answer.min().item():.3g} to "
                     f"{answer.max().item():.3g}; the range is {within[0]} to {within[1]}")


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    fine = b.dtype == torch.float64 and b.ndim  # one number may have been worked out in float32
    rtol, atol = (1e-6, 1e-9) if fine else (1e-4, 1e-5)
    scale = b.abs().max().item() if b.numel() and b.isfinite().all() else 1.0
    return torch.allclose(a.double(), b.double(), rtol=rtol, atol=atol * scale)


def _plain(value: Any) -> Tensor:
    """A number or tensor as a detached tensor; float64 for numbers."""
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor)
    return torch.tensor(float(value), dtype=torch.float64)


def words(error: BaseException) -> str:
    """An error in one short line."""
    try:
        text = " ".join(str(error).split())[:150]
    except Exception:  # an error that cannot even say what it is: its name must do
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def kind(value: object) -> str:
    """What a value is, in words."""
    return "nothing (None)" if value is None else f"something of type {type(value).__name__}"


# -- what questions are made of --------------------------------------------------------------------


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    """Two small x_0 in [-1, 1] and noise, float32 (2, 3, 4, 5); lengths differ: mix-ups show."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4, 5)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)


def bar(value: float) -> Tensor:
    """An ᾱ as the tables hold it, a float64 tensor of shape ()."""
    return torch.tensor(value, dtype=torch.float64)
