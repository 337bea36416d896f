"""Say where this project is published, so that its notebooks open in Colab and on Binder.

`make badges REPOSITORY=owner/name` writes the badges into README.md, and the address into each
notebook's first code cell, which installs the library where it is missing. Nothing in the project
depends on them. REPOSITORY= (nothing) takes them out again. Standard library only.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- badges -->", "<!-- /badges -->"
LINE = re.compile(r'^REPOSITORY = "[^"]*"', re.MULTILINE)
BINDER = "https://mybinder.org"
COLAB = "https://colab.research.google.com"


def badges(repository: str, names: list[str]) -> str:
    """Markdown: one badge for Binder, with the whole environment, and one a notebook for Colab."""
    if not repository:
        return ""
    lines = [f"[![open the series on Binder]({BINDER}/badge_logo.svg)]"
             f"({BINDER}/v2/gh/{repository}/HEAD?urlpath=lab/tree/notebooks)"]
    image = f"{COLAB}/assets/colab-badge.svg"
    lines += [f"[![open notebook {name[:2]} in Colab]({image})]"
              f"({COLAB}/github/{repository}/blob/HEAD/notebooks/{name})" for name in names]
    return "\n".join(["", *lines, ""])


def publish(root: Path, repository: str) -> list[str]:
    """Write badges and addresses; returns the notebooks' names.

    Raises ValueError, with nothing written, if something does not fit.
    """
    if repository and not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", repository):
        raise ValueError("REPOSITORY must be owner/name, as in the address of its page on GitHub, "
                         f"not {repository!r}")
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    before, _, rest = (root / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    if END not in rest:
        raise ValueError(f"README.md lacks the lines {BEGIN} and {END}; put them where the badges "
                         "belong")
    made = badges(repository, [path.name for path in paths])
    texts = {root / "README.md": f"{before}{BEGIN}\n{made}{END}{rest.split(END, 1)[1]}"}
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cell = next((cell for cell in notebook["cells"]
                     if "install" in cell["metadata"].get("tags", [])), None)
        if cell is None or not LINE.search("".join(cell["source"])):
            raise ValueError(f'{path.name} has no cell tagged "install" with a line REPOSITORY = '
                             '"…"; restore it with git checkout')
        source = LINE.sub(f'REPOSITORY = "{repository}"', "".join(cell["source"]))
        cell["source"] = source.splitlines(keepends=True)
        texts[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return [path.name for path in paths]


def main(arguments: list[str]) -> int:
    try:
        names = publish(ROOT, arguments[0] if arguments else "")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"README.md and {len(names)} notebooks name {''.join(arguments[:1]) or 'no address'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
