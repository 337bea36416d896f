"""Copies of the notebooks for a class: `make class`, or `python .ci/make_class.py [NOTEBOOKS]
[CLASS]`.

class/student/ has the exercises without their solutions, without our accounts of investigations
and without the checkers' outputs, class/instructor/ has all. class/figures/ holds the pictures
that the notebooks link to, so `../figures/…` works from both. Nothing is written unless every
notebook is whole; copies of the same name are overwritten.
"""

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = "<details><summary>Solution</summary>"
ACCOUNT = "<details><summary>What we found</summary>"
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|<img[^>]*\ssrc=[\"']([^\"']+)[\"']")


class Broken(Exception):
    """What is wrong with a notebook, in one line."""


def source(cell: dict) -> str:
    return "".join(cell["source"])


def is_solution(cell: dict) -> bool:
    return cell["cell_type"] == "markdown" and source(cell).lstrip().startswith(SOLUTION)


def is_account(cell: dict) -> bool:
    """Whether it tells what an investigation (an exercise without a checker) found."""
    return cell["cell_type"] == "markdown" and source(cell).lstrip().startswith(ACCOUNT)


def is_stub(cell: dict) -> bool:
    return (
        cell["cell_type"] == "code"
        and re.search(r"^check\(", source(cell), re.MULTILINE) is not None
    )


def load(path: Path) -> dict:
    """A notebook as it lies in its file. Raises Broken if it cannot be read, or an exercise and its
    solution do not match.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        nbformat.validate(notebook)
    except OSError as error:
        raise Broken(f"{path.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:150]
        raise Broken(
            f"{path.name} is no valid notebook ({reason}); restore it with git checkout"
        ) from error
    cells = notebook["cells"]
    for i, cell in enumerate(cells):
        follows = i + 1 < len(cells) and is_solution(cells[i + 1])
        if is_stub(cell) and not follows:
            raise Broken(f'{path.name}: the exercise "{source(cell).splitlines()[-1]}" has no '
                         "solution right after it")
        if is_solution(cell) and not (i and is_stub(cells[i - 1])):
            number = sum(map(is_solution, cells[: i + 1]))
            raise Broken(f"{path.name}: solution number {number} does not follow an exercise")
    return notebook


def for_students(notebook: dict) -> dict:
    """Without solutions and accounts; the exercises as if never run."""
    result = copy.deepcopy(notebook)
    result["cells"] = [
        cell for cell in result["cells"] if not is_solution(cell) and not is_account(cell)
    ]
    for cell in filter(is_stub, result["cells"]):
        cell["outputs"], cell["execution_count"] = [], None
    return result


def linked_files(path: Path, notebook: dict) -> set[Path]:
    """The pictures outside the notebooks' folder that a notebook links to. Raises Broken for a link
    that leads nowhere.
    """
    found = set()
    for cell in notebook["cells"]:
        for link in (
            a or b for a, b in LINK.findall(source(cell)) if cell["cell_type"] == "markdown"
        ):
            if "://" in link or link.startswith(("data:", "mailto:", "attachment:")):
                continue
            target = path.parent / link
            if not target.is_file():
                raise Broken(
                    f"{path.name} links to {link}, which is missing; restore it with git checkout"
                )
            if link.startswith("../"):
                found.add(Path(link[3:]))
    return found


def make_class(notebooks: Path, out: Path) -> list[str]:
    """Write the copies; returns the notebooks' names. Raises Broken, with nothing written, if one
    is missing or broken.
    """
    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    numbers = [int(path.name[:2]) for path in paths]
    missing = sorted(set(range(1, max(numbers, default=1) + 1)) - set(numbers))
    if missing:
        raise Broken(
            f"notebook {missing[0]:02d} is missing in {notebooks}; restore it with git checkout"
        )
    loaded = {path: load(path) for path in paths}
    figures = set().union(*(linked_files(path, notebook) for path, notebook in loaded.items()))
    for folder, change in (("student", for_students), ("instructor", copy.copy)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for path, notebook in loaded.items():
            text = json.dumps(change(notebook), indent=1, ensure_ascii=False) + "\n"
            (out / folder / path.name).write_text(text, encoding="utf-8")
    for figure in figures:
        (out / figure).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(notebooks.parent / figure, out / figure)
    return [path.name for path in paths]


def main(arguments: list[str]) -> int:
    notebooks, out = (Path(a) for a in [*arguments, *["", ""]][:2])
    notebooks, out = (
        (notebooks if arguments else ROOT / "notebooks"),
        (out if len(arguments) > 1 else ROOT / "class"),
    )
    try:
        names = make_class(notebooks, out)
    except Broken as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {error.filename or out} ({error.strerror}); free some room, "
              "or give another folder", file=sys.stderr)
        return 2
    print(f"{len(names)} notebooks in {out / 'student'} (without solutions) and "
          f"{out / 'instructor'} (with them)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
