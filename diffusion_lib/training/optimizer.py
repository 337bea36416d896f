"""Muon beside AdamW: a step that treats a weight matrix as a matrix (Jordan et al. 2024).

AdamW scales every number of a gradient on its own, so a few strong directions of a matrix can
swallow the whole step. Muon replaces the gradient U S Vᵀ by about U Vᵀ: every direction moves
equally far. It is for matrices; a convolution's weight is one, with a row for each output channel.
Biases, norms, embeddings and the first and last layer stay with AdamW, as its authors advise.

PyTorch has `torch.optim.Muon` too. It takes 2-D weights only, one at a time, and computes in
bfloat16, which was seen 17 times slower than float32 on a common laptop; this one takes
convolutions, and all weights of one shape at once. A test holds both together.
"""

import torch
from torch import Tensor, nn

# The polynomial that pushes every singular value into 0.7 … 1.2 within five rounds (Jordan et al.
# 2024)
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, rounds: int = 5) -> Tensor:
    """U S Vᵀ -> about U Vᵀ, for a stack of matrices (K, rows, columns), by Newton-Schulz rounds:
    products only, no decomposition.

    Each round multiplies x from the left by a polynomial in x xᵀ, which is small and square. So the
    rounds are worked out there, and the wide matrix is touched at the start and at the end only.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    square = x @ x.mT                                                            # (K, rows, rows)
    one = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    all_rounds = one
    for _ in range(rounds):
        this = A * one + B * square + C * square @ square
        square, all_rounds = this @ square @ this, this @ all_rounds
    x = all_rounds @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for weights of two or more dimensions, each seen as a matrix
    (first dimension, all others).

    A step of a (rows, columns) matrix is lr * 0.2 √max(rows, columns) * the orthogonal matrix:
    about as long as AdamW's (Liu et al. 2025, section 2.2), so one learning rate serves both.
    Raises ValueError for a weight with fewer than two dimensions.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            if any(weight.ndim < 2 for weight in group["params"]):
                raise ValueError("Muon takes matrices and convolutions; give vectors to AdamW")

    @torch.no_grad()
    def step(self) -> None:
        """One step; weights without a gradient stay."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
            for (rows, columns), weights in shapes.items():
                moves = []
                for weight in weights:
                    state = self.state[weight]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(weight)
                    state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                    moves.append(weight.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
                length = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for weight, move in zip(weights, orthogonalize(torch.stack(moves)), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                        move.view_as(weight), alpha=length
                    )


class MuonAdamW:
    """Muon for a network's inner weights, AdamW for everything else (vectors, tables, and the
    layers of a UNet where pixels enter and leave), behind the face of one optimizer.
    """

    ENDS = ("conv_in.", "conv_out.")  # where pixels enter and leave

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0, fused: bool = False):
        tables = {
            id(p)
            for module in model.modules()
            if isinstance(module, nn.Embedding)
            for p in module.parameters()
        }
        named = list(model.named_parameters())
        inner = [
            p
            for name, p in named
            if p.ndim >= 2 and not name.startswith(self.ENDS) and id(p) not in tables
        ]
        rest = [p for _, p in named if id(p) not in {id(q) for q in inner}]
        self.parts = [
            Muon(inner, lr, weight_decay),
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, fused=fused),
        ]

    @property
    def param_groups(self) -> list[dict]:
        """The groups of both, whose "lr" may be set."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """One step of both."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """Both states, for a checkpoint."""
        return {"muon": self.parts[0].state_dict(), "adamw": self.parts[1].state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()`. Raises ValueError for another optimizer's state."""
        if state.keys() != {"muon", "adamw"}:
            raise ValueError(
                "the checkpoint's optimizer is not Muon with AdamW; "
                "resume with train.optimizer as it was"
            )
        for part, name in zip(self.parts, ("muon", "adamw"), strict=True):
            part.load_state_dict(state[name])


def make_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float, fused: bool
) -> torch.optim.AdamW | MuonAdamW:
    """"adamw" or "muon" (with AdamW for what Muon does not take)."""
    if name == "muon":
        return MuonAdamW(model, lr, weight_decay, fused)
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
