"""What make_site.py needs for one piece of a page: formulas as MathML, Jupyter's Markdown as HTML, and a check of the HTML."""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

MATHML = "http://www.w3.org/1998/Math/MathML"
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "mover": 2, "munder": 2, "mroot": 2, "msubsup": 3, "munderover": 3}
LOADS = ("script", "iframe", "frame", "link", "object", "embed", "video", "audio", "source", "track", "style", "base", "form")


class Problem(Exception):
    """Ends the build with one clear line."""


# -- mathematics ----------------------------------------------------------------------------------------------------------


def mathml(tex: str, display: bool = False) -> str:
    """A formula of TeX as <math>. Raises Problem if the converter cannot do it, or quietly leaves some of it undone."""
    kind = "block" if display else "inline"
    what = f"the formula {' '.join(tex.split())!r} cannot be converted"
    try:
        tree = ElementTree.fromstring(convert(tex.strip(), display=kind))
    except Exception as error:  # the converter's own errors, IndexError and others for TeX it does not expect, and bad XML
        raise Problem(f"{what} ({' '.join(f'{type(error).__name__} {error}'.split())}); write it in plainer TeX") from error
    for element in tree.iter():
        tag, text = element.tag.removeprefix(f"{{{MATHML}}}"), element.text or ""
        if "\\" in text:
            raise Problem(f"{what} ({text} is unknown); write it in plainer TeX")
        if (tag in CHILDREN and len(element) != CHILDREN[tag]) or (tag == "mi" and text in ("{", "}")):
            raise Problem(f"{what} (braces or an argument are missing); correct it")
        _tidy(tag, element)
    ElementTree.register_namespace("", MATHML)
    return ElementTree.tostring(tree, encoding="unicode").replace(f' xmlns="{MATHML}"', "")


def _tidy(tag: str, element: ElementTree.Element) -> None:
    """What browsers draw otherwise than the converter thinks (they know MathML Core, a part of MathML)."""
    if element.get("width") == "negativethinmathspace":
        element.set("width", "-0.167em")
    if tag == "mover" and (element[1].text or "") in ("^", "~", "¯"):
        element.attrib.pop("accent", None)                 # as an accent, the bar touches the letter in many fonts: α and ᾱ look alike
        if len(element[0]) == 0:                           # over one letter, an accent does not stretch
            element[1].set("stretchy", "false")
    for before, after in reversed(list(zip(list(element), list(element)[1:], strict=False))):
        if before.tag == f"{{{MATHML}}}mi" and len(before.text or "") > 1 and after.tag != f"{{{MATHML}}}mo":
            space = ElementTree.Element(f"{{{MATHML}}}mspace", width="0.167em")     # cos x, not cosx
            element.insert(list(element).index(after), space)
    letters = [child for child in element if child.tag == f"{{{MATHML}}}mi" and child.get("mathvariant") == "normal"]
    if tag == "mrow" and len(element) > 1 and len(letters) == len(element):
        word = "".join(letter.text or "" for letter in letters)    # \mathrm{conv} is one word, for reading aloud too
        element[:] = []
        ElementTree.SubElement(element, f"{{{MATHML}}}mi").text = word


# -- Markdown -------------------------------------------------------------------------------------------------------------


class Renderer(IPythonRenderer):
    """Jupyter's Markdown, with formulas as MathML, and links and pictures that lie in the site's folder."""

    def __init__(self, local: Callable[[str], str]) -> None:
        super().__init__(escape=False, exclude_anchor_links=True)
        self.local = local

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return f'<span class="formula" style="display:block">{mathml(body, display=True)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def heading(self, text: str, level: int, **attrs: object) -> str:
        anchor = re.sub(r"<[^>]*>", "", text).strip().replace(" ", "-")    # as JupyterLab names them
        return f'<h{level} id="{html.escape(html.unescape(anchor))}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.local(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, self.local(url), title)


def markdown(source: str, local: Callable[[str], str]) -> str:
    """Markdown as HTML. local: where a link leads on the site. Raises Problem."""
    made = MarkdownWithMath(renderer=Renderer(local)).render(source)
    return made.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")


class Checker(HTMLParser):
    """Reads what was made, and raises Problem for what an offline reader would miss. ids, links: those found."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.ids, self.links, self._verbatim = folder, set(), [], []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.ids.add(values.get("id"))
        if tag in LOADS or re.search(r"url\(", values.get("style", "")):
            raise Problem(f"raw HTML <{tag}> would load something or change the page; use Markdown instead")
        if tag == "img":
            if not values.get("alt", "").strip():
                raise Problem(f"the picture {values.get('src')!r} has no alternative text; say what it shows")
            source = urlsplit(values.get("src", ""))
            if values.get("srcset") or source.scheme or source.netloc or not (self.folder / unquote(source.path)).is_file():
                raise Problem(f"the picture {values.get('src')!r} is not in the site's folder; use Markdown's ![text](path) and a file "
                              "of the repository")
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("pre", "code", "math"):
            self._verbatim.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._verbatim and tag == self._verbatim[-1]:
            self._verbatim.pop()

    def handle_data(self, data: str) -> None:
        left = re.search(r"\$[^$]+\$", data)
        if left and not self._verbatim:
            raise Problem(f"the formula {left.group()} stands in raw HTML, where it is not converted; write it in Markdown")
