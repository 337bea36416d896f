"""Slips planted in the functions of notebook 04's program, for the exercise of finding them."""

SLIPS = {  # the number in the exercise's list -> (what the program says, what the slip makes of it)
    1: ("(1 - alpha_bar[t]).sqrt()\n    error", "1 - alpha_bar[t]\n    error"),
    2: ("torch.randn_like(x_0)", "torch.randn(len(x_0), 1, 1, 1)"),
    3: ("        optimizer.zero_grad()\n", ""),
    4: ("variance.sqrt()", "variance"),
    5: (".clamp(-1, 1)", ".clamp(0, 1)"),
}
PROGRAMS = {"A": 5, "B": 2, "C": 4, "D": 1, "E": 3}  # the exercise's answer


def planted(source: str, program: str) -> str:
    """The source of `loss_of`, `sample` and the loop, with the slip of a program, "A" to "E".

    Raises ValueError for another program, and if what the slip changes does not stand in the source
    exactly once.
    """
    if program not in PROGRAMS:
        raise ValueError(f"there is no program {program!r}; there are {', '.join(PROGRAMS)}")
    right, wrong = SLIPS[PROGRAMS[program]]
    if source.count(right) != 1:
        raise ValueError("the program is not as the notebook has it, so no slip can be planted: "
                         "take its cells as they were and run them again")
    return source.replace(right, wrong)
