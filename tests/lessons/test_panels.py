"""Panels: pixels are the values, in order, on one scale; small plots show their numbers in place.
"""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib.data.pictures import INK, encode, image_grid, to_pictures
from diffusion_lib.lessons import panels
from diffusion_lib.lessons.panels import (
    COLORS,
    compose,
    curve_panel,
    histogram_panel,
    plane_panel,
    stack_rows,
)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def where(picture: Image.Image, color: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the pixels of just this colour."""
    return np.nonzero((pixels(picture) == rgb(color)).all(axis=2))


class Frame:
    """The plot's frame, found by its dark lines, and where a number lies in it."""

    def __init__(self, panel, x, y, log=False):
        dark = (pixels(panel) == rgb(INK)).all(axis=2)
        lines = np.nonzero(dark.sum(axis=1) > 0.5 * panel.width)[0]
        posts = np.nonzero(dark.sum(axis=0) > 0.5 * panel.height)[0]
        self.top, self.bottom = lines[0], lines[-1]
        self.left, self.right = posts[0], posts[-1]
        self.x, self.y, self.log = x, y, log

    def at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.y
        y, low, high = (math.log10(v) for v in (y, low, high)) if self.log else (y, low, high)
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)
        up = (y - low) / (high - low) * (self.bottom - self.top)
        return self.left + across, self.bottom - up


# -- values to pixels ------------------------------------------------------------------------------


def test_values_become_pixels_on_one_fixed_scale() -> None:
    values = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, -3.0, 7.0])
    (picture,) = to_pictures(values.expand(3, 1, 7))
    assert pixels(picture)[0, :, 0].tolist() == [0, 64, 128, 191, 255, 0, 255]


def test_no_picture_is_normalised_by_itself() -> None:
    faint = 0.1 * torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    alone, beside = to_pictures(faint)[0], to_pictures(torch.cat([faint, 10 * faint]))[0]
    assert pixels(alone).min() >= 114 and pixels(alone).max() <= 141  # a faint picture stays faint
    assert np.array_equal(pixels(alone), pixels(beside))  # whatever it is shown beside
    cut = compose([faint], scale=1).crop((6, 6, 14, 14))
    assert np.array_equal(pixels(cut), pixels(alone))


def test_all_kinds_of_images_are_the_same_picture(toy_images) -> None:
    as_float = toy_images.float() / 127.5 - 1
    arrays = [np.array(image.permute(1, 2, 0)) for image in toy_images]
    kinds = [
        toy_images, as_float, list(toy_images), [as_float[:5], as_float[5:]], arrays,
        [Image.fromarray(array) for array in arrays], as_float.double().requires_grad_(),
    ]
    for kind in kinds:
        pictures = to_pictures(kind)
        assert len(pictures) == 12 and all(p.mode == "RGB" for p in pictures)
        for picture, array in zip(pictures, arrays, strict=True):
            assert np.array_equal(pixels(picture), array)
    assert len(to_pictures(toy_images[0])) == 1
    grey = to_pictures(toy_images[:1, :1])[0]
    assert np.array_equal(pixels(grey)[..., 2], toy_images[0, 0])  # grey: three times the same


@pytest.mark.parametrize(("images", "pieces"), [
    (torch.zeros(2, 4, 8, 8), ["(2, 4, 8, 8)", "(B, 3, H, W)"]),
    (torch.zeros(8, 8), ["(8, 8)", "(B, 3, H, W)"]),
    (np.zeros((8, 8, 3)), ["ndarray", "uint8 array"]),
    (np.zeros((3, 8, 8), np.uint8), ["ndarray", "(H, W, 3)"]),
    ("cat.png", ["str", "PIL"]),
    (torch.full((1, 3, 8, 8), math.nan), ["NaN"]),
])
def test_what_is_no_image_is_refused(images, pieces, refuses) -> None:
    with refuses(ValueError, *pieces):
        to_pictures(images)


# -- grids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "scale", "padding"),
                         [(None, 1, 2), (5, 3, 0), (1, 2, 4), (50, 1, 1)])
def test_a_grid_holds_the_images_in_their_order(toy_images, columns, scale, padding) -> None:
    grid = pixels(image_grid(toy_images, columns, scale, padding))
    across = min(columns or 4, 12)
    side = 8 * scale
    step = side + padding
    assert grid.shape == (-(-12 // across) * step + padding, across * step + padding, 3)
    covered = np.zeros(grid.shape[:2], bool)
    for i, image in enumerate(toy_images):
        top, left = (padding + place * step for place in divmod(i, across))
        expected = np.kron(image.permute(1, 2, 0).numpy(), np.ones((scale, scale, 1), int))
        assert np.array_equal(grid[top : top + side, left : left + side], expected), i
        covered[top : top + side, left : left + side] = True
    assert (grid[~covered] == 255).all()


def test_grids_refuse(toy_images, refuses) -> None:
    with refuses(ValueError, "no images", "at least one"):
        image_grid([])
    with refuses(ValueError, "columns", "0"):
        image_grid(toy_images, columns=0)
    with refuses(ValueError, "scale", "0"):
        image_grid(toy_images, scale=0)
    with refuses(ValueError, "(8, 8), (16, 16)", "compose()"):
        image_grid([torch.zeros(3, 8, 8), torch.zeros(3, 16, 16)])


@pytest.mark.parametrize(("format", "start"),
                         [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8")])
def test_encoded_pictures_open_again(toy_images, format, start) -> None:
    picture = image_grid(toy_images, scale=4)
    content = encode(picture, format)
    assert content.startswith(start)
    error = np.abs(pixels(Image.open(io.BytesIO(content))) - pixels(picture))
    assert error.mean() < (1e-9 if format == "png" else 15)
    if format != "png":
        assert len(encode(picture, format, 20)) < len(encode(picture, format, 90))


# -- compose ---------------------------------------------------------------------------------------


def test_compose_keeps_every_pixel_and_the_order() -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    sizes = [(40, 30), (20, 60), (50, 10)]
    parts = [Image.new("RGB", size, color) for size, color in zip(sizes, colors, strict=True)]
    titles = ["a", "a much longer title\nof two lines", "c"]
    sheet = pixels(compose(parts, titles, caption="t = 3"))
    lefts = []
    for part, color in zip(parts, colors, strict=True):
        rows, columns = np.nonzero((sheet == color).all(axis=2))
        assert len(rows) == part.width * part.height  # nothing covers it
        assert np.ptp(rows) + 1 == part.height and np.ptp(columns) + 1 == part.width
        lefts.append(columns.min())
    assert lefts == sorted(lefts)


def test_rows_stand_in_order_with_their_labels_to_the_left(refuses) -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    rows = [Image.new("RGB", size, color)
            for size, color in zip([(40, 30), (60, 8), (50, 10)], colors, strict=True)]
    labels = ["a", "three\nlines of\na label", "c"]
    sheet = pixels(stack_rows(rows, labels))
    tops, lefts = [], []
    for row, color in zip(rows, colors, strict=True):
        y, x = np.nonzero((sheet == color).all(axis=2))
        assert len(y) == row.width * row.height  # nothing covers it
        tops.append((y.min(), y.max()))
        lefts.append(x.min())
    assert len(set(lefts)) == 1 and all(a[1] < b[0] for a, b in zip(tops, tops[1:], strict=False))
    ink = (sheet < 128).all(axis=2)  # what is written is nearly black, and left of all rows
    assert ink[:, : lefts[0]].any() and not ink[:, lefts[0]:].any()
    with refuses(ValueError, "1 rows", "labels", "2"):
        stack_rows(rows[:1], ["a", "b"])
    with refuses(ValueError, "0 rows", "one at least"):
        stack_rows([], [])


def test_compose_enlarges_tensors_only() -> None:
    white = torch.ones(3, 8, 8)
    assert compose([white]).size == (212, 212)  # 25 times: about 200 pixels high, and a margin
    assert compose([white], scale=3).size == (36, 36)
    assert compose([torch.ones(4, 3, 8, 8)], scale=2).size == (56, 56)  # a batch is a grid
    assert compose([Image.new("RGB", (8, 8))], scale=3).size == (20, 20)
    assert compose([torch.ones(3, 300, 300)]).size == (312, 312)  # large ones are not shrunk


def test_titles_and_captions_are_drawn_whole() -> None:
    white, words = torch.ones(3, 8, 8), "a caption far wider than the picture"
    plain, titled = compose([white], scale=1), compose([white], ["ε̂ and ᾱ_t"], scale=1)
    captioned = compose([white], scale=1, caption=words)
    assert (pixels(plain) == 255).all()
    for sheet in (titled, captioned):
        rows, columns = np.nonzero(pixels(sheet).sum(axis=2) < 300)
        assert len(rows) > 40 and rows.min() > 0
        assert columns.min() > 0 and columns.max() < sheet.width - 1
    assert captioned.width > panels.font(15).getlength(words)


def test_compose_refuses(refuses) -> None:
    with refuses(ValueError, "2 panels", "titles", "1"):
        compose([torch.zeros(3, 8, 8)] * 2, ["one"])
    with refuses(ValueError, "no panels", "at least one"):
        compose([])


# -- small plots -----------------------------------------------------------------------------------


def test_bars_of_a_histogram_have_the_right_heights() -> None:
    values = np.repeat([-0.5, 0.5], [300, 100])  # densities 0.75 and 0.25 on two bars of width 1
    panel = histogram_panel(torch.tensor(values), limits=(-1, 1), bins=2)
    rows, columns = where(panel, COLORS[2])
    middle = (columns.min() + columns.max()) / 2
    empty = histogram_panel(np.full(1, 9.0), limits=(-1, 1), bins=2)
    frame = Frame(empty, (-1, 1), (0, 1.2))  # the upper limit: the next round one
    for bar, density in ((rows[columns < middle - 5], 0.75), (rows[columns > middle + 5], 0.25)):
        assert bar.min() == pytest.approx(frame.at(0, density)[1], abs=1.5)


def test_what_lies_outside_a_histogram_is_not_in_its_shares() -> None:
    def height(values):
        rows, _ = where(histogram_panel(np.array(values), limits=(0, 1), bins=1), COLORS[2])
        return rows.max() - rows.min()

    two_thirds = height([0.5, 0.5, 9.0]) / height([0.5, 0.5, 0.5])  # both up to 1.2
    assert two_thirds == pytest.approx(2 / 3, abs=0.03)


def test_the_gaussian_over_a_histogram_is_the_normal_density() -> None:
    panel = histogram_panel(np.full(10, 99.0), gaussian=True)  # no bars: all outside
    rows, columns = where(panel, COLORS[1])
    frame = Frame(panel, (-3, 3), (0, 0.6))
    for x in (-2.0, -1.0, 0.0, 0.5, 2.0):
        across, up = frame.at(x, math.exp(-x * x / 2) / math.sqrt(2 * math.pi))
        assert rows[np.abs(columns - across) < 1].mean() == pytest.approx(up, abs=2.5), x


@pytest.mark.parametrize("log", [False, True])
def test_a_curve_goes_through_its_points(log) -> None:
    x, values = np.array([0.0, 10.0, 20.0, 40.0]), np.array([0.01, 1.0, 0.1, 0.5])
    panel = curve_panel({"a": torch.tensor(values)}, x=x, log=log, limits=(0.01, 1))
    rows, columns = where(panel, COLORS[0])
    frame = Frame(panel, (0, 40), (0.01, 1), log)

    def distance(x: float, y: float) -> np.ndarray:
        """Rows between the point and what is drawn in its column and the two beside it."""
        across, up = frame.at(x, y)
        return np.abs(rows[np.abs(columns - across) <= 1] - up)

    for point in zip(x, values, strict=True):
        assert distance(*point).min() <= 1.5, point
    between = math.sqrt(0.1 * 0.5) if log else 0.3  # straight in between, in its own scale
    assert distance(30.0, between).max() <= 2


def test_markers_sit_on_their_curves() -> None:
    curves = {"up": np.linspace(0, 1, 101), "down": np.linspace(1, 0, 101)}
    panel = curve_panel(curves, marker=25, limits=(0, 1))
    frame = Frame(curve_panel(curves, limits=(0, 1)), (0, 100), (0, 1))
    for color, value in zip(COLORS, (0.25, 0.75), strict=False):
        across, up = frame.at(25, value)
        for beside in (-2, 2):  # a dot on the line, not only the line
            dot = pixels(panel)[round(up) + beside, round(across) + 2]
            assert dot.tolist() == rgb(color)


def test_limits_keep_the_frame_still() -> None:
    one, other = (curve_panel({"a": np.full(5, value)}, limits=(0, 1)) for value in (0.2, 0.6))
    moved = (pixels(one) != pixels(other)).any(axis=2)
    frame = Frame(one, (0, 4), (0, 1))
    assert moved.any() and not moved[:, : frame.left].any() and not moved[frame.bottom + 2 :].any()


@pytest.mark.parametrize("values", [
    [math.nan, 1.0, math.inf, 2.0], [0.0, -1.0, 0.0, 0.0], [3.0], [2.0, 2.0, 2.0],
])
@pytest.mark.parametrize("log", [False, True])
def test_odd_numbers_do_not_stop_a_curve(values, log) -> None:
    assert curve_panel({"a": values}, log=log, marker=0).size == (320, 200)


def test_curves_refuse(refuses) -> None:
    for nothing in ({}, {"a": []}):
        with refuses(ValueError, "curves", "at least one"):
            curve_panel(nothing)
    with refuses(ValueError, "(0, 1)", "above 0"):
        curve_panel({"a": [0.5]}, log=True, limits=(0, 1))


@pytest.mark.parametrize(("low", "high"), [
    (0, 1), (-3, 3), (0, 999), (0.012, 0.019), (-1e-6, 1e-6), (5, 7.5),
])
def test_ticks_are_few_round_and_inside(low, high) -> None:
    ticks = panels._ticks(low, high)
    assert 2 <= len(ticks) <= 6 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0], rtol=1e-6)
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)) in (1, 2, 5)


@pytest.mark.parametrize(("low", "high", "expected"), [
    (1e-5, 1, [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]),
    (1e-12, 1e3, [1e-12, 1e-9, 1e-6, 1e-3, 1, 1e3]),
    (0.15, 0.9, [0.2, 0.5]),  # a loss within one power of ten has ticks too
    (0.61, 0.72, [0.65, 0.7]),
    (1.1e-11, 1.3e-11, [1.1e-11, 1.15e-11, 1.2e-11, 1.25e-11, 1.3e-11]),
])
def test_logarithmic_ticks(low, high, expected) -> None:
    ticks = panels._log_ticks(math.log10(low), math.log10(high))
    assert ticks == pytest.approx(expected, rel=1e-9)


def test_letters_are_there_without_matplotlib(monkeypatch) -> None:
    panels.font.cache_clear()
    monkeypatch.setattr(panels, "find_spec", lambda name: None)
    try:
        assert panels.font(14).getlength("t = 100") > 20
        assert compose([torch.zeros(3, 8, 8)], ["title"]).width >= 200
    finally:
        panels.font.cache_clear()


def test_a_bundle_of_lines_has_no_legend():
    """More lines than colours cannot be told apart: their ends stay free."""
    lines = {str(i): [0.0, i / 12] for i in range(12)}
    alone = curve_panel({"0": [0.0, 0.0]}, limits=(0, 1))
    corner = (190, 10, 310, 60)  # where a legend stands
    few = curve_panel(dict(list(lines.items())[:2]), limits=(0, 1))
    flat = curve_panel({str(i): [0.0, 0.0] for i in range(12)}, limits=(0, 1))
    assert list(flat.crop(corner).getdata()) == list(alone.crop(corner).getdata())
    assert list(few.crop(corner).getdata()) != list(alone.crop(corner).getdata())


# -- a plane ---------------------------------------------------------------------------------------


def test_points_lie_where_they_say() -> None:
    panel = plane_panel(torch.tensor([[1.0, -0.5]]), limits=(-2, 2), size=(250, 250))
    frame = Frame(panel, (-2, 2), (-2, 2))
    rows, columns = where(panel, COLORS[2])
    across, up = frame.at(1.0, -0.5)
    assert abs(columns.mean() - across) < 1 and abs(rows.mean() - up) < 1


def test_an_arrow_points_its_way_and_is_no_longer_than_allowed() -> None:
    place, move = torch.zeros(1, 2), torch.tensor([[5.0, 0.0]])
    panel = plane_panel(at=place, arrows=move, limits=(-1, 1), longest=0.5, size=(250, 250))
    frame = Frame(panel, (-1, 1), (-1, 1))
    dark = (pixels(panel) == rgb(INK)).all(axis=2)
    dark[:, [frame.left, frame.right]] = dark[[frame.top, frame.bottom]] = False
    inside = dark[frame.top : frame.bottom, frame.left : frame.right]
    rows, columns = np.nonzero(inside)
    start, end = frame.at(0, 0)[0] - frame.left, frame.at(0.5, 0)[0] - frame.left
    assert abs(columns.min() - start) <= 1.5 and abs(columns.max() - end) <= 1.5
    assert rows[columns > end - 5].size > rows[columns < start + 5].size  # the head is at the tip


def test_a_path_ends_in_a_dot_and_stays_inside() -> None:
    paths = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[-1.0, 1.0], [9.0, 9.0]]])
    panel = plane_panel(paths=paths, limits=(-2, 2), size=(250, 250))
    frame = Frame(panel, (-2, 2), (-2, 2))
    rows, columns = where(panel, COLORS[1])
    for x, y in ((-1, 1), (2, 2)):  # what leaves the frame ends at its edge
        across, up = frame.at(x, y)
        assert ((columns - across) ** 2 + (rows - up) ** 2).min() <= 2


@pytest.mark.parametrize("options, piece", [
    ({}, "nothing to draw"),
    ({"points": torch.zeros(3)}, "points must be (N, 2), not (3,)"),
    ({"points": torch.zeros(0, 2)}, "points must be (N, 2), not (0, 2)"),
    ({"arrows": torch.zeros(3, 2)}, "3 arrows need as many places `at`, not 0"),
    ({"paths": torch.zeros(3, 2)}, "paths must be (steps, K, 2), not (3, 2)"),
])
def test_what_is_no_plane_is_refused(options: dict, piece: str) -> None:
    with pytest.raises(ValueError) as error:
        plane_panel(**options)
    assert piece in str(error.value)
