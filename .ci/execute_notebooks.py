"""Run notebooks again in place: `make notebooks`, or `python .ci/execute_notebooks.py
notebooks/01_*.ipynb`.

Run without data/, so that the outputs are those of a fresh clone. Widget states are saved: sliders
move in a notebook that was only opened. A notebook that fails is left as it was.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]


def execute(path: Path) -> float:
    """Run a notebook and save it with its outputs; returns the seconds it took. Raises
    CellExecutionError.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=True,
    ).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: noise in every diff
    notebook.metadata.pop("language_info", None)  # the Python version of whoever ran it
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    return seconds


def main(arguments: list[str]) -> int:
    paths = [Path(a) for a in arguments] or sorted((ROOT / "notebooks").glob("*.ipynb"))
    if (ROOT / "data").exists():
        print(
            "error: set data/ aside first: outputs are committed as a clone without it makes them",
            file=sys.stderr,
        )
        return 2
    failed = 0
    for path in paths:
        try:
            print(
                f"{path.name}: {execute(path):.0f} s, {path.stat().st_size / 1e3:.0f} kB",
                flush=True,
            )
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name}: failed and left as it was; {error.ename}: {error.evalue}\n"
                  f"{str(error)[:2000]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
