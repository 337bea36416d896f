"""Make static pages of the notebooks, which work offline and without a kernel: `make site`.

    python .ci/make_site.py                                  notebooks/ into site/
    python .ci/make_site.py --notebooks FOLDER --out FOLDER  others, elsewhere

nbconvert's HTMLExporter makes them with the templates in .ci/site_templates. Nothing is executed:
outputs and sliders are those stored in the notebooks. site_html.py then makes each page whole.
"""

import argparse
import re
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from pygments.formatters import HtmlFormatter
from site_html import Problem, finish

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).resolve().parent / "site_templates"
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
KINDS = (VIEW, "image/png", "image/jpeg", "text/html", "text/markdown", "text/plain")
MARK = 'content="make_site.py"'  # in the head of every page made here


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook; metadata.page holds what its first cell says of it. Raises Problem."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # bad JSON, bad encoding, no notebook: errors of many kinds
        raise Problem(f"{path.name} is broken ({' '.join(str(error).split())[:120]}); "
                      "restore it, or run: make notebooks") from error
    first = notebook.cells[0].source if notebook.cells else ""
    title = re.search(r"^# (.+)$", first, re.M)
    question = re.search(r"^\*\*(.+?)\*\*", first, re.M | re.S)
    time = re.search(r"\*(About (\d+) minutes [^*]+)\*", first)
    if not title or not question or not time:
        raise Problem(f"{path.name}: its first cell must hold a title (# …), a question (**…**)"
                      " and the time (*About … minutes to read, …*); add what is missing")
    notebook.metadata["page"] = {
        "name": path.name, "url": f"{path.stem}.html", "folder": str(path.parent),
        "title": title[1], "question": question[1], "time": time[1], "minutes": int(time[2])}
    return notebook


def start(root: Path) -> nbformat.NotebookNode:
    """The start page, as a notebook too: the README's title and first words, noise and cats."""
    text = (root / "README.md").read_text(encoding="utf-8")
    title, words = re.match(r"# (.+)\n", text), re.search(r"^\w.*(?:\n.+)*", text, re.M)
    if not title or not words:
        raise Problem("README.md must begin with a title (# …) and a paragraph; write them")
    cats = "![Eight pictures turn from noise into faces of cats](figures/catfaces128.webp)"
    picture = cats if (root / "figures" / "catfaces128.webp").is_file() else ""
    cell = nbformat.v4.new_markdown_cell(f"{title[0]}\n{picture}\n\n{words[0]}")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["page"] = {
        "name": "README.md", "url": "index.html", "folder": str(root), "title": title[1]}
    return notebook


def prepare(cell: nbformat.NotebookNode, models: dict[str, dict]) -> None:
    """Make a code cell's outputs ready for the template. Raises Problem if one cannot be shown."""
    tags = cell.metadata.get("tags", [])
    if cell.source.strip() and cell.execution_count is None and "install" not in tags:
        raise Problem("not executed; run: make notebooks")
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in tags:
            raise Problem(f"it ended in an error ({output.ename}: {output.evalue[:100]}); "
                          "correct it and run: make notebooks")
        if "data" in output:
            kind = next((kind for kind in KINDS if kind in output.data), None)
            if kind is None:
                raise Problem(f"an output of kind {', '.join(output.data) or 'nothing'} is unknown "
                              "here; give it a text or a picture too")
            output.data = {kind: output.data[kind]}
            if kind == VIEW:
                output["figure"] = widget(output.data[VIEW]["model_id"], models)


def inside(key: str, models: dict[str, dict]) -> list[dict]:
    """A widget's state and those of all widgets in it, itself first."""
    model = models.get(key.removeprefix("IPY_MODEL_"))
    if model is None:
        raise Problem("the state of its slider is not stored; run: make notebooks")
    children = model["state"].get("children", [])
    state = model["state"] | {"data": "".join(part["data"] for part in model.get("buffers", []))}
    return [state, *(deep for child in children for deep in inside(child, models))]


def widget(key: str, models: dict[str, dict]) -> dict | None:
    """A slider of diffusion_lib.lessons, for the template; None for a progress bar."""
    every = inside(key, models)
    named = {model["_model_name"]: model for model in reversed(every)}  # the first of each kind
    if {"TabModel", "SelectionSliderModel"} <= named.keys():  # a FrameSlider: all its pictures
        slider, player = named["SelectionSliderModel"], named.get("PlayModel", {})
        return {"pictures": [inside(page, models)[0] for page in named["TabModel"]["children"]],
                "values": slider["_options_labels"], "label": slider["description"],
                "at": slider["index"], "interval": player.get("interval")}
    if "ImageModel" in named:  # Python draws it: the last picture drawn, and its controls
        controls = [model for model in every
                    if model.get("description") and model["_model_name"] != "PlayModel"]
        return {"pictures": [named["ImageModel"]], "controls": controls}
    if any("Progress" in name for name in named) or named.keys() <= {"VBoxModel", "HTMLModel"}:
        return None  # also what TimeLeft said while the cell ran
    raise Problem(f"the widget {every[0]['_model_name']} is unknown here; "
                  "use those of diffusion_lib.lessons")


def local(url: str, folder: Path, root: Path, names: set[str], files: dict[str, bytes]) -> str:
    """Where a link leads on the site: to a page, to a copy among its files, or to the web."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return url
    source = (folder / unquote(parts.path)).resolve()
    if source.name in names:
        return f"{source.stem}.html" + (f"#{parts.fragment}" if parts.fragment else "")
    if not source.is_file() or not source.is_relative_to(root):
        raise Problem(f"the link {url} leads to no file of the repository; correct it")
    target = f"files/{source.relative_to(root).as_posix()}"
    files[target] = source.read_bytes()
    return target


def render(notebook: nbformat.NotebookNode, exporter: HTMLExporter, pages: list[dict], root: Path,
           files: dict[str, bytes]) -> None:
    """Put a notebook's page among the files. Raises Problem, which names the cell."""
    page, where = notebook.metadata.page, ""
    models = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    names = {other.name for other in pages[1:]}
    there = partial(local, folder=Path(page.folder), root=root, names=names, files=files)
    try:
        for number, cell in enumerate(notebook.cells, 1):
            where = f"{page.name}, cell {number}"
            if cell.cell_type == "code":
                prepare(cell, models)
        text, _ = exporter.from_notebook_node(notebook, {"pages": pages, "at": pages.index(page)})
        soup = BeautifulSoup(text, "html.parser")
        for part in soup.select(".cell"):
            where = f"{page.name}, cell {part['data-cell']}"
            finish(part, there, files)
    except Problem as problem:
        raise Problem(f"{where}: {problem}") from problem
    files[page.url] = str(soup).encode()


def build(notebooks: Path, out: Path) -> int:
    """Make the site of a folder's notebooks; how many. Raises Problem, with nothing changed."""
    root, old = notebooks.resolve().parent, out / "index.html"
    made = [start(root), *map(read, sorted(notebooks.resolve().glob("*.ipynb")))]
    if len(made) == 1:
        raise Problem(f"there are no notebooks in {notebooks}; name their folder with --notebooks")
    if out.is_file() or out.is_dir() and any(out.iterdir()) and not (
            old.is_file() and MARK in old.read_text(encoding="utf-8")):
        raise Problem(f"{out} exists and is no site made here, so it is not overwritten; "
                      "remove it, or name another folder with --out")
    exporter = HTMLExporter(template_name=TEMPLATES.name,
                            extra_template_basedirs=[str(TEMPLATES.parent)],
                            preprocessors=[CoalesceStreamsPreprocessor])
    pages = [notebook.metadata.page for notebook in made]
    style = HtmlFormatter(style="default").get_style_defs(".highlight").encode()
    files = {"site.css": style + b"\n" + (TEMPLATES / "site.css").read_bytes(),
             "site.js": (TEMPLATES / "site.js").read_bytes()}
    for notebook in made:
        render(notebook, exporter, pages, root, files)
    shutil.rmtree(out, ignore_errors=True)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return len(made) - 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make static pages of the notebooks.")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="their folder")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder for the pages")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # nbformat's, of missing cell ids: they do no harm here
    try:
        count = build(options.notebooks, options.out)
    except (Problem, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"site: {count} notebooks; open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
