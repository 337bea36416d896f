"""Sliders and the time left of a training, without a browser: what they hold and say.

Every slider is pushed to its ends and its middle. tests/browser moves them as a hand does.
"""

import gc
import io
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
import torch
from IPython.lib.pretty import pretty
from ipywidgets import (
    Checkbox,
    Dropdown,
    FloatSlider,
    HBox,
    IntSlider,
    IntText,
    Play,
    SelectionSlider,
)
from ipywidgets.widgets.widget_link import Link
from PIL import Image

from diffusion_lib import GaussianDiffusion, linear_beta_schedule
from diffusion_lib.lessons import progress as progress_of
from diffusion_lib.lessons import sliders as widgets
from diffusion_lib.lessons.panels import compose, curve_panel
from diffusion_lib.lessons.plots import plot_curves
from diffusion_lib.lessons.progress import TimeLeft
from diffusion_lib.lessons.sliders import frame_slider, live_panel, live_slider, timestep_slider


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def grey(t: float, high: float = 1000) -> torch.Tensor:
    """A picture that says its number: 8 pixels of one grey."""
    return torch.full((3, 8, 8), 2 * t / high - 1)


def middle(content: bytes) -> int:
    """The grey in the middle of what a slider shows of grey()."""
    picture = pixels(content)
    return int(picture[picture.shape[0] * 2 // 3, 80, 0])


def shown(slider, value) -> bytes:
    """The frame of one of a frame slider's values."""
    return slider.frames[slider.values.index(value)]


def moved(panel, **values) -> bytes:
    """Set controls by name, as hands do; returns the picture then shown, or raises its error."""
    for name, value in values.items():
        panel.controls[name].value = value
    if panel.error is not None:
        raise panel.error
    return panel.image.value


def in_page(one, one_name: str, other, other_name: str) -> bool:
    """Whether a link in the page (no kernel needed) ties the two properties."""
    ends = {(id(one), one_name), (id(other), other_name)}
    links = [widget for widget in gc.get_objects() if type(widget) is Link]
    return any(
        {(id(link.source[0]), link.source[1]), (id(link.target[0]), link.target[1])} == ends
        for link in links
    )


@pytest.fixture
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(linear_beta_schedule(1000))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


# -- frames ----------------------------------------------------------------------------------------


def test_a_frame_slider_at_its_ends_and_its_middle() -> None:
    slider = frame_slider([grey(t) for t in (0, 250, 500, 750, 1000)], [0, 250, 500, 750, 1000])
    assert slider.values == [0, 250, 500, 750, 1000]
    for t in (0, 500, 1000):
        slider.slider.index = slider.values.index(t)
        page = slider.pages.children[slider.slider.index]
        assert slider.slider.label == str(t) and page.value == shown(slider, t)
        assert middle(page.value) == pytest.approx(255 * t / 1000, abs=1)
    assert [middle(frame) for frame in slider.frames] == sorted(
        middle(frame) for frame in slider.frames
    )


def test_a_frame_slider_moves_in_the_page_without_a_kernel() -> None:
    slider = frame_slider([grey(t) for t in (0, 500, 1000)], ["a", "b", "c"], value="b")
    assert slider.slider.index == slider.pages.selected_index == 1
    assert in_page(slider.slider, "index", slider.pages, "selected_index")
    row = slider.children[0]
    player, handle = row.children
    assert (
        isinstance(player, Play)
        and handle is slider.slider
        and in_page(player, "value", handle, "index")
    )
    assert (player.min, player.max, player.value) == (0, 2, 1)
    alone = frame_slider([grey(0)], [0], play=False)
    assert [type(child) for child in alone.children[0].children] == [SelectionSlider]


def test_pictures_carry_their_words_and_keep_their_size() -> None:
    slider = frame_slider([grey(0), grey(1)], [3, 7], label="seed")
    for picture, words in zip(slider.pages.children, ("seed = 3", "seed = 7"), strict=True):
        assert picture.tooltip == words
        state = picture.get_state()
        # without it the page cannot show a tooltip
        assert state["description"] == ""
        # else a box stretches it over the page
        assert picture.layout.align_self == "flex-start"


@pytest.mark.parametrize("live", [False, True])
def test_text_forms_are_constant_and_one_line(live) -> None:
    def make(start):
        if live:
            return live_slider(lambda t: grey(t), 0, 1000, start, label="step")
        return frame_slider([grey(t) for t in (0, 500, 1000)], [0, 500, 1000], "step", value=start)

    one, other = make(0), make(500)
    expected = "Slider over step (0 to 1000)" if live else "Slider over step (3 frames)"
    assert pretty(one) == pretty(other) == repr(one) == expected
    bundle = one._repr_mimebundle_()
    assert bundle["text/plain"] == expected and "application/vnd.jupyter.widget-view+json" in bundle


def test_captions_are_words_and_drawn_into_the_frames(diffusion) -> None:
    one, other = (frame_slider([grey(5)], [5], captions=[words]) for words in ("one", "other"))
    assert one.pages.children[0].tooltip == "one" and one.frames != other.frames
    slider = timestep_slider(grey, diffusion, count=5, limit_kb=1000)
    words = [page.tooltip for page in slider.pages.children]
    assert words[0] == "t = 0    ᾱ_t = 0.9999" and words[2] == "t = 258    ᾱ_t = 0.5002"
    assert words[-1] == "t = 999    ᾱ_t = 4.0e-05"


def test_frames_of_every_kind() -> None:
    as_bytes = widgets.encode(compose([grey(200)]))
    figure = plot_curves({"a": [1, 2]}, xlabel="x", ylabel="y", width=3, height=2)
    slider = frame_slider(
        [grey(0), compose([grey(500)]), torch.zeros(4, 3, 8, 8), figure, as_bytes], range(5)
    )
    assert len(set(slider.frames)) == 5
    assert pixels(slider.frames[3]).shape == (200 + 34, 300 + 12, 3)
    untouched = frame_slider([as_bytes, as_bytes[:]], [0, 1])
    # only bytes: taken as they are
    assert untouched.frames == [as_bytes, as_bytes]


def test_frames_that_are_too_heavy_become_webp(noise) -> None:
    png = sum(map(len, frame_slider(list(noise), range(6)).frames))
    totals = []
    for limit in (105, 95, 85):
        slider = frame_slider(list(noise), range(6), limit_kb=limit)
        assert {picture.format for picture in slider.pages.children} == {"webp"}
        assert len({pixels(frame).shape for frame in slider.frames}) == 1
        totals.append(sum(map(len, slider.frames)))
        assert totals[-1] <= 1000 * limit < png
    assert totals == sorted(totals, reverse=True)


def test_frames_over_the_limit_are_refused(noise, refuses) -> None:
    with refuses(ValueError, "6 frames", "more than 5 kB", "fewer or smaller"):
        frame_slider(list(noise), range(6), limit_kb=5)
    content = widgets.encode(compose([noise[0]]))
    with refuses(ValueError, "1 frames", f"more than {len(content) // 1000 - 1} kB"):
        frame_slider([content], [0], limit_kb=len(content) // 1000 - 1)


def test_frame_sliders_refuse(refuses) -> None:
    two = [grey(0), grey(1)]
    with refuses(ValueError, "equally many", "2, 3 and 3"):
        frame_slider(two, [1, 2, 3])
    with refuses(ValueError, "2, 2 and 1"):
        frame_slider(two, [1, 2], captions=["one"])
    with refuses(ValueError, "at least one", "0, 0 and 0"):
        frame_slider([], [])
    with refuses(ValueError, "value 5", "1 … 2"):
        frame_slider(two, [1, 2], value=5)
    with refuses(ValueError, "NaN"):
        frame_slider([torch.full((3, 8, 8), float("nan"))], [1])


# -- live ------------------------------------------------------------------------------------------


def test_a_live_slider_at_its_ends_and_its_middle() -> None:
    asked = []

    def draw(t):
        asked.append(t)
        return grey(t)

    slider = live_slider(draw, 0, 1000, 150)
    assert asked == [150]
    for t in (0, 500, 1000):
        assert middle(moved(slider, value=t)) == pytest.approx(255 * t / 1000, abs=1)
    assert asked == [150, 0, 500, 1000]                                        # once for each place


def test_a_hand_redraws_through_the_widget_itself() -> None:
    slider = live_slider(lambda t: grey(t), 0, 1000)
    before = slider.image.value
    # what arrives from the page
    slider.controls["value"].set_state({"value": 700})
    assert slider.image.value != before and middle(slider.image.value) == pytest.approx(178, abs=1)


def test_play_is_linked_in_the_page() -> None:
    slider = live_slider(lambda t: grey(t), 10, 20, 15, step=2)
    player, handle = slider.children[0].children
    assert isinstance(player, Play) and (player.min, player.max, player.value, player.step) == (
        10,
        20,
        15,
        2,
    )
    assert (
        handle is slider.controls["value"]
        and handle.step == 2
        and in_page(player, "value", handle, "value")
    )
    assert not [
        w for w in live_slider(grey, 0, 9, play=False).children[0].children if isinstance(w, Play)
    ]


def test_an_error_is_shown() -> None:
    def draw(t):
        if t > 500:
            raise RuntimeError("no <picture> above 500")
        return grey(t)

    slider = live_slider(draw, 0, 1000)
    good = moved(slider, value=400)
    # a hand: no traceback, but words below the picture
    slider.controls["value"].value = 600
    assert (
        "RuntimeError: no &lt;picture&gt; above 500" in slider.status.value
        and slider.image.value == good
    )
    assert isinstance(slider.error, RuntimeError)
    moved(slider, value=300)
    assert slider.status.value == "" and slider.error is None                  # and it goes on


def test_a_slider_that_cannot_draw_at_all_says_so_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        live_slider(lambda t: grey(1 // t), 0, 10)
    with pytest.raises(ValueError, match="images must be"):
        live_slider(lambda t: "no picture", 0, 10)


def test_slow_work_shows_that_it_is_working(monkeypatch) -> None:
    seen = []
    # each drawing takes half a second
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(widgets.time, "perf_counter", lambda: next(clock))
    slider = live_slider(lambda t: grey(t), 0, 10)
    slider.status.observe(lambda change: seen.append(change["new"]), "value")
    moved(slider, value=3)
    assert seen == ["drawing …", ""]
    # from now on it is quick
    monkeypatch.setattr(widgets.time, "perf_counter", lambda: 0.0)
    moved(slider, value=4)                                                     # it cannot know yet
    moved(slider, value=5)
    assert seen == ["drawing …", "", "drawing …", ""]


def test_live_sliders_refuse(refuses) -> None:
    with refuses(ValueError, "11", "0 … 10"):
        live_slider(grey, 0, 10, 11)


def test_live_pictures_of_every_kind() -> None:
    kinds = [
        grey(3),
        compose([grey(3)]),
        widgets.encode(compose([grey(3)])),
        widgets.encode(compose([grey(3)]), "webp"),
        widgets.encode(compose([grey(3)]), "jpeg"),
        plot_curves({"a": [1, 2]}, xlabel="x", ylabel="y", width=3, height=2),
    ]
    slider = live_slider(lambda i: kinds[i], 0, len(kinds) - 1)
    for i, format in enumerate(["png", "png", "png", "webp", "jpeg", "png"]):
        picture = moved(slider, value=i)
        assert slider.image.format == format and pixels(picture).shape[2] == 3
    # bytes are taken as they are
    assert moved(slider, value=2) == kinds[2]


# -- panels with controls --------------------------------------------------------------------------


def test_short_forms_of_controls() -> None:
    given = IntText(4)
    controls = {
        "whole": (1, 50, 10),
        "in_steps": (10, 1000, 100, 10),
        "real": (0.5, 2, 1),
        "fine": (-6.0, -2.0, -4.0, 0.1),
        "menu": ["ddim", "ddpm"],
        "box": True,
        "own": given,
    }
    asked = []

    def draw(**values):
        asked.append(values)
        return grey(values["whole"], 50)

    panel = live_panel(draw, controls)
    made = panel.controls
    assert list(made) == list(controls) and made["own"] is given
    assert [type(made[name]) for name in controls] == [
        IntSlider,
        IntSlider,
        FloatSlider,
        FloatSlider,
        Dropdown,
        Checkbox,
        IntText,
    ]
    assert asked == [
        {
            "whole": 10,
            "in_steps": 100,
            "real": 1.0,
            "fine": -4.0,
            "menu": "ddim",
            "box": True,
            "own": 4,
        }
    ]
    assert [(w.min, w.max, w.step) for w in (made["whole"], made["in_steps"])] == [
        (1, 50, 1),
        (10, 1000, 10),
    ]
    assert [(w.min, w.max, w.step) for w in (made["real"], made["fine"])] == [
        (0.5, 2.0, 0.015),
        (-6.0, -2.0, 0.1),
    ]
    assert made["menu"].options == ("ddim", "ddpm") and all(
        made[name].description == name for name in list(controls)[:-1]
    )
    assert repr(panel) == f"Panel with {', '.join(controls)}"
    assert panel.children[:-2] == tuple(made.values()) and panel.children[-2:] == (
        panel.image,
        panel.status,
    )


def test_a_panel_at_the_ends_and_the_middle_of_every_control() -> None:
    def draw(steps, power, sampler, clip):
        return curve_panel(
            {sampler: np.linspace(0, 1, steps) ** power, "clip": np.full(steps, float(clip))},
            limits=(0, 1),
        )

    panel = live_panel(
        draw,
        {
            "steps": (2, 50, 10),
            "power": (0.5, 3.0, 1.0),
            "sampler": ["ddim", "heun", "ddpm"],
            "clip": False,
        },
    )
    places_of = {
        "steps": (2, 26, 50),
        "power": (0.5, 1.75, 3.0),
        "sampler": ("ddim", "heun", "ddpm"),
        "clip": (False, True),
    }
    for name, places in places_of.items():
        pictures = {moved(panel, **{name: place}) for place in places}
        assert len(pictures) == len(places), name


def test_several_controls_at_once() -> None:
    asked = []
    panel = live_panel(
        lambda a, b: asked.append((a, b)) or grey(10 * a + b, 100), {"a": (0, 9, 0), "b": (0, 9, 0)}
    )
    assert middle(moved(panel, a=5, b=7)) == pytest.approx(255 * 0.57, abs=1)
    # as hands do: one after the other
    assert asked == [(0, 0), (5, 0), (5, 7)]


def test_more_controls_beside_a_slider() -> None:
    slider = live_slider(
        lambda t, name, seed: grey(t + seed + (name == "b"), 20),
        0,
        10,
        controls={"name": ["a", "b"], "seed": (0, 9, 0)},
    )
    assert middle(moved(slider, value=5, seed=4)) == pytest.approx(255 * 9 / 20, abs=1)
    assert middle(moved(slider, value=10)) == pytest.approx(255 * 14 / 20, abs=1)  # seed stays
    assert middle(moved(slider, name="b")) == pytest.approx(255 * 15 / 20, abs=1)


@pytest.mark.parametrize("control", [(1, 2), (1, 2, 3, 4, 5), "text", 7, None])
def test_controls_that_are_none(control, refuses) -> None:
    with refuses(ValueError, "'odd'", repr(control), "(low, high, start"):
        live_panel(lambda odd: grey(0), {"odd": control})


# -- timesteps -------------------------------------------------------------------------------------


def test_frames_of_a_timestep_slider_are_spread_over_all_t(diffusion) -> None:
    slider = timestep_slider(lambda t: grey(t), diffusion, value=130)
    assert 36 <= len(slider.values) <= 40 and slider.values[0] == 0 and slider.values[-1] == 999
    levels = diffusion.snr(torch.tensor(slider.values)).log().clamp(-8, 8)
    apart = -levels.diff()[6:]  # the first timesteps lie farther apart than the frames
    assert apart.max() < 1.3 * apart.min()
    assert slider.values[slider.slider.index] == min(slider.values, key=lambda t: abs(t - 130))
    assert isinstance(slider.children[0].children[0], Play)
    few = timestep_slider(
        lambda t: grey(t), GaussianDiffusion(linear_beta_schedule(1000)[:7]), count=40
    )
    assert few.values == list(range(7))                                        # no timestep twice
    every = timestep_slider(lambda t: grey(t), diffusion, live=True, value=130)
    handle = every.controls["value"]
    assert (handle.min, handle.max, handle.step, handle.value) == (0, 999, 1, 130)
    assert isinstance(every.children[0], HBox) and isinstance(every.children[0].children[0], Play)


def test_a_timestep_slider_refuses(diffusion, refuses) -> None:
    with refuses(ValueError, "value 1000", "0 … 999"):
        timestep_slider(grey, diffusion, live=True, value=1000)
    with refuses(ValueError, "at least one"):
        timestep_slider(grey, diffusion, count=0)


# -- a training, watched ---------------------------------------------------------------------------


def test_a_long_training_says_so_after_its_first_steps(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_of.time, "perf_counter", lambda: now[0])

    def said(steps: int, seconds: float) -> list[str]:
        now[0], left, lines = 0.0, TimeLeft(steps), []
        for step in range(steps):
            now[0] += seconds if step else 60  # the first step also loads things
            left()
            lines.append(left.line.value)
        return lines

    assert set(said(100, 1.5)) == {""}
    lines = said(200, 2.0)
    assert set(lines[:4]) == {""} and lines[4].startswith("About 7 minutes left. If that is too")
    assert "stop the cell" in lines[4] and "torch.set_num_threads(1)" in lines[4]
    assert lines[150].startswith("About 2 minutes left.") and lines[-1] == ""
    assert repr(TimeLeft(3)) == "Time left, where it is long"
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        TimeLeft(0)


def test_in_a_notebook_the_time_left_shows_itself_once(monkeypatch) -> None:
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", shown.append)
    left = TimeLeft(7)
    for _ in range(7):
        left()
    assert shown == [left]


# -- the page --------------------------------------------------------------------------------------


def test_widgets_keep_up_their_side_of_the_page() -> None:
    """What ipywidgets needs in the page: its own picture model, found by name."""
    picture = widgets.Picture(value=b"", tooltip="words")
    assert (
        picture._model_name == "ImageModel" and picture._model_module == "@jupyter-widgets/controls"
    )
    assert ipywidgets.Image().keys and set(picture.keys) - set(ipywidgets.Image().keys) == {
        "description"
    }


def test_heavy_drawings_lose_next_to_nothing() -> None:
    """Of few colours: a PNG with a palette before any WebP."""
    curves = [curve_panel({"a": torch.sin(torch.arange(400) * 0.1 * i)}, size=(600, 400))
              for i in range(1, 5)]
    light, heavy = (frame_slider(curves, range(4), limit_kb=limit) for limit in (500, 22))
    assert sum(map(len, heavy.frames)) < 22_000 < sum(map(len, light.frames))
    for one, other in zip(light.frames, heavy.frames, strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other)).max() <= 2
