"""Networks that describe pictures in a few numbers: our classifier, Inception, CLIP."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.needed import needed
from ..data.sources import to_uint8
from ..saving.files import sha256
from . import catface
from .classifier import load_classifier

INCEPTION = "6726825d"  # how the sha256 of its weights begins
CLIP = "openai/clip-vit-base-patch32"


def feature_network(name: str = "classifier") -> Callable[[Tensor], Tensor]:
    """A function from pictures (B, 3, H, W), floats in [-1, 1], to features (B, F), by its name.

    "classifier": the shipped one; "catface": histograms of gradients; "inception": what the
    literature calls FID; "clip"; or the path of a classifier saved by .ci/train_classifier.py.
    Raises FileNotFoundError, with the file that is missing and where to put it.
    """
    if name == "catface":
        return catface.gradients
    if name in ("inception", "clip"):
        return (Inception() if name == "inception" else Clip()).features
    return (load_classifier() if name == "classifier" else load_classifier(name)).features


class Inception:
    """Inception's last 2,048 features, as the literature's FID has them (torch-fidelity's port).

    network: takes uint8 pictures and returns a tuple whose first entry is (B, F); loaded, or
    downloaded once, if left out.
    """

    def __init__(self, network: Callable | None = None):
        self.network = network or _load_inception()

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Features (B, 2048) of pictures (B, 3, H, W), floats in [-1, 1]."""
        return self.network(to_uint8(pictures))[0]


def _load_inception() -> Callable:
    port = needed("torch_fidelity.feature_extractor_inceptionv3", "Inception", "torch-fidelity")
    url, folder = port.URL_INCEPTION_V3, Path(torch.hub.get_dir()) / "checkpoints"
    if not (place := folder / Path(url).name).exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(place), hash_prefix=INCEPTION, progress=False)
        except (OSError, RuntimeError) as error:
            raise _missing("Inception", place.name, folder) from error
    if not sha256(place).startswith(INCEPTION):  # it is unpickled below: only the file we mean
        raise ValueError(f"{place} is not Inception's weights (its sha256 differs); remove it")
    return port.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(place))


class Clip:
    """CLIP's features (Radford et al. 2021), of length 1: a product of two is their similarity.

    model: transformers' CLIPModel or one with its interface; the one called CLIP above from disk,
    or downloaded once, if left out.
    """

    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model: nn.Module | None = None, tokenizer: Callable | None = None):
        self.model, self.tokenizer = model or _load_clip(), tokenizer

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Features (B, F) of pictures (B, 3, H, W), floats in [-1, 1]."""
        size = self.model.config.vision_config.image_size
        pixels = F.interpolate(pictures.float(), (size, size), mode="bicubic", antialias=True)
        pixels = pixels.clamp(-1, 1).add(1).div(2)
        mean, std = (torch.tensor(v)[:, None, None].to(pixels) for v in (self.MEAN, self.STD))
        rows = self.model.get_image_features(pixel_values=(pixels - mean) / std)
        return F.normalize(getattr(rows, "pooler_output", rows), dim=1)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """Features (N, F) of texts, comparable with those of pictures."""
        if self.tokenizer is None:
            from transformers import CLIPTokenizer
            self.tokenizer = CLIPTokenizer.from_pretrained(CLIP)
        words = self.tokenizer(prompts, padding=True, return_tensors="pt")
        rows = self.model.get_text_features(**words)
        return F.normalize(getattr(rows, "pooler_output", rows), dim=1)


def _load_clip() -> nn.Module:
    transformers = needed("transformers", "CLIP")
    try:
        return transformers.CLIPModel.from_pretrained(CLIP, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        from huggingface_hub.constants import HF_HUB_CACHE
        folder = Path(HF_HUB_CACHE) / f"models--{CLIP.replace('/', '--')}"
        raise _missing("CLIP", f"model.safetensors and config.json of {CLIP}", folder) from error


def _missing(network: str, files: str, folder: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{network}'s weights are not on this machine and could not be "
                             f"downloaded; put {files} into {folder}")
