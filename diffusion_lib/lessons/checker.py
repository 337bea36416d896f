"""Asking a learner's function and finding the best hint: what the exercises' checkers in
`checks.py` are made of.

Learners call `check`, from `checks.py`, where it knows all exercises.
"""

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# name -> checker: returns what is shown, raises NotYet with a hint
CHECKERS: dict[str, Callable[[Callable], str]] = {}


class NotYet(Exception):
    """The hint for an answer that is not right yet."""


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


def ask(function: Callable, question: tuple) -> object:
    """One call of the learner's function, on copies, with its prints and warnings held back."""
    question = copy.deepcopy(question)
    try:
        silence = io.StringIO()
        with (
            contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence),
            warnings.catch_warnings(), torch.enable_grad(),
        ):
            warnings.simplefilter("ignore")
            return function(*question)
    except KeyboardInterrupt:
        raise
    # SystemExit and endless recursion too: a learner's slip must not end the notebook
    except BaseException as error:
        said = words(error)
        more = (
            "; a factor for each picture needs the shape (B, 1, 1, 1)"
            if "must match the size" in said
            else ""
        )
        raise NotYet(
            f"your function stops with {said}{more}. Call it yourself on a small example to see "
            "where"
        ) from None


def _plain(value: object) -> Tensor:
    """A number or tensor as a detached tensor; float64 for numbers."""
    return (
        value.detach().as_subclass(Tensor)
        if isinstance(value, Tensor)
        else torch.tensor(float(value), dtype=torch.float64)
    )


def _sound(answer: object, truth: object) -> Tensor:
    """The answer as a tensor. Raises NotYet if it is no answer of this kind at all (nothing, wrong
    type, wrong device).
    """
    if answer is None or answer is ...:
        raise NotYet(
            "your function returns nothing (None). Write it where the dots are, and end it with "
            "return"
        )
    wanted = (
        f"a tensor of shape {tuple(truth.shape)}"
        if isinstance(truth, Tensor)
        else f"a number ({type(truth).__name__})"
    )
    if isinstance(answer, Tensor):
        if answer.device.type != "cpu":
            raise NotYet(
                f"the answer lies on the device {answer.device.type}, the question on cpu; "
                "stay on the device of what you are given"
            )
        if answer.layout != torch.strided or answer.is_complex():
            raise NotYet(
                f"the answer is a tensor of {answer.layout}, {answer.dtype}; "
                "asked for is a plain one with real numbers"
            )
    if isinstance(truth, Tensor):
        if not isinstance(answer, Tensor):
            raise NotYet(f"the answer is {kind(answer)}; asked for is {wanted}")
        return _plain(answer)
    if isinstance(answer, Tensor | np.ndarray | np.generic):
        if math.prod(answer.shape) != 1:
            raise NotYet(f"the answer has shape {tuple(answer.shape)}; asked for is {wanted}")
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise NotYet(f"the answer is {kind(answer)}; asked for is {wanted}")
    if isinstance(truth, int) and isinstance(answer, float) and math.isfinite(answer):
        raise NotYet(f"the answer {answer:.4g} is a float; asked for is a whole number (int)")
    return _plain(answer)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    exact = b.dtype == torch.float64
    scale = b.abs().max().item() if b.numel() and b.isfinite().all() else 1.0
    return torch.allclose(
        a.double(), b.double(), rtol=1e-6 if exact else 1e-4, atol=(1e-9 if exact else 1e-5) * scale
    )


def compare(
    function: Callable, questions: dict[str, tuple], right: Callable, typical: dict[str, Callable],
    within: tuple[float, float] | None = None,
) -> None:
    """Return if the function answers all questions as `right` does; else raise NotYet with the best
    hint there is.

    questions: label -> arguments. typical: hint -> the function that makes this mistake. within:
    range of a right answer.
    """
    answers, truths = [], []
    for question in questions.values():
        truth = right(*question)
        answers.append(_sound(ask(function, question), truth))
        truths.append(_plain(truth))
    fits = [_close(a, b) for a, b in zip(answers, truths, strict=True)]
    if all(fits):
        return
    for answer, question in zip(answers, questions.values(), strict=True):
        again = _sound(ask(function, question), right(*question))
        if answer.shape == again.shape and not torch.equal(answer.nan_to_num(), again.nan_to_num()):
            raise NotYet(
                "asked twice the same, your function gives two answers; "
                "no dice here, use only what you are given"
            )
    for hint, wrong in typical.items():
        if all(
            _close(a, _plain(wrong(*question)))
            for a, question in zip(answers, questions.values(), strict=True)
        ):
            raise NotYet(hint)
    for answer, truth in zip(answers, truths, strict=True):
        _look(answer, truth, within)
    if len({a.item() for a in answers if a.numel() == 1}) == 1 and len(answers) > 1:
        raise NotYet(
            f"the answer is {answers[0].item():.4g} whatever the question, a constant; "
            "use all that you are given"
        )
    if all(_close(-a, b) for a, b in zip(answers, truths, strict=True)):
        raise NotYet("only the sign is wrong, of every number")
    pairs = [
        (label, a, b)
        for label, a, b, fit in zip(questions, answers, truths, fits, strict=True)
        if not fit
    ]
    label, answer, truth = pairs[0]
    off = (answer.double() - truth.double()).abs().max().item()
    raise NotYet(
        f"right for {sum(fits)} of {len(fits)} questions; "
        f"for {label} the answer is off by up to {off:.2g}"
    )


def _look(answer: Tensor, truth: Tensor, within: tuple[float, float] | None) -> None:
    """Raise NotYet for what can be seen in one answer: shape, dtype, NaN, a constant, range."""
    if answer.shape != truth.shape:
        raise NotYet(
            f"the answer has shape {tuple(answer.shape)}; asked for is {tuple(truth.shape)}"
        )
    if not answer.is_floating_point():
        raise NotYet(
            f"the answer has dtype {answer.dtype}; asked for are floating-point numbers, "
            f"{truth.dtype}"
        )
    if not answer.isfinite().all():
        raise NotYet(
            "there is NaN or infinity in the answer; look for a division by zero or the root of a "
            "negative number"
        )
    if torch.finfo(answer.dtype).eps > torch.finfo(truth.dtype).eps and answer.numel() > 1:
        raise NotYet(
            f"the answer has dtype {answer.dtype}, which is too coarse; stay with {truth.dtype}"
        )
    if answer.numel() > 1 and answer.min() == answer.max() and truth.min() != truth.max():
        raise NotYet(
            f"every number of the answer is {answer.flatten()[0].item():.4g}, a constant; "
            "use all that you are given"
        )
    if within and (answer.min() < within[0] or answer.max() > within[1]):
        raise NotYet(
            f"the answer reaches from {answer.min().item():.3g} to {answer.max().item():.3g}; "
            f"the range is {within[0]} to {within[1]}"
        )


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    """For questions: two small x_0 in [-1, 1] and noise, float32 (2, 3, 4, 5). All lengths differ,
    so that mix-ups show.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 4, 5, generator=generator) * 2 - 1, torch.randn(
        2, 3, 4, 5, generator=generator
    )


def bar(value: float) -> Tensor:
    """For questions: an ᾱ as the tables hold it, a float64 tensor of shape ()."""
    return torch.tensor(value, dtype=torch.float64)


def check(name: str, function: Callable) -> None:
    """Print "Correct: …" or "Not yet: <hint>" for the exercise called `name`: always one line,
    never a traceback.

    function: what the learner wrote, with the arguments that the exercise states. It gets copies,
    so it cannot harm the checker, and what it prints is not shown. Whatever it does ends in a hint;
    only KeyboardInterrupt (■) passes.
    """
    try:
        if not isinstance(name, str) or name not in CHECKERS:
            raise NotYet(
                f"there is no exercise called {name!r}; known are {', '.join(sorted(CHECKERS))}"
            )
        if not callable(function):
            raise NotYet(
                f'give the function itself, check("{name}", my_function) without brackets, '
                f"not {kind(function)}"
            )
        line = "Correct: " + CHECKERS[name](function)
    except NotYet as hint:
        line = f"Not yet: {hint}"
    except KeyboardInterrupt:
        raise
    # an answer that misbehaves while it is looked at: the learner's, so a hint as well
    except BaseException as error:
        line = (f"Not yet: the answer of your function cannot be compared ({words(error)}); "
                "return a plain tensor or number")
    print(" ".join(line.split()))


def exercise(checker: Callable[[Callable], str]) -> Callable[[Callable], str]:
    """Make a function the checker of the exercise that has its name."""
    CHECKERS[checker.__name__] = checker
    return checker
