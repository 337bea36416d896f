"""Several processes train one run together, as one alone would: two on the CPU, which talk through
gloo.

`accelerate launch` starts one a GPU; on a CPU alone it starts one whatever it is asked, so here
PyTorch's own launcher does.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_lib.training.run_folder import CsvLog

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("accelerate") is None, reason="Accelerate is not installed"
    ),
    pytest.mark.skipif(
        sys.platform != "linux", reason="gloo between processes of one machine is tested on Linux"
    ),
]
ROOT = Path(__file__).parents[2]
TINY = """
data: folder:{data}
diffusion: {{schedule: cosine, T: 50, prediction: v}}
model:
  {{image_size: 8, channels: 8, channel_mults: [1, 2], attention: [false, true], num_classes: 2}}
train: {{steps: 6, batch_size: 8, warmup: 2, log_every: 1, save_every: 3, precision: float32,
        device: cpu, sample_every: 3}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(5):
            pixels = torch.randint(
                0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8
            ).numpy()
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(data=tmp_path / "pictures"))
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(processes: int, config: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    """`torchrun -m diffusion_lib train …`, or plain Python for one process."""
    launch = (
        [
            "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port",
            str(free_port()),
        ]
        if processes > 1
        else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [
            sys.executable, *launch, "-m", "diffusion_lib", "train", "--config", str(config),
            "--out", str(out), *flags,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in CsvLog.read(run / "log.csv")]


def weights(run: Path, step: int, name: str) -> torch.Tensor:
    return torch.cat(
        [
            v.flatten()
            for _, v in sorted(
                load_file(run / f"checkpoints/step_{step:08d}/{name}.safetensors").items()
            )
        ]
    )


def test_two_processes_train_what_one_trains_and_either_goes_on_with_the_others_run(
    config: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    done = train(1, config, one, "--train.accumulate", "2")
    assert done.returncode == 0, done.stderr
    done = train(2, config, two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 x cpu") == 1  # told once, by the first process
    for name in ("loss", "gradient_norm", "loss_q1", "loss_q4"):
        assert column(two, name) == pytest.approx(column(one, name), rel=2e-4), name
    for name in ("model", "ema_0", "ema_0"):
        assert (weights(one, 6, name) - weights(two, 6, name)).abs().max() < 1e-4
    assert sorted(p.name for p in (two / "samples").iterdir()) == [
        "step_00000003.png", "step_00000006.png",
    ]
    # begun by two, finished by one
    (tmp_path / "half/checkpoints").mkdir(parents=True)
    (two / "checkpoints/step_00000003").rename(tmp_path / "half/checkpoints/step_00000003")
    done = train(1, config, tmp_path / "half", "--resume")
    assert done.returncode == 0, done.stderr
    assert (weights(tmp_path / "half", 6, "model") - weights(one, 6, "model")).abs().max() < 1e-4


def test_two_processes_train_a_decoder_alone(tmp_path: Path) -> None:
    text = """
kind: autoencoder
data: toycats:16
model: {image_size: 16, channels: 8, channel_mults: [1, 2], norm_num_groups: 4, latent_channels: 2}
train: {steps: 2, batch_size: 4, precision: float32, device: cpu, log_every: 1, ema: [0.05]}
"""
    both, alone = tmp_path / "both.yaml", tmp_path / "decoder.yaml"
    both.write_text(text)
    alone.write_text(f"{text}loss: {{decoder_only: true}}\ninit: {tmp_path / 'first'}\n")
    for processes, path, name in ((1, both, "first"), (1, alone, "1"), (2, alone, "2")):
        done = train(processes, path, tmp_path / name)
        assert done.returncode == 0, done.stderr
    one, two = (weights(tmp_path / name, 2, "model") for name in "12")
    assert (one - two).abs().max() < 1e-4


def test_a_batch_that_cannot_be_shared_is_refused(config: Path, tmp_path: Path) -> None:
    done = train(2, config, tmp_path / "run", "--batch-size", "7")
    assert (
        done.returncode != 0
        and "make it a multiple of 2" in done.stderr
        and not (tmp_path / "run/checkpoints").exists()
    )
