"""A small library to learn how diffusion models make pictures, and to train them for real.

Read it in the order of DDPM's story: schedules, diffusion, losses, unet, training, samplers. Everything a notebook needs
is here under one name; a name is loaded when it is first used, so that `import diffusion_lib` is quick and needs neither
Jupyter nor matplotlib.
"""

import importlib

__version__ = "0.1.0"

# module -> the names it offers here
_EXPORTS = {
    "schedules": (
        "cosine_beta_schedule", "linear_beta_schedule", "make_betas", "rescale_zero_terminal_snr", "shift_snr", "sigmoid_beta_schedule",
    ),
    "unet": ("UNet",),
    "diffusion": ("GaussianDiffusion",),
    "losses": ("loss_per_timestep", "min_snr_weight", "noise_prediction_loss"),
    "samplers": ("SAMPLERS", "Step", "ddim", "ddpm", "dpm_solver_pp", "guided", "heun", "last_step"),
    "ideal": ("IdealDenoiser",),
    "toycats": ("ToyCats",),
    "toyreader": ("read_attributes",),
    "data": ("ImageData", "example_photo", "load_data", "to_float", "to_uint8"),
    "ema": ("EMA",),
    "checkpoint": ("load_model", "load_pretrained", "shipped_models"),
    "config": ("TrainConfig",),
    "training": ("Trainer",),
    "interchange": ("from_diffusers_unet", "load_diffusers", "save_diffusers", "to_diffusers_unet"),
    "plots": ("save_grid", "show_images"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"diffusion_lib has no {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
