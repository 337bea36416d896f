"""Walk through notebooks in JupyterLab, as a reader does: run all cells, look at every part, move
every slider.

    .venv/bin/python tests/browser/walk.py notebooks/01_forward_noising.ipynb --shots shots01

Prints each cell that failed and, for each slider, whether key and mouse change its picture and how
fast. The notebook's file is never saved. Needs a Chromium (on the PATH, or named in the environment
variable CHROMIUM). Exit code 1 if anything was wrong.
"""

import argparse
import sys
import time
from pathlib import Path

from lab import ROOT, Notebook, chromium, jupyter_lab


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run notebooks in JupyterLab in headless Chromium and move every slider.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--shots", type=Path, help="folder for screenshots of the whole notebook "
                        "(several notebooks: one folder each)")
    parser.add_argument("--presses", type=int, default=15, help="key presses per slider (15)")
    parser.add_argument("--seconds", type=float, default=900,
                        help="longest that a notebook may run (900)")
    parser.add_argument("--no-sliders", action="store_true", help="run and take screenshots only")
    arguments = parser.parse_args()
    missing = [str(path) for path in arguments.notebooks if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    wrong = 0
    for path in arguments.notebooks:
        inside = path.resolve().is_relative_to(ROOT)
        root = ROOT if inside else path.resolve().parent
        with jupyter_lab(root) as address, chromium() as browser:
            shots = arguments.shots
            if shots and len(arguments.notebooks) > 1:
                shots = shots / path.stem
            name = path.resolve().relative_to(root).as_posix()
            wrong += walk(browser.new_page(), address, name, shots, arguments)
    return 1 if wrong else 0


def walk(page, address: str, name: str, shots: Path | None, arguments: argparse.Namespace) -> int:
    """Walk one notebook; returns how many things were wrong."""
    notebook = Notebook(page, address, name)
    start = time.perf_counter()
    errors = notebook.run(arguments.seconds)
    print(f"{name}: ran in {time.perf_counter() - start:.0f} s, {len(errors)} cells failed",
          flush=True)
    for cell, text in errors:
        print(f"  cell {cell}: {text}")
    if shots:
        print(f"  {len(notebook.shots(shots))} screenshots in {shots}", flush=True)
    wrong = len(errors)
    for cell in [] if arguments.no_sliders else notebook.slider_cells():
        for handle in notebook.sliders(cell):
            move = notebook.move(cell, handle, arguments.presses)
            wrong += not (move.by_key and move.by_mouse)
            print(f"  {move}", flush=True)
    if notebook.saves:
        print(f"  the notebook tried to save: {notebook.saves}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
