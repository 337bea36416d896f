"""kill −9 at five random moments costs nothing but the step in hand; tests/benchmarks/kills.py does
it a hundred times.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests/benchmarks")
import kills
print(json.dumps(kills.run(5, Path(sys.argv[1]))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_run_killed_five_times_ends_as_if_nobody_had_killed_it(tmp_path: Path) -> None:
    # a process of its own: pytest's has threads, which a fork does not survive
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env=environment,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ends bit for bit as the run that nobody killed"] and result["kills"] == 5
    first, last = result["steps when killed first and last"]
    assert 1 <= first < last < result["steps"]
