"""One folder with every odd file one can think of, and what the library makes of each.

    python tests/benchmarks/odd_folder.py

Each odd thing lies in a folder of its own, whose name says what it is. The pictures are of one
colour, so the table can show it: "read 200 60 20", "left aside: unreadable", or "not seen".
tests/data/test_folders.py holds the right values.
"""

import contextlib
import io
import os
import socket
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from diffusion_lib import load_data

COLOUR, GREY, SIZE = (200, 60, 20), 120, (24, 20)
RGB, L = Image.new("RGB", SIZE, COLOUR), Image.new("L", SIZE, GREY)


def saved(picture: Image.Image, format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **settings)
    return buffer.getvalue()


PNG, JPEG = saved(RGB, "png"), saved(RGB, "jpeg", quality=95, subsampling=0)


def deep(values: int, dtype: str) -> Image.Image:
    return Image.fromarray(np.full((20, 24), values, dtype))


def half_clear(mode: str) -> Image.Image:
    """On the left the colour; on the right another, which is not seen: it is wholly transparent."""
    picture = Image.new("RGBA", SIZE, (0, 99, 0, 0))
    picture.paste((*COLOUR, 255), (0, 0, 12, 20))
    return picture.convert(mode)


def sideways(orientation: int) -> bytes:
    """A bright stripe along the upper edge of the stored picture."""
    picture, exif = Image.new("RGB", (20, 20), "black"), Image.Exif()
    picture.paste("white", (0, 0, 20, 10))
    exif[0x0112] = orientation
    return saved(picture, "jpeg", quality=95, exif=exif)


def huge(side: int) -> bytes:
    """A PNG of a few bytes that says it is side × side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def swapped() -> bytes:
    """A colour profile in which the first channel is blue and the last one red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"?XYZ"), (b"bXYZ", b"rXYZ"), (b"?XYZ", b"bXYZ")):
        srgb = srgb.replace(old, new, 1)
    return srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def always_red() -> bytes:
    """A profile of printing inks: pure red (L* 53.2, a* 80, b* 67) whatever the inks, but black."""
    same = bytes(range(256))
    identity = (65536 * (i % 4 == 0) for i in range(9))
    table = struct.pack(">4sI4B9i", b"mft1", 0, 4, 3, 2, 0, *identity)
    table += same * 4 + bytes((136, 208, 195, 0, 128, 128)) * 8 + same * 3
    text = struct.pack(">4sII", b"desc", 0, 4) + b"ink\0" + bytes(78)
    white = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    tags, body, start = b"", b"", 132 + 3 * 12
    for name, data in ((b"A2B0", table), (b"desc", text), (b"wtpt", white)):
        tags += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">3I4s4s4s12x4s28x3i", start + len(body), 0, 0x02400000, b"prtr", b"CMYK",
                       b"Lab ", b"acsp", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", PNG)
    return buffer.getvalue()


def files() -> Iterator[tuple[str, str | bytes, bytes]]:
    """What it is, the file's name, its bytes."""
    Image.init()
    endings = {"png": "PNG", "jpeg": "jfif", "tiff": "tif", "jpeg2000": "jp2"}
    for format in ("png", "jpeg", "webp", "avif", "bmp", "gif", "tiff", "tga", "jpeg2000", "ppm",
                   "ico", "pcx", "sgi", "dds"):
        options = {"quality": 95} if format in ("jpeg", "webp", "avif") else {}
        if format.upper() in Image.SAVE:  # not every Pillow has all
            name = f"a.{endings.get(format, format)}"
            yield f"format {format}", name, saved(RGB, format, **options)
    yield "no ending", "IMG_0001", PNG
    yield "a PNG named .txt", "a.txt", PNG
    yield "a JPEG named .png", "a.png", JPEG
    # modes
    yield "1 bit", "a.png", saved(L.point(lambda value: 255 * (value > 99)).convert("1"), "png")
    yield "grey", "a.png", saved(L, "png")
    yield "grey with transparency", "a.png", saved(half_clear("LA"), "png")
    palette = RGB.quantize(2)
    yield "palette", "a.png", saved(palette, "png")
    yield "palette, one colour transparent", "a.png", saved(palette, "png", transparency=0)
    yield "palette, half transparent", "a.png", saved(palette, "png", transparency=b"\x80\x80")
    yield "colour with transparency", "a.png", saved(half_clear("RGBA"), "png")
    yield "one RGB colour transparent", "a.png", saved(RGB, "png", transparency=COLOUR)
    yield "CMYK", "a.jpg", saved(RGB.convert("CMYK"), "jpeg", quality=95)
    yield "YCbCr", "a.tif", saved(RGB.convert("YCbCr"), "tiff")
    yield "LAB", "a.tif", saved(Image.new("LAB", SIZE, (136, 208, 195)), "tiff")
    yield "16-bit grey", "a.png", saved(deep(120 * 257, "uint16"), "png")
    yield "16-bit grey, nearly black", "a.tif", saved(deep(255, "uint16"), "tiff")
    yield "16-bit grey, other byte order", "a.tif", saved(deep(120 * 257, ">u2"), "tiff")
    yield "16-bit PGM", "a.pgm", b"P5 24 20 65535\n" + deep(120 * 257, ">u2").tobytes()
    yield "32-bit whole numbers to 65535", "a.tif", saved(deep(120 * 257, "int32"), "tiff")
    yield "32-bit whole numbers above", "a.tif", saved(deep(10**6, "int32"), "tiff")
    yield "negative numbers", "a.tif", saved(deep(-5, "int32"), "tiff")
    yield "floats", "a.tif", saved(deep(0.5, "float32"), "tiff")
    # colour profiles and EXIF
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for what, picture, profile in (
            ("sRGB", RGB, srgb), ("broken", RGB, b"no profile"), ("inks on RGB", RGB, always_red()),
            ("red and blue swapped", RGB, swapped()), ("swapped, palette", palette, swapped()),
            ("swapped, clear", half_clear("RGBA"), swapped()), ("RGB on grey", L, swapped())):
        yield f"profile: {what}", "a.png", saved(picture, "png", icc_profile=profile)
    inks = RGB.convert("CMYK")
    yield "profile: inks that are red", "a.jpg", saved(inks, "jpeg", icc_profile=always_red())
    for orientation in (1, 2, 3, 6, 8, 9):
        yield f"EXIF orientation {orientation}", "a.jpg", sideways(orientation)
    broken = b"Exif\0\0II*\0\xff\xff\xff\xff"
    yield "EXIF broken", "a.jpg", saved(RGB, "jpeg", quality=95, exif=broken)
    # several pictures in one file: the first
    others = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "black")]}
    for format, name in (("gif", "a.gif"), ("png", "a.png"), ("webp", "a.webp"), ("tiff", "a.tif")):
        yield f"two pictures in one {format}", name, saved(RGB, format, **others)
    # sizes
    yield "1 pixel", "a.png", saved(RGB.resize((1, 1)), "png")
    yield "a line of 5,000 pixels", "a.png", saved(RGB.resize((5000, 1)), "png")
    yield "900 million pixels", "a.png", huge(30000)
    yield "0 pixels", "a.png", huge(0)
    # broken, or no pictures
    yield "PNG, half of it", "a.png", PNG[: len(PNG) // 2]
    yield "PNG, zeros from the middle on", "a.png", PNG[:50] + bytes(len(PNG) - 50)
    yield "JPEG, half of it", "a.jpg", JPEG[: len(JPEG) // 2]
    yield "empty", "a.jpg", b""
    yield "zeros", "a.webp", bytes(500)
    yield "text named .png", "a.png", b"this is no picture"
    yield "a web page named .jpg", "a.jpg", b"<!DOCTYPE html><html>404 not found</html>"
    yield "text", "README.txt", b"Cats, photographed by me."
    yield "JSON", "labels.json", b'{"a.png": "cat"}'
    yield "zip", "cats.zip", zipped()
    yield "array", "cats.npy", saved_array()
    yield "PDF", "a.pdf", saved(RGB, "pdf")
    yield "HEIC", "IMG_1.HEIC", b"\0\0\0\x18ftypheic" + bytes(50)
    yield "HEIC named .jpg", "IMG_2.jpg", b"\0\0\0\x18ftypheic" + bytes(50)
    # names
    for what, name in (("a line break", "a\nb.png"), ("not UTF-8", b"caf\xe9.png"),
                       ("signs", "a #2: b?%.png"), ("many alphabets", "кот猫🐱.png"),
                       ("250 letters", "a" * 246 + ".png"), ("spaces around it", " a.png "),
                       ("dots", "a.b..png.PNG")):
        yield f"name: {what}", name, PNG
    # what systems leave behind
    for name in (".hidden.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        yield f"system: {name}", name, PNG


def saved_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(RGB))
    return buffer.getvalue()


def make(folder: Path) -> list[str]:
    """Fill the folder; returns what is in it."""
    made = []

    def place(what: str) -> Path:
        made.append(what.encode("utf-8", "backslashreplace").decode())
        (folder / what).mkdir()
        return folder / what

    for what, name, content in files():
        (place(what) / os.fsdecode(name)).write_bytes(content)
    for hidden in (".git", "__MACOSX", ".ipynb_checkpoints"):
        (place(f"folder {hidden}") / hidden).mkdir()
        (folder / f"folder {hidden}" / hidden / "a.png").write_bytes(PNG)
    both = place("name: é in two ways")
    for name in ("\u00e9.png", "e\u0301.png"):
        (both / name).write_bytes(PNG)
    place("folder, empty")
    (place("folder named like a picture.png") / "a.png").write_bytes(PNG)
    (place(os.fsdecode(b"folder, not UTF-8: caf\xe9")) / "a.png").write_bytes(PNG)
    (place("link to a picture") / "a.png").symlink_to(folder / "format png" / "a.PNG")
    (place("link to nothing") / "a.png").symlink_to(folder / "nothing.png")
    (place("link to itself") / "a.png").symlink_to("a.png")
    (place("link to the folder above") / "up").symlink_to("..")
    (place("link to endless zeros") / "a.png").symlink_to("/dev/zero")
    os.mkfifo(place("pipe") / "a.png")
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(place("socket")):
        opened.bind("a.png")
    (place("file that must not be read") / "a.png").write_bytes(PNG)
    (folder / "file that must not be read" / "a.png").chmod(0)
    (place("folder that must not be opened") / "a.png").write_bytes(PNG)
    (folder / "folder that must not be opened").chmod(0)
    return made


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: for the time of this block be somebody who may not."""
    if os.geteuid() == 0:
        Image.init()  # its modules, while they can be read
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def outcomes() -> tuple[dict[str, str], list[str]]:
    """What the library makes of each odd thing, and its warnings."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        try:
            return look_at(Path(name))
        finally:
            (Path(name) / "folder that must not be opened").chmod(0o700)


def look_at(folder: Path) -> tuple[dict[str, str], list[str]]:
    made = make(folder)
    with as_nobody(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(f"folder:{folder}", 16)
        parts = [load_data(f"folder:{folder}#{part}", 16) for part in ("train", "held_out")]
    assert sum(map(len, parts)) == len(data), "the two parts are not the whole"
    found: dict[str, str] = {}
    for image, label in zip(data.images, data.labels, strict=True):
        corners = image[:, [1, 1, -2, -2], [1, -2, 1, -2]]   # (3, 4)
        same = (corners - corners[:, :1].int()).abs().max() < 9
        words = " ".join(map(str, corners[:, 0].tolist())) if same else str(corners[0].tolist())
        owner = data.classes[label]
        found[owner] = f"{found[owner]}, {words}" if owner in found else f"read {words}"
    for entry in data.skipped:
        path, _, why = entry.removeprefix(f"{folder}/").partition(": ")
        while path.partition("/")[0] not in made:  # a name with a colon
            more, _, why = why.partition(": ")
            path += f": {more}"
        found[path.partition("/")[0]] = f"left aside: {why.partition(':')[0]}"
    return {what: found.get(what, "not seen") for what in made}, [str(w.message) for w in caught]


def main() -> None:
    table, told = outcomes()
    for what, outcome in table.items():
        print(f"{what:34}{outcome}")
    print(f"{len(table)} odd things. What is said about them:", *told, sep="\n")


if __name__ == "__main__":
    main()
