"""The report on a model: references, feature networks, the command, and unusable input."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from train_classifier import save_classifier, train_classifier

from diffusion_lib import dpm_solver_pp, last_step, load_pretrained
from diffusion_lib.__main__ import main
from diffusion_lib.core.samplers import SAMPLERS
from diffusion_lib.data.sources import ImageData, to_float
from diffusion_lib.measuring import report as evaluation
from diffusion_lib.measuring.classifier import CLASSES, Classifier, PlainNet, at_32, load_classifier
from diffusion_lib.measuring.features import Clip, Inception, feature_network
from diffusion_lib.measuring.report import CAT, Reference, evaluate, real_pictures, said


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The path of a small random classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "tiny"
    save_classifier(path, Classifier((8, 8, 16)), {})
    return path


def photos(n, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def reference(tiny, n=60, size=32, **more):
    return Reference.of(photos(n, size), photos(n, size, 1), photos(30, size, 2), name="random",
                        features=str(tiny),
                        judge=load_classifier(tiny), **more)


# -- classifier ------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [Classifier, PlainNet])
def test_a_classifier_comes_back_from_its_file_and_takes_any_size(kind, tmp_path):
    torch.manual_seed(0)
    model = kind((8, 8, 16)).half().float().eval()
    save_classifier(tmp_path / "c", model, {"note": "test"})
    again, x = load_classifier(tmp_path / "c"), torch.rand(2, 3, 48, 48) * 2 - 1
    assert torch.equal(again(x), model(x)) and again.features(x).shape == (2, 16)
    assert again.card["note"] == "test"
    assert at_32(x).shape == (2, 3, 32, 32)


def test_a_classifier_learns_two_colours_in_seconds():
    """Ten "classes" that differ in brightness: far better than one in ten after a few steps."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 10
    images = (labels * 25)[:, None, None, None].expand(200, 3, 32, 32).to(torch.uint8).contiguous()
    data = ImageData(images, labels, CLASSES)
    model, card = train_classifier(Classifier((8, 8, 16)), data, minutes=0.1, batch_size=32)
    assert card["steps"] > 3 and not model.training


@pytest.mark.parametrize("pictures, says", [(torch.zeros(2, 1, 32, 32), "grey"),
                                            (torch.zeros(0, 3, 32, 32), "at least 1"),
                                            (torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
                                             "to_float"),
                                            (torch.full((2, 3, 32, 32), torch.nan), "NaN")])
def test_what_a_classifier_refuses(pictures, says):
    with pytest.raises(ValueError, match=says):
        Classifier((8, 8, 16))(pictures)


def test_missing_and_damaged_classifiers(tmp_path, tiny):
    with pytest.raises(FileNotFoundError, match="no classifier"):
        load_classifier(tmp_path / "none")
    save_classifier(tmp_path / "c", Classifier((8, 8, 16)), {})
    with open(tmp_path / "c.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="sha256"):
        load_classifier(tmp_path / "c")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="no card"):
        load_classifier(tmp_path / "c")


def test_data_without_the_ten_classes_is_refused():
    with pytest.raises(ValueError, match="ten classes"):
        data = ImageData(photos(4), torch.zeros(4, dtype=torch.int64), ("cat",))
        train_classifier(Classifier(), data, minutes=0.1)


# -- references ------------------------------------------------------------------------------------

def test_a_reference_comes_back_from_its_files_without_pictures(tiny, tmp_path):
    one = reference(tiny)
    one.save(tmp_path / "ref")
    again = Reference.load(tmp_path / "ref")
    torch.testing.assert_close(again.train, one.train, atol=1e-3, rtol=1e-3)
    assert again.verdicts == one.verdicts and again.size == 32 and again.pixels is None
    assert set(one.verdicts) == {"held-out pictures", "training pictures", "other classes", "noise"}
    assert (tmp_path / "ref.safetensors").stat().st_size < 10_000  # no pictures in it


def test_every_verdict_has_its_real_pictures_beside_it(tiny):
    judge = load_classifier(tiny)
    last = [module for module in judge.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight.data = 50 * (last.weight - last.weight.mean(0))  # a judge that is sure of much
    last.bias.data -= judge(to_float(photos(60, seed=1))).mean(0)
    one = Reference.of(photos(60), photos(60, seed=1), photos(30, seed=2), name="random",
                       features=str(tiny), judge=judge)
    probabilities = said(judge, photos(60, seed=1))[:, CAT]
    called, mean, n, sure = one.verdicts["held-out pictures"]
    assert n == 60 and sure == pytest.approx(float((probabilities > 0.7).float().mean()), abs=1e-4)
    assert 0 < sure < called < 1 and mean == pytest.approx(float(probabilities.mean()), abs=1e-4)
    *_, share, probability, surely = evaluate(photos(40, seed=3), one, n=40, judge=judge)
    held_out = one.verdicts["held-out pictures"]
    assert [share.floor, probability.floor, surely.floor] == [held_out[k] for k in (0, 1, 3)]
    assert all("training pictures" in each.note for each in (share, probability, surely))
    old = one._replace(verdicts={what: told[:3] for what, told in one.verdicts.items()})
    *_, share, probability, surely = evaluate(photos(40, seed=3), old, n=40, judge=judge)
    assert surely.floor is None and share.floor == held_out[0]  # saved before there was such a word


def test_an_unknown_reference_is_named():
    with pytest.raises(FileNotFoundError, match="no reference mouse"):
        Reference.load("mouse")


def folder(path: Path, n: int) -> Path:
    path.mkdir(parents=True)
    for i, picture in enumerate(photos(n, 8)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path / f"{i}.png")
    return path


def test_held_out_pictures_are_found_beside_the_training_ones(tmp_path):
    """Only the last folder called train is exchanged, and stray files are no classes."""
    root = tmp_path / "train" / "cifar"
    for part in ("train/cat", "test/cat", "test/dog"):
        folder(root / part, 5)
    for name in (".DS_Store", "README.txt"):
        (root / "test" / name).write_text("no folder")
    (root / "test" / ".ipynb_checkpoints").mkdir()
    train, held, others = real_pictures(f"folder:{root}/train/cat", None, 8)
    assert len(train) == len(held) == len(others) == 5
    with pytest.raises(ValueError, match="--held-out"):
        real_pictures(f"folder:{root}/test/cat", None, 8)


@pytest.mark.parametrize("train, held, says", [
    (9, 1, "1 held-out"), (9, 3, "3 held-out"), (2, 9, "2 training")])
def test_too_few_real_pictures_are_refused_before_anything_is_drawn(
    train, held, says, tmp_path, capsys, monkeypatch
):
    def drawn(*_, **__):
        raise AssertionError("it was drawn")

    monkeypatch.setitem(SAMPLERS, "dpm_solver_pp", drawn)
    data = [f"folder:{folder(tmp_path / name, n)}" for name, n in (("a", train), ("b", held))]
    assert main(["evaluate", "toycats32", "--data", data[0], "--held-out", data[1], "--n",
                 "20"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error and "at least 4" in error and "larger folder" in error


def test_grey_pictures_measure_as_the_same_ones_in_colour(tiny):
    judge, grey = load_classifier(tiny), [photos(40, seed=seed)[:, :1] for seed in range(3)]
    found = []
    for real, held, drawn in (grey, [part.expand(-1, 3, -1, -1) for part in grey]):
        known = Reference.of(real, held, name="x", features=str(tiny), judge=judge)
        found.append(evaluate(drawn, known, n=40, judge=judge, control=drawn))
    assert found[0] == found[1]


def test_every_measure_has_value_interval_and_floor(tiny):
    measures = evaluate(photos(50, seed=5), reference(tiny), n=50, judge=load_classifier(tiny),
                        control=photos(20, seed=6))
    assert len(measures) == 10 and len({measure.name for measure in measures}) == 10
    for measure in measures:
        assert measure.low <= measure.value <= measure.high, measure
        assert measure.n == 50 and measure.floor is not None, measure
        assert str(measure).count("\n") == 0
    assert "unconditional samples" in measures[-1].note and "noise" in measures[-1].note


def test_another_judges_controls_are_no_floor(tiny, tmp_path):
    torch.manual_seed(1)
    save_classifier(tmp_path / "other", PlainNet((8, 8, 16)), {})
    measures = evaluate(photos(50, seed=5), reference(tiny), n=50,
                        judge=load_classifier(tmp_path / "other"))
    assert [measure.floor for measure in measures[-3:]] == [None, None, None]
    assert "folder:" in measures[-1].note


def test_another_classs_controls_are_no_floor(tiny, tmp_path):
    known = reference(tiny, label=5)
    known.save(tmp_path / "dogs")
    known, judge = Reference.load(tmp_path / "dogs"), load_classifier(tiny)
    for label, is_its in ((5, True), (3, False)):
        measures = evaluate(photos(50, seed=5), known, n=50, judge=judge, label=label)
        assert [m.floor is not None for m in measures[-3:]] == [is_its] * 3


def test_pictures_of_another_size_are_refused(tiny):
    with pytest.raises(ValueError, match="16 px.*32 px"):
        evaluate(photos(50, 16), reference(tiny), n=50, judge=load_classifier(tiny))
    with pytest.raises(ValueError, match="one size"):
        Reference.of(photos(9, 32), photos(9, 16), name="x", features=str(tiny),
                     judge=load_classifier(tiny))


# -- Inception and CLIP: the real code on tiny random networks -------------------------------------

def test_inception_features_through_its_interface():
    seen = []

    def network(pictures):
        seen.append(pictures)
        return (pictures.float().mean(dim=(2, 3)),)

    rows = Inception(network).features(torch.zeros(3, 3, 32, 32))
    assert rows.shape == (3, 3) and seen[0].dtype == torch.uint8 and int(seen[0][0, 0, 0, 0]) == 128


def test_clip_features_of_a_tiny_random_clip():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}
    words = {**sizes, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 19}
    vision = {**sizes, "image_size": 24, "patch_size": 8}
    settings = transformers.CLIPConfig(text_config=words, vision_config=vision, projection_dim=12)
    torch.manual_seed(0)
    def tokenizer(prompts, padding, return_tensors):
        assert padding and return_tensors == "pt"
        ids = torch.tensor([[1, len(prompt) % 17 + 2, 19] for prompt in prompts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    clip = Clip(transformers.CLIPModel(settings).eval(), tokenizer)
    rows = clip.features(torch.rand(3, 3, 32, 32) * 2 - 1)
    words = clip.texts(["a cat", "a white cat", "a cat on a mat"])
    assert rows.shape == words.shape == (3, 12)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(words.norm(dim=1), torch.ones(3))
    assert not torch.allclose(words[0], words[1])


@pytest.mark.parametrize("name, says", [
    ("inception", "weights-inception-2015-12-05-6726825d.pth into"),
    ("clip", "model.safetensors .* into")])
def test_missing_weights_name_the_file_and_its_place(name, says, monkeypatch, tmp_path):
    pytest.importorskip({"inception": "torch_fidelity", "clip": "transformers"}[name])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    if name == "clip":
        import transformers
        monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", no_network)
    with pytest.raises(FileNotFoundError, match=says) as caught:
        feature_network(name)
    assert "\n" not in str(caught.value)


def test_a_file_that_only_bears_inceptions_name_is_not_unpickled(monkeypatch, tmp_path):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    place.parent.mkdir()
    place.write_bytes(b"a bomb")
    with pytest.raises(ValueError, match="sha256"):
        Inception()


# -- the command -----------------------------------------------------------------------------------

def test_the_command_prints_and_writes_every_measure(tiny, tmp_path, capsys, monkeypatch):
    reference(tiny).save(tmp_path / "ref")
    monkeypatch.setattr(evaluation, "load_classifier", lambda path=tiny: load_classifier(path))
    report = tmp_path / "report.json"
    assert main(["evaluate", "toycats32", "--data", f"reference:{tmp_path}/ref", "--n", "20",
                 "--steps", "2", "--judge", str(tiny),
                 "--json", str(report)]) == 0
    printed, told = capsys.readouterr().out, json.loads(report.read_text())
    assert len(told["measures"]) == 9 and all(measure["name"] in printed
                                              for measure in told["measures"])
    assert told["measures"][0]["n"] == 20 and told["checkpoint"] == "toycats32"
    assert told["judge"]["sha256"] == load_classifier(tiny).card["sha256"]
    assert "held-out pictures" in told["controls"]


@pytest.mark.parametrize("flags, says", [
    (["--data", "reference:mouse"], "no reference"), (["--data", "toycats"], "--held-out"),
    (["--data", "reference:cats32", "--n", "5"], "20"),
    (["--data", "reference:cats32", "--judge", "nowhere"], "no classifier"),
    (["--data", "reference:cats32", "--called", "dragon"], "dragon"),
    (["--data", "reference:cats32", "--features", "catface"], "leave --features and --held-out"),
    (["--data", "reference:cats32", "--held-out", "folder:x"], "leave --features and --held-out"),
])
def test_wrong_input_ends_in_one_line(flags, says, capsys):
    assert main(["evaluate", "toycats32", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_reference_of_another_size_is_refused_before_the_drawing(capsys):
    assert main(["evaluate", "toysd64", "--data", "reference:cats32"]) == 2
    assert "pictures of 32 px, toysd64 draws 64 px" in capsys.readouterr().err


def test_the_shipped_classifier_fits_its_budget():
    if not Path(load_classifier.__defaults__[0]).with_suffix(".safetensors").exists():
        pytest.skip("not shipped yet")
    model = load_classifier()
    assert model.card["balanced_accuracy"] > 0.7
    assert Path(load_classifier.__defaults__[0]).with_suffix(".safetensors").stat().st_size < 1.5e6


def test_the_references_random_features_are_those_of_notebook_07():
    moments = load_file(evaluation.SHIPPED / "cats32_moments.safetensors")
    torch.manual_seed(0)
    untrained = Classifier().eval()  # another network's numbers lie ten times as far apart
    model, diffusion, _ = load_pretrained("cats32")
    rows = untrained.features(last_step(dpm_solver_pp(diffusion, model, (32, 3, 32, 32),
                                                      steps=5)).x_t)
    away = (rows.mean(0) - moments["random_held_out_mean"]).square().sum()
    assert away < 0.3 * moments["random_held_out_covariance"].trace(), away
