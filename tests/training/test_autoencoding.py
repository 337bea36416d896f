"""An autoencoder trains in the same loop, stops and goes on bit for bit, and its latents train on.
"""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from diffusion_lib import (
    Autoencoder,
    AutoencoderTrainer,
    GaussianDiffusion,
    TrainConfig,
    Trainer,
    UNet,
    encode_set,
    load_autoencoder,
    load_classifier,
    load_data,
    load_model,
    make_betas,
    sample,
    to_float,
)
from diffusion_lib.__main__ import autoencoder_trainer, main
from diffusion_lib.measuring.reconstruction import psnr
from diffusion_lib.saving.checkpoint import newest_checkpoint
from diffusion_lib.saving.latents import fingerprint_of
from diffusion_lib.training.autoencoding import (
    distances,
    multiscale_l1,
    negative_psnr,
    ripples,
    windows,
)
from diffusion_lib.training.config import LossConfig, override, read_config, resolve

AE = {
    "image_size": 32,
    "channels": 8,
    "channel_mults": (1, 2),
    "norm_num_groups": 4,
    "patch_size": 2,
}
CRITIC = LossConfig(adversarial=0.05, matching=0.5, critic_from=0.5, perceptual=0.1)
TRAIN = {
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup": 0,
    "save_every": 2,
    "precision": "float32",
}


def trainer(out=None, steps=6, loss=CRITIC, **settings) -> AutoencoderTrainer:
    torch.manual_seed(0)
    model = Autoencoder(**AE)
    config = TrainConfig(steps=steps, **{**TRAIN, **settings})
    features = load_classifier().requires_grad_(False).maps
    return AutoencoderTrainer(model, None, load_data("toycats:16", 32), config, out=out, loss=loss,
                              features=features)


def states(t: AutoencoderTrainer) -> dict:
    return {f"{name}.{key}": value for name, module in t._weights().items()
            for key, value in module.state_dict().items()}


def test_resumes_bit_for_bit_in_the_critics_half(tmp_path):
    whole = trainer().fit()
    trainer(tmp_path).fit(4)  # the critic plays from step 3 on; killed after the save of step 4
    gone_on = trainer(tmp_path).resume().fit()
    a, b = states(whole), states(gone_on)
    assert any(key.startswith("critic") for key in a)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_critic_waits_for_its_half():
    t = trainer()
    before = {k: v.clone() for k, v in t.critic.state_dict().items()}
    t.fit(3)
    assert all(torch.equal(before[k], v) for k, v in t.critic.state_dict().items())
    t.fit(1)
    assert not all(torch.equal(before[k], v) for k, v in t.critic.state_dict().items())


def test_other_settings_of_the_loss_are_refused_on_resume(tmp_path):
    trainer(tmp_path).fit(2)
    with pytest.raises(ValueError, match="another loss .*noise"):
        trainer(tmp_path, loss=LossConfig(noise=0.3)).resume()


def test_the_critic_goes_on_where_the_optimizer_changes(tmp_path):
    before = trainer(tmp_path, optimizer="muon").fit(4)
    after = trainer(tmp_path, optimizer="adamw").resume(allow_changes=True)
    for (name, old), new in zip(before.critic.state_dict().items(),
                                after.critic.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    assert after.critic_optimizer.state_dict()["state"] and not after.optimizer.state


def test_learns_to_copy():
    t = trainer(steps=40, loss=LossConfig(), learning_rate=3e-3, batch_size=8).fit()
    assert sum(t.losses[-5:]) < 0.6 * sum(t.losses[:5])


def test_a_perceptual_loss_needs_features():
    with pytest.raises(ValueError, match="a perceptual loss needs features"):
        AutoencoderTrainer(Autoencoder(**AE), None, load_data("toycats:16", 32), TrainConfig(),
                           loss=LossConfig(perceptual=1.0))


def test_losses_by_hand():
    x, y = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    y[1] *= 2
    torch.testing.assert_close(multiscale_l1(y, x), torch.tensor([4.0, 8.0]))
    torch.testing.assert_close(distances([2 * y], [y]), torch.tensor([2 / 3, 4 / 3]))
    y = x + torch.tensor([0.2, 0.02])[:, None, None, None]  # a tenth and a hundredth of the range
    torch.testing.assert_close(negative_psnr(y, x), torch.tensor([-2.0, -4.0]), atol=5e-3, rtol=0)
    y = y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert -10 * negative_psnr(y, x).mean() == pytest.approx(reported(y, x), abs=1e-2)
    y = x.clone().requires_grad_()
    negative_psnr(y, x).sum().backward()  # a perfect copy
    assert y.grad.isfinite().all()


def reported(y, x) -> float:
    """The PSNR as `evaluate` tells it, of pictures in [-1, 1]."""
    return psnr(127.5 * (y + 1), 127.5 * (x + 1)).value


def test_learns_the_psnr_itself():
    """Better by its own measure than the same steps with the distance at four sizes."""
    told = {"steps": 60, "learning_rate": 1e-2, "batch_size": 8, "optimizer": "muon"}
    x = to_float(load_data("toycats:16", 32).images)
    reached = {}
    for pixels in ("l1", "psnr"):
        t = trainer(loss=LossConfig(pixels=pixels), **told).fit()
        with torch.no_grad():
            reached[pixels] = reported(t.model.eval()(x), x)
    assert reached["psnr"] > reached["l1"]


# -- latents ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained autoencoder's run folder."""
    out = tmp_path_factory.mktemp("autoencoder")
    trainer(out, steps=30, loss=LossConfig(), batch_size=8).fit()
    return out


def settled(run) -> Autoencoder:
    """Its latents' spread is still being followed after 30 steps: set it."""
    model = load_autoencoder(run)
    said = model.quant_conv(model.encoder(to_float(load_data("toycats:16", 32).images)))
    model.latent_mean.copy_(said.mean((0, 2, 3)))
    model.latent_std.copy_(said.std((0, 2, 3)))
    return model


def test_encoded_once_with_mirror_images(run, tmp_path):
    data, model = load_data("toycats:16", 32), settled(run)
    latents = encode_set(data, model, file=tmp_path / "z.safetensors").images
    assert latents.dtype == torch.float16 and latents.shape == (32, 4, 8, 8)
    with torch.no_grad():
        mirrored = model.encode(to_float(data.images).flip(-1)).half()
    torch.testing.assert_close(latents[16:], mirrored, atol=2e-3, rtol=2e-3)
    model.latent_mean += 1
    with pytest.raises(ValueError, match="by another autoencoder"):
        encode_set(data, model, file=tmp_path / "z.safetensors")
    again = encode_set(data, settled(run), file=tmp_path / "z.safetensors").images
    assert torch.equal(again, latents)


def test_an_autoencoder_in_training_mode_encodes_nothing(run):
    with pytest.raises(ValueError, match="training mode"):
        encode_set(load_data("toycats:16", 32), settled(run).train())


def test_a_stale_set_is_refused(run, tmp_path):
    data, model, file = load_data("toycats:16", 32), settled(run), tmp_path / "z.safetensors"
    encode_set(data, model, file=file)
    other = dataclasses.replace(data, images=data.images.flip(-1))
    with pytest.raises(ValueError, match="of other pictures than the folder holds now; remove"):
        encode_set(other, model, file=file)
    with pytest.raises(ValueError, match="with other settings; remove"):
        encode_set(data, model, file=file, mirrored=False)
    file.write_bytes(b"half a fi")
    with pytest.raises(ValueError, match="it is damaged"):
        encode_set(data, model, file=file)


def test_latents_without_their_scale_are_refused(run):
    model = settled(run)
    model.latent_std.fill_(0.01)
    with pytest.raises(ValueError, match="has not measured its latents"):
        encode_set(load_data("toycats:16", 32), model)


def latent_trainer(autoencoder, out=None) -> Trainer:
    torch.manual_seed(0)
    network = UNet(image_size=8, in_channels=4, channels=8, channel_mults=(1, 2),
                   attention=(False, False))
    data = encode_set(load_data("toycats:16", 32), autoencoder)
    return Trainer(network, GaussianDiffusion(make_betas("cosine", T=20), "v"), data,
                   TrainConfig(steps=4, **TRAIN), out=out, autoencoder=autoencoder)


def test_training_in_latents_and_drawing(run, tmp_path):
    model = settled(run)
    trained = latent_trainer(model, tmp_path).fit()
    assert trained.images.dtype == torch.float16
    pictures = sample(trained.ema_model, trained.diffusion, 3, steps=4, autoencoder=model)
    assert pictures.shape == (3, 3, 32, 32)
    one = sample(trained.ema_model, trained.diffusion, 1, steps=4, seed=2, autoencoder=model)
    torch.testing.assert_close(one[0], pictures[2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("flag, value", [
    ("--features", "inception"), ("--sampler", "nosuch"), ("--steps", 4), ("--guidance", 3),
    ("--judge", "nope"), ("--class", "cat"), ("--prompt", "a cat"), ("--seed", 7)])
def test_what_an_autoencoders_evaluation_would_not_look_at_is_refused(run, flag, value, capsys):
    given = ["evaluate", run, "--data", "toycats:16", "--n", 20, flag, value]
    assert main([str(each) for each in given]) == 2
    assert f"{flag} has no effect here" in capsys.readouterr().err


def test_command_line_from_pictures_to_pictures(tmp_path, capsys, monkeypatch):
    """Two trainings, samples, an export; then what is missing or does not fit, one line each."""
    monkeypatch.chdir(tmp_path)
    small = ["--data", "toycats:24", "--batch-size", "8", "--train.precision", "float32",
             "--sample-every", "1000"]
    ae = ["--model.image_size", "32", "--model.channels", "8", "--model.norm_num_groups", "4",
          "--loss.perceptual", "0", "--model.channel_mults", "[1, 2]"]
    assert main(["train", "--config", "catfaces_autoencoder", "--out", "ae", "--steps", "250",
                 "--train.warmup", "0", *small, *ae]) == 0
    assert (tmp_path / "ae/samples/step_00000250.png").exists()
    net = [
        "--autoencoder",
        "ae",
        "--steps",
        "3",
        "--model.image_size",
        "8",
        "--model.channels",
        "8",
    ]
    assert main(["train", "--config", "catfaces128", "--out", "lat", *small, *net]) == 0
    assert main(["train", "--config", "catfaces128", "--out", "lat", "--resume", *small, *net]) == 0
    assert (tmp_path / "lat/samples/step_00000003.png").exists()
    assert main(["sample", "lat", "--n", "2", "--steps", "2", "--grid", "g.png",
                 "--animation", "a.webp"]) == 0
    assert load_model("lat").autoencoder.config.image_size == 32
    assert main(["export", "lat", "--out", "exported"]) == 0
    assert (tmp_path / "exported/vae/config.json").exists()
    capsys.readouterr()

    def says(words: list[str], *pieces: str) -> None:
        assert main(words) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert all(piece in told for piece in pieces), told

    says(["sample", "ae", "--grid", "g.png"], "is an autoencoder", "--autoencoder ae")
    says(["sample", "exported", "--grid", "g.png"], "does not read back")
    wrong = ["--autoencoder", "ae", "--steps", "3", "--model.image_size", "16"]
    says(["train", "--config", "catfaces128", "--out", "other", *small, *wrong],
         "have 4 channels and 8 px", "set model.in_channels 4 and model.image_size 8")
    says(["train", "--config", "catfaces128", "--out", "x", *small, "--autoencoder", "lat"],
         "lat is no autoencoder")
    says(["train", "--config", "catfaces128", "--out", "lat", "--resume", "--data", "toycats:25",
          *small[2:], *net], "of other pictures than the folder holds now")
    # the same latents painted by another decoder, and an autoencoder that was moved
    shutil.copytree("ae", "crisp")
    drawn = [*("sample", "lat", "--n", "2", "--steps", "2", "--grid", "g.png")]
    assert main([*drawn, "--autoencoder", "crisp"]) == 0
    assert load_model("lat", autoencoder="crisp").autoencoder.source["name"] == "crisp"
    elsewhere = [*net[:1], "crisp", *net[2:]]
    assert main(["train", "--config", "catfaces128", "--out", "lat", "--resume", *small,
                 *elsewhere]) == 0
    assert main(["export", "lat", "--autoencoder", "crisp", "--out", "painted"]) == 0
    capsys.readouterr()
    says([*drawn, "--autoencoder", "catfaces_autoencoder"], "another autoencoder than catfaces")
    says([*drawn, "--autoencoder", "nothing"], "nothing, which is not there", "give its run folder")
    says(["sample", "toycats32", "--n", "2", "--grid", "g.png", "--autoencoder", "ae"],
         "draws no latents")
    says(["train", "--config", "catfaces128", "--out", "moves", *small, *net,
          "--model.augment_dim", "5", "--train.augment", "0.1"], "it is for pixels")
    state = tmp_path / "lat/checkpoints/step_00000003/state.json"
    told = json.loads(state.read_text())
    state.write_text(json.dumps({**told, "autoencoder": {**told["autoencoder"], "sha256": "0"}}))
    says(["sample", "lat", "--grid", "g.png"], "its weights differ")
    (tmp_path / "ae").rename(tmp_path / "moved")
    says(["sample", "lat", "--grid", "g.png"], "autoencoder ae, which is not there")


def test_the_loss_sees_the_picture_at_another_place_each_step():
    picture = torch.arange(32.0 * 32).view(1, 1, 32, 32)
    places = set()
    for step in range(16):
        seen, other = windows(step, picture, picture + 0.5)
        assert torch.equal(other, seen + 0.5) and seen.shape == (1, 1, 36, 36)
        assert seen.unique().numel() == 32 * 32  # the whole picture is there
        places.add(tuple((seen[0, 0] == 33).nonzero()[-1].tolist()))
    assert len(places) == 16
    shapes = {windows(step, torch.zeros(1, 1, 128, 128))[0].shape for step in range(64)}
    assert shapes == {(1, 1, 136, 136)}
    assert windows(3, torch.zeros(1, 1, 8, 8))[0].shape[-1] == 8  # too small


@pytest.mark.parametrize("loss", [
    LossConfig(), LossConfig(pixels="psnr"), LossConfig(perceptual=1.0), LossConfig(ripple=1.0),
    LossConfig(adversarial=1.0, matching=1.0, critic_from=0.0)])
def test_the_rim_is_learnt_like_the_middle(loss):
    """No step leaves a row or a column of the pictures out of its loss."""
    for step in range(3):
        t = trainer(loss=loss)
        t.step, kept = step, []
        forward = t.model.decode
        t.model.decode = lambda z, f=forward, k=kept: k.append(f(z)) or k[-1]
        batch = t.batches.draw(step)
        losses = t.loss(batch)
        pulls = torch.autograd.grad(losses.sum(), kept[0])[0].abs().sum((0, 1))
        for line in (pulls[0], pulls[-1], pulls[:, 0], pulls[:, -1]):
            assert line.mean() > 0.3 * pulls.mean()


def test_a_second_pass_of_the_decoder_leaves_the_latents_alone():
    first = trainer(loss=CRITIC.model_copy(update={"decoder_only": True, "critic_from": 0.0}))
    first.model.latent_mean += 0.3
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    pictures = to_float(first.images[:4])
    with torch.no_grad():
        latents = first.model.eval().encode(pictures)
    first.fit()
    with torch.no_grad():
        assert torch.equal(first.model.eval().encode(pictures), latents)
        assert torch.equal(first.ema_model.encode(pictures), latents)
    moved = {name.split(".")[0] for name, value in first.model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {"decoder", "post_quant_conv"}


def test_a_second_pass_of_a_loaded_one_leaves_its_encoder_alone():
    model = Autoencoder(**AE).requires_grad_(False)
    t = AutoencoderTrainer(model, None, load_data("toycats:16", 32), TrainConfig(steps=1, **TRAIN),
                           loss=LossConfig(decoder_only=True))
    learns = {name.split(".")[0] for name, p in t.model.named_parameters() if p.requires_grad}
    assert learns == {"decoder", "post_quant_conv"}


def test_a_step_that_is_not_finite_leaves_the_latents_mean_alone():
    t, calls = trainer(steps=4, loss=LossConfig()), []

    def spoil(module, given, answer):
        calls.append(1)
        return answer * float("inf") if len(calls) == 3 else answer

    t.model.encoder.register_forward_hook(spoil)
    t.fit(2)
    before = {name: value.clone() for name, value in t.model.state_dict().items()}
    t.fit(1)
    assert not math.isfinite(t.losses[-1])
    assert all(torch.equal(before[name], value) for name, value in t.model.state_dict().items())
    t.fit(1)
    assert math.isfinite(t.losses[-1]) and t.ema_model.latent_mean.isfinite().all()
    assert not torch.equal(before["latent_mean"], t.model.latent_mean)


def test_a_critic_is_added_and_dropped_on_the_way(tmp_path):
    for first, then in ((LossConfig(), CRITIC), (CRITIC, LossConfig())):
        folder = tmp_path / str(bool(first.adversarial))
        trainer(folder, loss=first).fit(2)
        gone_on = trainer(folder, loss=then).resume(allow_changes=True).fit()
        assert gone_on.step == 6 and all(map(math.isfinite, gone_on.losses))


@pytest.mark.parametrize("size", [16, 24, 40, 56, 8])
def test_a_size_that_no_critic_can_look_at_is_known_before_the_work(size):
    model = Autoencoder(**{**AE, "image_size": size})
    config = TrainConfig(steps=1, **TRAIN)
    loss = LossConfig(adversarial=0.1, critic_from=0.0)

    def made():
        pictures = torch.zeros(8, 3, size, size, dtype=torch.uint8)
        return AutoencoderTrainer(model, None, pictures, config, loss=loss)

    if size == 8:
        with pytest.raises(ValueError, match="8 px are too small for the critic.*use 16 px"):
            made()
    else:
        assert math.isfinite(made().fit().losses[0])


def test_a_run_from_before_a_setting_of_the_loss_was_there_goes_on(tmp_path, refuses):
    trainer(out=tmp_path, steps=2).fit()
    state = newest_checkpoint(tmp_path) / "state.json"
    told = json.loads(state.read_text())
    assert told["loss"].pop("decoder_only") is False
    state.write_text(json.dumps(told))
    assert trainer(out=tmp_path, steps=2).resume().step == 2
    other = CRITIC.model_copy(update={"noise": 0.3})
    with refuses(ValueError, "another loss", "noise", "--allow-changes"):
        trainer(out=tmp_path, steps=2, loss=other).resume()
    assert trainer(out=tmp_path, steps=2, loss=other).resume(allow_changes=True).step == 2


@pytest.mark.parametrize(("pixels", "measured"),
                         [("l1", multiscale_l1), ("psnr", negative_psnr)])
def test_the_focus_counts_in_a_copy_too(pixels, measured):
    loss = LossConfig(perceptual=0.0, pixels=pixels)
    t = trainer(loss=loss, focus=(0.25, 0.0, 0.5, 1.0), focus_weight=5.0)
    batch = t.batches.draw(0)
    with torch.no_grad():
        asked, x = t.loss(batch), t.pictures(batch)
        rows = torch.full((1, 1, 32, 32), 0.5)  # 24 rows count 1 and 8 count 5, over their mean
        rows[:, :, 8:16] = 2.5
        y, seen = t.model(x, loss.noise * batch.noise), rows.expand(len(x), -1, -1, -1)
    if pixels == "l1":  # at a place that goes with the step
        y, x, seen = windows(0, y, x, seen)
    torch.testing.assert_close(asked, measured(y, x, seen))
    assert not torch.allclose(asked, measured(y, x), rtol=0.01)


def test_ripples_are_the_waves_of_two_pixels_and_no_others():
    x = torch.arange(32.0)
    def wave(period):
        return torch.cos(2 * torch.pi * x / period).expand(1, 1, 32, 32)
    for period in (32, 16, 8, 4):
        assert ripples(wave(period)).abs().max() < 0.13  # an eighth of a wave of 2
    one, two = wave(2), wave(2).mT
    for place, x in enumerate((one, two, one * two)):  # upright, level, a chessboard
        strength = ripples(x).abs().amax((0, 2, 3))
        assert strength[place] > 0.999 and strength.sum() < 1.01
    assert ripples(one).abs()[:, 0].min() > 0.999  # in every cell


def test_another_decoder_is_the_same_autoencoder_to_a_model_of_its_latents():
    torch.manual_seed(0)
    a, b = Autoencoder(**AE), Autoencoder(**AE)
    b.load_state_dict(a.state_dict())
    b.decoder.conv_out.bias.data += 1
    assert fingerprint_of(a) == fingerprint_of(b)
    b.latent_mean += 1
    assert fingerprint_of(a) != fingerprint_of(b)


def test_the_perceptual_loss_looks_where_the_pictures_are(tmp_path):
    told = override(read_config("catfaces_autoencoder"), "data", "toycats:16")
    told = override(told, "loss.perceptual", "0.2")
    config = resolve(told, "catfaces_autoencoder")
    features = autoencoder_trainer(config, tmp_path, resume=False)[0].features
    for device in ("cpu", "meta"):  # one that is not the CPU, on any machine
        maps = features(torch.zeros(1, 3, 32, 32, device=device))
        assert {each.device.type for each in maps} == {device}


def test_slices_count_for_an_autoencoder(tmp_path, refuses):
    trainer(tmp_path, loss=LossConfig()).fit(2)
    with refuses(ValueError, "accumulate was 1, now 2"):
        trainer(tmp_path, loss=LossConfig(), accumulate=2).resume()
