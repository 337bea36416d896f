"""The static pages of .ci/make_site.py: of the real notebooks, and of small ones made here, good and broken."""

import base64
import io
import json
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import ipywidgets
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from diffusion_lib.lessons.sliders import frame_slider, live_panel, live_slider

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
from make_site import build, main  # noqa: E402
from site_html import Problem, mathml  # noqa: E402

VIEW, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def picture(shade: int = 0, width: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 3), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def png(alt: str | None = "Red.", width: int = 4) -> nbformat.NotebookNode:
    data = {"image/png": base64.b64encode(picture(width=width)).decode(), "text/plain": "Red."}
    return new_output("display_data", data, metadata={"image/png": {"alt": alt}} if alt is not None else {})


def ran(source: str = "1 + 1", outputs: tuple = (), **options: object) -> nbformat.NotebookNode:
    return new_code_cell(source, outputs=list(outputs), execution_count=1, **options)


def shown(widget: ipywidgets.Widget) -> nbformat.NotebookNode:
    return new_output("display_data", {VIEW: {"model_id": widget.model_id}, "text/plain": repr(widget)})


def deep(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *(w for child in getattr(widget, "children", ()) for w in deep(child))]


@pytest.fixture
def series(tmp_path):
    """write(*cells, name="01_first.ipynb", widgets=()) puts a notebook into a small repository; write.run() builds its site."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "cat.png").write_bytes(picture(200))
    (tmp_path / "README.md").write_text("# The course\n\nOne paragraph,\ntwo lines.\n\n![A cat](figures/cat.png)\n\nMore.\n")

    def write(*cells, name="01_first.ipynb", widgets=()):
        first = new_markdown_cell("# 1 · First\n\n**Why is it so?**\n\nText. *About 5 minutes to read.*")
        notebook = new_notebook(cells=[first, *cells])
        every = {w.model_id for widget in widgets for w in deep(widget)}
        if widgets:
            state = ipywidgets.Widget.get_manager_state()
            state["state"] = {key: value for key, value in state["state"].items() if key in every}
            notebook.metadata["widgets"] = {STATE: state}
        nbformat.write(notebook, tmp_path / "notebooks" / name)
        return tmp_path

    write.run = lambda: main(["--notebooks", str(tmp_path / "notebooks"), "--out", str(tmp_path / "site")])
    write.page = lambda name="01_first.html": read(tmp_path / "site" / name)
    write.site = tmp_path / "site"
    return write


# -- the real notebooks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "site"
    build(ROOT / "notebooks", out)
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path.name: read(path) for path in site.glob("*.html")}


@pytest.fixture(scope="module")
def notebooks():
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def widget_models(notebook: dict) -> dict[str, dict]:
    return notebook["metadata"].get("widgets", {}).get(STATE, {"state": {}})["state"]


def shown_stacks(notebook: dict) -> list[dict]:
    """Models of the frame sliders that cells show, in order."""
    models = widget_models(notebook)
    views = [output["data"][VIEW]["model_id"] for cell in notebook["cells"] for output in cell.get("outputs", [])
             if VIEW in output.get("data", {})]
    children = [models[child.removeprefix("IPY_MODEL_")] for view in views for child in models[view]["state"].get("children", [])]
    return [child for child in children if child["model_name"] == "TabModel"]


def check_offline(site: Path) -> None:
    """Nothing that a page loads lies outside its folder; every picture says what it shows; every link leads somewhere."""
    pages = {path.name: read(path) for path in site.glob("*.html")}
    for name, page in pages.items():
        loaded = [(tag.name, tag.get(key)) for tag in page.find_all(True) for key in ("src", "srcset", "href", "data", "poster", "action")
                  if tag.get(key) and not (tag.name == "a" and key == "href")]
        for tag, address in loaded:
            parts = urlsplit(address)
            assert parts.scheme in ("", "data") and not parts.netloc, f"{name}: <{tag}> loads {address}"
            assert parts.scheme == "data" or (site / unquote(parts.path)).is_file(), f"{name}: {address} is not there"
        assert not page.find_all(style=re.compile("url|import"))
        for image in page.find_all("img"):
            assert image.get("alt", "").strip(), f"{name}: {image['src']} has no alternative text"
        for link in page.find_all("a", href=True):
            parts = urlsplit(link["href"])
            if parts.scheme:
                continue
            target = unquote(parts.path) or name
            assert (site / target).is_file(), f"{name}: {link['href']} leads nowhere"
            assert not parts.fragment or pages[target].find(id=unquote(parts.fragment)), f"{name}: {link['href']} leads nowhere"
    assert not re.search(r"url\(|@import|http", (site / "site.css").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|fetch|import", (site / "site.js").read_text(encoding="utf-8"))


def test_real_pages_are_offline_and_small(site):
    check_offline(site)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 10e6


def test_real_navigation_and_index(pages, notebooks):
    names = [f"{stem}.html" for stem in notebooks]
    assert [a["href"] for a in pages["index.html"].select(".series a")] == names
    questions = [p.get_text() for p in pages["index.html"].select(".series li p:not(.facts)")]
    for question, notebook in zip(questions, notebooks.values(), strict=True):
        assert question.endswith("?") and f"**{question}**" in "".join(notebook["cells"][0]["source"])
    for i, name in enumerate(names):
        for nav in pages[name].find_all("nav"):
            expected = [*names[max(0, i - 1):i], "index.html", *names[i + 1:i + 2]]
            assert [a["href"] for a in nav.find_all("a")] == expected
        assert len(pages[name].find_all("nav")) == 2


def test_real_pages_hold_every_part_of_the_notebooks(pages, notebooks):
    for stem, notebook in notebooks.items():
        page = pages[f"{stem}.html"]
        code = [block.get_text().strip() for block in page.select("main > .highlight")]
        shown = [c for c in notebook["cells"] if c["cell_type"] == "code" and "install" not in c["metadata"].get("tags", [])]
        assert code == [source for c in shown if (source := "".join(c["source"]).strip())]
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        said = "".join(block.get_text() for block in page.select("pre.output"))
        for output in outputs:
            for line in "".join(output.get("text", "")).splitlines():
                assert line.split("\r")[-1].rstrip() in said, f"{stem}: {line}"
        wanted = [output["metadata"]["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})]
        figures = [figure.img["alt"] for figure in page.select("figure:not(.frames)")]
        assert [alt for alt in figures if alt in wanted] == wanted
        captions = [cap for output in outputs for cap in re.findall("<em>.*?</em>", "".join(output.get("data", {}).get("text/html", "")))]
        assert len(captions) <= len(page.find_all("figcaption"))
        markdown = "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        assert len(page.find_all("details", open=False)) == markdown.count("<details>")


def test_real_formulas_are_all_converted(pages, notebooks):
    for stem, notebook in notebooks.items():
        count = 0
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = re.sub(r"```.*?```|`[^`]*`", "", "".join(cell["source"]), flags=re.S)
                count += len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, flags=re.S))
        page = pages[f"{stem}.html"]
        assert len(page.find_all("math")) == count
        for tag in page.find_all(["code", "pre"]):
            tag.extract()
        assert "$" not in page.main.get_text() and "\\" not in page.main.get_text()


def test_real_frame_sliders_have_all_frames(site, notebooks):
    assert sum(len(shown_stacks(notebook)) for notebook in notebooks.values()) >= 3
    for stem, notebook in notebooks.items():
        models, sliders = widget_models(notebook), read(site / f"{stem}.html").select("figure.frames")
        for slider, stack in zip(sliders, shown_stacks(notebook), strict=True):
            frames = [models[child.removeprefix("IPY_MODEL_")] for child in stack["state"]["children"]]
            images = slider.find_all("img")
            assert [(site / image["src"]).read_bytes() for image in images] == [base64.b64decode(f["buffers"][0]["data"]) for f in frames]
            assert slider.input["type"] == "range" and (slider.input["min"], slider.input["max"]) == ("0", str(len(frames) - 1))
            assert [i for i, image in enumerate(images) if not image.has_attr("hidden")] == [stack["state"]["selected_index"]]
            assert int(slider.input["value"]) == stack["state"]["selected_index"]
            assert slider.output.get_text() == images[stack["state"]["selected_index"]]["data-value"]


# -- small notebooks ------------------------------------------------------------------------------------------------------


def test_pictures_captions_links_and_solutions(series):
    caption = new_output("display_data", {"text/html": '<div role="figure" aria-label="Red."><em>A <b>red</b> one.</em></div>'})
    series(ran("show()", [png("A red box & more."), caption, new_output("stream", name="stdout", text="half\r"),
                          new_output("stream", name="stdout", text="done \x1b[31mred\x1b[0m <b>\n")]),
           new_markdown_cell("## A part of it\n\nSee [2](02_second.ipynb#Its-end), [above](#A-part-of-it), [paper](https://example.org/a).\n\n"
                             "![Cat](../figures/cat.png)\n\n<details><summary>Solution</summary>\n\n```python\nx = 1\n```\n</details>"),
           ran("wide()", [png(width=900)]))
    series(new_markdown_cell("## Its end\n\n| a | b |\n|---|---|\n| $p \\mid q$ | `c` |"), name="02_second.ipynb")
    assert series.run() == 0
    check_offline(series.site)
    page = series.page()
    figure = page.find("figure")
    assert figure.img["alt"] == "A red box & more." and (figure.img["width"], figure.img["height"]) == ("4", "3")
    assert figure.figcaption.decode_contents() == "A <b>red</b> one." and len(page.find_all("figcaption")) == 1
    assert (series.site / figure.img["src"]).read_bytes() == picture()
    assert [block.get_text() for block in page.select("pre.output")] == ["done red <b>"]
    assert [a["href"] for a in page.main.find_all("a")] == ["02_second.html#Its-end", "#A-part-of-it", "https://example.org/a"]
    assert (series.site / page.find("img", alt="Cat")["src"]).read_bytes() == picture(200)
    assert page.details.find(class_="highlight") and not page.details.has_attr("open")
    assert [tag.img["width"] for tag in page.select(".wide")] == ["900"]
    assert series.page("02_second.html").td.math.get_text() == "p∣q"
    assert page.find("span", class_="n").get_text() == "show"
    index = series.page("index.html")
    assert index.h1.get_text() == "The course" and index.img["alt"] == "A cat" and "More" not in index.get_text()
    assert "About 5 minutes to read." in index.get_text()


def test_frame_slider_as_plain_html(series):
    frames = [picture(shade) for shade in (10, 20, 30)]
    slider = frame_slider(frames, [0, "five & six", 999], "t", captions=["none", "some", "all"], value=999)
    still = frame_slider(frames[:2], [1, 2], "k", play=False)
    series(ran("slider", [shown(slider)]), ran("still", [shown(still)]), widgets=[slider, still])
    assert series.run() == 0
    check_offline(series.site)
    one, two = series.page().select("figure.frames")
    assert [image["alt"] for image in one.find_all("img")] == ["none", "some", "all"]
    assert [image["data-value"] for image in one.find_all("img")] == ["0", "five & six", "999"]
    assert [image.has_attr("hidden") for image in one.find_all("img")] == [True, True, False]
    assert [(series.site / image["src"]).read_bytes() for image in one.find_all("img")] == frames
    assert one.input["max"] == "2" and one.input["value"] == "2" and one.label.get_text().strip() == "t" and one.button
    assert two.button is None and two.input["value"] == "0" and [i["alt"] for i in two.find_all("img")] == ["k = 1", "k = 2"]


def test_what_needs_python_is_a_picture_and_a_progress_bar_is_nothing(series):
    live = live_slider(lambda t: picture(t), 0, 200, 150)
    panel = live_panel(lambda beta, kind: picture(7), {"beta": (0.0, 1.0, 0.25), "kind": ["linear", "cosine"]})
    bar = ipywidgets.HBox([ipywidgets.HTML("training: 100%"), ipywidgets.FloatProgress(value=5), ipywidgets.HTML("5/5")])
    series(ran("live", [shown(live)]), ran("panel", [shown(panel)]), ran("train()", [shown(bar)]), widgets=[live, panel, bar])
    assert series.run() == 0
    figures = series.page().find_all("figure")
    assert [(series.site / figure.img["src"]).read_bytes() for figure in figures] == [picture(150), picture(7)]
    assert figures[0].img["alt"] == "Slider over t (0 to 200), t = 150" and "JupyterLab" in figures[0].figcaption.get_text()
    assert "beta = 0.25, kind = linear" in figures[1].img["alt"]
    assert not series.page().find("input") and "5/5" not in series.page().get_text() and "training" not in series.page().get_text()


def test_formulas_become_mathml():
    tex = r"x_t = \sqrt{\bar\alpha_t}\,x_0 + \frac{a}{\sqrt{1-\bar\alpha_t}}\!\varepsilon"
    made = BeautifulSoup(mathml(tex, display=True), "html.parser")
    assert made.math["display"] == "block" and [t.name for t in made.msqrt.find_all(True)] == ["mrow", "msub", "mover", "mi", "mo", "mi"]
    assert made.msqrt.get_text() == "α¯t" and made.mfrac.msqrt.get_text() == "1−α¯t" and made.msub.get_text() == "xt"
    assert not made.mover.has_attr("accent")                              # it would touch the letter
    assert "-0.167em" in str(made) and "negativethin" not in str(made)
    assert BeautifulSoup(mathml(r"\mathrm{conv}(x)"), "html.parser").mi.get_text() == "conv"
    made = BeautifulSoup(mathml(r"\cos \omega_0 t + \cos(x)"), "html.parser").math.mrow
    assert [tag.name for tag in made.find_all(True, recursive=False)] == ["mi", "mspace", "msub", "mi", "mo", "mi", "mo", "mi", "mo"]


@pytest.mark.parametrize("tex", [r"\foo x", r"\frac{a", r"\left( x", "x^", "x_a_b", "a & b", "a}", r"\begin{cases} 1"])
def test_formula_that_cannot_be_done_is_named(tex, refuses, series, capsys):
    with refuses(Problem, repr(tex), "TeX" if tex[-1] not in "a}" or "cases" in tex else "correct"):
        mathml(tex)
    series(new_markdown_cell(f"Here: ${tex}$."), name="07_seventh.ipynb")
    assert series.run() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 07_seventh.ipynb, cell 2: ") and repr(tex) in said and said.count("\n") == 1


BAD = {
    "not executed": ([new_code_cell("1 + 1")], "cell 2: not executed; run: make notebooks"),
    "an error": ([ran("1 / 0", [new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=["…"])])],
                 "ZeroDivisionError: division by zero"),
    "no alternative text": ([ran("show()", [png(None)])], "no alternative text"),
    "empty alternative text": ([new_markdown_cell("![](../figures/cat.png)")], "no alternative text"),
    "broken picture": ([ran("show()", [new_output("display_data", {"image/png": "aGVsbG8="}, metadata={"image/png": {"alt": "x"}})])],
                       "picture is broken"),
    "missing file": ([new_markdown_cell("![Cat](../figures/dog.png)")], "../figures/dog.png"),
    "file outside": ([new_markdown_cell("[it](../../x.txt)")], "../../x.txt"),
    "missing notebook": ([new_markdown_cell("[9](09_ninth.ipynb)")], "09_ninth.ipynb"),
    "missing place": ([new_markdown_cell("[up](#Nowhere)")], "#Nowhere"),
    "outside picture": ([new_markdown_cell("![Cat](https://example.org/cat.png)")], "https://example.org/cat.png"),
    "outside picture in HTML": ([new_markdown_cell('<img alt="Cat" src="//example.org/cat.png">')], "//example.org/cat.png"),
    "script": ([ran("show()", [new_output("display_data", {"text/html": "<script>1</script>"})])], "<script>"),
    "style": ([new_markdown_cell('<p style="background: url(x.png)">x</p>')], "<p>"),
    "formula in HTML": ([new_markdown_cell("<div>\n$x_t$\n</div>")], "$x_t$"),
    "unknown output": ([ran("show()", [new_output("display_data", {"application/pdf": "x"})])], "application/pdf"),
    "widget without state": ([ran("w", [new_output("display_data", {VIEW: {"model_id": "abc"}})])], "is not stored; run: make notebooks"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_notebook_ends_in_one_line(what, series, capsys):
    cells, words = BAD[what]
    series(*cells)
    assert series.run() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 01_first.ipynb, cell 2: ") and words in said and said.count("\n") == 1 and len(said) < 400
    assert not series.site.exists() and [p.name for p in series.site.parent.iterdir() if p.name.startswith(".")] == []


def test_bad_widgets_end_in_one_line(series, capsys):
    slider = frame_slider([picture(1), picture(2)], [0, 1])
    slider.pages.children = slider.pages.children[:1]
    series(ran("slider", [shown(slider)]), widgets=[slider])
    assert series.run() == 1 and "1 pictures for 2 values" in capsys.readouterr().err
    live = live_slider(lambda t: picture(t), 0, 9)
    live.status.value = "<b>ValueError: no</b>"
    series(ran("live", [shown(live)]), widgets=[live])
    assert series.run() == 1 and "'ValueError: no'" in capsys.readouterr().err
    button = ipywidgets.Button()
    series(ran("button", [shown(button)]), widgets=[button])
    assert series.run() == 1 and "ButtonModel" in capsys.readouterr().err


def test_broken_files_and_folders_end_in_one_line(series, capsys):
    assert series.run() == 1 and "no notebooks" in capsys.readouterr().err
    folder = series(ran()) / "notebooks"
    assert series.run() == 0 and capsys.readouterr().out.startswith("site: 1 notebooks, 0.0 MB")
    before = sorted(path.relative_to(series.site) for path in series.site.rglob("*"))
    for content, words in [("{", "is broken"), ("[]", "is broken"), ('{"cells": 3}', "is broken"), ("", "is broken")]:
        (folder / "02_second.ipynb").write_text(content)
        assert series.run() == 1
        said = capsys.readouterr().err
        assert "02_second.ipynb" in said and words in said and said.count("\n") == 1
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 2 · Second\n\nNo question.")]), folder / "02_second.ipynb")
    assert series.run() == 1 and "a question in bold" in capsys.readouterr().err
    assert sorted(path.relative_to(series.site) for path in series.site.rglob("*")) == before      # the old site is still there
    (folder / "02_second.ipynb").unlink()
    (series.site / "old.html").write_text("left over")
    assert series.run() == 0 and not (series.site / "old.html").exists()
    (series.site / "index.html").write_text("somebody's own page")
    assert series.run() == 1 and "is not overwritten" in capsys.readouterr().err
    assert (series.site / "index.html").read_text() == "somebody's own page"
