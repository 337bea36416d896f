"""How long a slider's picture takes to follow a key, in JupyterLab in headless Chromium.

    .venv/bin/python tests/benchmarks/slider_latency.py [notebooks/02_….ipynb …] [--presses 60]
    .venv/bin/python tests/benchmarks/slider_latency.py --drawing

Each notebook is run twice: with the connection of `make lab` (.ci/quick_socket.py) and with
Jupyter's own. Frames hold their pictures in the page, so the connection makes no difference to
them; live sliders ask the kernel. Painted: the page has drawn the new picture. Presented: the
browser's compositor, here without a GPU, has it ready for the screen. Aims: a median below 30 ms
(frames) and 60 ms (live) until painted.

--drawing, without a browser: what one small plot costs the kernel, drawn by our own axes
(lessons/panels.py) and by matplotlib. Best of many, one thread of a slow machine, in ms: our own
axes 1.4; a new figure 196; one figure, kept and drawn again whole 44; only its marker drawn again
over a kept background 0.6. So our own axes stay: a live slider has 60 ms for kernel, network and
page together. A kept background is quick, but has to be drawn whole whenever limits or labels
change, as those of histograms and losses do.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))
from lab import ROOT, Move, Notebook, chromium, jupyter_lab

AIMS = {"frames": 30, "live": 60}  # ms


def measure(path: Path, quick: bool, presses: int) -> list[Move]:
    """Move every slider of a notebook that has been run. Raises SystemExit if a cell of it fails.
    """
    with jupyter_lab(ROOT, quick=quick) as address, chromium() as browser:
        notebook = Notebook(
            browser.new_page(), address, path.resolve().relative_to(ROOT).as_posix()
        )
        if errors := notebook.run():
            sys.exit(f"error: {path}: cell {errors[0][0]} failed: {errors[0][1]}")
        return [
            notebook.move(cell, handle, presses, seconds=60)
            for cell in notebook.slider_cells()
            for handle in notebook.sliders(cell)
        ]


def drawing(times: int = 40) -> None:
    """Print the milliseconds of one small plot, each way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from diffusion_lib.lessons.panels import curve_panel
    from diffusion_lib.lessons.plots import figure

    values = [0.9**i for i in range(41)]
    size = {"width": 3.2, "height": 2.0}

    def plot() -> tuple:
        fig, ax = figure(**size)
        canvas = FigureCanvasAgg(fig)
        ax.set(xlabel="t", yscale="log")
        ax.plot(values)
        moving = [ax.axvline(0, color="k"), ax.plot([0], [1], "o")[0]]
        canvas.draw()
        fig.set_layout_engine("none")
        return canvas, ax, moving

    canvas, ax, (post, dot) = plot()

    def move(i: int) -> None:
        post.set_xdata([i, i])
        dot.set_data([i], [values[i]])

    def whole(i: int) -> None:
        move(i)
        canvas.draw()

    def over_kept(i: int) -> None:
        canvas.restore_region(background)
        move(i)
        ax.draw_artist(post)
        ax.draw_artist(dot)

    def best(draw: Callable[[int], object]) -> float:
        seconds = []
        for i in range(times):
            start = time.perf_counter()
            draw(i)
            seconds.append(time.perf_counter() - start)
        return 1000 * min(seconds)

    ours = best(lambda i: curve_panel({"a": values}, marker=i, log=True))
    print(f"our own axes                                 {ours:6.1f} ms")
    print(f"a new matplotlib figure                      {best(lambda i: plot()):6.1f} ms")
    print(f"one figure, drawn again whole                {best(whole):6.1f} ms")
    post.set_animated(True), dot.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(ax.figure.bbox)
    print(f"only the marker, over a kept background      {best(over_kept):6.1f} ms")


def quantiles(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    return statistics.median(values), statistics.quantiles(values, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure how fast sliders follow a key, with make lab's connection and without."
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: notebooks 01 and 02, which run in seconds"
    )
    parser.add_argument("--presses", type=int, default=60, help="key presses per slider (60)")
    parser.add_argument("--drawing", action="store_true", help="only time the drawing, no browser")
    arguments = parser.parse_args()
    if arguments.drawing:
        return drawing()
    paths = arguments.notebooks or sorted((ROOT / "notebooks").glob("0[12]_*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such notebook: {', '.join(missing)}")
    print(f"{'median / 95th percentile in ms, from key press to':65}"
          "painted        presented   number")
    values: dict[tuple[str, str], list[float]] = {}
    for path in paths:
        for quick in (True, False):
            connection = "make lab" if quick else "Jupyter's own"
            for move in measure(path, quick, arguments.presses):
                kind = "live" if move.live else "frames"
                values.setdefault((kind, connection), []).extend(move.painted)
                times = "   ".join(
                    "{:5.1f} / {:5.1f}".format(*quantiles(v))
                    for v in (move.painted, move.presented)
                )
                where = f"{path.stem[:22]:22s} cell {move.cell:2d} {move.name[:12]:12s}"
                print(
                    f"{where} {kind:6s} {connection:13s}  {times}   {len(move.painted)}", flush=True
                )
    print("\nall together, painted")
    for (kind, connection), times in sorted(values.items()):
        median, late = quantiles(times)
        outcome = "reached" if median < AIMS[kind] else "missed"
        print(
            f"{kind:6s} {connection:13s}  {median:5.1f} / {late:5.1f}   aim {AIMS[kind]}: {outcome}"
        )
    for kind in AIMS:
        with_it, without = (
            values.get((kind, connection), []) for connection in ("make lab", "Jupyter's own")
        )
        if with_it and without:
            ratio = statistics.median(without) / statistics.median(with_it)
            print(f"{kind}: Jupyter's own connection takes {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
