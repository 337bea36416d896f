"""Browser tests run only when asked for: `pytest tests/browser --with-browser`, or
`make test-browser`.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--with-browser", action="store_true",
                     help="run the tests that need JupyterLab and Chromium")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    why = "walks through every notebook in a browser; run: make test-browser"
    if not config.getoption("--with-browser", default=False):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=why))


def pytest_terminal_summary(terminalreporter) -> None:
    """How long each slider's picture took to follow a key: nothing depends on it."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, told in report.user_properties:
            if name == "slider" and report.when == "call":
                terminalreporter.write_line(told)
