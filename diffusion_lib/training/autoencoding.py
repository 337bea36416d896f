"""Training an autoencoder in the same loop: its loss, its critic, and nothing else is different."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.autoencoder import Autoencoder, PatchCritic
from ..saving.checkpoint import load_weights
from .batches import Batch
from .config import LossConfig
from .trainer import Trainer


class AutoencoderTrainer(Trainer):
    """Trains an Autoencoder: `AutoencoderTrainer(model, None, data, config, loss=LossConfig())`.

    features: a function from pictures (B, 3, H, W) to a list of feature maps, for the perceptual
    loss. The latents' spread is a batch's own, so slices (`accumulate`) and processes count.
    """

    free = Trainer.free - {"accumulate"}

    def __init__(self, model: Autoencoder, *args: Any, loss: LossConfig | None = None,
                 features: Any = None, **settings: Any) -> None:
        self.loss_config = LossConfig() if loss is None else loss
        if self.loss_config.decoder_only:  # before other processes are told what learns
            model.requires_grad_(True)  # a loaded one
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
        super().__init__(model, *args, **settings)
        if self.loss_config.perceptual and features is None:
            raise ValueError("a perceptual loss needs features: a function from pictures to "
                             "feature maps")
        self.features: Any = features
        self.critic: Any = None
        if self.loss_config.adversarial or self.loss_config.matching:
            with torch.random.fork_rng():
                torch.manual_seed(self.config.seed)
                self.critic = PatchCritic(self.images.shape[1]).to(self.device)
            self.critic.to(memory_format=torch.channels_last)
            self.critic_optimizer = torch.optim.AdamW(
                self.critic.parameters(), lr=self.loss_config.critic_learning_rate,
                betas=(0.5, 0.99), weight_decay=0)
            check_critic(self.critic, torch.zeros(1, *self.images.shape[1:], device=self.device))

    @staticmethod
    def noise_shape(model: Autoencoder, images: Tensor) -> tuple[int, int, int]:
        """Noise is added to latents, not to pictures."""
        return model.latent_shape

    @property
    def critic_plays(self) -> bool:
        """Whether the critic takes part in this step."""
        start = self.loss_config.critic_from * self.config.steps
        return self.critic is not None and self.step >= start

    def train_step(self) -> float:
        """The autoencoder's step, then the critic's."""
        playing = self.critic_plays
        if playing:
            self.critic_optimizer.zero_grad(set_to_none=True)
        measured = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        loss = super().train_step()
        if self.meter.in_a_row:  # such a step changes nothing, the latents' mean and spread neither
            for buffer, before in measured:
                buffer.copy_(before)
        elif playing:
            self.ranks.average_gradients(self.critic)
            self.critic_optimizer.step()
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Losses (B,) of the pictures of a batch, or of a slice of it."""
        c, x = self.loss_config, self.pictures(batch)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            y = self.network(x, c.noise * batch.noise.to(self.device))
            places = torch.ones_like(x[:, :1]) if self.places is None else self.places.expand(
                len(x), 1, -1, -1)
            whole = y, x, places
            y, x, places = windows(self.step, *whole)
            losses = (negative_psnr(*whole) if c.pixels == "psnr" else
                      multiscale_l1(y, x, places))
            if c.perceptual:
                losses = losses + c.perceptual * distances(self.features(y), self.features(x))
            if c.ripple:
                losses = losses + c.ripple * (ripples(y) - ripples(x)).abs().mean((1, 2, 3))
            if self.critic_plays:
                losses = losses + self.criticised(y, x)
        return losses

    def criticised(self, y: Tensor, x: Tensor) -> Tensor:
        """Losses (B,) that the critic gives decoded pictures y; learns from both y and x itself."""
        real, fake = self.critic(x), self.critic(y.detach())
        hinge = F.relu(1 - real[-1]).mean() + F.relu(1 + fake[-1]).mean()  # Lim & Ye 2017
        (hinge / self.config.accumulate).backward()
        constant = {name: p.detach() for name, p in self.critic.named_parameters()}
        seen = torch.func.functional_call(self.critic, constant, (y,))
        matching = distances(seen[:-1], [each.detach() for each in real[:-1]])
        c = self.loss_config
        return c.matching * matching - c.adversarial * seen[-1].mean((1, 2, 3))

    # -- checkpoints -------------------------------------------------------------------------------

    def _weights(self) -> dict[str, nn.Module]:
        more = {} if self.critic is None else {"critic": self.critic}
        return {**super()._weights(), **more}

    def described(self) -> dict[str, dict]:
        return {**super().described(), "loss": self.loss_config.model_dump(mode="json")}

    def optimizer_state(self) -> dict:
        own = super().optimizer_state()
        if self.critic is None:
            return own
        return {"autoencoder": own, "critic": self.critic_optimizer.state_dict()}

    def carried_over(self, optimizer: dict, same: bool) -> dict:
        """The critic has an optimizer of its own, which stays."""
        return optimizer if same else {"critic": optimizer.get("critic", {})}

    def load_more(self, weights: dict[str, dict], optimizer: dict, folder: object) -> None:
        if self.critic is not None and "critic" in weights:  # it may be new (--allow-changes)
            load_weights(self.critic, weights["critic"], folder)
            self.critic_optimizer.load_state_dict(optimizer["critic"])
        own = optimizer.get("autoencoder", {} if "critic" in optimizer else optimizer)
        super().load_more(weights, own, folder)


def check_critic(critic: nn.Module, pictures: Tensor) -> None:
    """Raises ValueError for pictures of a size that a critic cannot look at."""
    try:
        with torch.no_grad():
            critic(windows(0, pictures)[0])
    except RuntimeError as error:
        raise ValueError(f"pictures of {pictures.shape[-1]} px are too small for the critic, or "
                         "cannot be folded as it does; use 16 px or more, a multiple of 8, or "
                         "loss.adversarial 0 and loss.matching 0") from error


def windows(step: int, *pictures: Tensor) -> list[Tensor]:
    """Pictures (B, C, H, W) a little larger, by 8 px at most: how much of that is added above and
    how much below, left and right, goes with the step; it mirrors what lies inside.

    Losses halve a picture again and again, from its upper left corner on, and a decoder learns
    where their cells meet: a grid. Seen at another place each step, no line is an edge. (Nothing
    may be cut off instead: what is rarely seen, at the rim, is painted badly.)
    """
    height, width = pictures[0].shape[-2:]
    cells = min(8, height // 8, width // 8) // 2 * 2  # even: pictures are folded 2 × 2
    if cells < 2:
        return list(pictures)
    top, left = divmod(11 * step % cells**2, cells)
    return [F.pad(each, (left, cells - left, top, cells - top), "reflect") for each in pictures]


def negative_psnr(y: Tensor, x: Tensor, places: Tensor | float = 1.0) -> Tensor:
    """Minus the peak signal-to-noise ratio of each picture (B, 3, H, W) in [-1, 1], in tens of
    decibels: (B,). A picture that is nearly right pulls as hard as one that is not, as its measure
    asks; 1e-6 under the logarithm (60 dB) keeps a perfect one finite.

    places: how much each pixel counts, (B, 1, H, W) of mean 1.
    """
    return ((places * (y - x).square()).mean((1, 2, 3)) / 4 + 1e-6).log10()


def multiscale_l1(y: Tensor, x: Tensor, places: Tensor | float = 1.0, scales: int = 4) -> Tensor:
    """Mean |y - x| of each picture (B, 3, H, W), summed over `scales` sizes, each half the one
    before: (B,). Coarse errors count more than by pixels alone.

    places: how much each pixel counts, (B, 1, H, W) of mean 1.
    """
    y, x = places * y, places * x
    losses = (y - x).abs().mean((1, 2, 3))
    for _ in range(scales - 1):
        y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        losses = losses + (y - x).abs().mean((1, 2, 3))
    return losses


def ripples(pictures: Tensor) -> Tensor:
    """How strong waves of two pixels are, upright, level and both at once (a chessboard), in cells
    of 8 × 8 pixels: (B, 3 C, H // 8, W // 8) of pictures (B, C, H, W). A decoder that unfolds 2 × 2
    pixels, and wants to please a critic, fills a picture with them; photographs hold next to none.
    """
    sign = 1.0 - 2.0 * (torch.arange(max(pictures.shape[-2:]), device=pictures.device) % 2)
    upright = pictures * sign[: pictures.shape[-1]]
    level = pictures * sign[: pictures.shape[-2], None]
    chessboard = upright * sign[: pictures.shape[-2], None]
    return torch.cat([F.avg_pool2d(each, 8) for each in (upright, level, chessboard)], dim=1)


def distances(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Mean |a - b| of each row, relative to b's mean size, averaged over the layers: (B,)."""
    parts = [(p - q).abs().mean((1, 2, 3)) / q.detach().abs().mean() for p, q in
             zip(a, b, strict=True)]
    return torch.stack(parts).mean(0)

