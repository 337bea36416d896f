"""A notebook in JupyterLab in headless Chromium: opened, run, its sliders moved as a hand moves
them, pictures compared.

Used by walk.py, test_browser.py and tests/benchmarks/slider_latency.py. Nothing is ever saved: the
notebook's file stays as it is.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ElementHandle, Page, Playwright, Route, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SETTINGS = {  # JupyterLab asks nobody for news and saves nothing by itself
    "apputils-extension/notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "docmanager-extension/plugin": {"autosave": False},
}
HANDLES = ".jp-OutputArea-output .noUi-handle"


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome: $CHROMIUM, else the first on the PATH, else Playwright's own;
    None if there is none.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


# -- JupyterLab and Chromium -----------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def jupyter_lab(
    root: Path, seconds: float = 90, quick: bool = True, trusted: Iterable[Path] = ()
) -> Iterator[str]:
    """Start JupyterLab on `root` with folders and a port of its own; yields its address. Raises
    RuntimeError if it does not start.

    quick: with the quick connection of .ci/quick_socket.py, as `make lab`; False: as `jupyter lab`
    alone. trusted: notebooks whose saved sliders are shown before anything has run (`jupyter
    trust`).
    """
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as temporary:
        home = Path(temporary)
        for name, values in SETTINGS.items():
            file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        folders = {
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython",
            "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
        if trusted := [str(path) for path in trusted]:
            subprocess.run([sys.executable, "-m", "jupyter", "trust", *trusted],
                           env=environment, check=True, capture_output=True)
        port = _free_port()
        address = f"http://127.0.0.1:{port}"
        options = {
            "ServerApp.root_dir": root, "ServerApp.port": port, "ServerApp.ip": "127.0.0.1",
            "ServerApp.port_retries": 0, "ServerApp.open_browser": False,
            "IdentityProvider.token": "", "LabApp.expose_app_in_browser": True}
        if quick:
            paths = filter(None, [str(ROOT / ".ci"), environment.get("PYTHONPATH")])
            environment["PYTHONPATH"] = os.pathsep.join(paths)
            options["ServerApp.kernel_websocket_connection_class"] = "quick_socket.QuickConnection"
        command = [sys.executable, "-m", "jupyter", "lab",
                   *(f"--{name}={value}" for name, value in options.items())]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-root")
        log = home / "log.txt"
        with log.open("wb") as out:
            server = subprocess.Popen(command, env=environment, stdout=out,
                                      stderr=subprocess.STDOUT)
            try:
                _wait_for_server(server, address, time.monotonic() + seconds, log)
                yield address
            finally:
                # it ends its kernels first
                server.send_signal(signal.SIGTERM)
                try:
                    server.wait(20)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()


def _wait_for_server(server: subprocess.Popen, address: str, deadline: float, log: Path) -> None:
    while True:
        if server.poll() is not None or time.monotonic() > deadline:
            words = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"JupyterLab did not start; its last words:\n{words}")
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


@contextlib.contextmanager
def chromium(playwright: Playwright | None = None) -> Iterator[Browser]:
    """A headless Chromium. Playwright gives each a new folder for its user data. Raises
    RuntimeError if there is none.
    """
    path = find_chromium()
    if path is None:
        raise RuntimeError("no Chromium found: install chromium, or name the browser's file in the "
                           "environment variable CHROMIUM")
    with contextlib.ExitStack() as stack:
        playwright = playwright or stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        stack.callback(browser.close)
        yield browser


def median(values: list[float]) -> float:
    """NaN for no values."""
    return statistics.median(values) if values else float("nan")


# -- one notebook ----------------------------------------------------------------------------------


@dataclass
class Move:
    """What moving one slider did. painted, presented: milliseconds from each key press to the new
    picture; see WATCH.
    """

    name: str
    cell: int
    live: bool = True  # one <img> gets new bytes; frames: another <img> is shown
    painted: list[float] = field(default_factory=list)
    presented: list[float] = field(default_factory=list)
    by_key: bool = False  # the value and the picture changed
    by_mouse: bool = False

    def __str__(self) -> str:
        kind = "live" if self.live else "frames"
        key, mouse = ("moves" if by else "DOES NOT MOVE" for by in (self.by_key, self.by_mouse))
        return (f"cell {self.cell:2d}  {self.name:14s} {kind:6s} key {key} the picture, mouse "
                f"{mouse} it; median of {len(self.painted)}: painted after "
                f"{median(self.painted):.0f} ms, presented after {median(self.presented):.0f} ms")


class Notebook:
    """A notebook open in JupyterLab. errors: (cell number, text) of cells that ended in an error,
    after run().
    """

    def __init__(self, page: Page, address: str, path: str) -> None:
        self.page, self.saves = page, []
        page.route("**/api/contents/**", self._refuse_saving)
        page.set_viewport_size({"width": 1200, "height": 1000})
        page.goto(f"{address}/doc/tree/{urllib.parse.quote(path)}", wait_until="domcontentloaded",
                  timeout=120_000)
        page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext",
                               timeout=120_000)
        page.evaluate("""() => {
            const panel = window.jupyterapp.shell.currentWidget;
            Promise.all([panel.context.ready, panel.sessionContext.ready, panel.revealed]).then(
                () => { window.panel = panel; window.notebook = panel.content; });
        }""")
        page.wait_for_function("window.notebook", timeout=60_000)
        page.evaluate(WATCH)

    def _refuse_saving(self, route: Route) -> None:
        request = route.request
        if request.method == "GET":
            route.continue_()
        # JupyterLab makes one on opening; pretend
        elif urllib.parse.urlsplit(request.url).path.endswith("/checkpoints"):
            body = {"id": "checkpoint", "last_modified": "2000-01-01T00:00:00Z"}
            route.fulfill(status=201, content_type="application/json", body=json.dumps(body))
        else:
            self.saves.append(f"{request.method} {request.url}")
            route.abort()

    def run(self, seconds: float = 900, quiet: float = 60) -> list[tuple[int, str]]:
        """Restart the kernel, run all cells, wait; returns (cell number, error) of each cell that
        failed, did not run, or holds a widget that the page cannot show.

        Raises playwright's TimeoutError after `seconds`. quiet: after how many seconds a free
        kernel that begins no cell counts as one whose answer was lost, RuntimeError if twice.
        """
        # a kernel restarted while it starts can lose what it is sent
        self.wait_idle()
        # On a busy machine the server can lose an answer at a restart ("Got events for closed
        # stream" in its log), and the page waits for ever: a kernel that answers at once, and has
        # begun no cell for a while, is restarted once more.
        self.page.evaluate("""quiet => {
            const wait = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
            const kernel = panel.sessionContext.session.kernel;
            let began = 0;
            kernel.iopubMessage.connect((_, message) => {
                if (message.header.msg_type === 'execute_input') began = Date.now();
            });
            const attempt = async () => {
                await kernel.restart();
                while (kernel.connectionStatus !== 'connected' || kernel.status !== 'idle') {
                    await Promise.race([kernel.requestKernelInfo(), wait(2)]).catch(() => {});
                    await wait(0.1);
                }
                let ended = false;
                began = Date.now();
                const all = jupyterapp.commands.execute('notebook:run-all-cells')
                    .then(() => { ended = true; });
                all.catch(() => {});  // cells of an attempt that was given up
                while (!ended) {
                    await Promise.race([all, wait(quiet / 3)]);
                    const free = ended || await Promise.race(
                        [kernel.requestKernelInfo().then(() => true), wait(2)]);
                    if (!ended && free && Date.now() - began > 1000 * quiet) return false;
                }
                return true;
            };
            window.finished = false;
            (async () => {
                window.finished = await attempt() || await attempt()
                    || 'the kernel has nothing to do, but cells are waited for';
            })().catch(error => { window.finished = 'cannot run: ' + error; });
        }""", quiet)
        self.page.wait_for_function("window.finished", timeout=1000 * seconds, polling=250)
        ended = self.page.evaluate("window.finished")
        if ended is not True:
            raise RuntimeError(ended)
        self.wait_idle()
        found = self.page.evaluate("""() => [...notebook.model.cells].flatMap((cell, i) =>
            cell.type !== 'code' ? [] : cell.toJSON().outputs
                .filter(o => o.output_type === 'error').map(o => [i, o.ename + ': ' + o.evalue]))
        """)
        unrun = self.page.evaluate("""() => [...notebook.model.cells].flatMap((cell, i) =>
            cell.type === 'code' && cell.sharedModel.getSource().trim()
                && cell.executionCount == null ? [i] : [])""")
        failed = [(i, text) for i, text in found]
        # a widget's page code can fail where Python is content
        trouble = "notebook.widgets[i].node.innerText.includes('Click to show javascript error')"
        for i in self.slider_cells():
            self.show_cell(i)
            if self.page.evaluate(f"i => {trouble}", i):
                failed.append((i, "a widget cannot be shown: its code in the page failed"))
        return failed + [(i, "did not run") for i in unrun if i not in dict(failed)]

    def wait_idle(self, seconds: float = 120) -> None:
        """Wait until the kernel has nothing to do and the page has drawn it."""
        self.page.wait_for_function("panel.sessionContext.session.kernel.status === 'idle'",
                                    timeout=1000 * seconds, polling=50)
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def show_cell(self, index: int) -> None:
        """Bring a cell into view; JupyterLab puts only cells that are near it into the page."""
        self.page.evaluate("i => { notebook.scrollToItem(i, 'start', 0); }", index)
        self.page.wait_for_function(
            "i => notebook.widgets[i].isAttached && notebook.widgets[i].inViewport",
            arg=index, timeout=60_000)
        self.page.wait_for_timeout(300)

    def shots(self, folder: Path) -> list[Path]:
        """Pictures of the whole notebook, top to bottom, each overlapping the last a little:
        shot_00.png, shot_01.png …
        """
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("shot_*.png"):
            old.unlink()
        outer = "(notebook.node.querySelector('.jp-WindowedPanel-outer') ?? notebook.node)"
        self.page.evaluate(f"{outer}.scrollTop = 0")
        paths = []
        while True:
            # cells come into the page, pictures are decoded
            self.page.wait_for_timeout(500)
            path = folder / f"shot_{len(paths):02d}.png"
            self.page.screenshot(path=path)
            paths.append(path)
            at, high, whole = self.page.evaluate(
                f"(e => [e.scrollTop, e.clientHeight, e.scrollHeight])({outer})")
            end = self.page.evaluate("""() => { const cell = notebook.widgets.at(-1);
                return cell.isAttached
                    && cell.node.getBoundingClientRect().bottom < window.innerHeight; }""")
            if end or at + high >= whole - 2 or len(paths) >= 100:
                return paths
            self.page.evaluate(f"{outer}.scrollTop = {at + high - 60}")

    def slider_cells(self) -> list[int]:
        """Numbers of the cells whose output holds a widget."""
        return self.page.evaluate("""() => [...notebook.model.cells].flatMap((cell, i) =>
            cell.type === 'code' && cell.toJSON().outputs.some(
                o => o.data?.['application/vnd.jupyter.widget-view+json']) ? [i] : [])""")

    def sliders(self, cell: int) -> list[ElementHandle]:
        """The handles of the sliders in a cell's output (the cell is brought into view)."""
        self.show_cell(cell)
        node = self.page.evaluate_handle("i => notebook.widgets[i].node", cell).as_element()
        # progress bars close when they are done: nothing is left
        with contextlib.suppress(PlaywrightTimeout):
            node.wait_for_selector(".jp-OutputArea-output .jupyter-widgets", timeout=10_000)
        return node.query_selector_all(HANDLES)

    def pictures(self, cell: int) -> list[dict]:
        """The pictures of the widgets in a cell's output: {title, width, natural}, the widths in
        pixels of the page and of the file.
        """
        return self.page.evaluate("""i => [...notebook.widgets[i].node.querySelectorAll(
            '.jp-OutputArea-output .jupyter-widgets img')].map(
            img => ({title: img.title, width: img.width, natural: img.naturalWidth}))""", cell)

    def move(self, cell: int, handle: ElementHandle, presses: int = 15, seconds: float = 20,
             limit: float = 30) -> Move:
        """Move a slider by `presses` keys (fewer if that takes longer than `seconds`), then drag
        it; see Move.

        limit: seconds after which a picture that did not come is given up.
        """
        name = handle.evaluate(
            "handle => handle.closest('.widget-slider').querySelector('label')?.innerText ?? ''")
        result = Move(name, cell)
        handle.focus()
        end = time.monotonic() + seconds
        for i in range(presses + 1):
            before = self._seen(handle)
            forward = handle.evaluate("h => Number(h.ariaValueNow) < Number(h.ariaValueMax)")
            handle.evaluate("(handle, limit) => watch.start(handle, limit)", 1000 * limit)
            self.page.keyboard.press("ArrowRight" if forward else "ArrowLeft")
            watched = handle.evaluate("() => watch.painted")
            painted, presented, result.live = watched or (None, None, result.live)
            self.wait_idle()
            if painted is not None and self._both_changed(before, handle):
                result.by_key = True
                if i > 0:  # the first press warms up
                    result.painted.append(painted)
                    result.presented += [] if presented is None else [presented]
            if time.monotonic() > end and i > 0:
                break
        result.by_mouse = self._drag(handle)
        return result

    def _seen(self, handle: ElementHandle) -> tuple[str, str | None]:
        """The picture (a hash of its bytes) and the slider's value."""
        picture = handle.evaluate("handle => watch.shown(watch.panelOf(handle))")
        return picture, handle.get_attribute("aria-valuenow")

    def _both_changed(self, before: tuple[str, str | None], handle: ElementHandle) -> bool:
        return all(old != new for old, new in zip(before, self._seen(handle), strict=True))

    def _drag(self, handle: ElementHandle) -> bool:
        handle.scroll_into_view_if_needed()
        before, box = self._seen(handle), handle.bounding_box()
        rail = handle.evaluate_handle("h => h.closest('.noUi-base')").as_element().bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        goal = rail["x"] + rail["width"] * (0.25 if x > rail["x"] + rail["width"] / 2 else 0.75)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(goal, y, steps=6)
        self.page.mouse.up()
        self.wait_idle()
        self.page.wait_for_timeout(200)
        self.wait_idle()
        return self._both_changed(before, handle)


# In the page: which picture a panel shows (a hash of its bytes), and how long after a key press a
# new one is painted.
WATCH = """() => {
    const panelOf = handle => {
        let panel = handle.closest('.widget-vbox');  // in the end the outermost of this output
        for (let up = panel; up; up = up.parentElement.closest('.widget-vbox')) panel = up;
        return panel;
    };
    const pictures = panel => [...panel.querySelectorAll('img')];
    const visible = panel => pictures(panel).filter(img => img.offsetParent !== null);
    const shown = async panel => {
        const parts = [];
        for (const img of visible(panel)) {
            const bytes = await (await fetch(img.src)).arrayBuffer();
            parts.push(new Uint8Array(await crypto.subtle.digest('SHA-1', bytes)).join('.'));
        }
        return parts.join(' ');
    };
    // Two moments after a key press. Painted: the new picture is loaded and the page's frame that
    // holds it is finished. Presented: the browser's own word (Element Timing) for when its
    // compositor had that frame ready, here without a GPU. Nothing here may ask for the layout:
    // that would be timed too. Frames lie in the page, hidden but for one; a live picture is one
    // <img> that loads new bytes. Chromium tells the second moment of a frame only when it is shown
    // for the first time.
    const start = (handle, limit) => {
        const panel = panelOf(handle), element = visible(panel)[0];
        const mark = () => pictures(panel).forEach(img => {
            if (!img.hasAttribute('elementtiming')) img.setAttribute('elementtiming', 'slider');
        });
        mark();
        window.watch.painted = new Promise(resolve => {
            let pressed = null, painted = null, presented = null, same = null;
            const key = event => { pressed ??= event.timeStamp; };
            const finish = () => {
                changes.disconnect(); paints.disconnect(); clearTimeout(timer);
                document.removeEventListener('keydown', key, true);
                panel.removeEventListener('load', load, true);
                const late = presented === null ? null : presented - pressed;
                resolve(painted === null ? null : [painted - pressed, late, same]);
            };
            const load = event => appeared(event.target);
            const appeared = img => {
                if (pressed === null || same !== null) return;
                same = img === element;
                requestAnimationFrame(() => {  // a message after the frame: it has been painted
                    const channel = new MessageChannel();
                    channel.port1.onmessage = () => {
                        painted = performance.now();
                        if (presented !== null) finish();
                    };
                    channel.port2.postMessage(0);
                    setTimeout(() => { if (presented === null) finish(); }, 2000);
                });
            };
            const changes = new MutationObserver(records => {
                mark();
                for (const {target} of records) {
                    if (target.tagName === 'IMG' && target !== element
                        && !target.classList.contains('lm-mod-hidden')) appeared(target);
                }
            });
            const paints = new PerformanceObserver(list => {
                const entry = list.getEntries().find(e => pressed !== null
                    && e.renderTime > pressed && panel.contains(e.element));
                if (entry) { presented ??= entry.renderTime; if (painted !== null) finish(); }
            });
            const timer = setTimeout(finish, limit);
            document.addEventListener('keydown', key, true);
            panel.addEventListener('load', load, true);
            changes.observe(panel, {subtree: true, childList: true, attributeFilter: ['class']});
            paints.observe({type: 'element'});
        });
    };
    window.watch = {panelOf, pictures, shown, start, painted: null};
}"""
