"""Captions of own pictures: a table, or a text for each; what is missing, double or foreign is said
in one line.
"""

import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from diffusion_lib import GaussianDiffusion, TextUNet, TrainConfig, Trainer, UNet, make_betas
from diffusion_lib.data.sources import load_data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    for i, name in enumerate(("a.png", "b.png", "more/c.png")):
        Image.fromarray(np.full((8, 8, 3), 100 + 40 * i, np.uint8)).save(tmp_path / name)
    return tmp_path


TABLE = 'file,caption\nmore/c.png,a third  cat\n a.png,"a cat, first"\n\nb.png,a second cat\n'


def load(folder, part=""):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # captions are no pictures that were left aside
        return load_data(f"folder:{folder}{part}", 8)


def test_a_table(folder):
    assert load(folder).captions == ()
    for encoding in ("utf-8", "utf-8-sig"):
        (folder / "captions.csv").write_text(TABLE, encoding=encoding)
        data = load(folder)
        assert data.captions == ("a cat, first", "a second cat", "a third cat")
        assert data.images[:, 0, 0, 0].tolist() == [100, 140, 180] and data.skipped == ()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_written_in_two_ways_is_one_name(folder, forms):
    """macOS may write it as two letters in the file's name, a table holds it as one."""
    there, told = (unicodedata.normalize(form, "kätzchen.png") for form in forms)
    (folder / "b.png").rename(folder / there)
    (folder / "captions.csv").write_text(TABLE.replace("b.png", told), encoding="utf-8")
    assert "a second cat" in load(folder).captions


def test_a_text_for_each(folder):
    for name, text in (("a", "one\ncat"), ("b", "two"), ("more/c", "dreì")):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    assert load(folder).captions == ("one cat", "two", "dreì")


def test_faults_are_one_line(folder, refuses):
    table = folder / "captions.csv"
    for text, *said in (
        ("name,text\n", "file,caption", "first line"), ("", "file,caption"),
        ("file,caption\na.png,a cat\n", "b.png", "no caption"),
        (TABLE + "a.png,again\n", "second time", "'a.png'"),
        (TABLE + "d.png,a cat\n", "'d.png'", "no such picture"),
        ("file,caption\na.png,a cat, white\n", "3 columns", "quotes"),
        (TABLE.replace("a second cat", " "), "b.png", "empty"),
    ):
        table.write_text(text, encoding="utf-8")
        with refuses(ValueError, *said):
            load(folder)
    table.write_bytes("file,caption\na.png,ein Kätzchen\n".encode("latin-1"))
    with refuses(ValueError, "captions.csv", "UTF-8"):
        load(folder)
    table.unlink()
    with refuses(ValueError, "exclude", "drawn"):
        load_data(f"folder:{folder}", 8, exclude=[{"fur": "white"}])


def test_a_note_beside_one_of_many_pictures_is_no_caption(folder):
    (folder / "a.txt").write_text("from my aunt", encoding="utf-8")
    with pytest.warns(UserWarning, match="left aside 1 of 4 files .* 1 not a picture"):
        data = load_data(f"folder:{folder}", 8)
    assert len(data) == 3 and data.captions == () and "a.txt" in data.skipped[0]


@pytest.mark.parametrize("texts, said", [
    ({"a": "a cat", "more/c": "a cat"}, "b.png has no caption beside it (b.txt)"),
    ({"a": "0 0.5 0.5 1 1", "b": "", "more/c": "1 0 0 1 1"}, "caption of b.png is empty"),
])
def test_texts_that_are_no_captions_stop_only_who_reads(folder, refuses, texts, said):
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    with pytest.warns(UserWarning, match=f"left aside {len(texts)} of"):
        data = load_data(f"folder:{folder}", 8)
    assert len(data) == 3 and data.captions == () and said in data.no_captions
    process = GaussianDiffusion(make_betas("cosine", T=10))
    net = {"image_size": 8, "channels": 8, "channel_mults": (1, 1), "attention": (False, False)}
    config = TrainConfig(steps=1, batch_size=2)
    Trainer(UNet(**net), process, data, config).fit()
    reader = TextUNet(UNet(**net, cross_attention_dim=8).config, {"words": ("cat",), "width": 8})
    with refuses(ValueError, said):
        Trainer(reader, process, data, config)
