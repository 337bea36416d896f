"""Sliders that keep up with the hand.

Frames: every picture is made once and lives in the page, so the slider works without a kernel (an
exported page, a notebook just opened). Live: the picture is drawn anew for each value. Both are
plain ipywidgets and have a constant text form (notebook tests compare it).
"""

import html
import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as ui
import torch
from PIL import Image as PILImage
from traitlets import Unicode

from ..core.diffusion import GaussianDiffusion
from ..data.pictures import encode
from .panels import compose

QUALITIES = (92, 85, 75, 65, 55, 45, 35, 25)  # of WebP, tried in this order until the frames fit


class Panel(ui.VBox):
    """A box whose text form is one constant line, on every machine and in every run."""

    def __init__(self, children: Sequence[ui.Widget], summary: str) -> None:
        self.summary = summary[:100]
        super().__init__(children)

    def __repr__(self) -> str:
        return self.summary


class Picture(ui.Image):
    """The Image widget at its own size (a box would stretch it); `tooltip` is its alternative text.

    description: always empty. ipywidgets' page code reads it before it shows a tooltip, and fails
    on Image, which has none.
    """

    description = Unicode("").tag(sync=True)

    def __init__(self, **options: Any) -> None:
        options.setdefault("layout", ui.Layout(align_self="flex-start", max_width="100%"))
        super().__init__(**options)


# -- frames: made once, no kernel needed -----------------------------------------------------------

# A Tab keeps all its pages in the page, loaded; a Stack, made for this, loads each anew, which took
# three times as long. So frames are the pages of a Tab whose bar is not shown.
HIDE_BAR = """<style>
.jupyter-widgets.widget-tab.frames > .widget-tab-bar { display: none !important; }
.jupyter-widgets.widget-tab.frames > .widget-tab-contents {
  border: 0 !important; padding: 0 !important; margin: 0 !important; }
</style>"""


class FrameSlider(Panel):
    """What frame_slider() returns: values and frames (their bytes); slider and pages (widgets)."""

    def __init__(
        self, frames: Sequence[bytes], values: Sequence[Any], label: str, alts: Sequence[str],
        play: bool, start: int,
    ) -> None:
        self.frames, self.values = list(frames), list(values)
        self.pages = ui.Tab([Picture(value=frame, format=_format(frame), tooltip=alt)
                             for frame, alt in zip(frames, alts, strict=True)],
                            selected_index=start)
        self.pages.add_class("frames")
        options = [(str(value), i) for i, value in enumerate(values)]
        self.slider = ui.SelectionSlider(
            options=options, index=start, description=label, layout=_wide())
        ui.jslink((self.slider, "index"), (self.pages, "selected_index"))
        player = ui.Play(min=0, max=len(values) - 1, value=start, interval=120,
                         description=f"play {label}")
        ui.jslink((player, "value"), (self.slider, "index"))
        row = ui.HBox([player, self.slider] if play else [self.slider])
        style = ui.HTML(HIDE_BAR, layout=ui.Layout(display="none"))
        super().__init__([row, self.pages, style], f"Slider over {label} ({len(values)} frames)")


def frame_slider(
    frames: Sequence[Any], values: Sequence[Any], label: str = "t",
    captions: Sequence[str] | None = None, play: bool = True, value: Any = None,
    limit_kb: int = 500,
) -> FrameSlider:
    """A slider over pictures made beforehand; it needs no kernel. About 40 frames are plenty.

    frames: images of any kind (panels.py), figures, or bytes of PNG, WebP, JPEG (taken as they
    are). values: what the slider says at each frame. captions: drawn above each frame, "label =
    value" if None. value: where to start (the first). limit_kb: most that all frames together may
    take, as PNG if they fit, else as WebP of the best quality that does. Raises ValueError if they
    do not fit, or if frames, values and captions differ in number.
    """
    captions = [f"{label} = {v}" for v in values] if captions is None else list(captions)
    if not len(frames) == len(values) == len(captions) or len(frames) == 0:
        raise ValueError("frames, values and captions must be equally many and at least one, not "
                         f"{len(frames)}, {len(values)} and {len(captions)}")
    if value is not None and value not in values:
        raise ValueError(f"value {value!r} is none of the slider's values, "
                         f"{values[0]!r} … {values[-1]!r}")
    encoded = list(frames)
    if not all(isinstance(frame, bytes) for frame in frames):
        pictures = [compose([_picture(frame)], caption=caption)
                    for frame, caption in zip(frames, captions, strict=True)]
        encoded = _fit_bytes(pictures, 1000 * limit_kb)
    total = sum(map(len, encoded))
    if total > 1000 * limit_kb:
        raise ValueError(f"{len(encoded)} frames take {total // 1000} kB, more than {limit_kb} kB: "
                         "use fewer or smaller frames")
    start = 0 if value is None else list(values).index(value)
    return FrameSlider(encoded, values, label, captions, play, start)


def _fit_bytes(pictures: Sequence[PILImage.Image], limit: int) -> list[bytes]:
    """PNG if it fits into limit, else PNG of few colours where there are few, else WebP at the
    first quality that fits, else at the last.
    """
    encoded = [encode(picture) for picture in pictures]
    if sum(map(len, encoded)) > limit:
        drawings = [_few_colors(picture) for picture in pictures]
        encoded = encoded if None in drawings else [d for d in drawings if d]
    if sum(map(len, encoded)) <= limit:
        return encoded
    some = pictures[:: max(1, len(pictures) // 6)]
    for quality in QUALITIES:
        size = sum(len(encode(picture, "webp", quality)) for picture in some)
        guess = size * len(pictures) / len(some)  # a sample is quick; all of them decide
        if guess < 1.1 * limit or quality == QUALITIES[-1]:
            encoded = [encode(picture, "webp", quality) for picture in pictures]
            if sum(map(len, encoded)) <= limit:
                break
    return encoded


def _few_colors(picture: PILImage.Image) -> bytes | None:
    """PNG of a drawing with a palette, within 2/255 of it: a third of the bytes. None if there are
    more than 256 colours.
    """
    levels = [round(round(level * 63 / 255) * 255 / 63) for level in range(256)]
    coarse = picture.point(levels * 3)  # 64 a channel: edges of letters have many greys
    if coarse.getcolors(256) is None:
        return None
    buffer = io.BytesIO()
    coarse.quantize(256, dither=PILImage.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# -- live: drawn anew for each value ---------------------------------------------------------------


class LivePanel(Panel):
    """What live_panel() and live_slider() return: controls {name: widget} ("value" is live_slider's
    own), image (a widget), error (the last, or None).
    """

    def __init__(
        self, draw: Callable[..., Any], controls: Mapping[str, ui.Widget],
        rows: Sequence[ui.Widget], summary: str,
    ) -> None:
        self.draw, self.controls = draw, dict(controls)
        self.error: Exception | None = None
        self._seconds = 0.0
        self.image, self.status = Picture(format="png", tooltip=summary), ui.HTML()
        self._redraw()
        if self.error is not None:
            raise self.error  # a slider that cannot draw at all is a bug: say so
        for widget in self.controls.values():
            widget.observe(self._redraw, "value")
        super().__init__([*rows, self.image, self.status], summary)

    def _redraw(self, change: object = None) -> None:
        if self._seconds > 0.2:
            self.status.value = "drawing …"  # slow work shows that it is working
        start = time.perf_counter()
        try:
            values = {name: widget.value for name, widget in self.controls.items()}
            drawn = self.draw(**values)
            content = drawn if isinstance(drawn, bytes) else encode(_picture(drawn))
            self.image.format, self.image.value = _format(content), content
            self.status.value, self.error = "", None
        except Exception as error:  # in a handler it would vanish in the server's log: show it
            self.error, name = error, type(error).__name__
            said = html.escape(str(error))
            self.status.value = f'<b style="color:#b00020">{name}: {said}</b>'
        self._seconds = time.perf_counter() - start


def live_slider(
    draw: Callable[..., Any], minimum: int, maximum: int, value: int | None = None, step: int = 1,
    label: str = "t", play: bool = True, controls: Mapping[str, Any] | None = None,
) -> LivePanel:
    """A slider whose picture is drawn for each value: draw(value, **controls) -> image or bytes.

    controls: more of them, as for live_panel(). Under 30 ms a drawing feels immediate: use
    compose() and the panels rather than matplotlib. An error in draw is shown below the picture.
    """
    value = minimum if value is None else value
    if not minimum <= value <= maximum:
        raise ValueError(f"value {value} lies outside {minimum} … {maximum}")
    main = ui.IntSlider(value, minimum, maximum, step, description=label, layout=_wide())
    hop = max(step, (maximum - minimum) // 60)
    player = ui.Play(min=minimum, max=maximum, step=hop, value=value, interval=120)
    ui.jslink((player, "value"), (main, "value"))
    more = {name: _control(name, control) for name, control in (controls or {}).items()}
    rows = [ui.HBox([player, main] if play else [main]), *more.values()]
    return LivePanel(lambda value, **others: draw(value, **others), {"value": main, **more}, rows,
                     f"Slider over {label} ({minimum} to {maximum})")


def live_panel(draw: Callable[..., Any], controls: Mapping[str, Any]) -> LivePanel:
    """A picture with several controls: draw(**{name: value}) -> image, figure, or bytes.

    controls: {name: widget}, or short: (low, high, start[, step]) makes a slider (of whole numbers
    if all are), a list a menu, True or False a box to tick. For example
    live_panel(draw, {"beta_end": (0.001, 0.05, 0.02), "T": (10, 1000, 1000)}).
    """
    widgets = {name: _control(name, control) for name, control in controls.items()}
    return LivePanel(draw, widgets, list(widgets.values()), f"Panel with {', '.join(widgets)}")


def timestep_slider(
    draw: Callable[[int], Any], diffusion: GaussianDiffusion, *, live: bool = False,
    count: int = 40, value: int | None = None, play: bool = True, limit_kb: int = 500,
) -> FrameSlider | LivePanel:
    """A slider over the timesteps of `diffusion`; t and ᾱ_t stand above the picture of draw(t).

    live=False: at most `count` frames from t = 0 to T-1 (see even_timesteps), made now, no kernel
    needed later. live=True: every t, drawn when asked.
    """
    def caption(t: int) -> str:
        bar = float(diffusion.alphas_cumprod[t])
        return f"t = {t}    ᾱ_t = {bar:{'.4f' if bar >= 1e-3 or bar == 0 else '.1e'}}"

    last = diffusion.T - 1
    if live:
        return live_slider(lambda t: compose([_picture(draw(t))], caption=caption(t)), 0, last,
                           value, label="t", play=play)
    steps = even_timesteps(diffusion, count)
    start = None if value is None else min(steps, key=lambda t: abs(t - value))
    frames, captions = [draw(t) for t in steps], [caption(t) for t in steps]
    return frame_slider(frames, steps, "t", captions, play, start, limit_kb)


def even_timesteps(diffusion: GaussianDiffusion, count: int) -> list[int]:
    """At most `count` timesteps from 0 to T-1, about evenly spaced in log-SNR: equal steps of what
    the eye sees. (Even in t, a third of the linear schedule's frames would be noise.)

    Fewer than `count` where timesteps lie too far apart. What lies above e⁸ or below e⁻⁸ counts as
    that, for there nothing changes that could be seen.
    """
    if diffusion.T <= count:
        return list(range(diffusion.T))
    levels = diffusion.snr(torch.arange(diffusion.T)).log().clamp(-8, 8)
    wanted = torch.linspace(float(levels[0]), float(levels[-1]), max(count, 0), dtype=levels.dtype)
    inside = [int((levels - level).abs().argmin()) for level in wanted[1:-1]]
    return sorted({0, diffusion.T - 1, *inside}) if count > 1 else [0][:count]


def _wide() -> ui.Layout:
    return ui.Layout(width="420px")


def _control(name: str, control: Any) -> ui.Widget:
    if isinstance(control, ui.Widget):
        return control
    style = {"description": name, "layout": _wide(), "style": {"description_width": "100px"}}
    if isinstance(control, bool):
        return ui.Checkbox(control, **style)
    if isinstance(control, list):
        return ui.Dropdown(options=control, **style)
    if not isinstance(control, tuple) or len(control) not in (3, 4):
        raise ValueError(f"control {name!r} must be a widget, (low, high, start[, step]), a list "
                         f"or a bool, not {control!r}")
    low, high, start, *step = control
    if all(isinstance(number, int) for number in control):
        return ui.IntSlider(start, low, high, *step, **style)
    return ui.FloatSlider(start, min=low, max=high, step=step[0] if step else (high - low) / 100,
                          readout_format=".4g", **style)


# -- pictures to bytes -----------------------------------------------------------------------------


def _picture(drawn: Any) -> PILImage.Image:
    """Whatever a draw function returns, as a PIL image; small tensors are enlarged."""
    if hasattr(drawn, "savefig"):
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=100)
        drawn = buffer.getvalue()
    if isinstance(drawn, bytes):
        return PILImage.open(io.BytesIO(drawn)).convert("RGB")
    return drawn if isinstance(drawn, PILImage.Image) else compose([drawn])


def _format(content: bytes) -> str:
    return ("jpeg" if content[:2] == b"\xff\xd8"
            else "webp" if content[8:12] == b"WEBP" else "png")
