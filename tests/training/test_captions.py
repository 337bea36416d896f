"""What a network that reads is told in training: captions whole, in part, and empty."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lib import (
    GaussianDiffusion,
    SampleGrid,
    TextUNet,
    ToyCats,
    TrainConfig,
    Trainer,
    UNet,
    UNetConfig,
    cosine_beta_schedule,
    guided,
    load_model,
    words_of,
)
from diffusion_lib.data.sources import ImageData
from diffusion_lib.data.toycats import ATTRIBUTES, caption
from diffusion_lib.saving.checkpoint import newest_checkpoint
from diffusion_lib.training.batches import Batches
from diffusion_lib.training.captions import PATTERN, left_out, told

CATS = ToyCats(size=16, n=40)
NETWORK = UNetConfig(image_size=16, channels=8, channel_mults=(1, 2), attention=(False, True))


def reader(seed: int = 0) -> TextUNet:
    torch.manual_seed(seed)
    return TextUNet(NETWORK, {"words": words_of(ToyCats(n=500).captions), "width": 8, "heads": 2})


def trainer(model: nn.Module | None = None, data: object = CATS, out: Path | None = None,
            callbacks: tuple = (), **changes: object) -> Trainer:
    settings = {"steps": 6, "batch_size": 8, "warmup": 2, "save_every": 3, "log_every": 1,
                "precision": "float32", "device": "cpu", "flip": False, "attribute_drop": 0.5}
    return Trainer(reader() if model is None else model,
                   GaussianDiffusion(cosine_beta_schedule(50), "v"), data,
                   TrainConfig(**{**settings, **changes}), out=out, callbacks=callbacks)


def test_captions_are_dropped_as_they_should_be():
    n = 4000
    config = TrainConfig(batch_size=n, label_drop=0.1, attribute_drop=0.4)
    batch = Batches(config, 50, (3, 1, 1), 40).draw(3)
    texts = told(batch, CATS.captions, CATS.attributes, 0.4)
    whole = [CATS.captions[i] for i in batch.index.tolist()]
    empty = sum(text == "" for text in texts) / n
    same = sum(a == b for a, b in zip(texts, whole, strict=True)) / n
    only_fur = sum(text in [f"a {fur} cat" for fur in ATTRIBUTES["fur"]] for text in texts) / n
    print(f"empty {empty:.3f}, whole {same:.3f}, the fur alone {only_fur:.3f}")
    assert abs(empty - 0.1) < 0.02 and 0.54 < same < 0.68 and only_fur > 0.005
    # what is told is true, and the pattern is never left out alone: that would say "plain"
    out = left_out(batch.words, 0.4)
    alone = out.sum(dim=1) == 1
    assert alone.any() and not out[alone, PATTERN].any() and out[:, PATTERN].any()
    assert all(set(text.split()) - {"and", "with", "on"} <= set(full.replace(",", " , ").split())
               | {",", *full.split()} for text, full in zip(texts, whole, strict=True))
    assert told(batch, CATS.captions, None, 0.0).count("") == texts.count("")


def test_a_caption_in_part():
    for row, words in (
        ([0, 1, 0, 1, 1], "a white cat with stripes, green eyes and round ears on blue"),
        ([0, 0, 0, 1, 1], "a white cat with green eyes and round ears on blue"),
        ([0, -1, -1, -1, -1], "a white cat"), ([-1, -1, -1, 2, -1], "a cat with folded ears"),
        ([-1, 2, 1, -1, -1], "a cat with patches and blue eyes"),
        ([-1] * 4 + [0], "a cat on pink"), ([-1] * 5, "a cat"),
    ):
        assert caption(row) == words


def test_it_learns_resumes_and_loads(tmp_path):
    whole = trainer(out=tmp_path / "whole", callbacks=(SampleGrid(6, count=4, steps=2),)).fit()
    trainer(out=tmp_path / "parts").fit(3)
    rest = trainer(reader(5), out=tmp_path / "parts").resume().fit()
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "whole/samples/step_00000006.png").exists()
    moved = [name for name, p in reader().named_parameters()
             if not torch.equal(p, dict(whole.model.named_parameters())[name])]
    assert any(name.startswith("text_encoder.embeddings") for name in moved)
    loaded = load_model(tmp_path / "whole").model
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 40])
    said = ["a white cat", "a grey cat with round ears"]
    with torch.no_grad():
        error = guided(loaded, said, 3)(x, t) - guided(whole.ema_model, said, 3)(x, t)
    assert error.abs().max() < 1e-5 and loaded.label_drop == 0.1
    assert newest_checkpoint(tmp_path / "whole")


def test_words_move_the_picture():
    """White or black, told in a word: the loss falls below what a deaf network can reach."""
    images = torch.cat([torch.full((8, 3, 16, 16), v, dtype=torch.uint8) for v in (255, 0)])
    data = ImageData(images, captions=("a white cat",) * 8 + ("a black cat",) * 8)
    run = trainer(data=data, steps=60, attribute_drop=0.0, label_drop=0.0,
                  learning_rate=3e-3).fit()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([49])
    with torch.no_grad():
        said = {word: run.diffusion.predict_x0(guided(run.ema_model, f"a {word} cat", 1)(x, t),
                                               x, t).mean().item() for word in ("white", "black")}
    print(said)
    assert said["white"] > said["black"] + 0.5


def test_what_cannot_be_read_is_refused(refuses):
    plain = UNet(NETWORK)
    with refuses(ValueError, "captions", "captions.csv"):
        trainer(data=CATS.images)
    with refuses(ValueError, "attribute_drop"):
        trainer(plain)
    with refuses(ValueError, "attribute_drop"):
        trainer(data=ImageData(CATS.images, captions=tuple(CATS.captions)))
    with refuses(ValueError, "'tiger'"):
        trainer(data=ImageData(CATS.images, captions=("a white tiger",) * 40), attribute_drop=0.0)
    with refuses(ValueError, "15 words", "at most 14"):
        trainer(data=ImageData(CATS.images, captions=("cat " * 15,) * 40), attribute_drop=0.0)


@pytest.mark.skipif(os.name == "nt", reason="float rounding differs")
def test_slices_make_the_same_step():
    a, b = trainer(steps=2).fit(), trainer(steps=2, accumulate=2).fit()
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert (p - q).abs().max() < 1e-4
