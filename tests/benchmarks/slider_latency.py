"""How long a slider's picture takes to follow a key, in JupyterLab in headless Chromium.

    .venv/bin/python tests/benchmarks/slider_latency.py [notebooks/02_beta_schedule.ipynb …] [--presses 60]

Each notebook is run twice: with the connection of `make lab` (.ci/quick_socket.py) and with Jupyter's own. Frames hold their
pictures in the page, so the connection makes no difference to them; live sliders ask the kernel. Painted: the page has drawn the
new picture. Presented: the browser's compositor, here without a GPU, has it ready for the screen. Aims: a median below 30 ms
(frames) and 60 ms (live) until painted.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))
from lab import ROOT, Move, Notebook, chromium, jupyter_lab

AIMS = {"frames": 30, "live": 60}  # ms


def measure(path: Path, quick: bool, presses: int) -> list[Move]:
    """Move every slider of a notebook that has been run. Raises SystemExit if a cell of it fails."""
    with jupyter_lab(ROOT, quick=quick) as address, chromium() as browser:
        notebook = Notebook(browser.new_page(), address, path.resolve().relative_to(ROOT).as_posix())
        if errors := notebook.run():
            sys.exit(f"error: {path}: cell {errors[0][0]} failed: {errors[0][1]}")
        return [notebook.move(cell, handle, presses, seconds=60) for cell in notebook.slider_cells() for handle in notebook.sliders(cell)]


def quantiles(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    return statistics.median(values), statistics.quantiles(values, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast sliders follow a key, with the connection of `make lab` and without.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: notebooks 01 and 02, which run in seconds")
    parser.add_argument("--presses", type=int, default=60, help="key presses per slider (60)")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted((ROOT / "notebooks").glob("0[12]_*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    print("median / 95th percentile in ms, from key press to                painted        presented   number")
    values: dict[tuple[str, str], list[float]] = {}
    for path in paths:
        for quick in (True, False):
            connection = "make lab" if quick else "Jupyter's own"
            for move in measure(path, quick, arguments.presses):
                kind = "live" if move.live else "frames"
                values.setdefault((kind, connection), []).extend(move.painted)
                times = "   ".join("{:5.1f} / {:5.1f}".format(*quantiles(v)) for v in (move.painted, move.presented))
                where = f"{path.stem[:22]:22s} cell {move.cell:2d} {move.name[:12]:12s}"
                print(f"{where} {kind:6s} {connection:13s}  {times}   {len(move.painted)}", flush=True)
    print("\nall together, painted")
    for (kind, connection), times in sorted(values.items()):
        median, late = quantiles(times)
        outcome = "reached" if median < AIMS[kind] else "missed"
        print(f"{kind:6s} {connection:13s}  {median:5.1f} / {late:5.1f}   aim {AIMS[kind]}: {outcome}")
    for kind in AIMS:
        with_it, without = (values.get((kind, connection), []) for connection in ("make lab", "Jupyter's own"))
        if with_it and without:
            print(f"{kind}: Jupyter's own connection takes {statistics.median(without) / statistics.median(with_it):.2f} times as long")


if __name__ == "__main__":
    main()
