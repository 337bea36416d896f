"""For the programs here that train a notebook's own program again: its names, and a table that can
be gone on with.
"""

import json
from collections.abc import Iterable
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
