"""Every notebook in JupyterLab in headless Chromium: all cells run, every slider moves its picture
by key and by mouse.

    pytest tests/browser --with-browser

Prints how long a picture takes to follow a key; nothing depends on that time. The notebooks are
copies: the folder stays clean.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
lab = pytest.importorskip(
    "lab", reason="the browser tests need playwright and JupyterLab", exc_type=ImportError)

NOTEBOOKS = sorted(path.name for path in (lab.ROOT / "notebooks").glob("*.ipynb"))
BROKEN = [  # the cells of a notebook with every fault that the walk must notice
    """
from ipywidgets import Image, IntSlider, VBox
from PIL import Image as PILImage
from diffusion_lib.lessons.sliders import live_slider
red = PILImage.new("RGB", (40, 40), "red")
still = live_slider(lambda t: red, 0, 10)
still
""",
    # stretched, without words, tied to nothing
    "VBox([IntSlider(3, 0, 10), Image(value=still.image.value)])",
    "Image(value=still.image.value, tooltip='words')",  # its code in the page fails
    "1 / 0",
    "print('never run')",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Copies of the notebooks and of what they show."""
    root = tmp_path_factory.mktemp("walk")
    for name in ("notebooks", "figures"):
        shutil.copytree(lab.ROOT / name, root / name,
                        ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in BROKEN]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "broken.ipynb")
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator["lab.Browser"]:
    if lab.find_chromium() is None:
        pytest.skip("no browser found: install chromium, run `playwright install chromium`, or set "
                    "CHROMIUM to its path")
    with lab.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(folder, browser) -> Iterator[str]:
    with lab.jupyter_lab(folder, trusted=(folder / "notebooks").glob("*.ipynb")) as address:
        yield address


@pytest.fixture
def opened(browser, address) -> Iterator:
    """opened(path) -> the notebook in a new page; its kernel ends with the test."""
    pages = []

    def open_notebook(path: str) -> "lab.Notebook":
        pages.append(browser.new_page())
        return lab.Notebook(pages[-1], address, path)

    yield open_notebook
    for page in pages:
        page.evaluate("window.panel?.sessionContext.shutdown()")
        page.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_just_opened_has_living_sliders(opened, name) -> None:
    """Nothing has run: frames that were saved with the notebook follow key and mouse."""
    metadata = nbformat.read(lab.ROOT / "notebooks" / name, as_version=4).metadata
    kinds = [model["model_name"] for state in metadata.get("widgets", {}).values()
             for model in state["state"].values()]
    notebook = opened(f"notebooks/{name}")
    moves = [notebook.move(cell, handle, presses=1, limit=1.5)
             for cell in notebook.slider_cells() for handle in notebook.sliders(cell)]
    assert moves, "no slider is shown"
    alive = [move for move in moves if move.by_key and move.by_mouse and not move.live]
    assert len(alive) == kinds.count("TabModel"), "\n".join(map(str, moves))
    assert not notebook.saves


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_walk_through_a_notebook(opened, folder, record_property, name) -> None:
    before = (folder / "notebooks" / name).read_bytes()
    notebook = opened(f"notebooks/{name}")
    assert notebook.run() == []
    moves = []
    for cell in notebook.slider_cells():
        for handle in notebook.sliders(cell):
            moves.append(notebook.move(cell, handle))
            record_property("slider", f"{name} {moves[-1]}")
        for picture in notebook.pictures(cell):
            assert picture["title"], f"cell {cell}: a picture without words"
            stretched = f"cell {cell}: a picture stretched to {picture['width']} pixels"
            assert picture["width"] <= picture["natural"], stretched
    assert moves, "no slider"
    still = [str(move) for move in moves if not (move.by_key and move.by_mouse)]
    assert not still, "\n".join(still)
    assert not notebook.saves and (folder / "notebooks" / name).read_bytes() == before


def test_the_walk_notices_what_is_wrong(opened) -> None:
    notebook = opened("broken.ipynb")
    errors = dict(notebook.run())
    assert set(errors) == {2, 3, 4}
    assert "cannot be shown" in errors[2] and "ZeroDivisionError" in errors[3]
    assert errors[4] == "did not run" and notebook.slider_cells() == [0, 1, 2]
    for cell in (0, 1):  # a picture that stays as it is; one tied to nothing
        (handle,) = notebook.sliders(cell)
        move = notebook.move(cell, handle, 2, limit=2)
        assert not (move.by_key or move.by_mouse)
    (picture,) = notebook.pictures(1)
    assert picture["title"] == "" and picture["width"] > picture["natural"]


def test_a_lost_answer_is_asked_for_again(opened) -> None:
    """Once; a page that waits for cells although the kernel is free is an error the second time."""
    lose = """times => {
        const execute = jupyterapp.commands.execute.bind(jupyterapp.commands);
        jupyterapp.commands.execute = (id, ...rest) =>
            id === 'notebook:run-all-cells' && times-- > 0 ? new Promise(() => {})
                                                          : execute(id, ...rest);
    }"""
    notebook = opened("broken.ipynb")
    notebook.page.evaluate(lose, 1)
    assert set(dict(notebook.run(quiet=3))) == {2, 3, 4}  # as without
    notebook.page.evaluate(lose, 2)
    with pytest.raises(RuntimeError, match="nothing to do, but cells are waited for"):
        notebook.run(quiet=3)
