"""Pictures: what is shown and drawn holds the right pixels, and says what it is in words."""

import io

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from diffusion_lib.data.pictures import encode, image_grid
from diffusion_lib.lessons.plots import (
    figure,
    plot_curves,
    running_mean,
    show,
    show_images,
    show_strip,
)
from diffusion_lib.lessons.sliders import frame_slider


def opened(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def displayed(monkeypatch) -> list[tuple[dict, dict]]:
    """(data, metadata) of all that is displayed, as if in a notebook."""
    import IPython
    import IPython.display

    shown: list[tuple[dict, dict]] = []

    def display(data, raw, metadata=None):
        shown.append((data, metadata or {}))

    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def test_show_says_in_words_what_it_shows(displayed) -> None:
    picture = image_grid(torch.zeros(1, 3, 8, 8))
    show(picture, alt='a grey "square" & nothing else', caption="Figure 1: <grey>")
    (data, metadata), (below, _) = displayed
    words = 'a grey "square" & nothing else'
    assert data["text/plain"] == metadata["image/png"]["alt"] == words
    assert np.array_equal(opened(io.BytesIO(data["image/png"])), np.asarray(picture))
    assert below["text/plain"] == "Figure 1: <grey>"
    assert 'aria-label="a grey &quot;square&quot; &amp; nothing else"' in below["text/html"]
    assert "Figure 1: &lt;grey&gt;" in below["text/html"] and "<grey>" not in below["text/html"]


def test_show_takes_bytes_as_they_are_and_figures(displayed) -> None:
    content = encode(image_grid(torch.zeros(1, 3, 8, 8)))
    show(content, alt="bytes")
    show(plot_curves({"a": [1, 2]}, xlabel="x", ylabel="y", width=3, height=2), alt="figure")
    assert displayed[0][0]["image/png"] == content
    assert opened(io.BytesIO(displayed[1][0]["image/png"])).shape == (200, 300, 3)
    assert len(displayed) == 2  # no caption, no block below


def test_a_large_sheet_becomes_small_and_stays_true(displayed) -> None:
    generator = torch.Generator().manual_seed(0)
    sheet = image_grid(torch.randn(16, 3, 64, 64, generator=generator).clamp(-1, 1))
    show(sheet, alt="noise")
    content = displayed[0][0]["image/png"]
    assert len(content) < 0.5 * len(encode(sheet))
    error = np.abs(opened(io.BytesIO(content)).astype(float) - np.asarray(sheet))
    assert error.mean() < 20, error.mean()


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_refuses_to_be_silent(alt, refuses) -> None:
    with refuses(ValueError, "alt must say in words"):
        show(image_grid(torch.zeros(1, 3, 8, 8)), alt=alt)


def test_outside_a_notebook_the_words_are_printed(capsys) -> None:
    show(image_grid(torch.zeros(1, 3, 8, 8)), alt="a grey square", caption="never seen here")
    show_images(torch.zeros(3, 3, 8, 8))
    said = "[picture: a grey square]\n[picture: grid of 3 pictures]\n"
    assert capsys.readouterr().out == said


def test_show_images_with_titles_in_rows(displayed, refuses) -> None:
    greys = [torch.full((3, 8, 8), value) for value in (-0.8, -0.4, 0.0, 0.4, 0.8)]
    show_images(greys, ["a", "b", "c", "d", "e"], columns=3, scale=4)
    ((data, _),) = displayed
    assert data["text/plain"] == "a, b, c, d, e"  # no caption and no alt: the titles
    sheet = opened(io.BytesIO(data["image/png"])).astype(int)[..., 0]
    places = []
    for grey in (25, 76, 128, 178, 230):  # of each a square of 32 pixels, in two rows
        square = sliding_window_view(abs(sheet - grey) <= 1, (32, 32)).all(axis=(2, 3))
        ((row, column),) = np.argwhere(square)
        places.append((row, column))
    down, across = zip(*places, strict=True)
    assert down[0] == down[1] == down[2] < down[3] == down[4]
    assert across[0] < across[1] < across[2] and across[3] < across[4]
    with refuses(ValueError, "5 images", "titles", "2"):
        show_images(greys, ["a", "b"])


@pytest.mark.parametrize(("options", "alt"), [
    ({"alt": "A", "caption": "C"}, "A"), ({"caption": "C"}, "C"), ({}, "grid of 12 pictures"),
])
def test_words_of_show_images(displayed, toy_images, options, alt) -> None:
    show_images(toy_images, **options)
    assert displayed[0][0]["text/plain"] == alt


def test_plot_curves_draws_what_it_is_given() -> None:
    steps, losses = torch.tensor([10.0, 20.0]), torch.tensor([5.0, 6.0], requires_grad=True)
    curves = {"by index": [3.0, 1.0, 2.0], "with x": (steps, losses)}
    (ax,) = plot_curves(curves, xlabel="step", ylabel="loss", title="T", logy=True).axes
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 1, 2], [10, 20]]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3, 1, 2], [5, 6]]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("step", "loss", "T")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["by index", "with x"]
    one, other = ((line.get_color(), line.get_linestyle()) for line in ax.lines)
    assert one[0] != other[0] and one[1] != other[1]  # apart in colour and in grey


def test_plot_curves_into_axes_that_are_there() -> None:
    fig, (left, right) = figure(columns=2, width=4, height=2)
    assert plot_curves({"a": [1, 2]}, xlabel="x", ylabel="y", ax=right, logx=True) is fig
    assert not left.lines and len(right.lines) == 1
    assert right.get_xscale() == "log" and right.get_legend() is None


@pytest.mark.parametrize("n", [0, 1, 5, 200])
@pytest.mark.parametrize("window", [1, 2, 7, 500])
def test_running_mean_against_a_naive_one(n, window) -> None:
    values = np.random.default_rng(n + window).normal(5, 2, n)
    naive = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(n)]
    result = running_mean(values.tolist(), window)
    assert result.dtype == np.float64 and result.shape == (n,)
    assert np.allclose(result, naive, rtol=0, atol=1e-12)


def test_a_strip_shows_the_sliders_own_frames(displayed) -> None:
    colours = [torch.full((1, 3, 20, 20), value) for value in (-1.0, 0.0, 1.0)]
    slider = frame_slider(colours, ["dark", "grey", "bright"], "light")
    for columns, width in ((1, None), (2, 100)):
        show_strip(slider, ["dark", "bright"], columns=columns, width=width, alt="dark, bright")
    tall, wide = (opened(io.BytesIO(data["image/png"])) for data, _ in displayed)
    first = opened(io.BytesIO(slider.frames[0]))
    assert np.abs(tall[: len(first)].astype(int) - first).max() <= 8
    assert tall.shape == (2 * len(first), first.shape[1], 3) and wide.shape[1] == 200
    assert wide[60, 50].max() < 20 and wide[60, 150].min() > 235


@pytest.mark.parametrize("values", [[], ["dim"], ["dark", 1]])
def test_a_strip_refuses_what_the_slider_does_not_have(values, refuses) -> None:
    slider = frame_slider([torch.zeros(1, 3, 8, 8)] * 2, ["dark", "grey"], "light")
    with refuses(ValueError, "slider's own", repr(values)):
        show_strip(slider, values, alt="nothing")
