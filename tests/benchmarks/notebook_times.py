"""How long each notebook takes: with this processor's own instructions, then as if it had AVX2
only, as most laptops do.

    .venv/bin/python tests/benchmarks/notebook_times.py [notebooks/01_*.ipynb …]

Each notebook is run twice, one after the other, and nothing is saved. Let nothing else run
meanwhile.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def seconds(path: Path, environment: dict[str, str]) -> float:
    """Run a notebook in a kernel that has these variables set."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.perf_counter()
    client.execute(env={**os.environ, **environment})
    return time.perf_counter() - start


def main() -> None:
    paths = [Path(argument) for argument in sys.argv[1:]] or sorted(
        (ROOT / "notebooks").glob("*.ipynb")
    )
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    total = [0.0, 0.0]
    for path in paths:
        own, limited = seconds(path, {}), seconds(path, AVX2)
        total = [total[0] + own, total[1] + limited]
        print(f"{path.stem:26s} {own:6.1f} s   AVX2 only {limited:6.1f} s   "
              f"ratio {limited / own:.2f}", flush=True)
    print(f"{'together':26s} {total[0]:6.1f} s   AVX2 only {total[1]:6.1f} s")


if __name__ == "__main__":
    main()
