"""What makes a piece of an exported page work offline: MathML, links, pictures, nothing loaded."""

import base64
import html
import io
import re
from collections.abc import Callable
from urllib.parse import unquote
from xml.etree import ElementTree

from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from PIL import Image

CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "mover": 2, "munder": 2, "mroot": 2,
            "msubsup": 3, "munderover": 3}
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$", re.S)
LOADS = ["script", "iframe", "frame", "link", "object", "embed", "video", "audio", "source",
         "track", "style", "base", "form"]
WIDE = 640  # pixels; wider pictures scroll on a phone instead of shrinking


class Problem(Exception):
    """Ends the build with one clear line."""


def mathml(tex: str, display: bool = False) -> str:
    """A formula of TeX as <math>. display: on a line of its own. Raises Problem if it cannot be."""
    what = f"the formula {' '.join(tex.split())!r} cannot be converted"
    try:
        made = convert(tex.strip(), display="block" if display else "inline")
        tree = ElementTree.fromstring(made)
    except Exception as error:  # the converter's own, and IndexError and others for odd TeX
        raise Problem(f"{what} ({type(error).__name__} {' '.join(str(error).split())}); "
                      "write it in plainer TeX") from error
    for element in tree.iter():
        element.tag = tag = element.tag.removeprefix("{http://www.w3.org/1998/Math/MathML}")
        text = element.text or ""
        if "\\" in text:
            raise Problem(f"{what} ({text} is unknown); write it in plainer TeX")
        if len(element) != CHILDREN.get(tag, len(element)) or (tag == "mi" and text in ("{", "}")):
            raise Problem(f"{what} (braces or an argument are missing); correct it")
    for element in tree.iter():
        tidy(element)
    made = ElementTree.tostring(tree, encoding="unicode")
    return f'<span class="formula">{made}</span>' if display else made


def tidy(element: ElementTree.Element) -> None:
    """Browsers draw some of the converter's MathML otherwise than it thinks: put it plainly."""
    if element.get("width") == "negativethinmathspace":
        element.set("width", "-0.167em")
    if element.tag == "mover":
        element.attrib.pop("accent", None)  # as an accent, the bar touches the letter: α or ᾱ?
        if len(element[0]) == 0:
            element[1].set("stretchy", "false")  # over one letter, a bar does not stretch
    if element.tag == "mrow":
        for i in reversed(range(1, len(element))):
            before, after = element[i - 1], element[i]
            if before.tag == "mi" and len(before.text or "") > 1 and after.tag != "mo":
                element.insert(i, ElementTree.Element("mspace", width="0.167em"))  # cos x
        if len(element) > 1 and all(child.get("mathvariant") == "normal" for child in element):
            word = "".join(element.itertext())  # \mathrm{conv} is one word, also read aloud
            element[:] = []
            ElementTree.SubElement(element, "mi").text = word


def finish(part: Tag, local: Callable[[str], str], files: dict[str, bytes]) -> None:
    """Make a part of an exported page whole without a network. local: where a link leads there."""
    for tag in part.find_all(True):
        if tag.name in LOADS or "url(" in tag.get("style", "") or tag.has_attr("srcset"):
            raise Problem(f"raw HTML <{tag.name}> would load something or change the page; "
                          "use Markdown instead")
    for text in part.find_all(string=FORMULA):
        if not text.find_parent(["pre", "code"]):
            made = FORMULA.sub(lambda found: mathml(html.unescape(found[1] or found[2]),
                                                    display=bool(found[1])), html.escape(text))
            text.replace_with(BeautifulSoup(made, "html.parser"))
    for link in part.find_all("a", href=True):
        link["href"] = local(link["href"])
    for image in part.find_all("img"):
        picture(image, local, files)
    for table in part.find_all("table"):
        table.wrap(BeautifulSoup('<div class="scroll"></div>', "html.parser").div)
    for said in part.select('figure + .scroll > [role="figure"] > em'):  # a picture's caption
        said.name = "figcaption"
        said.find_parent(class_="scroll").find_previous_sibling("figure").append(said.extract())


def picture(image: Tag, local: Callable[[str], str], files: dict[str, bytes]) -> None:
    """An <img> whose picture is in the page or among the files, and says what it shows."""
    source, said = image.get("src", ""), image.get("src", "")[:60]
    image["src"] = source if source.startswith("data:") else local(source)
    if not image.get("alt", "").strip() or image["alt"].startswith("No description has been"):
        raise Problem(f"the picture {said!r} has no alternative text; say what it shows")
    try:
        content = files.get(unquote(image["src"])) or base64.b64decode(source.partition(",")[2])
        image["width"], image["height"] = Image.open(io.BytesIO(content)).size
    except (ValueError, OSError) as error:
        raise Problem(f"the picture {said!r} is broken or not of this repository; run: make "
                      "notebooks, or show a PNG, JPEG or WebP file from here") from error
    if image["width"] > WIDE:
        image.parent["class"] = "wide"
