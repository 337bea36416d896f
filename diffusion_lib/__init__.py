"""A small library to learn how diffusion models make pictures, and to train them for real.

Six wings: `core` is diffusion itself, `data` where pictures come from, `saving` what is on disk,
`training` the loop and what surrounds it, `measuring` how good it is, `lessons` what only notebooks
need. Every public name is offered here, flat; a name is loaded when it is first used, so that
`import diffusion_lib` is quick and needs neither Jupyter nor matplotlib.
"""

import importlib

__version__ = "0.2.0"

# module -> the names it offers here
_EXPORTS = {
    "core.schedules": (
        "cosine_beta_schedule", "linear_beta_schedule", "make_betas", "rescale_zero_terminal_snr",
        "shift_snr", "sigmoid_beta_schedule",
    ),
    "core.diffusion": ("GaussianDiffusion",),
    "core.losses": ("loss_per_timestep", "min_snr_weight", "noise_prediction_loss"),
    "core.unet": (
        "AttentionBlock", "Downsample", "ResBlock", "TimeEmbedding", "UNet", "UNetConfig",
        "Upsample",
    ),
    "core.transformer": ("Attention", "Text", "TextAttentionBlock"),
    "core.text": (
        "TextConfig", "TextEncoder", "TextUNet", "Tokenizer", "words_of",
    ),
    "core.autoencoder": ("Autoencoder", "AutoencoderConfig"),
    "core.samplers": (
        "SAMPLERS", "Step", "ddim", "ddpm", "dpm_solver_pp", "heun", "last_step", "sample",
        "sde_dpm_solver_pp",
    ),
    "core.guidance": ("Guided", "autoguided", "guided", "perturbed_attention"),
    "core.ideal": ("IdealDenoiser",),
    "core.ema": ("EMA",),
    "data.sources": (
        "ImageData", "example_photo", "in_batches", "load_data", "to_float", "to_uint8",
    ),
    "data.toycats": ("ToyCats",),
    "data.pictures": ("image_grid", "to_pictures"),
    "saving.picture_files": ("animate", "save_grid"),
    "saving.pretrained": (
        "load_autoencoder", "load_model", "load_pretrained", "progress_grids", "shipped_models",
        "shipped_table",
    ),
    "saving.latents": ("encode_set",),
    "saving.diffusers_format": (
        "from_diffusers_unet", "load_diffusers", "save_diffusers", "to_diffusers_autoencoder",
        "to_diffusers_unet",
    ),
    "saving.stable_diffusion": ("save_pipeline", "to_pipeline"),
    "saving.pipelines": ("load_pipeline", "process_of"),
    "training.config": ("TrainConfig", "read_config"),
    "training.callbacks": ("SampleGrid",),
    "training.trainer": ("Trainer",),
    "training.autoencoding": ("AutoencoderTrainer",),
    "measuring.metrics": (
        "class_share", "clip_score", "frechet_distance", "kernel_distance", "nearest",
        "power_spectrum", "precision_recall", "spectral", "wilson",
    ),
    "measuring.classifier": ("Classifier", "load_classifier"),
    "measuring.catface": ("face_share",),
    "measuring.features": ("Clip", "Inception", "feature_network"),
    "measuring.report": ("CAT", "SHIPPED", "Reference", "evaluate"),
    "measuring.toyreader": ("read_attributes",),
    "lessons.panels": (
        "compose", "curve_panel", "font", "histogram_panel", "plane_panel", "stack_rows",
    ),
    "lessons.plots": ("figure", "plot_curves", "show", "show_images", "show_strip"),
    "lessons.sliders": (
        "even_timesteps", "frame_slider", "live_panel", "live_slider", "timestep_slider",
    ),
    "lessons.network": ("channel_grid", "few_colours", "unet_plan", "unet_stages"),
    "lessons.progress": ("TimeLeft",),
    "lessons.exercises": ("check",),
    "lessons.planted": ("planted",),
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
