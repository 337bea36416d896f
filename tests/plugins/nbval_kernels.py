"""For `pytest -p nbval_kernels --nbval`: kernels talk through files, not network ports.

Two kernels that start at once may be given the same port. Then one of them never answers, and all
cells of its notebook are errors.
"""

import functools
import itertools
import os
import tempfile

import nbval.kernel

if os.name == "posix":
    folder = tempfile.TemporaryDirectory(prefix="kernels")  # goes with this process
    numbers = itertools.count()
    start = functools.partial(nbval.kernel.KernelManager, transport="ipc")
    nbval.kernel.KernelManager = lambda **settings: start(
        **settings, ip=f"{folder.name}/{next(numbers)}"
    )
