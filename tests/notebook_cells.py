"""A notebook's cells by their names, and what they printed when they were run."""

from functools import cache
from pathlib import Path

import nbformat

NOTEBOOKS = {path.stem[:2]: path for path in
             (Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb")}


@cache
def cells(notebook: str) -> list[nbformat.NotebookNode]:
    """Of "09", say."""
    return nbformat.read(NOTEBOOKS[notebook], as_version=4).cells


def cell(notebook: str, identity: str) -> nbformat.NotebookNode:
    (found,) = (c for c in cells(notebook) if c.id == identity)
    return found


def printed(notebook: str, identity: str) -> str:
    return "".join(output.get("text", "") for output in cell(notebook, identity).outputs)
