"""For the programs here that train a notebook's own program again: its names, and a table that can
be gone on with.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def source_of(notebook: str, cell: str) -> str:
    """A cell's code. notebook: how its file's name begins, "04" say; cell: its id."""
    (path,) = NOTEBOOKS.glob(f"{notebook}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (found,) = ("".join(each["source"]) for each in cells if each["id"] == cell)
    return found


def program(notebook: str, cell: str, until: str, **names: Any) -> dict[str, Any]:
    """The names that a cell's program defines before the line that begins with `until`, where it
    begins to train. names: what earlier cells have defined.
    """
    exec(source_of(notebook, cell).split(f"\n{until}")[0], names)
    return names


def table_of(out: Path, setting: dict[str, Any], kinds: Iterable[Any]) -> dict[str, Any]:
    """The table that is at `out` if it was made with this setting, else a new one without runs."""
    table = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if {key: table.get(key) for key in setting} == setting:
        return table
    return setting | {"runs": {str(kind): {} for kind in kinds}}


def missing(table: dict[str, Any], seeds: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(kind, seed, the kind's runs) of what is not in the table yet: all kinds of a seed, then the
    next, so that half a table compares too.
    """
    for seed in range(seeds):
        for kind, runs in table["runs"].items():
            if str(seed) not in runs:
                yield kind, seed, runs
