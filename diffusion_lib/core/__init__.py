"""Diffusion itself, in reading order: schedules, diffusion, losses, unet, samplers, guidance,
ideal, ema.
"""
