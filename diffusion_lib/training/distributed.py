"""Several processes that train one run."""

import contextlib
import os

import torch
from torch import Tensor, nn

from ..data.needed import needed
from .device import pick_device


class Ranks:
    """The processes that train one run together, one a device. Several where `accelerate launch`
    started several; else this one.

    device: where this one computes. Raises ValueError for a device that is not there, ImportError
    without Accelerate.
    """

    def __init__(self, device: str = "auto") -> None:
        self.rank, self.count, self.accelerator = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            accelerate = needed("accelerate", "training in several processes")
            self.accelerator = accelerate.Accelerator(cpu=device == "cpu", mixed_precision="no")
            self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if self.accelerator else pick_device(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network to call in training: its gradients are the means over all processes."""
        return self.accelerator.prepare_model(model) if self.accelerator else model

    def no_sync(self, network: nn.Module, wait: bool) -> contextlib.AbstractContextManager:
        """While `wait`, gradients are added up here and not exchanged yet."""
        return (
            self.accelerator.no_sync(network)
            if self.accelerator and wait
            else contextlib.nullcontext()
        )

    def first_one_first(self) -> contextlib.AbstractContextManager:
        """Inside, the first process works while the others wait, and then they do."""
        return (self.accelerator.main_process_first() if self.accelerator
                else contextlib.nullcontext())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same on each of them."""
        return self.accelerator.reduce(values, "mean") if self.accelerator else values

    def average_gradients(self, model: nn.Module) -> None:
        """The same for the gradients of a network that was not wrapped."""
        for weight in model.parameters():
            if self.accelerator and weight.grad is not None:
                weight.grad = self.mean(weight.grad)

    def any(self, wish: bool) -> bool:
        """Whether any process wishes so: all of them hear the same."""
        if not self.accelerator:
            return wish
        return bool(self.mean(torch.tensor(float(wish), device=self.device)) > 0)
