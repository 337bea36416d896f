"""What surrounds a run: the device, the probe, the lock, signals, the log."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ship import card

from diffusion_lib.training import device
from diffusion_lib.training import run_folder as runs
from diffusion_lib.training.device import pick_device, probe_autocast
from diffusion_lib.training.run_folder import CsvLog, RunLock, stop_on_signals

CPU = torch.device("cpu")


# -- device and number format ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "there, expected", [(("cuda", "mps"), "cuda"), (("mps",), "mps"), ((), "cpu")]
)
def test_device_order(monkeypatch: pytest.MonkeyPatch, there: tuple, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert pick_device().type == pick_device("auto").type == expected
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "cuda", "cuda:1", "mps", ""])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str, refuses) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with refuses(ValueError, repr(name), "'auto'", "cpu"):
        pick_device(name)


@pytest.fixture
def fresh_probe():
    probe_autocast.cache_clear()
    yield
    probe_autocast.cache_clear()


def clock(monkeypatch: pytest.MonkeyPatch, full: float, half: float) -> list[float]:
    """A clock by which a float32 pass takes `full` seconds and a bfloat16 pass `half`; returns what
    it has counted.
    """
    passes, now = [], [0.0]
    convolve = torch.nn.functional.conv2d

    def conv2d(*arguments: object, **settings: object) -> torch.Tensor:
        passes.append(half if torch.is_autocast_enabled("cpu") else full)
        now[0] += passes[-1]
        return convolve(*arguments, **settings)

    monkeypatch.setattr(device.F, "conv2d", conv2d)
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return passes


@pytest.mark.parametrize(
    "full, half, expected",
    [
        (0.040, 0.008, "bf16"), (0.040, 0.030, "bf16"), (0.040, 0.035, "float32"),
        (0.040, 0.040, "float32"), (0.010, 0.170, "float32"),
    ],
)
def test_the_probe_takes_the_faster_and_a_tie_goes_to_float32(
    fresh_probe, monkeypatch, full: float, half: float, expected: str
) -> None:
    passes = clock(monkeypatch, full, half)
    assert probe_autocast(CPU) == expected
    assert full in passes and half in passes
    count = len(passes)
    assert probe_autocast(CPU) == expected and len(passes) == count  # asked once a process


def test_the_probe_gives_up_on_a_hopeless_format(fresh_probe, monkeypatch) -> None:
    passes = clock(monkeypatch, 0.02, 3.0)
    assert probe_autocast(CPU) == "float32" and passes.count(3.0) == 1


def test_the_probe_on_this_machine(fresh_probe) -> None:
    assert probe_autocast(CPU) in ("bf16", "float32")


def test_other_devices_are_not_probed(fresh_probe, monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        probe_autocast.cache_clear()
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, there=there: there
        )
        assert probe_autocast(torch.device("cuda")) == ("bf16" if there else "float32")
    assert probe_autocast(torch.device("mps")) == "float32"


# -- one run a folder ------------------------------------------------------------------------------


def test_the_lock_is_held_by_one_run_and_freed_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLock(tmp_path / "run"):
        with (
            refuses(
                RuntimeError, "another run is training in run", ".lock", "choose another --out"
            ),
            RunLock(Path("run")),
        ):
            raise AssertionError("the lock was given")
        with RunLock(tmp_path / "other"):
            pass
    with pytest.raises(KeyError), RunLock(tmp_path / "run"):
        raise KeyError("an error inside")
    with RunLock(tmp_path / "run"):
        pass


HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from diffusion_lib.training.run_folder import RunLock\n"
    "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


@pytest.mark.skipif(os.name == "nt", reason="Windows kills otherwise")
def test_another_process_holds_it_until_it_is_killed(tmp_path: Path, refuses) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        with refuses(RuntimeError, str(tmp_path), "choose another --out"), RunLock(tmp_path):
            raise AssertionError("the lock was given")
        child.kill()
    with RunLock(tmp_path):
        pass


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_second_interrupts(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), stop_on_signals():
        raise KeyError("inside")
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before, answers = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stop_on_signals() as stop:
            answers.append(bool(stop))
            answers.append(signal.getsignal(signal.SIGINT) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False, True]


# -- the log ---------------------------------------------------------------------------------------


QUARTERS = {f"loss_q{i}": i / 10 for i in range(1, 5)}


def fill(path: Path, steps: range, start: int = 0) -> None:
    log = CsvLog(path, start)
    for step in steps:
        log.write(
            step=step, loss=1 / 3, learning_rate=0.001, gradient_norm=2.0, images_per_second=100.0,
            seconds=log.seconds_before + step, **QUARTERS,
        )
    log.file.close()


def steps_in(path: Path) -> list[int]:
    return [int(row["step"]) for row in CsvLog.read(path)]


def test_rows_as_they_were_written(tmp_path: Path) -> None:
    fill(tmp_path / "log.csv", range(1, 4))
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == ("step,loss,learning_rate,gradient_norm,images_per_second,seconds,"
                        "loss_q1,loss_q2,loss_q3,loss_q4")
    assert lines[1] == "1,0.333333,0.001,2,100,1,0.1,0.2,0.3,0.4" and len(lines) == 4
    expected = ("3", "0.333333", "0.001", "2", "100", "3", "0.1", "0.2", "0.3", "0.4")
    assert CsvLog.read(tmp_path / "log.csv")[2] == dict(zip(CsvLog.COLUMNS, expected, strict=True))


def test_every_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv", 0)
    for step in (1, 2):
        log.write(
            step=step, loss=1.0, learning_rate=0.1, gradient_norm=1.0, images_per_second=1.0,
            seconds=1.0, **QUARTERS,
        )
        assert steps_in(tmp_path / "log.csv")[-1] == step
    log.file.close()


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    fill(path, range(1, 8))
    log = CsvLog(path, 4)
    assert steps_in(path) == [1, 2, 3, 4] and log.seconds_before == 4
    log.file.close()
    fill(path, range(5, 7), start=4)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6] and float(CsvLog.read(path)[-1]["seconds"]) == 10
    fill(path, range(1, 3))  # from the start: nothing old is left
    assert steps_in(path) == [1, 2]


@pytest.mark.parametrize("cut", range(2, 43))
def test_half_a_last_row_is_ignored(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.csv"
    fill(path, range(1, 11))
    whole = path.read_bytes()
    assert whole.splitlines(keepends=True)[-1] == b"10,0.333333,0.001,2,100,10,0.1,0.2,0.3,0.4\r\n"
    path.write_bytes(whole[:-cut])
    # also where only its end is lost: its last number may be short
    assert steps_in(path) == list(range(1, 10))
    fill(path, range(10, 12), start=10)
    assert steps_in(path) == [*range(1, 12)]


@pytest.mark.parametrize(
    "rubbish",
    [
        "\0\0\0\0\r\n", "nonsense\r\n", "1,2,3\r\n", "x,1,1,1,1,1,1,1,1,1\r\n", ",,,,,,,,,\r\n",
        "\r\n",
    ],
)
def test_rows_that_are_none_are_ignored(tmp_path: Path, rubbish: str) -> None:
    path = tmp_path / "log.csv"
    fill(path, range(1, 4))
    with open(path, "a", newline="") as file:
        file.write(rubbish)
    assert steps_in(path) == [1, 2, 3]
    fill(path, range(4, 5), start=3)
    assert steps_in(path) == [1, 2, 3, 4]


def test_a_full_disk_does_not_cost_the_rows_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "log.csv", range(1, 6))

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.csv.DictWriter, "writerows", no_space)
    with pytest.raises(OSError, match="No space left"):
        CsvLog(tmp_path / "log.csv", 4)
    assert steps_in(tmp_path / "log.csv") == [1, 2, 3, 4, 5]


def test_a_log_that_is_missing_or_foreign_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for text in (None, "", "a,b\r\n1,2\r\n"):
        if text is not None:
            path.write_text(text)
        log = CsvLog(path, 5)
        assert log.seconds_before == 0 and steps_in(path) == []
        log.file.close()
        path.unlink()


# -- the card of a shipped model -------------------------------------------------------------------


def test_a_card_tells_settings_work_thinned_log_and_measures(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv", 0)
    for step in range(10, 6010, 10):
        quarters = {
            f"loss_q{i}": float("nan") if i == 4 and step < 3000 else 0.1 * i for i in range(1, 5)
        }
        log.write(
            step=step, loss=1 / step, learning_rate=1e-3, gradient_norm=1.0, images_per_second=50.0,
            seconds=step / 10, **quarters,
        )
    log.file.close()
    (tmp_path / "report.json").write_text('{"measures": [1]}')
    state = {
        "data": {"name": "toycats"},
        "train": {"batch_size": 32, "device": "cpu", "keep_checkpoints": 3}, "precision": "float32",
        "step": 6000,
    }
    told = card(tmp_path, state)
    assert (
        told["images_seen"] == 192_000
        and told["seconds"] == 600
        and told["report"] == {"measures": [1]}
        and "trials" not in told
    )
    assert told["train"] == {"batch_size": 32} and told["init"] == ""
    assert card(tmp_path, {**state, "config": {"init": "cats32"}})["init"] == "cats32"
    thinned = told["log"]
    assert (
        len(thinned["step"]) == 60 and thinned["step"][-1] == 6000 and thinned["loss_q1"][0] == 0.1
    )
    assert thinned["loss_q4"][0] is None and thinned["loss_q4"][-1] == pytest.approx(0.4)
    assert thinned["loss"][-1] == pytest.approx(
        sum(1 / step for step in range(5910, 6010, 10)) / 10, abs=1e-5
    )
    json.dumps(told)
