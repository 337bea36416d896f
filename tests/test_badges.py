"""The notebooks start elsewhere too: their first cell installs a library that is missing, and `make badges` names where it lies."""

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def load_script():
    spec = importlib.util.spec_from_file_location("badges", ROOT / ".ci/badges.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install_cell(path: Path) -> nbformat.NotebookNode:
    """The first code cell, which must be the only one tagged so."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [i for i, cell in enumerate(code) if "install" in cell.metadata.get("tags", [])] == [0], path.name
    return code[0]


def run(source: str, monkeypatch: pytest.MonkeyPatch, missing: bool) -> list[str]:
    """Run a cell as IPython does; returns what %pip was asked for."""
    asked = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: asked.append(f"{name} {line}"))
    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None if missing and name == "diffusion_lib" else found(name))
        names: dict = {"get_ipython": lambda: shell}
        exec(TransformerManager().transform_cell(source), names)
    # IPython fills {source} from the names of the cell
    return [line.format(**{k: v for k, v in names.items() if isinstance(v, str)}) for line in asked]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_is_the_same_everywhere_and_out_of_the_way(path: Path) -> None:
    cell = install_cell(path)
    assert cell.source == install_cell(NOTEBOOKS[0]).source and cell.metadata["jupyter"]["source_hidden"]
    assert cell.execution_count == 1 and cell.outputs == []


def test_nothing_is_installed_where_the_library_is(monkeypatch) -> None:
    assert run(install_cell(NOTEBOOKS[0]).source, monkeypatch, missing=False) == []


def test_a_missing_library_is_installed_from_the_project_around_the_notebook(monkeypatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks")
    (line,) = run(install_cell(NOTEBOOKS[0]).source, monkeypatch, missing=True)
    requirement = Requirement(line.removeprefix('pip install --quiet "').removesuffix('"'))
    assert requirement.name == "diffusion-notebooks" and requirement.extras == {"notebooks"} and requirement.url == ROOT.as_uri()


def test_a_lone_notebook_installs_from_where_it_was_published_or_says_that_it_does_not_know(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    source = install_cell(NOTEBOOKS[0]).source
    assert 'REPOSITORY = ""' in source
    with pytest.raises(ModuleNotFoundError, match="make lab"):
        run(source, monkeypatch, missing=True)
    (line,) = run(source.replace('REPOSITORY = ""', 'REPOSITORY = "us/cats"'), monkeypatch, missing=True)
    assert line == 'pip install --quiet "diffusion-notebooks[notebooks] @ git+https://github.com/us/cats"'


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def contents(root: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in [root / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]}


def test_publishing_writes_a_badge_for_each_notebook_and_their_address_and_can_be_taken_back(copied: Path) -> None:
    script, before = load_script(), contents(copied)
    assert script.publish(copied, "us/cats") == [path.name for path in NOTEBOOKS]
    after = contents(copied)
    for path in NOTEBOOKS:
        assert f"(https://colab.research.google.com/github/us/cats/blob/HEAD/notebooks/{path.name})" in after["README.md"]
        assert after[path.name] == before[path.name].replace('REPOSITORY = \\"\\"', 'REPOSITORY = \\"us/cats\\"') != before[path.name]
    assert "mybinder.org/v2/gh/us/cats/HEAD" in after["README.md"]
    script.publish(copied, "them/dogs.2")
    assert "us/cats" not in "".join(contents(copied).values())
    script.publish(copied, "")
    assert contents(copied) == before


@pytest.mark.parametrize("name", ["cats", "us/cats/main", "https://github.com/us/cats", 'us/"cats"', "us /cats"])
def test_what_is_no_repository_is_refused_and_nothing_written(copied: Path, name: str) -> None:
    before = contents(copied)
    with pytest.raises(ValueError, match="owner/name"):
        load_script().publish(copied, name)
    assert contents(copied) == before


def test_a_notebook_or_readme_without_its_place_is_named_and_nothing_written(copied: Path) -> None:
    script = load_script()
    path = copied / "notebooks" / NOTEBOOKS[-1].name
    path.write_text(path.read_text(encoding="utf-8").replace("REPOSITORY", "ADDRESS"), encoding="utf-8")
    before = contents(copied)
    with pytest.raises(ValueError, match=path.name):
        script.publish(copied, "us/cats")
    assert contents(copied) == before
    (copied / "README.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="README.md lacks"):
        script.publish(copied, "us/cats")
