"""Checkpoints: whole or not at all, whatever happens; and one clear line for everything that is not
one.
"""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lib import GaussianDiffusion, UNet, cosine_beta_schedule
from diffusion_lib.saving import checkpoint, pretrained
from diffusion_lib.saving.checkpoint import (
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from diffusion_lib.saving.eight_bits import pack, unpack
from diffusion_lib.saving.pretrained import load_model, start_from

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".ci"))
from ship import ship  # noqa: E402

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks a process with threads")


def tiny_unet(seed: int = 0, **changes: object) -> UNet:
    torch.manual_seed(seed)
    settings = {"image_size": 8, "channels": 8, "channel_mults": (1, 2), "attention": (False, True),
                "blocks_per_level": 1, **changes}
    model = UNet(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)  # zero-initialised layers would look the same in every model
    return model


NAMES = ("model", "ema_0", "ema_1")


@functools.cache
def three_unets(seed: int) -> dict[str, nn.Module]:
    return {name: tiny_unet(3 * seed + i) for i, name in enumerate(NAMES)}


def save(run: Path, step: int, seed: int = 0) -> Path:
    """A checkpoint as Trainer writes it; every number in it depends on `seed`."""
    weights = three_unets(seed)
    optimizer = {"state": {0: {"exp_avg": torch.full((3, 2), float(seed))}},
                 "param_groups": [{"lr": 0.1}]}
    diffusion = GaussianDiffusion(cosine_beta_schedule(20), prediction="v")
    state = {"step": step, "model": dataclasses.asdict(weights["model"].config),
             "diffusion": diffusion.state_dict(), "seed": seed}
    return save_checkpoint(run / "checkpoints" / f"step_{step:08d}", weights, optimizer, state)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def forge(folder: Path, name: str, content: bytes) -> None:
    """Put other bytes into a file and make the sums in state.json fit them."""
    (folder / name).write_bytes(content)
    state = json.loads((folder / "state.json").read_text())
    state["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "state.json").write_text(json.dumps(state))


# -- what is saved is what is loaded ---------------------------------------------------------------


def test_everything_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path, 12, seed=4)
    state, weights, optimizer = load_checkpoint(folder)
    assert state["step"] == 12 and state["seed"] == 4
    assert set(weights) == set(NAMES)
    for name in NAMES:
        assert equal(load_checkpoint(folder, [name])[1][name], weights[name])
    assert equal(weights["ema_1"], tiny_unet(3 * 4 + 2).state_dict())
    assert optimizer["state"][0]["exp_avg"].tolist() == [[4.0, 4.0]] * 3
    assert optimizer["param_groups"][0]["lr"] == 0.1
    assert load_checkpoint(folder, ["ema_0"])[2] is None  # weights alone
    assert set(state["files"]) == {"model.safetensors", "ema_0.safetensors", "ema_1.safetensors",
                                   "optimizer.pt"}


def test_the_newest_is_found_and_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert newest_checkpoint(tmp_path).name == "step_00000100"
    save(tmp_path, 100, seed=7)
    assert load_checkpoint(newest_checkpoint(tmp_path))[0]["seed"] == 7
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000009", "step_00000020", "step_00000100"]


@pytest.mark.parametrize("name, which", [
    ("", "ema_1"),
    ("checkpoints/step_00000005", "ema_1"),
    ("checkpoints/step_00000005/state.json", "ema_1"),
    ("checkpoints/step_00000005/ema_0.safetensors", "ema_0"),
    ("checkpoints/step_00000005/model.safetensors", "model"),
])
def test_a_model_is_loaded_by_run_by_step_and_by_file(tmp_path: Path, name: str,
                                                      which: str) -> None:
    save(tmp_path, 3, seed=9)
    save(tmp_path, 5, seed=1)
    model, diffusion, info = load_model(tmp_path / name)
    assert info["step"] == 5 and diffusion.prediction == "v" and diffusion.T == 20
    assert equal(model.state_dict(), three_unets(1)[which].state_dict())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_raw_weights_on_request(tmp_path: Path) -> None:
    save(tmp_path, 5, seed=1)
    assert equal(load_model(tmp_path, which="model").model.state_dict(), tiny_unet(3).state_dict())


# -- whole or not at all ---------------------------------------------------------------------------

# Forks children that save forever, from the step given on; each says its process number and is then
# killed from outside.
SAVES = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_checkpoint import save
run = Path({run!r})
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        step = int(line)
        while True:
            save(run, step, seed=step)
            step += 1
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@needs_fork
def test_kill_9_during_a_save_costs_at_most_that_save(tmp_path: Path) -> None:
    first = save(tmp_path, 1, seed=1)
    folder, whole = first.parent, {p.name: p.read_bytes() for p in first.iterdir()}
    jitter = random.Random(0)
    program = SAVES.format(tests=str(ROOT / "tests/saving"), run=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        halves = 0
        for i in range(12):
            print(1000 * (i + 1), file=parent.stdin, flush=True)
            pid = int(parent.stdout.readline())
            end = time.monotonic() + 10
            while not list(folder.glob(".*")) and time.monotonic() < end:
                pass  # until a save has begun
            time.sleep(jitter.random() * 0.01)
            os.kill(pid, 9)
            assert parent.stdout.readline() == "dead\n"
            halves += any(p.name.startswith(".") for p in folder.iterdir())
            state, weights, _ = load_checkpoint(newest_checkpoint(tmp_path))  # raises for half
            assert state["step"] == state["seed"]
            assert equal(weights["model"], tiny_unet(3 * state["seed"]).state_dict())
            for half in folder.glob(".*"):
                shutil.rmtree(half)
        parent.stdin.close()
    assert halves, "no kill fell into a save: the test proves nothing"
    assert {p.name: p.read_bytes() for p in first.iterdir()} == whole


@needs_fork
@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_death_at_every_single_file_operation(tmp_path: Path, again: bool) -> None:
    """Python announces each open, rename, mkdir and removal (audit events): die at the first, then
    at the second …
    """
    step, deaths = (1 if again else 2), 0
    save(tmp_path / "start", 1, seed=1)
    while True:
        run = tmp_path / str(deaths)
        shutil.copytree(tmp_path / "start", run)
        child = os.fork()
        if child == 0:
            left = deaths

            def die(event: str, arguments: tuple, run: Path = run) -> None:
                nonlocal left
                if event in ("open", "os.rename", "os.mkdir", "os.remove",
                             "os.rmdir") and str(run) in str(arguments[0]):
                    left -= 1
                    if left < 0:
                        os._exit(9)

            sys.addaudithook(die)
            try:
                save(run, step, seed=2)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        state, weights, _ = load_checkpoint(newest_checkpoint(run))
        assert equal(weights["ema_1"], three_unets(state["seed"])["ema_1"].state_dict()), deaths
        if code == 0:
            assert state["seed"] == 2
            break
        deaths += 1
        save(run, 3, seed=3)  # and the next run goes on, over whatever was left
        assert load_checkpoint(newest_checkpoint(run))[0]["seed"] == 3
        assert all(not p.name.startswith(".") for p in (run / "checkpoints").iterdir())
        assert load_checkpoint(run / "checkpoints/step_00000001")[0]["seed"] in (1, 2)
    assert deaths > 8, "too few operations were seen: does Python still announce them?"


@pytest.mark.parametrize("broken", ["save_file", "torch.save", "write_text", "fsync", "replace"])
def test_full_disk_at_every_stage(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch,
                                  refuses) -> None:
    kept = save(tmp_path, 1, seed=1)

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    where, name = {"save_file": (checkpoint, "save_file"), "torch.save": (torch, "save"),
                   "write_text": (Path, "write_text"),
                   "fsync": (os, "fsync"), "replace": (os, "replace")}[broken]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, no_space)
        with refuses(OSError, "step_00000002", "No space left on device", "free some disk space"):
            save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == kept and load_checkpoint(kept)[0]["seed"] == 1
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]  # nothing half is left
    assert load_checkpoint(save(tmp_path, 2, seed=5))[0]["seed"] == 5


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_checkpoint import save_checkpoint, three_unets
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit, optimizer in ((100, 1), (20_000, 1), (500_000, 400_000)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        state = {{"state": torch.zeros(optimizer)}}
        save_checkpoint(Path({folder!r}) / "step_00000002", three_unets(0), state, {{}})
    except OSError as error:
        print(error)
"""


def test_a_disk_that_really_takes_no_more(tmp_path: Path) -> None:
    """No file may grow beyond a limit that stops the first header, the weights in their middle, the
    optimizer's numbers.
    """
    pytest.importorskip("resource", reason="this system limits no file sizes")
    kept = save(tmp_path, 1, seed=1)
    assert 20_000 < (kept / "model.safetensors").stat().st_size < 500_000
    code = FULL.format(tests=str(ROOT / "tests/saving"), folder=str(kept.parent))
    done = subprocess.run([sys.executable, "-c", code],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3, done.stdout
    for line in done.stdout.splitlines():
        assert all(word in line for word in ("could not write", "step_00000002", "free some disk"))
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
    assert load_checkpoint(kept)[0]["seed"] == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path, refuses) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with refuses(OSError, str(tmp_path), "choose another place"):
        save(tmp_path, 1)


# -- what is not a checkpoint, or no longer --------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path, 5, seed=1)


def test_missing_and_foreign_folders(tmp_path: Path, refuses) -> None:
    with refuses(FileNotFoundError, "nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with refuses(FileNotFoundError, "nowhere", "run folder", "toycats32"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    for load in (load_checkpoint, load_model):
        with refuses(ValueError, "photos", "not a checkpoint", "give a run folder"):
            load(tmp_path / "photos")
    (tmp_path / "cat.png").write_bytes(b"png")
    with refuses(ValueError, "cat.png", "not a checkpoint", "give a run folder"):
        load_model(tmp_path / "cat.png")
    (tmp_path / "alone.safetensors").write_bytes(b"weights without a state.json")
    with refuses(ValueError, "not a checkpoint", "give a run folder"):
        load_model(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '"a"', "{}", '{"files": {}}', "\x00\x01"])
def test_foreign_state(folder: Path, content: str, refuses) -> None:
    (folder / "state.json").write_text(content)
    for load in (load_checkpoint, load_model):
        with refuses(ValueError, str(folder), "not a checkpoint", "give a run folder"):
            load(folder)


def test_state_of_another_format_or_without_what_a_model_needs(folder: Path, refuses) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 99}))
    with refuses(ValueError, "99", "reads 1", "update"):
        load_model(folder)
    for part in ("model", "diffusion"):
        without = {k: v for k, v in state.items() if k != part}
        (folder / "state.json").write_text(json.dumps(without))
        with refuses(ValueError, "state.json", part, "Trainer.save()"):
            load_model(folder)
    state["model"]["quantum"] = True
    (folder / "state.json").write_text(json.dumps(state))
    with refuses(ValueError, "quantum", "update the library"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "ema_1.safetensors", "optimizer.pt"])
def test_truncated_changed_and_missing_files_are_named(folder: Path, name: str, refuses) -> None:
    path = folder / name
    good = path.read_bytes()
    middle = len(good) // 2
    for damaged in (b"", good[:-1], good[:middle], good + b"x",
                    good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]):
        path.write_bytes(damaged)
        with refuses(ValueError, str(path), "truncated or was changed",
                     "use the checkpoint before it"):
            load_checkpoint(folder)
    path.unlink()
    with refuses(ValueError, name, "missing", "use the checkpoint before it"):
        load_checkpoint(folder)
    path.write_bytes(good)
    load_checkpoint(folder)


def test_unknown_weights(folder: Path, refuses) -> None:
    with refuses(ValueError, "ema_9.safetensors", "missing"):
        load_model(folder, which="ema_9")


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_the_optimizer_is_refused_and_does_not_run(folder: Path, tmp_path: Path, how: str,
                                                           refuses) -> None:
    target, file = tmp_path / "exploded", tmp_path / "bomb.pt"
    if how == "torch":
        torch.save({"state": Bomb(target)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists(), "the bomb itself must work"
    target.unlink()
    forge(folder, "optimizer.pt", file.read_bytes())
    with refuses(ValueError, "optimizer.pt", "could run code",
                 "use a checkpoint that this library wrote"):
        load_checkpoint(folder)
    assert not target.exists()
    load_model(folder)  # the weights do not need that file


def test_nonsense_in_the_optimizer(folder: Path, refuses) -> None:
    forge(folder, "optimizer.pt", b"no numbers here")
    with refuses(ValueError, "optimizer.pt", "refused"):
        load_checkpoint(folder)


# -- another architecture --------------------------------------------------------------------------


@pytest.mark.parametrize("changes, expected", [
    ({"channels": 16}, "of another shape (first: "),
    ({"blocks_per_level": 2}, "missing (first: "),
    ({"num_classes": 3}, "1 missing (first: class_embedding.weight)"),
])
def test_another_architecture_names_what_differs(folder: Path, changes: dict, expected: str,
                                                 refuses) -> None:
    weights = load_checkpoint(folder, ["model"])[1]["model"]
    other = tiny_unet(**changes)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with refuses(ValueError, str(folder), "another architecture", expected,
                 "build the model from its own config"):
        load_weights(other, weights, folder)
    assert equal(other.state_dict(), before)  # refused before anything was copied


def test_weights_of_a_deeper_network_are_called_unknown(folder: Path, refuses) -> None:
    with refuses(ValueError, "unknown (first: "):
        load_weights(tiny_unet(), tiny_unet(blocks_per_level=2).state_dict(), folder)
    with refuses(ValueError, "2 unknown (first: 0.bias)", "missing"):
        load_weights(tiny_unet(), nn.Sequential(nn.Linear(2, 2)).state_dict(), "my.safetensors")


# -- shipped models --------------------------------------------------------------------------------


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the shipped weights."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def test_ship_and_load_again(register: Path, refuses) -> None:
    assert pretrained.shipped_models() == []
    with refuses(ValueError, "'mine'", "there are none"):
        pretrained.load_pretrained("mine")
    model, diffusion = tiny_unet(5), GaussianDiffusion(cosine_beta_schedule(20), prediction="v")
    process = {"diffusion": diffusion.state_dict()}
    path = ship("mine", model, {"data": "twelve squares", "steps": 3, **process})
    ship("other", tiny_unet(6), process)
    assert pretrained.shipped_models() == ["mine", "other"]
    half = model.to(torch.float64).state_dict()
    for load in (pretrained.load_pretrained, load_model):
        loaded, process, card = load("mine")
        assert (card["data"], card["steps"], card["model"]["channels"]) == ("twelve squares", 3, 8)
        assert torch.equal(process.betas, diffusion.betas) and process.prediction == "v"
        worst = max((loaded.state_dict()[key].double() - half[key]).abs().max().item()
                    for key in half)
        assert 0 < worst < 0.6 * 2**-11, worst  # float16 keeps 11 bits
        assert all(p.dtype == torch.float32 for p in loaded.parameters()) and not loaded.training
    assert path.stat().st_size < 2 * sum(p.numel() for p in model.parameters()) + 20_000
    with refuses(ValueError, "'mien'", "there are mine, other"):
        pretrained.load_pretrained("mien")


def test_a_byte_a_weight_is_half_as_large_and_half_a_scale_off(register: Path) -> None:
    model, diffusion = tiny_unet(5), GaussianDiffusion(cosine_beta_schedule(20))
    card = {"diffusion": diffusion.state_dict(), "weights": "the last average, stored in float16"}
    path = ship("small", model, card, bits=8)
    weights = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < 1.2 * weights + 20_000
    loaded, _, card = pretrained.load_pretrained("small")
    assert card["weights"] == "the last average, stored in 8 bits, one scale a row"
    for name, weight in model.state_dict().items():
        back = loaded.state_dict()[name]
        if weight.ndim > 1:
            rows = weight.flatten(1)
            off = (back - weight).flatten(1).abs().amax(1)
            assert (off <= rows.abs().amax(1) / 254 * 1.001).all(), name
        else:
            assert torch.equal(back, weight.half().float()), name
    matrices = {k: v for k, v in loaded.state_dict().items() if v.ndim > 1}
    again = unpack(pack(matrices))  # what was rounded once stays
    assert all(torch.allclose(again[k], v, rtol=1e-5, atol=1e-7) for k, v in matrices.items())


def test_a_changed_or_missing_shipped_file(register: Path, refuses) -> None:
    path = ship("mine", tiny_unet(), {})
    path.write_bytes(path.read_bytes()[:-2] + b"\0\1")
    with refuses(ValueError, "mine.safetensors", "differs from the register",
                 "install the library again"):
        pretrained.load_pretrained("mine")
    path.unlink()
    with refuses(ValueError, "mine.safetensors", "missing", "install the library again"):
        pretrained.load_pretrained("mine")


def test_what_really_ships_is_whole_and_has_a_full_card() -> None:
    names = pretrained.shipped_models()
    assert "toycats32" in names
    files = {f"{name}.{ending}" for name in names for ending in ("json", "safetensors")}
    assert {path.name for path in pretrained.WEIGHTS.iterdir()} == {
        "register.json", "classifier.json", "classifier.safetensors", "references", "progress",
        "tables", *files}
    for name in names:
        card = json.loads((pretrained.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        autoencoder = "latent_channels" in card["model"]
        model = (pretrained.load_autoencoder(name) if autoencoder
                 else pretrained.load_pretrained(name).model)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert {"data", "train", "steps", "images_seen", "seconds", "machine", "weights", "model",
                "latents" if autoencoder else "diffusion"} <= set(card)
        own = card["steps"] * card["train"]["batch_size"]
        # Several trainings in a row made it? Then its card names each, and they add up.
        rows = card.get("trials", {}).get("passes", []) + card.get("trainings", {}).get("rows", [])
        before = sum(each.get("pictures", 0) + each.get("latents", 0) for each in rows)
        assert card["images_seen"] == (before or own)
        seconds = sum(each.get("seconds", 0) for each in card.get("trainings", {}).get("rows", []))
        assert card["seconds"] == (seconds or card["seconds"])


# -- fine-tuning -----------------------------------------------------------------------------------


def test_starting_from_an_equal_network_copies_everything() -> None:
    one, other = tiny_unet(1), tiny_unet(2)
    assert start_from(one, other) == [] and equal(one.state_dict(), other.state_dict())


def test_a_network_for_patches_starts_as_the_one_for_pixels() -> None:
    """On pictures whose patches are of one colour, it answers exactly what the other does,
    enlarged.
    """
    small, large = tiny_unet(1), tiny_unet(2, image_size=32, patch_size=4)
    assert start_from(large, small) == []
    x = torch.randn((3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 5, 19])
    enlarge = torch.nn.Upsample(scale_factor=4)
    with torch.no_grad():
        expected, answer = enlarge(small(x, t)), large(enlarge(x), t)
    assert expected.std() > 0.05 and (answer - expected).abs().max() < 1e-5


def test_what_has_no_like_stays_new_and_is_named() -> None:
    one, other = tiny_unet(1, augment_dim=5, num_classes=3), tiny_unet(2)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    new = start_from(one, other)
    assert sorted(new) == ["augment_embedding.weight", "class_embedding.weight"]
    assert all(torch.equal(one.state_dict()[name], before[name]) for name in new)
    assert all(torch.equal(one.state_dict()[name], value) for name,
               value in other.state_dict().items())


def test_too_different_a_network_is_refused(refuses: Callable) -> None:
    for changes in ({"channels": 16}, {"channel_mults": (1, 4)}):
        with refuses(ValueError, "% of this network's weights", "channels=8"):
            start_from(tiny_unet(1, **changes), tiny_unet(2))
