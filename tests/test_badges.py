"""The notebooks start elsewhere too: their first cell installs a library that is missing, and
`make badges` names where it lies.
"""

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import badges
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def install_cell(path: Path) -> nbformat.NotebookNode:
    """The first code cell, which must be the only one tagged so."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tagged = [i for i, cell in enumerate(code) if "install" in cell.metadata.get("tags", [])]
    assert tagged == [0], path.name
    return code[0]


def run(source: str, monkeypatch: pytest.MonkeyPatch, missing: bool) -> list[str]:
    """Run a cell as IPython does; returns what %pip was asked for."""
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: asked.append(f"{name} {line}"))
    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: (
            None if missing and name == "diffusion_lib" else found(name)))
        names: dict = {"get_ipython": lambda: shell}
        exec(TransformerManager().transform_cell(source), names)
    # IPython fills {source} from the names of the cell
    texts = {name: value for name, value in names.items() if isinstance(value, str)}
    return [line.format(**texts) for line in asked]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_is_the_same_everywhere_and_out_of_the_way(path: Path) -> None:
    cell = install_cell(path)
    assert cell.source == install_cell(NOTEBOOKS[0]).source
    assert cell.metadata["jupyter"]["source_hidden"]
    assert cell.execution_count == 1 and cell.outputs == []


def test_a_missing_library_is_installed_from_around_the_notebook_or_where_it_was_published(
        monkeypatch, tmp_path: Path) -> None:
    source = install_cell(NOTEBOOKS[0]).source
    monkeypatch.chdir(ROOT / "notebooks")
    assert run(source, monkeypatch, missing=False) == []
    (line,) = run(source, monkeypatch, missing=True)
    assert line == f'pip install --quiet "diffusion-notebooks[notebooks] @ {ROOT.as_uri()}"'
    monkeypatch.chdir(tmp_path)
    assert 'REPOSITORY = ""' in source
    with pytest.raises(ModuleNotFoundError, match="make lab"):
        run(source, monkeypatch, missing=True)
    source = source.replace('REPOSITORY = ""', 'REPOSITORY = "us/cats"')
    (line,) = run(source, monkeypatch, missing=True)
    assert line == ('pip install --quiet "diffusion-notebooks[notebooks] @ '
                    'git+https://github.com/us/cats"')


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def contents(root: Path) -> dict[str, str]:
    paths = [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def test_publishing_writes_badges_and_addresses_and_can_be_taken_back(copied: Path) -> None:
    before = contents(copied)
    assert badges.publish(copied, "us/cats") == [path.name for path in NOTEBOOKS]
    after = contents(copied)
    for path in NOTEBOOKS:
        link = f"(https://colab.research.google.com/github/us/cats/blob/HEAD/notebooks/{path.name})"
        named = before[path.name].replace('REPOSITORY = \\"\\"', 'REPOSITORY = \\"us/cats\\"')
        assert link in after["README.md"] and after[path.name] == named != before[path.name]
    assert "mybinder.org/v2/gh/us/cats/HEAD" in after["README.md"]
    badges.publish(copied, "them/dogs.2")
    assert "us/cats" not in "".join(contents(copied).values())
    badges.publish(copied, "")
    assert contents(copied) == before


def test_what_does_not_fit_is_refused_and_nothing_written(copied: Path) -> None:
    before = contents(copied)
    for name in ("cats", "us/cats/main", "https://github.com/us/cats", 'us/"cats"', "us /cats"):
        with pytest.raises(ValueError, match="owner/name"):
            badges.publish(copied, name)
    assert contents(copied) == before
    path = copied / "notebooks" / NOTEBOOKS[-1].name
    text = path.read_text(encoding="utf-8").replace("REPOSITORY", "ADDRESS")
    path.write_text(text, encoding="utf-8")
    before = contents(copied)
    with pytest.raises(ValueError, match=path.name):
        badges.publish(copied, "us/cats")
    assert contents(copied) == before
    (copied / "README.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="README.md lacks"):
        badges.publish(copied, "us/cats")
