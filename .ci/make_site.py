"""Make static pages of the notebooks, which work offline and without a kernel. Called by the Makefile, with .venv's Python.

    .venv/bin/python .ci/make_site.py                                   notebooks/*.ipynb into site/, with an index
    .venv/bin/python .ci/make_site.py --notebooks FOLDER --out FOLDER   others, elsewhere

Nothing is executed: outputs and widget states are those committed in the notebooks. Formulas become MathML, frame sliders
<input type="range"> and pictures, and no page loads anything from outside the folder. Templates: .ci/site_templates.
"""

import argparse
import base64
import binascii
import html
import io
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from string import Template
from urllib.parse import unquote, urlsplit

import nbformat
from nbconvert.filters.ansi import strip_ansi
from PIL import Image, UnidentifiedImageError
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from site_html import Checker, Problem, markdown

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).resolve().parent / "site_templates"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
CAPTION = re.compile(r'\s*<div role="figure" aria-label="[^"]*"><em>(.*)</em></div>\s*', re.S)
GENERATOR = '<meta name="generator" content="make_site.py">'
WIDE = 640                                                 # pixels; wider pictures scroll on a phone instead of shrinking


# -- one notebook ---------------------------------------------------------------------------------------------------------


def local(url: str, folder: Path, root: Path, names: set[str], out: Path) -> str:
    """Where a link leads on the site: to another page, to the copy of a file, or, if it leads out, there.

    folder: what the link is relative to. root: the repository. names: the notebooks' file names. out: the site. Raises Problem.
    """
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return url
    source = (folder / unquote(parts.path)).resolve()
    if source.name in names and source.suffix == ".ipynb":
        return f"{source.stem}.html" + (f"#{parts.fragment}" if parts.fragment else "")
    root = root.resolve()
    if not source.is_file() or not source.is_relative_to(root):
        raise Problem(f"the link {url} leads to no file of the repository; correct it")
    target = out / "files" / source.relative_to(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target.relative_to(out).as_posix()


class Page:
    """One notebook's page. title, question, facts: of its first cell. body: its HTML, after render()."""

    def __init__(self, path: Path, names: set[str], out: Path) -> None:
        self.path, self.names, self.out = path, names, out
        self.files, self.links, self.ids, self.at = 0, [], {None}, ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")            # missing cell ids and the like do no harm here
                self.notebook = nbformat.read(path, as_version=4)
                nbformat.validate(self.notebook)
        except Exception as error:  # bad JSON, bad encoding, not a notebook: nbformat raises errors of many kinds
            raise Problem(f"{path.name} is broken ({' '.join(str(error).split())[:120]}); restore it, or run: make notebooks") from error
        state = self.notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
        self.models = {key: model.get("state", {}) | {"buffers": model.get("buffers", [])} for key, model in state.items()}
        first = self.notebook.cells[0].source if self.notebook.cells else ""
        title, question = re.search(r"^# (.+)$", first, re.M), re.search(r"^\*\*(.+?)\*\*", first, re.M | re.S)
        if not title or not question:
            raise Problem(f"{path.name}: its first cell must hold a title (# …) and a question in bold (**…**); add what is missing")
        facts = re.search(r"\*(About [^*]+)\*", first)
        self.title, self.question, self.facts = title.group(1), question.group(1), facts.group(1) if facts else ""
        self.url = f"{path.stem}.html"

    def render(self) -> None:
        """Make body and write this page's pictures. Raises Problem, which names the notebook and the cell."""
        cells = []
        for number, cell in enumerate(self.notebook.cells, 1):
            try:
                made = {"markdown": self.text, "code": self.code}.get(cell.cell_type, lambda cell: "")(cell)
                checker = Checker(self.out)
                checker.feed(made)
                checker.close()
            except Problem as problem:
                raise Problem(f"{self.path.name}, cell {number}: {problem}") from problem
            self.links += [(number, link) for link in checker.links]
            self.ids |= checker.ids
            cells.append(made)
        self.body = "\n".join(cells)

    def text(self, cell: nbformat.NotebookNode) -> str:
        return markdown(cell.source, self.local)

    def local(self, url: str) -> str:
        return local(url, self.path.parent, self.path.resolve().parents[1], self.names, self.out)

    def picture(self, content: str, suffix: str, alt: str, attributes: str = "") -> tuple[str, bool]:
        """Write base64 content as a file; (<img> that shows it, whether it is wide)."""
        try:
            data = base64.b64decode(content, validate=False)
            width, height = Image.open(io.BytesIO(data)).size
        except (binascii.Error, UnidentifiedImageError, OSError) as error:
            raise Problem("an output's picture is broken; run: make notebooks") from error
        if not alt.strip():
            raise Problem("an output's picture has no alternative text; give show_images or show_figure an alt")
        self.files += 1
        name = f"files/{self.path.stem}/{self.files:03d}.{suffix}"
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        (self.out / name).write_bytes(data)
        return f'<img src="{name}" width="{width}" height="{height}" alt="{html.escape(alt)}"{attributes}>', width > WIDE

    def figure(self, image: str, wide: bool, caption: str = "") -> str:
        under = f"<figcaption>{caption}</figcaption>" if caption else ""
        return f'<figure><div{" class=wide" if wide else ""}>{image}</div>{under}</figure>'

    def code(self, cell: nbformat.NotebookNode) -> str:
        """A code cell and its outputs."""
        if not cell.source.strip() or "install" in cell.metadata.get("tags", []):
            return ""
        if cell.execution_count is None:
            raise Problem("not executed; run: make notebooks")
        parts, outputs, text = [highlight(cell.source, PythonLexer(), HtmlFormatter())], list(cell.outputs), ""
        for i, output in enumerate(outputs):
            if output.output_type == "stream":
                text += output.text
                if i + 1 < len(outputs) and outputs[i + 1].output_type == "stream":
                    continue
                parts.append(self.output(text))
                text = ""
            elif output.output_type == "error":
                if "raises-exception" not in cell.metadata.get("tags", []):
                    raise Problem(f"it ended in an error ({output.ename}: {output.evalue.splitlines()[0] if output.evalue else ''}); "
                                  "correct it and run: make notebooks")
                parts.append(self.output("\n".join(output.traceback)))
            else:
                parts.append(self.rich(output, outputs[i + 1] if i + 1 < len(outputs) else None, outputs[i - 1] if i else None))
        return "\n".join(parts)

    def output(self, text: str) -> str:
        text = "\n".join(line.rsplit("\r", 1)[-1] for line in strip_ansi(text).replace("\r\n", "\n").split("\n")).rstrip()
        return f'<pre class="output">{html.escape(text)}</pre>' if text else ""

    def rich(self, output: nbformat.NotebookNode, following: nbformat.NotebookNode | None, before: nbformat.NotebookNode | None) -> str:
        """A displayed output; a caption that follows a picture goes below it, in the same figure."""
        data = output.data
        if WIDGET_VIEW in data:
            return self.widget(data[WIDGET_VIEW]["model_id"])
        for kind, suffix in PICTURES.items():
            if kind in data:
                image, wide = self.picture(data[kind], suffix, output.metadata.get(kind, {}).get("alt", ""))
                caption = CAPTION.fullmatch((following or {}).get("data", {}).get("text/html", ""))
                return self.figure(image, wide, caption.group(1) if caption else "")
        if "text/html" in data:
            shown = before is not None and CAPTION.fullmatch(data["text/html"]) and set(PICTURES) & set(before.get("data", {}))
            return "" if shown else f'<div class="scroll">{data["text/html"]}</div>'
        if "text/markdown" in data:
            return markdown(data["text/markdown"], self.local)
        if "text/plain" in data:
            return self.output(data["text/plain"])
        raise Problem(f"an output of kind {', '.join(data) or 'nothing'} is unknown here; give it a text or a picture too")

    # -- widgets ----------------------------------------------------------------------------------------------------------

    def model(self, key: str) -> dict:
        key = key.removeprefix("IPY_MODEL_")
        if key not in self.models:
            raise Problem("the state of its slider is not stored; run: make notebooks")
        return self.models[key]

    def children(self, model: dict) -> list[dict]:
        return [self.model(key) for key in model.get("children", [])]

    def inside(self, model: dict) -> list[dict]:
        """All widgets in this one, itself first."""
        return [model, *(deep for child in self.children(model) for deep in self.inside(child))]

    def widget(self, key: str) -> str:
        """A widget of diffusion_lib.lessons as plain HTML; a progress bar is left out, for its run is over."""
        every = self.inside(self.model(key))
        named: dict[str, list[dict]] = {}
        for model in every:
            named.setdefault(model["_model_name"], []).append(model)
        if "TabModel" in named and "SelectionSliderModel" in named:
            return self.frames(named)
        if "ImageModel" in named:
            return self.stored(every, named)
        if "FloatProgressModel" in named or "IntProgressModel" in named or named.keys() <= {"VBoxModel", "HTMLModel"}:
            return ""  # also what TimeLeft said while the cell ran
        raise Problem(f"the widget {every[0]['_model_name']} is unknown here; use those of diffusion_lib.lessons")

    def image(self, model: dict, alt: str, attributes: str = "") -> tuple[str, bool]:
        buffer = next((b["data"] for b in model["buffers"] if b["path"] == ["value"]), "")
        return self.picture(buffer, "jpg" if model["format"] == "jpeg" else model["format"], alt, attributes)

    def frames(self, named: dict[str, list[dict]]) -> str:
        """A FrameSlider: all its pictures, one of them shown; site.js brings it to life."""
        slider, pictures = named["SelectionSliderModel"][0], self.children(named["TabModel"][0])
        values, at, label = slider["_options_labels"], slider["index"], html.escape(slider["description"])
        if len(values) != len(pictures) or not values:
            raise Problem(f"a frame slider has {len(pictures)} pictures for {len(values)} values; run: make notebooks")
        images, wide = [], False
        for i, (value, model) in enumerate(zip(values, pictures, strict=True)):
            alt = model.get("tooltip") or f"{slider['description']} = {value}"
            made, wide = self.image(model, alt, f' data-value="{html.escape(value)}"{"" if i == at else " hidden"}')
            images.append(made)
        longest = min(20, max(map(len, values)))           # the slider keeps its length while the words beside it change
        player = named.get("PlayModel", [None])[0]
        play = f'<button type="button" aria-label="play {label}" data-interval="{player["interval"]}">▶</button>' if player else ""
        controls = (f'<div class="controls" hidden>{play}<label>{label} <input type="range" min="0" max="{len(values) - 1}" value="{at}" '
                    f'autocomplete="off"></label><output style="min-width:{longest}ch">{html.escape(values[at])}</output></div>')
        return f'<figure class="frames">{controls}<div{" class=wide" if wide else ""}>{"".join(images)}</div></figure>'

    def stored(self, every: list[dict], named: dict[str, list[dict]]) -> str:
        """A picture that Python draws: the last one drawn, and, if it has controls, what they said."""
        for status in named.get("HTMLModel", []):
            if status["value"].strip():
                raise Problem(f"its slider shows {re.sub('<[^>]*>', '', status['value'])!r} instead of a picture; run: make notebooks")
        model, said = named["ImageModel"][0], []
        for control in every:
            if control["_model_name"] in ("PlayModel", "ImageModel", "HTMLModel") or "description" not in control:
                continue
            value = control.get("value")
            if "_options_labels" in control:
                value = control["_options_labels"][control["index"]] if control["index"] is not None else "nothing"
            said.append(f"{control['description']} = {f'{value:.4g}' if isinstance(value, float) else value}")
        alt = model.get("tooltip") or "A picture that moves in JupyterLab"
        caption = f"Here {', '.join(said)}. This picture moves in JupyterLab, where Python draws it anew." if said else ""
        return self.figure(*self.image(model, ", ".join([alt, *said])), html.escape(caption))


# -- the site -------------------------------------------------------------------------------------------------------------


def navigation(pages: list[Page], i: int, place: str) -> str:
    """Previous, index, next."""
    def link(page: Page, arrow: str) -> str:
        return f'<a rel="{"prev" if arrow == "←" else "next"}" href="{page.url}">' + (
            f"← {html.escape(page.title)}" if arrow == "←" else f"{html.escape(page.title)} →") + "</a>"

    before = link(pages[i - 1], "←") if i else "<span></span>"
    after = link(pages[i + 1], "→") if i + 1 < len(pages) else "<span></span>"
    return f'<nav class="{place}" aria-label="Notebooks, {place}">{before}<a href="index.html">Index</a>{after}</nav>'


def index(pages: list[Page], readme: Path, out: Path) -> str:
    """The index: the README's title, first paragraph and first picture, then each notebook with its question."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    parts = re.match(r"# (.+)\n+((?:.+\n)+)\n*(!\[.+\]\(.+\))?", text)
    if not parts:
        raise Problem(f"{readme} must begin with a title (# …) and a paragraph: the index begins with them")
    items = []
    for page in pages:
        facts = f'<p class="facts">{html.escape(page.facts)}</p>' if page.facts else ""
        items.append(f'<li><a href="{page.url}">{html.escape(page.title)}</a><p>{html.escape(page.question)}</p>{facts}</li>')
    names = {page.path.name for page in pages}
    made = markdown(f"# {parts.group(1)}\n\n{parts.group(2)}\n\n{parts.group(3) or ''}\n",
                    lambda url: local(url, readme.parent, readme.parent, names, out))
    try:
        Checker(out).feed(made)
    except Problem as problem:
        raise Problem(f"{readme.name}: {problem}") from problem
    return (f'{made}<ol class="series">{"".join(items)}</ol><p class="facts">These pages are the notebooks as they were last run. '
            "To run and change them, open them in JupyterLab: <code>make lab</code>.</p>")


def check_links(pages: list[Page]) -> None:
    """Raise Problem for a link to a place that is not there."""
    ids = {page.url: page.ids for page in pages} | {"index.html": {None}}
    for page in pages:
        for number, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = unquote(parts.path) or page.url
            known = target in ids and (unquote(parts.fragment) or None) in ids[target]
            if not known and not (target not in ids and (page.out / target).is_file()):
                raise Problem(f"{page.path.name}, cell {number}: the link {link} leads nowhere on the site; correct it")


def build(notebooks: Path, out: Path) -> list[Page]:
    """Make the site of all notebooks of a folder. Raises Problem, and then leaves a site that was there as it was."""
    paths = sorted(notebooks.glob("*.ipynb"))
    if not paths:
        raise Problem(f"there are no notebooks in {notebooks}; name their folder with --notebooks")
    old = out / "index.html"
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (old.is_file() and GENERATOR in old.read_text(encoding="utf-8")))):
        raise Problem(f"{out} exists and is no site made here, so it is not overwritten; remove it, or name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        pages = [Page(path, {p.name for p in paths}, new) for path in paths]
        for page in pages:
            page.render()
        check_links(pages)
        template = Template((TEMPLATES / "page.html").read_text(encoding="utf-8"))
        for i, page in enumerate(pages):
            text = template.substitute(title=html.escape(page.title), body=page.body, top=navigation(pages, i, "top"),
                                       bottom=navigation(pages, i, "bottom"))
            (new / page.url).write_text(text, encoding="utf-8")
        body = index(pages, notebooks.resolve().parent / "README.md", new)
        title = re.search(r"<h1[^>]*>(.*?)</h1>", body).group(1)
        (new / "index.html").write_text(template.substitute(title=title, body=body, top="", bottom=""), encoding="utf-8")
        style = HtmlFormatter(style="default").get_style_defs(".highlight")
        (new / "site.css").write_text(f"{style}\n{(TEMPLATES / 'site.css').read_text(encoding='utf-8')}", encoding="utf-8")
        shutil.copyfile(TEMPLATES / "site.js", new / "site.js")
        os.chmod(new, 0o755)                               # mkdtemp's folders are for their owner alone
        if out.exists():
            shutil.rmtree(out)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)             # there only if something went wrong
    return pages


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make static pages of the notebooks.")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="folder of the notebooks")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder for the pages")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        pages = build(options.notebooks, options.out)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.strerror or error} ({error.filename}); free some disk space or check the permissions, and run it again",
              file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"site: {len(pages)} notebooks, {size / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s; open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
