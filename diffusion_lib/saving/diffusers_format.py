"""To and from diffusers: publish what you trained here, load here what others published.

`UNet` and `diffusers.UNet2DModel` (with a text: `UNet2DConditionModel`) have the same weights under
the same names, so nothing is converted: the settings are translated and the `state_dict` is copied.
Settings that `UNet` does not have are refused by name, because a network built with a wrong one
loads without complaint and draws something else. diffusers is imported only when needed.
"""

import inspect
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.autoencoder import Autoencoder
from ..core.diffusion import GaussianDiffusion
from ..core.unet import UNet
from ..data.needed import needed
from .files import whole

if TYPE_CHECKING:
    import diffusers

PREDICTION_TYPES = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}  # ours: theirs
SAME_FIELDS = (
    "dropout", "norm_eps", "attention_head_dim", "flip_sin_to_cos", "freq_shift",
    "downsample_padding",
)
DERIVED_FIELDS = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block",
    "down_block_types", "up_block_types", "norm_num_groups", "num_class_embeds",
)
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")  # attention: no, yes
# the same where pixels look at a text
DOWN_TEXT, UP_TEXT = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
WEIGHTS = "diffusion_pytorch_model.safetensors"
EXTRA = "diffusion_lib.json"  # remembers the patch size, which diffusers' files have no place for


def _diffusers() -> Any:
    return needed("diffusers", "diffusers' format")


# -- the network -----------------------------------------------------------------------------------


def to_diffusers_unet(model: UNet) -> "diffusers.UNet2DModel | diffusers.UNet2DConditionModel":
    """The same network as a `diffusers.UNet2DModel`, or a `UNet2DConditionModel` if it reads a
    text, on the CPU, in eval mode, with a copy of the weights.

    With patch size p it is the inner network: it takes `pixel_unshuffle(x, p)` and its answer wants
    `pixel_shuffle`. With K classes it has `num_class_embeds = K + 1`, and always wants
    `class_labels`; K is "no label".
    """
    c, folded = model.config, model.config.patch_size**2
    kind, (down, up) = _diffusers().UNet2DModel, (DOWN, UP)
    same = {field: getattr(c, field) for field in SAME_FIELDS}
    if c.cross_attention_dim:  # what theirs calls attention_head_dim is a number of heads
        kind, (down, up) = _diffusers().UNet2DConditionModel, (DOWN_TEXT, UP_TEXT)
        heads = [width // (c.attention_head_dim or width) for width in c.widths]
        same |= {"attention_head_dim": tuple(heads), "use_linear_projection": True,
                 "cross_attention_dim": c.cross_attention_dim}
    unet = kind(
        sample_size=c.image_size // c.patch_size,
        in_channels=c.in_channels * folded,
        out_channels=c.out_channels * folded,
        block_out_channels=tuple(c.widths),
        layers_per_block=c.blocks_per_level,
        down_block_types=tuple(down[bool(yes)] for yes in c.attention),
        up_block_types=tuple(up[bool(yes)] for yes in reversed(c.attention)),
        norm_num_groups=model.conv_norm_out.num_groups,
        num_class_embeds=None if c.num_classes is None else c.num_classes + 1,
        **same,
    )
    weights = model.state_dict()  # what told of augmentation adds nothing to a picture without it
    unet.load_state_dict({k: v for k, v in weights.items() if not k.startswith("augment_")})
    dtype = model.conv_in.weight.dtype
    return (unet if unet.dtype == dtype else unet.to(dtype)).eval()


def from_diffusers_unet(
    unet: "diffusers.UNet2DModel | diffusers.UNet2DConditionModel", *,
    image_size: int | None = None, patch_size: int = 1,
) -> UNet:
    """The same network as a `UNet` on the CPU, in eval mode, with a copy of the weights.

    image_size: in pixels; left out, it is the network's sample_size times patch_size. patch_size: p
    if the network works on pictures folded by `pixel_unshuffle(x, p)`. Of `num_class_embeds` labels
    the last becomes "no label". Raises ValueError, by name, for a setting that `UNet` does not
    have.
    """
    c, folded = dict(unet.config), patch_size**2
    widths, classes = c["block_out_channels"], c["num_class_embeds"]
    if reads := "cross_attention_dim" in c:
        c["attention_head_dim"] = _channels_a_head(c)
    check_fields(c, _defaults(type(unet)), folded)
    model = UNet(
        image_size=image_size or _size(c["sample_size"]) * patch_size,
        in_channels=c["in_channels"] // folded,
        out_channels=c["out_channels"] // folded,
        channels=widths[0],
        channel_mults=[width // widths[0] for width in widths],
        blocks_per_level=c["layers_per_block"],
        attention=[name in (DOWN[1], DOWN_TEXT[1]) for name in c["down_block_types"]],
        cross_attention_dim=c["cross_attention_dim"] if reads else None,
        num_classes=None if classes is None else classes - 1,
        patch_size=patch_size,
        norm_num_groups=c["norm_num_groups"],
        **{field: c[field] for field in SAME_FIELDS},
    )
    model.load_state_dict(unet.state_dict())
    return model.to(unet.conv_in.weight.dtype).eval()


def to_diffusers_autoencoder(model: Autoencoder) -> "diffusers.AutoencoderKL":
    """The same network as a `diffusers.AutoencoderKL` on the CPU, in eval mode, with a copy of the
    weights; latents are standardised inside, so its scaling_factor is 1.

    Theirs says a mean and a log variance; the variance is next to nothing here, so that `sample()`
    and `mode()` agree. With patch size p it is the inner network, as in `to_diffusers_unet`.
    """
    c, folded, levels = model.config, model.config.patch_size**2, len(model.config.widths)
    vae = _diffusers().AutoencoderKL(
        in_channels=c.in_channels * folded, out_channels=c.in_channels * folded,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(c.widths), layers_per_block=c.blocks_per_level,
        latent_channels=c.latent_channels, norm_num_groups=c.norm_num_groups,
        sample_size=c.image_size // c.patch_size, scaling_factor=1.0,
        mid_block_add_attention=c.attention,
    )
    weights = model.state_dict()
    mean, std = weights.pop("latent_mean"), weights.pop("latent_std")
    own = {name: weights[name] for name in ("quant_conv.weight", "quant_conv.bias")}
    weights["encoder.conv_out.weight"] = _doubled(weights["encoder.conv_out.weight"])
    weights["encoder.conv_out.bias"] = _doubled(weights["encoder.conv_out.bias"])
    scaled = _doubled(own["quant_conv.weight"] / std[:, None, None, None])
    weights["quant_conv.weight"] = _doubled(scaled.transpose(0, 1)).transpose(0, 1)
    weights["quant_conv.bias"] = torch.cat(
        [(own["quant_conv.bias"] - mean) / std, torch.full_like(mean, -30)])
    vae.load_state_dict(weights)
    return vae.eval()


def _doubled(weight: torch.Tensor) -> torch.Tensor:
    """As many rows of zeros below."""
    return torch.cat([weight, torch.zeros_like(weight)])


def _channels_a_head(c: dict[str, Any]) -> int | None:
    """Of a UNet2DConditionModel, whose attention_head_dim is a number of heads (a level, or of
    all). Raises ValueError where levels differ: UNet has one number for all.
    """
    heads, widths = c["attention_head_dim"], c["block_out_channels"]
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    dims = {width // number for width, number in zip(widths, heads, strict=True)}
    if len(dims) > 1 and set(heads) != {1}:
        raise ValueError(f"attention_head_dim = {c['attention_head_dim']!r} (heads a level) gives "
                         f"levels of {tuple(widths)} channels heads of {sorted(dims)}; UNet has "
                         "one size of head.")
    return None if set(heads) == {1} else dims.pop()


def _size(size: Any) -> int:
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise ValueError(f"sample_size = {size!r} is no single size in pixels; build it by "
                         "from_diffusers_unet(unet, image_size=32), say.")
    return size


def _defaults(kind: Any) -> dict[str, Any]:
    """Every setting that a class of diffusers takes, with its default."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def check_fields(c: dict[str, Any], defaults: dict[str, Any], folded: int) -> None:
    """Raises ValueError, by name, for a setting of UNet2DModel that `UNet` cannot have."""
    down_known, up_known, read = DOWN, UP, ""
    if "cross_attention_dim" in c:
        down_known, up_known, read = DOWN_TEXT, UP_TEXT, "cross_attention_dim"
        defaults = {**defaults, "use_linear_projection": True}
    for field, default in defaults.items():
        if field not in (*SAME_FIELDS, *DERIVED_FIELDS, read) and c[field] != default:
            raise ValueError(f"{field} = {c[field]!r} is not supported by UNet, which has only "
                             f"{default!r}.")
    for field, known in (("down_block_types", down_known), ("up_block_types", up_known)):
        for name in c[field]:
            if name not in known:
                raise ValueError(f"{field} holds {name!r}, which UNet does not have; it has "
                                 f"{' and '.join(known)}.")
    down, up, widths = c["down_block_types"], c["up_block_types"], c["block_out_channels"]
    if [name == up_known[1] for name in reversed(up)] != [name == down_known[1] for name in down]:
        raise ValueError(f"up_block_types = {tuple(up)} is not supported: attention must mirror "
                         "down_block_types.")
    if any(width % widths[0] for width in widths):
        raise ValueError(f"block_out_channels = {tuple(widths)}: UNet needs each to be a multiple "
                         "of the first.")
    if c["norm_num_groups"] is None:
        raise ValueError("norm_num_groups = None is not supported by UNet; it must be a number.")
    if (classes := c["num_class_embeds"]) is not None and classes < 2:
        raise ValueError(f"num_class_embeds = {classes} is not supported: UNet keeps the last "
                         "label for 'no label'.")
    for field in ("in_channels", "out_channels"):
        if c[field] % folded:
            raise ValueError(f"{field} = {c[field]} is no multiple of patch_size "
                             f"{round(folded**0.5)} squared.")


def fold_label(model: UNet, label: int) -> UNet:
    """An unconditional copy (CPU, eval mode) that draws class `label`: 0 ... K-1, or K for "no
    label".

    The network adds the label's vector to the output of the time embedding's last layer, so adding
    it to that layer's bias does the same once and for all. Raises ValueError for a model without
    classes and for a label it does not have.
    """
    classes = model.num_classes
    if classes is None:
        raise ValueError(f"label {label} was asked for, but this model has no classes: leave the "
                         "label out.")
    if not 0 <= label <= classes:
        raise ValueError(f"label {label} does not exist; the model has 0 ... {classes - 1}, "
                         f"{classes} for no label.")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["time_embedding.linear_2.bias"] += weights.pop("class_embedding.weight")[label]
    folded = UNet(model.config, num_classes=None).to(model.conv_in.weight.dtype)
    folded.load_state_dict(weights)
    return folded.eval()


# -- the diffusion process -------------------------------------------------------------------------


def _to_scheduler(diffusion: GaussianDiffusion) -> "diffusers.DDPMScheduler":
    """A DDPMScheduler that steps as `ddpm` does. Its file keeps float64 betas; its steps round
    them.
    """
    alphas_cumprod = torch.cumprod(1 - diffusion.betas.float(), dim=0)  # as the scheduler does
    usable = alphas_cumprod if diffusion.prediction == "epsilon" else alphas_cumprod[:-1]
    if (usable == 0).any() or alphas_cumprod[0] == 1:
        raise ValueError("these betas become 0 or 1 in the scheduler's float32, and it would "
                         "divide by 0; use larger first and smaller last betas, or prediction='v'.")
    return _diffusers().DDPMScheduler(
        num_train_timesteps=diffusion.T, trained_betas=diffusion.betas.tolist(),
        prediction_type=PREDICTION_TYPES[diffusion.prediction], variance_type="fixed_small",
        clip_sample=True, timestep_spacing="trailing",
    )


def _from_scheduler(path: Path) -> GaussianDiffusion:
    """The process of a scheduler_config.json. Raises ValueError for what GaussianDiffusion cannot
    be.
    """
    config = read_json(path)
    name = config.get("_class_name")
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise ValueError(f"{path} is a {name}; this library reads DDPMScheduler and DDIMScheduler.")
    kind = _diffusers().DDPMScheduler
    scheduler = kind(**{field: config[field] for field in _defaults(kind) if field in config})
    settings, betas = scheduler.config, scheduler.betas.double()
    check_scheduler(path, settings, len(betas))
    if settings.trained_betas is not None and not settings.rescale_betas_zero_snr:
        betas = torch.tensor(settings.trained_betas, dtype=torch.float64)  # not rounded to float32
    names = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    return GaussianDiffusion(betas, names[settings.prediction_type])


def check_scheduler(path: Path, settings: Any, betas: int) -> None:
    """Raises ValueError for what our samplers cannot do; warns of what their caller has to say."""
    for field, wrong in (
        ("variance_type", settings.variance_type.startswith("learned")),
        ("thresholding", settings.thresholding),
        ("clip_sample_range", settings.clip_sample_range != 1),
    ):
        if wrong:
            raise ValueError(f"{path}: {field} = {settings[field]!r} is not supported by this "
                             "library's samplers.")
    if betas != settings.num_train_timesteps:
        raise ValueError(f"{path}: {betas} betas for num_train_timesteps = "
                         f"{settings.num_train_timesteps}.")
    if settings.prediction_type not in (known := PREDICTION_TYPES.values()):
        raise ValueError(f"{path}: prediction_type = {settings.prediction_type!r} is not one of "
                         f"{', '.join(known)}.")
    if not settings.clip_sample:
        warnings.warn(f"{path} says clip_sample = False: give the samplers clip=False.",
                      stacklevel=4)
    if settings.variance_type.startswith("fixed_large"):
        warnings.warn(f"{path} says variance_type = fixed_large; the sampler ddpm here uses "
                      "fixed_small.", stacklevel=4)


# -- folders ---------------------------------------------------------------------------------------


def save_diffusers(
    model: UNet, diffusion: GaussianDiffusion, folder: Path | str, label: int | None = None,
    autoencoder: Autoencoder | None = None,
) -> None:
    """Write a folder that diffusers loads, whole or not at all.

    An unconditional model becomes a pipeline: `DDPMPipeline.from_pretrained(folder)` draws the
    pictures that `ddpm` draws, from the same noise (one generator per seed). `label` does so for
    one class of a model that has classes (`fold_label`). A model with a patch size p > 1 has no
    pipeline in diffusers: its inner network and its scheduler are written, and a UserWarning says
    so. Neither has a model of latents without a text: `unet`, `scheduler` and `vae` are written.

    Raises ValueError for a folder that is there and not empty, for a label that does not fit the
    model, and for a model with classes without a label; OSError if it cannot be written;
    ImportError without diffusers.
    """
    folder, patch = Path(folder), model.config.patch_size
    check_new(folder)
    if label is not None:
        model = fold_label(model, label)
    elif (classes := model.num_classes) is not None:
        raise ValueError("diffusers' pipeline takes no labels: give the label to write, 0 ... "
                         f"{classes - 1}, or {classes} for no label.")
    unet, scheduler = to_diffusers_unet(model), _to_scheduler(diffusion)
    with whole(folder) as temporary:
        temporary.mkdir()
        if autoencoder is not None:
            scheduler.register_to_config(clip_sample=False)
            parts = {"unet": unet, "scheduler": scheduler}
            parts["vae"] = to_diffusers_autoencoder(autoencoder)
            for name, part in parts.items():
                part.save_pretrained(temporary / name)
        elif patch == 1:
            _diffusers().DDPMPipeline(unet, scheduler).save_pretrained(temporary)
        else:
            unet.save_pretrained(temporary)
            scheduler.save_pretrained(temporary)
            (temporary / EXTRA).write_text(json.dumps({"patch_size": patch}), encoding="utf-8")
    if autoencoder is not None:
        told = (f"; then pixel_shuffle(picture, {p})" if (p := autoencoder.config.patch_size) > 1
                else "")
        warnings.warn("diffusers has no pipeline for latents without a text: unet, scheduler and "
                      f"vae were written; vae.decode(latents).sample makes pictures{told}.",
                      stacklevel=2)
    elif patch > 1:
        warnings.warn(
            f"patch size {patch}: only the inner UNet2DModel was written, no pipeline. It takes "
            f"pixel_unshuffle(x, {patch}) and its answer wants pixel_shuffle(answer, {patch}).",
            stacklevel=2,
        )


def check_new(folder: Path) -> None:
    """Raises ValueError for a folder that holds something, and for the one that we stand in."""
    if folder.resolve() == Path.cwd():
        raise ValueError(f"{folder} is the folder you are in, and an export makes a new one: "
                         "choose another name.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: choose another name, or "
                         "remove it first.")


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder looks like one that diffusers wrote."""
    names = ("model_index.json", "config.json", "unet/config.json")
    return any((folder / name).exists() for name in names)


def load_diffusers(folder: Path | str) -> tuple[UNet, GaussianDiffusion]:
    """Read a folder in diffusers' format: a pipeline, or a UNet2DModel with its
    scheduler_config.json.

    Returns the network (CPU, eval mode) and its diffusion process. How to sample (clipping,
    variance, spacing of the timesteps) is the caller's choice here, so those fields are not kept;
    two that would change pictures give a warning. Only safetensors are read, never pickled weights,
    and nothing is downloaded. Raises FileNotFoundError for a missing folder or file, ValueError for
    what does not fit (see `from_diffusers_unet`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; download a published model first, "
                                "then give its folder.")
    pipeline = (folder / "unet").is_dir()
    network, scheduler = (folder / "unet", folder / "scheduler") if pipeline else (folder, folder)
    scheduler = scheduler / "scheduler_config.json"
    for path in (network / "config.json", network / WEIGHTS, scheduler):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a UNet2DModel needs config.json, "
                                    f"{WEIGHTS} and its scheduler.")
    if (folder / "vae").is_dir():
        raise ValueError(f"{folder} draws latents of its own vae, which this library does not read "
                         "back; load the run it was exported from.")
    diffusion, unet = _from_scheduler(scheduler), _read_unet(network)
    extra = read_json(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    return from_diffusers_unet(unet, patch_size=extra.get("patch_size", 1)), diffusion


def _read_unet(folder: Path, name: str = "UNet2DModel") -> Any:
    kind, config = getattr(_diffusers(), name), folder / "config.json"
    for field, value in read_json(config).items():
        if field == "_class_name" and value != kind.__name__:
            raise ValueError(f"{config} is a {value}; this library reads {kind.__name__}.")
        if not field.startswith("_") and field not in _defaults(kind):
            raise ValueError(f"{config}: {field} = {value!r} is not a field of {name}.")
    try:
        unet, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            output_loading_info=True)
    except Exception as error:  # diffusers raises a dozen kinds, a page long at times
        raise ValueError(f"{folder}: weights damaged, or not made for its config.json: "
                         f"{' '.join(str(error).split())[:200]}") from error
    if lacking := info["missing_keys"] + info["unexpected_keys"]:
        raise ValueError(f"{folder / WEIGHTS} does not fit config.json in {len(lacking)} weights: "
                         f"{lacking[0]} …")
    return unet


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file. Raises ValueError for a damaged one, FileNotFoundError for none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); download it again.") from error
