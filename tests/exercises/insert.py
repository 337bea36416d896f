"""insert.py NOTEBOOKS_FOLDER: puts the exercises before "## What you now know" (run again: replaces them); in 03 it adds the check calls.

The stubs do not depend on other cells and are the last code cells of their notebooks. So each is run here, alone, and its real
output and the next execution count are stored: no notebook has to be run again. nbval then compares them as any other output.
"""
import contextlib
import io
import json
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
HEADING = "## What you now know"


def run(nb):
    count = 0
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        if "\ncheck(" in cell.source:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(cell.source, "stub", "exec"), {})
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=out.getvalue())]
            cell.execution_count = count + 1
        assert cell.execution_count == count + 1, ("not run in order", cell.source[:60])
        count += 1


for path in sorted(Path(sys.argv[1]).glob("0[1-5]_*.ipynb")):
    nb = nbformat.read(path, as_version=4)
    cells = HERE / f"{path.name[:2]}.json"
    if cells.exists():
        kept = [c for c in nb.cells if not c.id.startswith("exercise-")]
        (at,) = [i for i, c in enumerate(kept) if HEADING in c.source and c.cell_type == "markdown"]
        before, after = kept[at].source.split(HEADING)
        if before:                                            # 05: the heading stands in the middle of a cell: cut it in two
            kept[at].source = before.rstrip("\n")
            at += 1
            rest = {"cell_type": "markdown", "id": "what-you-now-know", "metadata": {}, "source": HEADING + after}
            kept.insert(at, nbformat.from_dict(rest))
        new = json.loads(cells.read_text(encoding="utf-8"))
        for c in new:
            c["source"] = "".join(c["source"])
        nb.cells = kept[:at] + [nbformat.from_dict(c) for c in new] + kept[at:]
    else:
        for c in nb.cells:
            for function in ("pixels_seen", "attention_cost", "scale_and_shift"):
                if c.cell_type == "code" and c.source.startswith(f"def {function}("):
                    c.source = f'from diffusion_lib.checks import check\n\n\n{c.source}\n\n\ncheck("{function}", {function})'
    run(nb)
    nbformat.validate(nb)
    nbformat.write(nb, path)
    print(path.name, f"{path.stat().st_size / 1e3:.0f} kB")
