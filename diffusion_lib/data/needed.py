"""Packages that only some things need: imported where they are used, by name."""

import importlib
from typing import Any


def needed(module: str, purpose: str, package: str = "") -> Any:
    """The module of that name, imported now. package: what pip calls it, the same name if left out.

    Raises ImportError, in one line, that says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"{purpose} needs {name}, which cannot be imported ({error}); install "
                          f"it: pip install {package or name}") from error
