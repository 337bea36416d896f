"""The static pages of .ci/make_site.py: of the real notebooks, and of small ones made here."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import ipywidgets
import nbformat
import pytest
from bs4 import BeautifulSoup
from make_site import build, main
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from site_html import Problem, mathml

from diffusion_lib.lessons.sliders import frame_slider, live_panel, live_slider

ROOT = Path(__file__).resolve().parents[1]
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def read(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def shown_bytes(image) -> bytes:
    """What an <img> of an output shows: it is in the page itself."""
    return base64.b64decode(image["src"].partition(";base64,")[2])


def check_offline(site: Path) -> None:
    """Nothing is loaded from outside; pictures say what they show; links lead somewhere."""
    pages = {path.name: read(path) for path in site.glob("*.html")}
    for name, page in pages.items():
        for tag in page.find_all(True):
            keys = ("src", "srcset", "data", "poster", "action", *["href"] * (tag.name != "a"))
            for address in filter(None, map(tag.get, keys)):
                parts = urlsplit(address)
                inside = not parts.scheme + parts.netloc and (site / unquote(parts.path)).is_file()
                assert parts.scheme == "data" or inside, f"{name}: <{tag.name}> loads {address}"
            assert not re.search("url|import", tag.get("style", ""))
            assert tag.name != "img" or tag["alt"].strip(), f"{name}: a picture says nothing"
        for link in page.find_all("a", href=True):
            parts = urlsplit(link["href"])
            target, place = unquote(parts.path) or name, unquote(parts.fragment)
            if not parts.scheme:
                assert (site / target).is_file(), f"{name}: {link['href']} leads nowhere"
                ids = {unquote(tag["id"]) for tag in pages[target].find_all(id=True)}
                assert not place or place in ids, f"{name}: {link['href']} leads nowhere"
    assert not re.search(r"url\(|@import|https?:|fetch",
                         (site / "site.css").read_text() + (site / "site.js").read_text())


# -- the real notebooks ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "site"
    assert build(ROOT / "notebooks", out) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    return out


@pytest.fixture(scope="module")
def notebooks() -> dict[str, dict]:
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {f"{path.stem}.html": json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_real_pages_are_offline_and_one_leads_to_the_next(site, notebooks):
    check_offline(site)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 20e6
    names, start = list(notebooks), read(site / "index.html")
    assert [a["href"] for a in start.select(".series a")] == names
    assert start.find("a", class_="begin")["href"] == names[0]
    assert ("catfaces128.webp" in str(start)) == (ROOT / "figures/catfaces128.webp").is_file()
    for item, notebook in zip(start.select(".series li"), notebooks.values(), strict=True):
        question, time = (p.get_text() for p in item.find_all("p"))
        first = "".join(notebook["cells"][0]["source"])
        assert f"**{question}**" in first and f"*{time}*" in first
    for i, name in enumerate(names):
        expected = [*names[max(0, i - 1):i], "index.html", *names[i + 1:i + 2]]
        for nav in (navs := read(site / name).find_all("nav")):
            assert [a["href"] for a in nav.find_all("a")] == expected
        assert len(navs) == 2


def test_real_pages_hold_every_part_of_the_notebooks(site, notebooks):
    for name, notebook in notebooks.items():
        page, cells = read(site / name), notebook["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
        assert [block.get_text().strip() for block in page.select(".cell > .highlight")] == [
            "".join(cell["source"]).strip() for cell in code
            if "install" not in cell["metadata"].get("tags", [])]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        said = "".join(block.get_text() for block in page.select("pre.output"))
        for output in outputs:
            for line in "".join(output.get("text", "")).splitlines():
                assert line.split("\r")[-1].rstrip() in said, f"{name}: {line}"
        wanted = [output["metadata"]["image/png"]["alt"] for output in outputs
                  if "image/png" in output.get("data", {})]
        alts = [image["alt"] for image in page.select("figure:not(.frames) img")]
        assert [alt for alt in alts if alt in wanted] == wanted
        models = notebook["metadata"].get("widgets", {}).get(STATE, {"state": {}})["state"]
        sliders = [model for model in models.values() if model["model_name"] == "TabModel"]
        assert len(page.select(".frames")) == len(sliders), name
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert len(page.find_all("details", open=False)) == text.count("<details>")
        formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$",
                              re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S), flags=re.S)
        assert len(page.find_all("math")) == len(formulas)
        for verbatim in page.find_all(["code", "pre"]):
            verbatim.clear()
        assert not re.search(r"[$\\]", page.main.get_text())


# -- small notebooks -------------------------------------------------------------------------------


def picture(shade: int = 0, width: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 3), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def png(alt: str | None = "Red.", content: bytes = picture()) -> nbformat.NotebookNode:
    data = {"image/png": base64.b64encode(content).decode(), "text/plain": "Red."}
    metadata = {} if alt is None else {"image/png": {"alt": alt}}
    return new_output("display_data", data, metadata=metadata)


def ran(*outputs: nbformat.NotebookNode, source: str = "show()") -> nbformat.NotebookNode:
    return new_code_cell(source, outputs=list(outputs), execution_count=1)


def shown(widget: ipywidgets.Widget) -> nbformat.NotebookNode:
    data = {VIEW: {"model_id": widget.model_id}, "text/plain": repr(widget)}
    return ran(new_output("execute_result", data, execution_count=1))


@pytest.fixture
def series(tmp_path):
    """series(*cells) puts a notebook into a small repository; run() builds its site."""
    for folder in ("notebooks", "figures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "figures" / "cat.png").write_bytes(picture(200))
    (tmp_path / "README.md").write_text("# The course\n\n<!-- x -->\n\nOne [site](notebooks/"
                                        "01_first.ipynb),\ntwo lines.\n\nMore.\n")

    def write(*cells, name="01_first.ipynb", widgets=False):
        head = "# 1 · First\n\n**Why is it so?**\n\nText. *About 5 minutes to read, 1 to run.*"
        notebook = new_notebook(cells=[new_markdown_cell(head), *cells])
        if widgets:
            notebook.metadata["widgets"] = {STATE: ipywidgets.Widget.get_manager_state()}
        nbformat.write(notebook, tmp_path / "notebooks" / name)
        return tmp_path / "notebooks"

    write.site = tmp_path / "site"
    write.run = lambda: main(["--notebooks", str(tmp_path / "notebooks"), "--out", str(write.site)])
    write.page = lambda name="01_first.html": read(write.site / name)
    return write


def test_pictures_captions_links_and_solutions(series):
    note = '<div role="figure" aria-label="Red."><em>A <b>red</b> one.</em></div>'
    said = [new_output("stream", name="stdout", text=text)
            for text in ("half\r", "done \x1b[31mred\x1b[0m <b>\n")]
    series(ran(png("A red box & more."), new_output("display_data", {"text/html": note}), *said),
           new_markdown_cell("## A part of it\n\nSee [2](02_second.ipynb#Its-end), "
                             "[above](#A-part-of-it), [paper](https://example.org/a).\n\n"
                             "![Cat](../figures/cat.png)\n\n<details><summary>Solution</summary>\n"
                             "\n```python\nx = 1\n```\n\nSo $x$.\n</details>"),
           ran(png(content=picture(width=900))))
    series(new_markdown_cell("## Its end\n\n| a | b |\n|---|---|\n| $p \\mid q$ | `$c$` |"),
           name="02_second.ipynb")
    assert series.run() == 0
    check_offline(series.site)
    page, other = series.page(), series.page("02_second.html")
    figure = page.find("figure")
    assert figure.img["alt"] == "A red box & more." and shown_bytes(figure.img) == picture()
    assert (figure.img["width"], figure.img["height"]) == ("4", "3")
    assert figure.figcaption.decode_contents() == "A <b>red</b> one."
    assert [block.get_text() for block in page.select("pre.output")] == ["done red <b>"]
    links = [a["href"] for a in page.main.find_all("a") if "anchor-link" not in a.get("class", [])]
    assert links == ["02_second.html#Its-end", "#A-part-of-it", "https://example.org/a"]
    assert (series.site / page.find("img", alt="Cat")["src"]).read_bytes() == picture(200)
    assert page.details.math and page.details.find(class_="highlight")
    assert [tag.img["width"] for tag in page.select(".wide")] == ["900"]
    assert other.td.math.get_text() == "p∣q" and other.select("td code")[0].get_text() == "$c$"
    start = series.page("index.html")
    assert "The course" in start.h1.get_text() and "More" not in start.get_text()
    assert "About 5 minutes to read, 1 to run." in start.get_text() and not start.img


def test_sliders_become_plain_html_or_a_picture_and_a_progress_bar_nothing(series):
    frames = [picture(shade) for shade in (10, 20, 30)]
    slider = frame_slider(frames, [0, "five & six", 999], "t", ["none", "some", "all"], value=999)
    still = frame_slider(frames[:2], [1, 2], "k", play=False)
    live = live_slider(lambda t: picture(t), 0, 200, 150)
    panel = live_panel(lambda beta, kind: picture(7),
                       {"beta": (0.0, 1.0, 0.25), "kind": ["linear", "cosine"]})
    bar = ipywidgets.HBox([ipywidgets.HTML("training"), ipywidgets.FloatProgress(value=5)])
    series(*map(shown, (slider, still, live, panel, bar)), widgets=True)
    assert series.run() == 0
    check_offline(series.site)
    one, two, three, four = series.page().find_all("figure")
    images = one.find_all("img")
    assert [image["alt"] for image in images] == ["none", "some", "all"]
    assert [image["data-value"] for image in images] == ["0", "five & six", "999"]
    assert [image.has_attr("hidden") for image in images] == [True, True, False]
    assert list(map(shown_bytes, images)) == frames
    assert (one.input["max"], one.input["value"]) == ("2", "2") and one.button
    assert one.label.get_text().strip() == "t" and two.button is None
    assert [image["alt"] for image in two.find_all("img")] == ["k = 1", "k = 2"]
    assert [shown_bytes(each.img) for each in (three, four)] == [picture(150), picture(7)]
    assert three.img["alt"] == "Slider over t (0 to 200), t = 150"
    assert "JupyterLab" in three.figcaption.get_text()
    assert "beta = 0.25, kind = linear" in four.img["alt"]
    assert "training" not in series.page().get_text()


def test_formulas_become_mathml_that_browsers_draw_right():
    tex = r"x_t = \sqrt{\bar\alpha_t}\,x_0 + \frac{a}{\sqrt{1-\bar\alpha_t}}\!\varepsilon"
    made = BeautifulSoup(mathml(tex, display=True), "html.parser")
    assert made.math["display"] == "block" and made.msqrt.get_text() == "α¯t"
    assert made.mfrac.msqrt.get_text() == "1−α¯t" and made.msub.get_text() == "xt"
    assert not made.mover.has_attr("accent")  # it would touch the letter
    assert "-0.167em" in str(made) and "negativethin" not in str(made)
    assert "<mi>conv</mi>" in mathml(r"\mathrm{conv}(x)")
    assert len(BeautifulSoup(mathml(r"\log_{2} x"), "html.parser").msub.find_all("mspace")) == 0
    row = BeautifulSoup(mathml(r"\cos \omega_0 t + \cos(x)"), "html.parser").mrow
    tags = [tag.name for tag in row.find_all(True, recursive=False)]
    assert tags == ["mi", "mspace", "msub", "mi", "mo", "mi", "mo", "mi", "mo"]


@pytest.mark.parametrize("tex", [r"\foo x", r"\frac{a", r"\left( x", "x^", "x_a_b", "a & b", "a}",
                                 r"\begin{cases} 1"])
def test_a_formula_that_cannot_be_done_is_named(tex, refuses):
    with refuses(Problem, repr(tex)):
        mathml(tex)


def html_output(text: str) -> nbformat.NotebookNode:
    return ran(new_output("display_data", {"text/html": text}))


@pytest.mark.parametrize("cell, words", [
    (new_code_cell("1 + 1"), "not executed; run: make notebooks"),
    (ran(new_output("error", ename="ZeroDivisionError", evalue="division by zero")),
     "ZeroDivisionError: division by zero"),
    (ran(png(None)), "no alternative text"),
    (new_markdown_cell("![](../figures/cat.png)"), "no alternative text"),
    (new_markdown_cell('<img src="../figures/cat.png">'), "no alternative text"),
    (ran(png(content=b"hello")), "is broken"),
    (new_markdown_cell("![Cat](../figures/dog.png)"), "../figures/dog.png"),
    (new_markdown_cell("[it](../../x.txt)"), "../../x.txt"),
    (new_markdown_cell("[9](09_ninth.ipynb)"), "09_ninth.ipynb"),
    (new_markdown_cell("![Cat](https://example.org/cat.png)"), "https://example.org/cat.png"),
    (new_markdown_cell('<img alt="Cat" src="//example.org/cat.png">'), "//example.org/cat.png"),
    (html_output("<script>1</script>"), "<script>"),
    (new_markdown_cell('<p style="background: url(x.png)">x</p>'), "<p>"),
    (new_markdown_cell("Here: $\\foo$."), "the formula '\\\\foo'"),
    (ran(new_output("display_data", {"application/pdf": "x"})), "application/pdf"),
    (ran(new_output("display_data", {VIEW: {"model_id": "abc"}})), "is not stored"),
    (shown(ipywidgets.Button()), "ButtonModel"),
])
def test_a_bad_cell_ends_in_one_line_that_names_it(cell, words, series, capsys):
    series(cell, widgets="Button" in words)
    assert series.run() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 01_first.ipynb, cell 2: ") and words in said
    assert said.count("\n") == 1 and len(said) < 400 and not series.site.exists()


def test_broken_files_and_folders_end_in_one_line_and_an_old_site_stays(series, capsys):
    assert series.run() == 1 and "no notebooks" in capsys.readouterr().err
    folder = series(ran())
    assert series.run() == 0 and capsys.readouterr().out.startswith("site: 1 notebooks")
    before = sorted(series.site.rglob("*"))
    (folder / "02.ipynb").write_text("{")
    for content, words in [("{", "is broken"), ("[]", "is broken"), ('{"cells": 3}', "is broken"),
                           ("", "is broken"), (nbformat.writes(new_notebook()), "a question")]:
        (folder / "02.ipynb").write_text(content)
        assert series.run() == 1
        said = capsys.readouterr().err
        assert "02.ipynb" in said and words in said and said.count("\n") == 1
    assert sorted(series.site.rglob("*")) == before
    (folder / "02.ipynb").unlink()
    (series.site / "old.html").write_text("left over")
    assert series.run() == 0 and sorted(series.site.rglob("*")) == before
    (series.site / "index.html").write_text("somebody's own page")
    assert series.run() == 1 and "is not overwritten" in capsys.readouterr().err
    assert (series.site / "index.html").read_text() == "somebody's own page"
    shutil.rmtree(series.site)
    (folder.parent / "README.md").write_text("nothing")
    assert series.run() == 1 and "README.md must begin" in capsys.readouterr().err
