"""Pictures: what is saved, shown and drawn holds the right pixels in the right order, and says what it is in words."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib.data.pictures import encode, image_grid
from diffusion_lib.lessons import plots
from diffusion_lib.lessons.plots import (
    figure,
    plot_curves,
    plot_loss,
    running_mean,
    show,
    show_images,
)


def opened(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# -- showing -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch) -> list[tuple[dict, dict]]:
    """(data, metadata) of all that is displayed, as if in a notebook."""
    import IPython
    import IPython.display

    shown: list[tuple[dict, dict]] = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, metadata=None: shown.append((data, metadata or {})))
    return shown


def test_show_says_in_words_what_it_shows(displayed) -> None:
    picture = image_grid(torch.zeros(1, 3, 8, 8))
    show(picture, alt='a grey "square" & nothing else', caption="Figure 1: <grey>")
    (data, metadata), (below, _) = displayed
    assert data["text/plain"] == metadata["image/png"]["alt"] == 'a grey "square" & nothing else'
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
    assert len(displayed) == 2                                                 # no caption, no block below


def test_a_large_sheet_becomes_small_and_stays_true(displayed) -> None:
    noise = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    sheet = image_grid(noise)
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
    assert capsys.readouterr().out == "[picture: a grey square]\n[picture: grid of 3 pictures]\n"


def test_show_images_with_titles_in_rows(displayed, toy_images, refuses) -> None:
    show_images(toy_images[:5], ["a", "b", "c", "d", "e"], columns=3, scale=4)
    (data, _), = displayed
    assert data["text/plain"] == "a, b, c, d, e"                               # no caption and no alt: the titles
    sheet = opened(io.BytesIO(data["image/png"]))
    rows = [plots.compose(list(toy_images[i:j]), list("abcde")[i:j], 4) for i, j in ((0, 3), (3, 5))]
    assert np.array_equal(sheet[: rows[0].height], np.asarray(rows[0]))
    assert np.array_equal(sheet[rows[0].height :, : rows[1].width], np.asarray(rows[1]))
    with refuses(ValueError, "5 images", "titles", "2"):
        show_images(toy_images[:5], ["a", "b"])


@pytest.mark.parametrize(("options", "alt"), [({"alt": "A", "caption": "C"}, "A"), ({"caption": "C"}, "C"), ({}, "grid of 12 pictures")])
def test_words_of_show_images(displayed, toy_images, options, alt) -> None:
    show_images(toy_images, **options)
    assert displayed[0][0]["text/plain"] == alt


# -- curves --------------------------------------------------------------------------------------------------------------


def test_plot_curves_draws_what_it_is_given() -> None:
    curves = {"by index": [3.0, 1.0, 2.0], "with x": (torch.tensor([10.0, 20.0]), torch.tensor([5.0, 6.0], requires_grad=True))}
    drawn = plot_curves(curves, xlabel="step", ylabel="loss", title="T", logy=True)
    (ax,) = drawn.axes
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 1, 2], [10, 20]]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[3, 1, 2], [5, 6]]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_xscale(), ax.get_yscale()) == ("step", "loss", "T", "linear", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["by index", "with x"]
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len({color for color, _ in looks}) == len({dash for _, dash in looks}) == 2      # apart in colour and in grey


def test_plot_curves_into_axes_that_are_there() -> None:
    fig, (left, right) = figure(columns=2, width=4, height=2)
    assert plot_curves({"a": [1, 2]}, xlabel="x", ylabel="y", ax=right, logx=True) is fig
    assert not left.lines and len(right.lines) == 1 and right.get_xscale() == "log" and right.get_legend() is None


def test_plot_loss_smooths() -> None:
    losses = [4.0, 2.0, 1.0, 1.0]
    (ax,) = plot_loss({"one": losses, "two": losses[:2]}, smooth=2, logy=False).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[4.0, 3.0, 1.5, 1.0], [4.0, 3.0]]
    assert ax.get_ylabel() == "loss (mean of 2 steps)" and ax.get_xlabel() == "training step"
    assert plot_loss(losses).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("n", [0, 1, 5, 200])
@pytest.mark.parametrize("window", [1, 2, 7, 500])
def test_running_mean_against_a_naive_one(n, window) -> None:
    values = np.random.default_rng(n + window).normal(5, 2, n)
    naive = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(n)]
    result = running_mean(values.tolist(), window)
    assert result.dtype == np.float64 and result.shape == (n,)
    assert np.allclose(result, naive, rtol=0, atol=1e-12)
