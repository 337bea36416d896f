"""Guards over the committed notebooks, and the proof that `make test` compares their outputs.

Each guard is a function that lists what is wrong in a notebook. It is tried on a small notebook
that is wrong in just that way first, then on the real ones. They read files only; running the
notebooks is `make test-notebooks`.
"""

import ast
import copy
import importlib
import re
import shlex
import subprocess
import symtable
import sys
import tomllib
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import nbval.kernel
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import diffusion_lib

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUFF = tomllib.loads((ROOT / "notebooks/.ruff.toml").read_text(encoding="utf-8"))
HIDING = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception",
          "pytest-validate-ignore-output"}
UNTRUE = "false-expected"  # tag of a cell whose lesson is that something is not so
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
Guard = Callable[[NotebookNode], list[str]]
Change = Callable[[NotebookNode], object]
Verdicts = Callable[[str, int], bool]


def code_cells(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and cell.source.strip()]


def outputs(notebook: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, output) for i, cell in code_cells(notebook) for output in cell.outputs]


def texts(output: NotebookNode) -> list[str]:
    """Everything in an output that is read as text."""
    found = [output.text] if output.output_type == "stream" else []
    data = output.get("data", {})
    return found + [str(value) for kind, value in data.items() if kind.startswith("text/")]


def lines(cell: NotebookNode) -> list[str]:
    """What a cell has printed and shown as text."""
    return [line for output in cell.outputs for text in texts(output) for line in text.splitlines()]


# -- the guards ------------------------------------------------------------------------------------


def unrun(notebook: NotebookNode) -> list[str]:
    """Cells not run from top to bottom in one go: their numbers are not 1, 2, 3 …"""
    return [f"cell {i} has run number {cell.execution_count}, not {n}"
            for n, (i, cell) in enumerate(code_cells(notebook), 1) if cell.execution_count != n]


def failing(notebook: NotebookNode) -> list[str]:
    return [f"cell {i}: {output.ename}: {output.evalue}" for i, output in outputs(notebook)
            if output.output_type == "error"]


def complaining(notebook: NotebookNode) -> list[str]:
    """Warnings and progress bars: noise for the reader, and different on every machine."""
    return [f"cell {i} writes to stderr: {output.text[:80]!r}" for i, output in outputs(notebook)
            if output.output_type == "stream" and output.name == "stderr"]


def hidden(cell: NotebookNode) -> bool:
    """Whether nbval is told not to compare this cell's outputs."""
    marks = {line.strip("# ").lower().replace("_", "-") for line in cell.source.splitlines()
             if line.lstrip().startswith("#")}
    return bool(HIDING & (marks | set(cell.metadata.get("tags", []))))


def hiding(notebook: NotebookNode) -> list[str]:
    """More than a quarter of the cells with outputs, or of the lines printed, are not compared."""
    cells = [cell for _, cell in code_cells(notebook) if cell.outputs]
    printed = [cell for cell in cells for _ in lines(cell)]
    found = []
    for what, group in (("cells with outputs", cells), ("lines of output", printed)):
        count = sum(map(hidden, group))
        if 4 * count > len(group):
            found.append(f"{count} of {len(group)} {what} are hidden from comparison, "
                         "more than a quarter")
    return found


def long_lines(notebook: NotebookNode) -> list[str]:
    """Of code, that of solutions too: they would scroll sideways."""
    blocks = [(i, cell.source) for i, cell in code_cells(notebook)]
    blocks += [(i, block) for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"
               for block in re.findall("```python\n(.*?)```", cell.source, re.DOTALL)]
    return [f"cell {i}, line {n} has {len(line)} characters" for i, block in blocks
            for n, line in enumerate(block.splitlines(), 1) if len(line) > RUFF["line-length"]]


class Names(ast.NodeVisitor):
    """What a cell binds at its top level, and what it reads there before it binds it."""

    def __init__(self, source: str) -> None:
        self.bound: set[str] = set()
        self.read: set[str] = set()
        self.visit(ast.parse(source))
        # what its functions read when they are called
        self.later = set(self.in_functions(symtable.symtable(source, "cell", "exec")))

    def in_functions(self, table: symtable.SymbolTable, inside: bool = False) -> Iterator[str]:
        """Names of the whole notebook that functions read."""
        comprehensions = ("listcomp", "setcomp", "dictcomp", "genexpr")
        for child in table.get_children():
            function = inside or child.get_name() not in comprehensions
            for symbol in child.get_symbols() if function else ():
                if symbol.is_global() and symbol.is_referenced():
                    yield symbol.get_name()
            yield from self.in_functions(child, function)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.bound.add(node.id)
        elif node.id not in self.bound:
            self.read.add(node.id)

    def visit_Assign(self, node: ast.Assign | ast.For) -> None:
        self.visit(node.iter if isinstance(node, ast.For) else node.value)
        for part in [node.target, *node.body] if isinstance(node, ast.For) else node.targets:
            self.visit(part)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name) and node.target.id not in self.bound:
            self.read.add(node.target.id)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        own = {name.id for part in node.generators for name in ast.walk(part.target)
               if isinstance(name, ast.Name)}
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        self.read |= used - own - self.bound

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self.bound.add(node.name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Read when it is called."""

    visit_For = visit_Assign
    visit_ClassDef = visit_FunctionDef
    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp


def rebound(notebook: NotebookNode) -> list[str]:
    """Names that a later cell gives another meaning: an earlier cell, run again, misreports."""
    cells = [(i, Names(cell.source)) for i, cell in code_cells(notebook)
             if "%pip" not in cell.source]
    found = []
    for place, (i, names) in enumerate(cells):
        known = set().union(*(other.bound for _, other in cells[: place + 1]))
        for j, later in cells[place + 1 :]:
            found += [f"cell {i} reads {name}, which cell {j} gives another meaning"
                      for name in sorted((names.read | names.later) & known & later.bound)]
    return found


def files_beside(notebook: NotebookNode) -> list[str]:
    """Paths in the code: a notebook reads what ships with the library, or what its reader made
    (runs/).
    """
    strings = [(i, node.value) for i, cell in code_cells(notebook) if "%pip" not in cell.source
               for node in ast.walk(ast.parse(cell.source))
               if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    pattern = (r"\.\.?/(?!runs/)|(figures|data|notebooks|diffusion_lib|tests)/"
               r"|[^ ]+\.(png|webp|jpe?g|json|csv|ya?ml|safetensors)$")
    return [f"cell {i} reads {text!r}" for i, text in strings
            if re.match(pattern, text) and "/" in text]


def widgets(notebook: NotebookNode) -> dict:
    """The widgets that are saved with the notebook: key -> model."""
    return notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})


def without_words(notebook: NotebookNode) -> list[str]:
    """Pictures that a reader who cannot see them knows nothing of."""
    found = []
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                alt = output.metadata.get(kind, {}).get("alt", "")
                if kind.startswith("image/") and len(alt.strip()) < 10:
                    found.append(f"cell {i}: {kind} with alternative text {alt!r}")
        if cell.cell_type == "markdown":
            found += [f"cell {i}: ![{alt}]" for alt in re.findall(r"!\[([^\]]*)\]\(", cell.source)
                      if len(alt.strip()) < 10]
            found += [f"cell {i}: {tag}" for tag in re.findall(r"<img[^>]*>", cell.source)
                      if 'alt="' not in tag]
    for key, model in widgets(notebook).items():
        words = model.state.get("tooltip") or ""
        if model.model_name == "ImageModel" and len(words.strip()) < 5:
            found.append(f"widget {key[:8]}: a picture with the words {words!r}")
    return found


def dead_widgets(notebook: NotebookNode) -> list[str]:
    """Widgets whose state is not in the file: a box of nothing in a notebook just opened."""
    state = widgets(notebook)
    views = [(i, output.get("data", {}).get(VIEW)) for i, output in outputs(notebook)]
    found = [f"cell {i}: the state of its widget is not saved" for i, view in views
             if view and view["model_id"] not in state]
    for key, model in state.items():
        found += [f"widget {key[:8]} ({model.model_name}): its part {child[:8]} is not saved"
                  for child in re.findall(r"IPY_MODEL_(\w+)", str(model.state))
                  if child not in state]
    return found


def untrue(notebook: NotebookNode) -> list[str]:
    """A printed claim that came out False. A cell that wants to show just that is tagged."""
    return [f"cell {i} claims: {line}" for i, cell in code_cells(notebook)
            if UNTRUE not in cell.metadata.get("tags", [])
            for line in lines(cell) if re.search(r"(:|=) *False\W*$", line)]


def somebodys_paths(notebook: NotebookNode) -> list[str]:
    """Folders of the machine on which it was run, in what was printed or in the code."""
    pattern = re.compile(
        r"(?<![\w.:/<])(/(?:home|root|Users|tmp|private|work|mnt|usr|opt|var)/\S*)"
        r"|\b([A-Z]:\\\S+)|(\S*site-packages\S*)")
    said = [(i, cell.source) for i, cell in enumerate(notebook.cells)]
    said += [(i, text) for i, output in outputs(notebook) for text in texts(output)]
    return [f"cell {i}: {next(filter(None, match.groups()))}" for i, text in said
            for match in pattern.finditer(text)]


def traces(notebook: NotebookNode) -> list[str]:
    """What would differ with every run or machine and fill every diff."""
    found = [f"cell {i}: times of day in its metadata" for i, cell in code_cells(notebook)
             if "execution" in cell.metadata]
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"kernel {kernel!r}, not 'python3', which every machine has")
    if "version" in notebook.metadata.get("language_info", {}):
        found.append("the Python version of whoever ran it")
    return found


def broken_links(notebook: NotebookNode) -> list[str]:
    """Links and pictures in the text that lead to no file (notebooks lie in notebooks/)."""
    targets = [(i, target) for i, cell in enumerate(notebook.cells) if cell.cell_type == "markdown"
               for target in re.findall(r"\]\(([^)\s]+)\)", cell.source)]
    return [f"cell {i}: {target}" for i, target in targets
            if not re.match("[a-z]+:|#|attachment:", target)
            and not (ROOT / "notebooks" / target.split("#")[0]).exists()]


# -- each guard sees its own fault -----------------------------------------------------------------


def stdout(text: str) -> NotebookNode:
    return new_output("stream", name="stdout", text=text)


def picture(**metadata: object) -> NotebookNode:
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "a cat"}
    return new_output("display_data", data=data, metadata=metadata)


def good() -> NotebookNode:
    """Seven cells that no guard minds."""
    two = new_output("execute_result", data={"text/plain": "2"}, execution_count=1)
    data = {VIEW: {"model_id": "abc1"}, "text/plain": "Slider over t"}
    view = new_output("execute_result", data=data, execution_count=3)
    said = stdout("largest error below 1e-6: True\nFalse, too\n")
    ran = {"1 + 1": two, "show()": picture(**{"image/png": {"alt": "A photograph of a cat"}}),
           "slider": view, "print(error)": said, "print(1)": stdout("1\n"),
           "print(2)": stdout("2 s, 5 of 7\n")}
    notebook = new_notebook(cells=[
        new_markdown_cell("# 1 · A test\n\nSee [the library](../diffusion_lib/core/unet.py), "
                          "[this](#below), <https://example.org/usr/guide>."),
        *(new_code_cell(source, execution_count=i, outputs=[output])
          for i, (source, output) in enumerate(ran.items(), 1)),
    ])
    notebook.cells[6].metadata["tags"] = ["nbval-ignore-output"]
    notebook.metadata["kernelspec"] = KERNEL
    notebook.metadata["language_info"] = {"name": "python"}
    state = {"abc1": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_abc2"]}},
             "abc2": {"model_name": "ImageModel", "state": {"tooltip": "t = 10, a noised cat"}}}
    notebook.metadata["widgets"] = {STATE: {"state": state, "version_major": 2, "version_minor": 0}}
    return nbformat.from_dict(notebook)


def broken(change: Change) -> NotebookNode:
    notebook = good()
    change(notebook)
    return nbformat.from_dict(notebook)


def put(place: str, value: object) -> Change:
    """A change: put("cells|5|source", "x")."""

    def change(notebook: NotebookNode) -> None:
        *path, last = [int(key) if key.isdecimal() else key for key in place.split("|")]
        target = notebook
        for key in path:
            target = target[key]
        target[last] = value

    return change


def prints(text: str) -> Change:
    """A change: cell 5 has printed something else."""
    return put("cells|5|outputs|0|text", text)


def gives(output: NotebookNode) -> Change:
    """A change: cell 1 has this output."""
    return put("cells|1|outputs", [output])


def sources(*codes: str) -> Change:
    """A change: other code in the first cells."""

    def change(notebook: NotebookNode) -> None:
        for cell, code in zip(notebook.cells[1:], codes, strict=False):
            cell.source = code

    return change


FAULTS: list[tuple[Guard, Change, str]] = [
    (unrun, put("cells|1|execution_count", None), "cell 1 has run number None, not 1"),
    (unrun, put("cells|2|execution_count", 7), "cell 2 has run number 7, not 2"),
    (failing, gives(new_output("error", ename="ValueError", evalue="no")), "ValueError: no"),
    (complaining, gives(new_output("stream", name="stderr", text="UserWarning")), "UserWarning"),
    (hiding, put("cells|5|source", "# NBVAL_IGNORE_OUTPUT\nprint(1)"), "2 of 6 cells"),
    (hiding, put("cells|5|metadata|tags", ["nbval-skip"]), "2 of 6 cells"),
    (hiding, put("cells|5|metadata|tags", ["raises-exception"]), "2 of 6 cells"),
    (hiding, put("cells|6|outputs|0|text", "1\n2\n3\n4\n"), "4 of 10 lines"),
    (long_lines, put("cells|1|source", "x = 1\n" + "y" * 89), "cell 1, line 2 has 89"),
    (long_lines, put("cells|0|source", "# 1\n```python\n" + "y" * 89 + "\n```"),
     "cell 0, line 1 has 89"),
    (rebound, sources("t = 1", "print(t)", "t = 2"), "cell 2 reads t, which cell 3 gives"),
    (rebound, sources("t = 1\ndef f():\n    return [t for x in y]", "f()", "for t in a: pass"),
     "cell 1 reads t"),
    (rebound, sources("n = 0", "n += 1", "print([n for n in a])\nn = 2"), "cell 2 reads n"),
    (files_beside, put("cells|1|source", "open('../figures/cat.png')"), "'../figures/cat.png'"),
    (files_beside, put("cells|1|source", "x = load('weights/cats.json')"), "weights/cats.json"),
    (without_words, put("cells|2|outputs|0|metadata", {}), "cell 2: image/png"),
    (without_words, put("cells|2|outputs|0|metadata|image/png|alt", "  cat "), "'  cat '"),
    (without_words, put("cells|0|source", "![](cat.png)"), "![]"),
    (without_words, put("cells|0|source", '<img src="cat.png">'), "<img"),
    (without_words, put(f"metadata|widgets|{STATE}|state|abc2|state|tooltip", None), "widget abc2"),
    (dead_widgets, lambda n: n.metadata.pop("widgets"), "cell 3"),
    (dead_widgets, lambda n: n.metadata.widgets[STATE].state.pop("abc2"), "its part abc2"),
    (untrue, prints("the average is better: False\n"), "cell 5 claims: the average"),
    (untrue, prints("first: True\nsecond: False.\nthird: True\n"), "second: False."),
    (untrue, put("cells|1|outputs|0|data|text/plain", "equal = False"), "equal = False"),
    (somebodys_paths, prints("saved to /home/anna/cats/runs\n"), "/home/anna/cats/runs"),
    (somebodys_paths, prints("File \"/var/folders/1.py\", line 1\n"), "/var/folders/1.py"),
    (somebodys_paths, prints("C:\\Users\\anna\n"), "C:\\Users\\anna"),
    (somebodys_paths, put("cells|5|source", "Path('/Users/anna/x')"), "/Users/anna/x"),
    (somebodys_paths, prints("x/lib/python3.11/site-packages/torch/nn.py\n"), "site-packages"),
    (traces, put("cells|1|metadata|execution", {"iopub.status.busy": "2026-01-01"}), "cell 1"),
    (traces, put("metadata|kernelspec|name", "my-env"), "'my-env'"),
    (traces, put("metadata|language_info|version", "3.11.7"), "Python version"),
    (broken_links, put("cells|0|source", "[next](02_nothing.ipynb)"), "02_nothing.ipynb"),
    (broken_links, put("cells|0|source", "![a picture of a cat](../figures/none.png)"), "none.png"),
]
GUARDS = list(dict.fromkeys(guard for guard, _, _ in FAULTS))


@pytest.mark.parametrize("guard, change, expected", [
    pytest.param(*fault, id=f"{fault[0].__name__}-{i}") for i, fault in enumerate(FAULTS)])
def test_a_guard_sees_its_fault(guard: Guard, change: Change, expected: str) -> None:
    assert guard(good()) == []
    found = guard(broken(change))
    assert len(found) >= 1 and expected in " ".join(found), found


def test_a_cell_may_say_false_on_purpose() -> None:
    notebook = broken(prints("the wrong way works: False\n"))
    notebook.cells[5].metadata["tags"] = [UNTRUE]
    assert untrue(notebook) == [] and not hidden(notebook.cells[5])


# -- the real ones ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> dict[Path, NotebookNode]:
    return {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_notebook(guard: Guard, path: Path, committed: dict[Path, NotebookNode]) -> None:
    found = guard(committed[path])
    assert not found, f"{path.name}: " + "; ".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_file(path: Path, committed: dict[Path, NotebookNode]) -> None:
    size = path.stat().st_size
    assert size <= 1_000_000, f"{path.name} weighs {size / 1e6:.2f} MB, more than 1 MB"
    nbformat.validate(committed[path])
    first = committed[path].cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {int(path.stem[:2])} · "), first.source[:50]
    ids = [cell.id for cell in committed[path].cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_needs_a_folder_of_pictures(path: Path, committed) -> None:
    """So `make test-with-data` need not run them all again."""
    named = [cell.source for _, cell in code_cells(committed[path])
             if re.search(r"folder:|[\"'/]data/", cell.source)]
    assert named == []


def test_all_notebooks_together_are_light() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= 9_500_000


def test_there_are_notebooks_and_nothing_else_beside_them() -> None:
    assert len(NOTEBOOKS) >= 4
    assert [path.stem[:2] for path in NOTEBOOKS] == sorted({path.stem[:2] for path in NOTEBOOKS})
    assert set((ROOT / "notebooks").glob("[!.]*")) == set(NOTEBOOKS)


# -- that `make test` compares ---------------------------------------------------------------------


def nbval_options() -> list[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^NBVAL := (.+)$", makefile, re.MULTILINE)
    return shlex.split(line)


CELLS = [
    "print('largest error 1.25e-07, at t = 999, seed 7')",
    "6 * 7",
    "import time\n"
    "print(f'took {time.perf_counter() % 60:.2f} s or {time.time_ns() % 977} ms')\n"
    "object()",
    "import random\nprint(random.random())",
    "from IPython.display import display\n"
    "display({'text/plain': 'a cat', 'text/html': '<em>caption 3</em>'}, raw=True)",
    "print('claim: True')\nprint('two lines')",
]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """verdicts("changed", i): whether cell i passed in that copy. One run of pytest with make's own
    options, from ROOT.
    """
    folder = tmp_path_factory.mktemp("nbval")
    notebook = new_notebook(cells=[new_code_cell(source) for source in CELLS])
    notebook.cells[3].metadata["tags"] = ["nbval-ignore-output"]
    notebook.metadata["kernelspec"] = KERNEL
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    nbformat.write(notebook, folder / "unchanged.ipynb")
    changed = copy.deepcopy(notebook)
    for i, old, new in ((0, "seed 7", "seed 8"), (4, "caption 3", "caption 4"),
                        (5, "claim: True", "claim: Tru")):
        for output in changed.cells[i].outputs:
            for place, key in ((output, "text"), (output.get("data", {}), "text/html")):
                if key in place:
                    place[key] = place[key].replace(old, new)
        assert changed.cells[i] != notebook.cells[i]
    changed.cells[1].outputs[0].data["text/plain"] = "43"
    changed.cells[3].outputs[0].text = "0.123\n"
    nbformat.write(changed, folder / "changed.ipynb")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               f"--junitxml={report}", *nbval_options(), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    passed = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = "changed" if "unchanged" not in case.get("classname") else "unchanged"
        number = int(re.search(r"(\d+)$", case.get("name"))[1])
        passed[name, number] = case.find("failure") is None and case.find("error") is None
    assert len(passed) == 2 * len(CELLS), done.stdout + done.stderr
    assert done.returncode == 1, done.stdout
    return lambda name, cell: passed[name, cell]


@pytest.mark.parametrize("cell", range(len(CELLS)))
def test_an_unchanged_notebook_passes(verdicts: Verdicts, cell: int) -> None:
    """Cell 2 prints other seconds and another address each time: these are hidden."""
    assert verdicts("unchanged", cell)


@pytest.mark.parametrize("cell, what", [
    (0, "a digit of a printed line"), (1, "a digit of a result"), (4, "a digit of a caption"),
    (5, "a letter of a claim")])
def test_one_changed_character_fails(verdicts: Verdicts, cell: int, what: str) -> None:
    assert not verdicts("changed", cell), what


@pytest.mark.parametrize("cell", [2, 3])
def test_seconds_and_hidden_cells_may_change(verdicts: Verdicts, cell: int) -> None:
    assert verdicts("changed", cell)


def sanitised(text: str) -> str:
    """As nbval does it."""
    file = (ROOT / "tests/nbval_sanitize.cfg").read_text(encoding="utf-8")
    rules = re.findall("^regex: (.*)$\n^replace: (.*)$", file, re.MULTILINE)
    assert len(rules) == 2
    for regex, replace in rules:
        text = re.sub(regex, replace, text)
    return text


@pytest.mark.parametrize("text", [
    "12 s", "0.25 s", "3.1 ms", "40ms", "12 seconds", "2 minutes", "took 5 s, then 61.2 s",
    "at 0x7f31aa02"])
def test_the_sanitiser_hides_times_and_addresses(text: str) -> None:
    assert not re.search(r"\d", sanitised(text))


@pytest.mark.parametrize("text", [
    "0.25", "t = 999", "seed 7", "1.25e-07", "50 steps", "8 of 10: True", "64 samples", "32×32",
    "100 %", "3 shapes", "0 sigma", "5 standard", "7 mse", "x = 10, y = 20", "16 sevenths",
    "ᾱ_999 = 4.04e-05", "12 minimum", "caption 3", "149 pictures a second",
])
def test_the_sanitiser_hides_nothing_else(text: str) -> None:
    assert sanitised(text) == text


# -- a training that was stopped -------------------------------------------------------------------


def run_cells(number: str, *identities: str, **names: object) -> dict:
    """The code of these cells of a notebook, run with the names that cells before them made."""
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    space = {name: getattr(diffusion_lib, name) for name in diffusion_lib.__all__}
    space = dict(vars(diffusion_lib)) | space | {"torch": torch} | names
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.id in identities:
            exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), space)
    return space


def test_notebook_04_stopped_at_step_12_reports_12_steps(capsys, monkeypatch) -> None:
    """■ ends the plain loop with KeyboardInterrupt; the cells below work with what was learnt."""
    space: dict = {}
    draw = torch.randint

    def stopping(*arguments: object, **more: object) -> torch.Tensor:
        if len(space["losses"]) == 12:
            raise KeyboardInterrupt
        return draw(*arguments, **more)

    monkeypatch.setattr(torch, "randint", stopping)
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith("04"))
    cells = nbformat.read(path, as_version=4).cells
    (program,) = (cell.source for cell in cells if cell.id == "own-program")
    with pytest.raises(KeyboardInterrupt):
        exec(compile(program, "own-program", "exec"), space)
    run_cells("04", "own-count", "trap-04", **space)
    said = capsys.readouterr().out
    assert f"12 steps, mean loss of the last 12: {sum(space['losses']) / 12:.3f}" in said
    assert "of 64 are whole cats" in said and "[picture: Loss over the steps" in said


@pytest.mark.skipif(sys.platform == "win32", reason="kernels talk through ports there")
def test_no_two_kernels_share_a_place_to_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ports, two that start at once may be given the same one (plugins/nbval_kernels.py)."""
    assert "-p nbval_kernels" in (ROOT / "Makefile").read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(ROOT / "tests" / "plugins")
    monkeypatch.setattr(nbval.kernel, "KernelManager", nbval.kernel.KernelManager)  # put back
    importlib.import_module("nbval_kernels")
    places = []
    for _ in range(2):
        kernels = nbval.kernel.KernelManager(kernel_name="python3")
        assert kernels.transport == "ipc"
        assert Path(kernels.ip).parent.is_dir()
        places.append(kernels.ip)
    assert places[0] != places[1]
