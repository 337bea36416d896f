"""Exercises: every stub gets a hint, every solution is content, bad answers of any kind end in one
line; `make class`.
"""

import ast
import json
import math
import re
import shutil
import sys
from pathlib import Path

import make_class
import pytest
import torch

from diffusion_lib.lessons.checker import CHECKERS
from diffusion_lib.lessons.exercises import check

ROOT = Path(__file__).resolve().parents[2]


def exercises() -> list[tuple[str, str, str, str]]:
    """(notebook, checker, stub, solution) of every exercise in notebooks/."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for stub, after in zip(cells, cells[1:] + [None], strict=True):
            if make_class.is_stub(stub):
                solved = after and make_class.is_solution(after)
                assert solved, f"{path.name}: no solution after an exercise"
                solution = re.search(r"```python\n(.*?)```", make_class.source(after), re.DOTALL)[1]
                source = make_class.source(stub)
                found.append((path.name[:2], called(source)[0], source, solution))
    return found


def called(stub: str) -> tuple[str, str]:
    """The checker's and the function's name in the stub's last line."""
    call = ast.parse(stub).body[-1].value
    assert call.func.id == "check", "a stub ends with check(…)"
    return call.args[0].value, call.args[1].id


def imports(stub: str) -> str:
    kinds = ast.Import | ast.ImportFrom
    return "\n".join(ast.unparse(node) for node in ast.parse(stub).body if isinstance(node, kinds))


def one_line(capsys, name: object, function: object) -> str:
    """What check() prints: exactly one line, nothing on stderr."""
    check(name, function)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n") and out.count("\n") == 1, out
    assert "Traceback" not in out and len(out) < 400, out
    assert out.startswith(("Not yet: ", "Correct: ")), out
    return out.strip()


EXERCISES = exercises()
NAMES = [f"{notebook}-{name}" for notebook, name, _, _ in EXERCISES]


@pytest.mark.parametrize("notebook", ["01", "02", "03", "04", "05", "06", "07", "08", "09", "10"])
def test_two_or_three_exercises_in_each(notebook):
    assert 2 <= sum(number == notebook for number, *_ in EXERCISES) <= 3  # one more has no checker


def test_every_checker_is_used_by_one_exercise_and_the_reverse():
    assert sorted(name for _, name, _, _ in EXERCISES) == sorted(CHECKERS)


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_stub_gets_a_hint(exercise, capsys):
    _, _, stub, _ = exercise
    exec(compile(stub, "stub", "exec"), {})
    assert capsys.readouterr().out.startswith("Not yet: your function returns nothing")


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_solution_is_correct(exercise, capsys):
    _, name, stub, solution = exercise
    space = {"torch": torch}  # every notebook imports it at its top
    exec(compile(imports(stub) + "\n" + solution, "solution", "exec"), space)
    assert one_line(capsys, name, space[called(stub)[1]]).startswith("Correct: ")


# -- bad answers -----------------------------------------------------------------------------------

class Unspeakable(BaseException):
    def __str__(self):
        raise ValueError("no words")


class Untouchable:
    def __getattribute__(self, name):
        raise RuntimeError("hands off")


def throw(error):
    def function(*_):
        raise error
    return function


def forever(*_):
    return forever(*_) + 1


def chatty(*_):
    print("one\ntwo")
    print("three", file=sys.stderr)


def like(make):
    """A function that answers with a tensor of the shape of the first tensor that it gets (of (4,)
    if there is none).
    """
    def function(*arguments):
        first = next((a for a in arguments if isinstance(a, torch.Tensor)), torch.zeros(4))
        return make(first.shape)
    return function


BAD = {
    "raises": (throw(ValueError("bad\nnews")), "ValueError: bad news"),
    "raises without words": (throw(Unspeakable()), "Unspeakable"),
    "SystemExit": (throw(SystemExit(3)), "SystemExit"),
    "GeneratorExit": (throw(GeneratorExit()), "GeneratorExit"),
    "endless recursion": (forever, "RecursionError"),
    "wrong number of arguments": (lambda: 0, "TypeError"),
    "prints, returns nothing": (chatty, "returns nothing"),
    "None": (lambda *_: None, "returns nothing"),
    "Ellipsis": (lambda *_: ..., "returns nothing"),
    "string": (lambda *_: "cat", "type str"),
    "list": (lambda *_: [1, 2], "type list"),
    "generator": (lambda *_: (i for i in range(3)), "type generator"),
    "untouchable": (lambda *_: Untouchable(), ""),
    "wrong shape": (lambda *_: torch.zeros(7, 2, 5), "shape (7, 2, 5)"),
    "empty": (lambda *_: torch.zeros(0), "shape (0,)"),
    "on another device": (like(lambda shape: torch.zeros(shape, device="meta")), "device meta"),
    "sparse": (like(lambda shape: torch.zeros(shape).to_sparse()), "sparse"),
    "complex": (like(lambda shape: torch.zeros(shape, dtype=torch.complex64)), "complex64"),
    "True": (lambda *_: True, "bool"),
    "object with a length only": (lambda *_: range(3), "type range"),
    "NaN as a number": (lambda *_: float("nan"), ("NaN", "type float")),
    "infinite number": (lambda *_: float("inf"), ("infinity", "type float")),
    "huge integer": (lambda *_: 10**400, ("OverflowError", "type int")),
    "constant number": (lambda *_: 12345678.0, ("12345678", "1.235e+07", "type float", "range")),
    "constant integer": (lambda *_: 12345678, ("constant", "type int", "range")),
}
TENSORS = ("recover_picture", "jump_between", "multi_head", "eta_sampler")
BAD_TENSORS = {
    "NaN": (lambda shape: torch.full(shape, float("nan"), dtype=torch.float64), "NaN"),
    "infinite": (lambda shape: torch.full(shape, float("inf"), dtype=torch.float64), "infinity"),
    "constant": (lambda shape: torch.full(shape, 0.123, dtype=torch.float64), "0.123, a constant"),
    "integers": (lambda shape: torch.arange(shape.numel()).reshape(shape), "torch.int64"),
    "truth values": (lambda shape: torch.ones(shape, dtype=torch.bool), "torch.bool"),
    "half precision": (
        lambda shape: torch.rand(shape, generator=torch.Generator().manual_seed(1)).half(),
        "torch.float16"),
    "dice": (lambda shape: torch.rand(shape, dtype=torch.float64), "two answers"),
    "needs a gradient": (
        lambda shape: torch.linspace(0, 9, shape.numel()).double().reshape(shape).requires_grad_(),
                         ("off by", "range")),
    "a parameter": (
        lambda shape: torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)), "constant"),
}


@pytest.mark.parametrize("bad", BAD, ids=BAD)
@pytest.mark.parametrize("name", CHECKERS)
def test_bad_answers_end_in_a_hint(name, bad, capsys):
    function, pieces = BAD[bad]
    line = one_line(capsys, name, function)
    assert line.startswith("Not yet: ")
    expected = (pieces,) if isinstance(pieces, str) else pieces
    assert any(piece in line for piece in expected), line


@pytest.mark.parametrize("bad", BAD_TENSORS, ids=BAD_TENSORS)
@pytest.mark.parametrize("name", TENSORS)
def test_bad_tensors_end_in_a_hint(name, bad, capsys):
    make, pieces = BAD_TENSORS[bad]
    line = one_line(capsys, name, like(make))
    assert line.startswith("Not yet: ")
    assert any(piece in line for piece in ((pieces,) if isinstance(pieces, str) else pieces)), line


@pytest.mark.parametrize("name", CHECKERS)
def test_what_is_no_function_ends_in_a_hint(name, capsys):
    for value, piece in ((None, "nothing (None)"), (5, "type int"),
                         (torch.zeros(3), "type Tensor"), ("f", "type str")):
        line = one_line(capsys, name, value)
        assert line.startswith("Not yet: ") and piece in line and "without brackets" in line


@pytest.mark.parametrize("name", ["no_such", 7, None, [1], ""])
def test_unknown_exercise_ends_in_a_hint(name, capsys):
    line = one_line(capsys, name, print)
    assert "no exercise called" in line and "recover_picture" in line


@pytest.mark.parametrize("name", CHECKERS)
def test_the_stop_button_works(name):
    with pytest.raises(KeyboardInterrupt):
        check(name, throw(KeyboardInterrupt()))


def test_a_function_may_spoil_its_arguments_and_print(capsys):
    def spoils(x_t, alpha_bar, noise):
        print("look:", x_t.shape)
        x_t -= (1 - alpha_bar).sqrt() * noise
        x_t /= alpha_bar.sqrt()
        noise.zero_()
        return x_t
    assert one_line(capsys, "recover_picture", spoils).startswith("Correct: ")


# -- typical slips: (exercise, what the learner wrote, a piece of the hint) ------------------------

def copies(part=1 / 3, second=1, power=1, over=False, end=lambda x: x.double().mean()):
    def function(x, known):
        far = torch.cdist(x.flatten(1), known.flatten(1)) ** power
        near = (far.T if over else far).sort(dim=1).values
        return end(near[:, 0] < part * near[:, second])
    return function


def eta(clip=True, late=False, room=True, power=1, spread=None, at=0, own_dice=False):
    def function(guess, x, bars, eta, noises):
        for now, later, noise in zip(bars[:-1], bars[1:], noises, strict=True):
            said = guess(x, (now, later)[at])
            x_0 = said.clamp(-1, 1) if clip else said
            e = (x - now.sqrt() * (said if late else x_0)) / (1 - now).sqrt()
            s = eta * ((1 - later) / (1 - now) * (1 - now / later)).sqrt()
            s = s if spread is None else eta * spread(now, later)
            noise = torch.randn_like(x) if own_dice else noise
            rest = (1 - later - (s**2 if room else 0)).clamp(min=0).sqrt()
            x = later.sqrt() * x_0 + rest * e + s**power * noise
        return x
    return function


def before(a):
    return torch.cat([torch.ones_like(a[:1]), a[:-1]])


def line_slip(end, snr=torch.exp):
    def function(T, first, last):
        r = snr(torch.linspace(first, last, T, dtype=torch.float64))
        return end(r / (1 + r))
    return function


def attend(split=lambda x, heads: x.unflatten(2, (heads, -1)).transpose(1, 2), over=3,
           scale=lambda c, d: d**0.5,
           join=lambda x: x.transpose(1, 2).flatten(2)):
    def function(q, k, v, heads):
        c, (q, k, v) = q.shape[2], (split(x, heads) for x in (q, k, v))
        return join((q @ k.transpose(2, 3) / scale(c, q.shape[3])).softmax(over) @ v)
    return function


def rings(power):
    """Each frequency's power times the number of its waves, but for 2π."""
    return torch.arange(len(power)) * power


def detect(near=lambda x, y: torch.cdist(x, y).min(dim=1).values, part=0.01):
    def function(x, train, held):
        return (near(x, train) < near(held, train).quantile(part)).double().mean()
    return function


def kept(betas):
    return (1 - betas).cumprod(0)


def twice(mix, nothing=torch.full_like):
    def function(network, x_t, t, labels, null_label, s):
        return mix(network(x_t, t, labels), network(x_t, t, nothing(labels, null_label)), s)
    return function


def reads(hide=-math.inf, of="masked", power=-0.5, over=2, after=False):
    def function(x, states, mask, w_q, w_k, w_v):
        q, k, v = x @ w_q, states @ w_k, states @ w_v
        there = {"masked": mask, "turned": ~mask, "forgotten": mask | True}[of][:, None]
        shares = (q @ k.mT * q.shape[2]**power).masked_fill(~there, hide).softmax(over)
        return (shares * mask[:, None] if after else shares) @ v
    return function


SLIPS = [
    ("two_wishes", lambda u, a, b, s: u + s * (a + b - u), "only once"),
    ("two_wishes", lambda u, a, b, s: u + s * ((a + b) / 2 - u), "add them"),
    ("two_wishes", lambda u, a, b, s: (u + s * (a - u)) + (u + s * (b - u)), "stands in the sum"),
    ("two_wishes", lambda u, a, b, s: s * (a + b - 2 * u), "missing its start"),
    ("two_wishes", lambda u, a, b, s: a + s * (a + b - 2 * u), "start at u"),
    ("two_wishes", lambda u, a, b, s: u + s * (a - u), "only the first"),
    ("two_wishes", lambda u, a, b, s: u + s * (a - u) + s * (b - a), "only the second"),
    ("two_wishes", lambda u, a, b, s: u + s * (a + b), "not by all of"),
    ("two_wishes", lambda u, a, b, s: u - s * (a + b - 2 * u), "turned round"),
    ("two_wishes", lambda u, a, b, s: u, "whatever s"),
    ("cross_attention", reads(of="forgotten"), "the mask is forgotten"),
    ("cross_attention", reads(of="turned"), "the mask is turned round"),
    ("cross_attention", reads(hide=0.0), "use -inf"),
    ("cross_attention", reads(of="forgotten", after=True), "after the softmax"),
    ("cross_attention", reads(power=0), "√d is missing"),
    ("cross_attention", reads(power=-1), "the root is forgotten"),
    ("cross_attention", reads(power=0.5), "divide by it"),
    ("cross_attention", reads(hide=-1e9, over=1), "over the pixels"),
    ("cross_attention", lambda x, states, mask, q, k, v: reads()(0 * x, states, mask, q, k, v),
     "whatever the pixel asks"),
    ("away_from", lambda u, n, s: u + s * (n - u), "turn the push round"),
    ("away_from", lambda u, n, s: n - s * (n - u), "start at u"),
    ("away_from", lambda u, n, s: u - (1 + s) * (n - u), "with s = 0"),
    ("away_from", lambda u, n, s: u - s * n, "take away the difference"),
    ("away_from", lambda u, n, s: u, "whatever s"),
    ("guided_answer", twice(lambda c, u, s: (1 + s) * c - s * u), "the other convention"),
    ("guided_answer", twice(lambda c, u, s: c - s * (c - u)), "swapped"),
    ("guided_answer", twice(lambda c, u, s: s * (c - u)), "missing its start"),
    ("guided_answer", twice(lambda c, u, s: u + s * c), "not by all of c"),
    ("guided_answer", twice(lambda c, u, s: c), "for the class alone"),
    ("guided_answer", twice(lambda c, u, s: u), "without a class, whatever s"),
    ("guided_answer", twice(lambda c, u, s: u + s * (c - u), lambda labels, null: labels * 0),
     "not with zeros"),
    ("recover_picture", lambda x, a, e: (x - (1 - a) * e) / a**0.5, "root over 1 - ᾱ is forgotten"),
    ("recover_picture", lambda x, a, e: (x - (1 - a) ** 0.5 * e) / a, "root over ᾱ is forgotten"),
    ("recover_picture", lambda x, a, e: (x - a**0.5 * e) / (1 - a) ** 0.5, "swapped"),
    ("recover_picture", lambda x, a, e: x - (1 - a) ** 0.5 * e, "divide by √ᾱ"),
    # spoils its argument
    ("recover_picture", lambda x, a, e: x.sub_((1 - a) ** 0.5 * e), "divide by √ᾱ"),
    ("recover_picture", lambda x, a, e: ((1 - a) ** 0.5 * e - x) / a**0.5, "only the sign"),
    ("recover_picture", lambda x, a, e: 0.9 * (x - (1 - a) ** 0.5 * e) / a**0.5,
     "0 of 3 questions; for ᾱ = 0.9 the answer is off"),
    ("recover_picture", lambda x, a, e: (x - (1 - a) * e) / a, "both roots"),
    ("recover_picture", lambda x, a, e: x / a**0.5 - (1 - a) ** 0.5 * e, "out of x_t alone"),
    ("recover_picture", lambda x, a, e: (x - (1 - a) ** 0.5 * e) * a**0.5, "multiplied by √ᾱ"),
    ("jump_between", lambda x, s, t, e: t**0.5 * x + (1 - t) ** 0.5 * e, "from the clean picture"),
    ("jump_between", lambda x, s, t, e: t / s * x + (1 - t / s) * e, "the roots are forgotten"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x + (1 - t / s) * e,
     "noise's variance is forgotten"),
    ("jump_between", lambda x, s, t, e: t / s * x + (1 - t / s) ** 0.5 * e,
     "factor on x_s is forgotten"),
    ("jump_between", lambda x, s, t, e: (s / t) ** 0.5 * x + (1 - s / t) ** 0.5 * e, "NaN"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x + (1 - t) ** 0.5 * e,
     "some noise is in already"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x + (s - t) ** 0.5 * e, "not ᾱ_s - ᾱ_t"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x + ((1 - t) ** 0.5 - (1 - s) ** 0.5) * e,
     "do not subtract"),
    ("jump_between", lambda x, s, t, e: (1 - t / s) ** 0.5 * x + (t / s) ** 0.5 * e, "swapped"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x + e, "added whole"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x, "new noise is missing"),
    ("jump_between", lambda x, s, t, e: (t / s) ** 0.5 * x - (1 - t / s) ** 0.5 * e, "taken away"),
    ("first_mostly_noise", lambda b: int((kept(b) >= 0.5).sum()) + 1, "counts from 1"),
    ("first_mostly_noise", lambda b: int((kept(b) >= 0.5).sum()) - 1, "off by one"),
    ("first_mostly_noise", lambda b: int((kept(b) < 0.5).sum()), "how many timesteps"),
    ("first_mostly_noise", lambda b: int((kept(b).sqrt() >= 0.5).sum()), "√ᾱ < 1/2"),
    ("first_mostly_noise", lambda b: kept(b)[0].item(), "is a float"),
    ("first_mostly_noise", lambda b: int((b.cumsum(0) > 0.5).int().argmax()), "are added up"),
    ("first_mostly_noise", lambda b: int((b > 0.5).int().argmax()),
     "one step's α"),
    ("straight_log_snr", line_slip(lambda a: a), "this is ᾱ"),
    ("straight_log_snr", line_slip(lambda a: 1 - a), "noise of all steps"),
    ("straight_log_snr", line_slip(lambda a: a / before(a)), "these are the alphas"),
    ("straight_log_snr", line_slip(lambda a: 1 - a[1:] / a[:-1]), "one beta is missing"),
    ("straight_log_snr", line_slip(lambda a: 1 - a / a.roll(1)), "last ᾱ"),
    ("straight_log_snr", line_slip(lambda a: 1 - before(a) / a), "upside down"),
    ("straight_log_snr", line_slip(lambda a: before(a) - a), "difference of neighbours"),
    ("straight_log_snr",
     lambda T, first, last: line_slip(lambda a: 1 - a / before(a))(T, last, first),
     "wrong way"),
    ("straight_log_snr",
     lambda T, first, last: line_slip(lambda a: 1 - a[1:] / a[:-1])(T + 1, first, last),
     "one step before t = 0"),
    ("straight_log_snr", line_slip(lambda a: 1 - a / before(a), lambda line: 10**line),
     "power of ten"),
    ("straight_log_snr", line_slip(lambda a: 1 - a / before(a), lambda line: (-line).exp()),
     "noise's part|wrong way"),
    ("pixels_seen", lambda layers: 1 + sum(w - 1 for w, _ in layers), "stride is not used"),
    ("pixels_seen", lambda layers: math.prod(w for w, _ in layers), "widths are multiplied"),
    ("pixels_seen", lambda layers: math.prod(s for _, s in layers), "one step on the last map"),
    ("pixels_seen", lambda layers: layers[-1][0], "only the last layer"),
    ("multi_head", attend(lambda x, heads: x[:, None]), "with one head"),
    ("multi_head", attend(scale=lambda c, d: c**0.5), "not √c"),
    ("multi_head", attend(scale=lambda c, d: d), "the root is forgotten"),
    ("multi_head", attend(scale=lambda c, d: 1), "is missing"),
    ("multi_head", attend(scale=lambda c, d: d**-0.5), "multiplied by"),
    ("multi_head", attend(over=2), "the pixels that ask"),
    ("multi_head",
     attend(lambda x, heads: x.reshape(2, heads, 6, -1), join=lambda x: x.reshape(2, 6, -1)),
     "mixes pixels"),
    ("multi_head", attend(join=lambda x: x.reshape(2, 6, -1)), "wrong order"),
    ("multi_head", attend(lambda x, heads: x.reshape(2, 6, heads, -1), join=lambda x: x.flatten(2)),
     "its own pixel"),
    ("multi_head", lambda q, k, v, heads: v, "this is v"),
    ("multi_head", lambda q, k, v, heads: attend()(k, q, v, heads), "changed places"),
    ("multi_head", lambda q, k, v, heads: attend()(q, k, v, heads)[:, :5], "shape (2, 5, 8)"),
    ("planted_bug", lambda program: 5, "program B, 5: noise is left in its samples"),
    ("planted_bug", lambda program: 1, "what do their colours lack"),
    ("planted_bug", lambda program: {"A": 5, "B": 2}.get(program, 3), "lies in the sampler"),
    ("planted_bug", lambda program: {"A": 5, "B": 2, "C": 4}.get(program, 3), "holds less noise"),
    ("planted_bug", lambda program: {"A": 5, "B": 2, "C": 4, "D": 1}.get(program, 1), "too high"),
    ("planted_bug", lambda program: 0, "the range is 1 to 5"),
    ("planted_bug", lambda program: program, "type str"),
    ("copied_share", copies(part=1), "not below all of it"),
    ("copied_share", copies(power=2), "squared distances"),
    ("copied_share", copies(second=-1), "not with the farthest"),
    ("copied_share", copies(second=2), "this is the third"),
    ("copied_share", copies(second=0), "compared with itself"),
    ("copied_share", copies(over=True), "the wrong way round"),
    ("copied_share", copies(end=lambda x: x.double().sum()), "this is how many"),
    ("copied_share", copies(end=lambda x: 1 - x.double().mean()), "are no copies"),
    ("copied_share", copies(end=lambda x: x), "shape (12,)"),
    ("eta_sampler", eta(clip=False), "not clipped"),
    ("eta_sampler", eta(late=True), "before it was clipped"),
    ("eta_sampler", eta(room=False), "no room is made"),
    ("eta_sampler", eta(power=2), "multiply by σ"),
    ("eta_sampler", eta(at=1), "of where you are"),
    ("eta_sampler", eta(own_dice=True), "no dice"),
    ("eta_sampler",
     eta(spread=lambda now, later: (1 - now / later).sqrt()), "noise in the last step"),
    ("eta_sampler",
     eta(spread=lambda now, later: ((1 - later) / (1 - now)).sqrt()),
     "σ lacks the factor √(1 - now"),
    ("eta_sampler",
     lambda guess, x, bars, e, noises: eta()(guess, x, bars, 0, noises), "DDIM at any η"),
    ("eta_sampler",
     lambda guess, x, bars, e, noises: eta()(guess, x, bars, 1, noises), "DDPM at any η"),
    ("eta_sampler",
     lambda guess, x, bars, e, noises: eta()(guess, x, bars, e**0.5, noises), "η multiplies σ"),
    ("eta_sampler",
     lambda guess, x, bars, e, noises: eta()(guess, x, bars[:-1], e, noises[:-1]),
     "last step, to ᾱ = 1"),
    ("eta_sampler",
     lambda guess, x, bars, e, noises: eta()(guess, x, bars, e, noises[:1] * 3), "its own noise"),
    ("step_variance", lambda a, t: (1 - a[t - 1]) / (1 - a[t]) * (1 - a[t] / a[t - 1]),
     "noise on the last step"),
    ("step_variance", lambda a, t: 1 - a[t] / (a[t - 1] if t else 1), "this is beta_t"),
    ("step_variance", lambda a, t: 0 if t == 0 else (
        (1 - a[t - 1]) / (1 - a[t]) * (1 - a[t] / a[t - 1])) ** 0.5,
     "standard deviation"),
    ("step_variance", lambda a, t: (1 - a[t]) / (1 - (a[t - 1] if t else 1.0)) * 0.1,
     "there is NaN or infinity"),
    ("step_variance", lambda a, t: 1 / t, "ZeroDivisionError"),
    ("power_above", lambda d, f: rings(d)[f + 1 :].sum() / rings(d).sum(),
     "decibels are logarithms"),
    ("power_above", lambda d, f: (10 ** (d[f + 1 :] / 10)).sum() / (10 ** (d / 10)).sum(),
     "multiply entry f by f"),
    ("power_above", lambda d, f: rings(10 ** (d / 10))[f:].sum() / rings(10 ** (d / 10)).sum(),
     "start at limit + 1"),
    ("power_above", lambda d, f: rings(10 ** (d / 20))[f + 1 :].sum() / rings(10 ** (d / 20)).sum(),
     "for amplitudes"),
    ("power_above", lambda d, f: rings(10 ** (d / 10))[f + 1 :].sum(),
     "divide by the power of all"),
    ("at_least_one", lambda p, n: p * n, "how many decent ones"),
    ("at_least_one", lambda p, n: (1 - p) ** n, "none is decent"),
    ("at_least_one", lambda p, n: 1 - p**n, "all are decent"),
    ("frechet_1d", lambda m, s, n, r: ((m - n) ** 2 + (s - r) ** 2) ** 0.5, "left squared"),
    ("frechet_1d", lambda m, s, n, r: (m - n) ** 2, "the deviations differ too"),
    ("frechet_1d", lambda m, s, n, r: (m - n) ** 2 + (s**2 - r**2) ** 2, "not the variances"),
    ("frechet_1d", lambda m, s, n, r: (m - n) ** 2 + (s + r) ** 2, "are added"),
    ("frechet_1d", lambda m, s, n, r: abs(m - n) + (s - r) ** 2, "means is not squared"),
    ("suspicious", detect(near=lambda x, y: torch.cdist(x, y).mean(dim=1)), "not the mean"),
    ("suspicious", detect(part=0.99), "not 0.99"),
    ("suspicious", detect(part=0.5), "not the median"),
    ("suspicious", lambda *q: 1 - detect()(*q), "not suspicious"),
    ("suspicious", lambda *q: detect()(*q) * len(q[0]), "asked for is the share"),
    ("suspicious", lambda x, train, held: detect()(train, x, held), "off by|wrong way round"),
    ("suspicious", lambda x, train, held: detect()(x, train, train), "its own nearest"),
    ("suspicious", lambda x, train, held: detect()(x, train, x), "samples' own distances"),
]


@pytest.mark.parametrize("slip", range(len(SLIPS)))
def test_typical_slips_are_named(slip, capsys):
    name, function, piece = SLIPS[slip]
    line = one_line(capsys, name, function)
    assert line.startswith("Not yet: ") and any(words in line for words in piece.split("|")), line


# -- make class ------------------------------------------------------------------------------------

def class_of(folder: Path, out: Path, capsys) -> tuple[int, str, str]:
    code = make_class.main([str(folder), str(out)])
    return code, *capsys.readouterr()


def test_class_copies(tmp_path, capsys):
    code, out, err = class_of(ROOT / "notebooks", tmp_path / "class", capsys)
    assert (code, err) == (0, "") and out.count("\n") == 1
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        whole = json.loads(path.read_text(encoding="utf-8"))
        student, teacher = (json.loads((tmp_path / "class" / who / path.name).read_text("utf-8"))
                            for who in ("student", "instructor"))
        assert teacher == whole
        assert any(map(make_class.is_solution, whole["cells"]))
        left = json.dumps([c["source"] for c in student["cells"]])
        assert "Solution</summary>" not in left and "What we found</summary>" not in left
        stubs = [c for c in student["cells"] if make_class.is_stub(c)]
        assert len(stubs) >= 2
        assert all(c["outputs"] == [] and c["execution_count"] is None for c in stubs)
        apart = (make_class.is_solution, make_class.is_account, make_class.is_stub)
        others = [c for c in whole["cells"] if not any(kind(c) for kind in apart)]
        assert [c for c in student["cells"] if not make_class.is_stub(c)] == others
        assert student["metadata"] == whole["metadata"]
        for link in re.findall(r"\]\((\.\./figures/[^)]+)\)", json.dumps(student["cells"])):
            for who in ("student", "instructor"):
                assert (tmp_path / "class" / who / link).is_file()
    assert list((tmp_path / "class" / "figures").iterdir()), "notebook 05 shows figures"


def cell(kind, text, **more):
    return {"cell_type": kind, "metadata": {}, "source": text, **more}


def small(path: Path, *cells) -> Path:
    """A series of one small notebook with an exercise and what else is given."""
    path.mkdir(exist_ok=True)
    exercise = cell("code", 'check("copied_share", f)', outputs=[], execution_count=1)
    cells = [exercise, cell("markdown", make_class.SOLUTION + "</details>"), *cells]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (path / "01_small.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return path


def refused(folder: Path, out: Path, capsys, *pieces: str) -> None:
    code, printed, err = class_of(folder, out, capsys)
    assert code == 2 and printed == "" and err.startswith("error: ") and err.count("\n") == 1, err
    for piece in pieces:
        assert piece in err
    assert not (out / "student").exists(), "nothing may be written"


def test_class_refuses_missing_and_broken_notebooks(tmp_path, capsys):
    out, folder = tmp_path / "class", small(tmp_path / "notebooks")
    assert class_of(folder, tmp_path / "fine", capsys)[0] == 0
    refused(tmp_path / "nowhere", out, capsys, "01 is missing", "nowhere")
    shutil.copy(folder / "01_small.ipynb", folder / "03_third.ipynb")
    refused(folder, out, capsys, "notebook 02 is missing")
    (folder / "03_third.ipynb").unlink()
    whole = (folder / "01_small.ipynb").read_text(encoding="utf-8")
    for broken in (whole[: len(whole) // 2], "", "[]", "{}", '{"cells": 3, "nbformat": 4}',
                   whole.replace('"code"', '"coal"')):
        (folder / "01_small.ipynb").write_text(broken, encoding="utf-8")
        refused(folder, out, capsys, "01_small.ipynb is no valid notebook")
    (folder / "01_small.ipynb").write_bytes(b"\xff\xfe\x00")
    refused(folder, out, capsys, "01_small.ipynb is no valid notebook")


def test_class_refuses_exercises_without_solution_and_dead_links(tmp_path, capsys):
    out, folder = tmp_path / "class", tmp_path / "notebooks"
    small(folder, cell("code", 'x = 1\ncheck("step_variance", f)', outputs=[], execution_count=2))
    refused(folder, out, capsys, "step_variance", "no solution")
    small(folder, cell("markdown", make_class.SOLUTION))
    refused(folder, out, capsys, "solution number 2")
    small(folder, cell("markdown", "![cats](../figures/none.png)"))
    refused(folder, out, capsys, "../figures/none.png", "missing")
    small(folder, cell("markdown", "[next](02_next.ipynb) [far](https://example.org/a.png)"))
    refused(folder, out, capsys, "02_next.ipynb")


def test_class_says_where_it_cannot_write(tmp_path, capsys):
    (tmp_path / "class").write_text("a file, not a folder", encoding="utf-8")
    code, printed, err = class_of(small(tmp_path / "notebooks"), tmp_path / "class", capsys)
    assert code == 2 and printed == ""
    assert err.startswith("error: cannot write") and err.count("\n") == 1
