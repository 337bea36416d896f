"""insert.py NOTEBOOKS_FOLDER: puts the exercise cells before "## What you now know" (again: replaces them). In 03 it adds the check calls.
Outputs are not made here: execute afterwards."""
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
names = {"01": "01_forward_noising", "02": "02_beta_schedule", "04": "04_noise_prediction_loss", "05": "05_sampling"}
def load(p): return json.loads(p.read_text(encoding="utf-8"))
def save(p, nb): p.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
for number, name in names.items():
    path = folder / f"{name}.ipynb"
    nb = load(path)
    kept = [c for c in nb["cells"] if not c["id"].startswith("exercise-")]
    at = [i for i, c in enumerate(kept) if "## What you now know" in "".join(c["source"])]
    assert len(at) == 1, (name, at)
    at = at[0]
    text = "".join(kept[at]["source"])
    extra = []
    if not text.startswith("## What you now know"):          # 05: the heading stands in the middle of a cell: cut it in two
        before, after = text.split("## What you now know")
        kept[at]["source"] = before.rstrip("\n").splitlines(keepends=True)
        rest = {"cell_type": "markdown", "id": "what-you-now-know", "metadata": {}, "source": ("## What you now know" + after).splitlines(keepends=True)}
        kept.insert(at + 1, rest)
        at += 1
    nb["cells"] = kept[:at] + load(Path(__file__).with_name(f"{number}.json")) + kept[at:]
    save(path, nb)
three = folder / "03_unet.ipynb"
if three.exists():
    nb = load(three)
    for c in nb["cells"]:
        text = "".join(c["source"])
        for function in ("pixels_seen", "attention_cost", "scale_and_shift"):
            if c["cell_type"] == "code" and text.startswith(f"def {function}(") and "check(" not in text:
                c["source"] = ("from diffusion_lib.checks import check\n\n\n" + text + f'\n\n\ncheck("{function}", {function})').splitlines(keepends=True)
                c["outputs"], c["execution_count"] = [], None
    save(three, nb)
