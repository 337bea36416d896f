"""Muon: against PyTorch's own, what it does to singular values, and as the Trainer's optimizer."""

import pytest
import torch
from torch import nn

from diffusion_lib import GaussianDiffusion, TrainConfig, Trainer, UNet, cosine_beta_schedule
from diffusion_lib.training.optimizer import Muon, MuonAdamW, make_optimizer, orthogonalize


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_singular_values_become_about_one(shape):
    values = torch.linalg.svdvals(orthogonalize(randn(*shape)))
    assert 0.6 < values.min() and values.max() < 1.3


def test_directions_stay():
    """U S Vᵀ -> U f(S) Vᵀ: the same U and V."""
    matrix = randn(8, 8)
    u, s, vh = torch.linalg.svd(matrix)
    turned = u.T @ orthogonalize(matrix[None])[0] @ vh.T
    assert (turned - turned.diag().diag()).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(3, 16, 144), (2, 144, 16), (2, 24, 24), (1, 5, 40)])
@pytest.mark.parametrize("rank", [1, 100])
def test_its_rounds_are_newton_schulz_on_the_whole_matrix(shape, rank):
    """Worked out on x xᵀ, which squares the singular values: small ones and none must survive."""
    u, values, vh = torch.linalg.svd(randn(*shape), full_matrices=False)
    values = torch.logspace(0, -3, values.shape[-1]).expand_as(values) * (
        torch.arange(values.shape[-1]) < rank)
    x = matrices = u * values[:, None] @ vh
    x = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
    assert (orthogonalize(matrices) - x).norm() < 1e-3 * x.norm()


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_equals_pytorchs_muon(shape):
    """PyTorch's computes in bfloat16: three digits."""
    ours, theirs = nn.Parameter(randn(*shape)), nn.Parameter(randn(*shape))
    settings = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.95}
    a, b = (
        Muon([ours], **settings),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        ours.grad, theirs.grad = randn(*shape, seed=step + 1), randn(*shape, seed=step + 1)
        before = theirs.detach().clone()
        a.step(), b.step()
        moved = (theirs - before).norm()
        assert (ours - theirs).detach().norm() < 0.03 * (step + 1) * moved


def test_a_convolution_is_stepped_as_its_matrix_and_equal_shapes_go_together():
    weights = [nn.Parameter(randn(8, 4, 3, 3, seed=i)) for i in range(3)]
    alone = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in weights]
    together, singly = Muon(weights, lr=0.1), [Muon([weight], lr=0.1) for weight in alone]
    for i, (weight, matrix) in enumerate(zip(weights, alone, strict=True)):
        weight.grad = randn(8, 4, 3, 3, seed=10 + i)
        matrix.grad = weight.grad.flatten(1)
    together.step()
    for one in singly:
        one.step()
    for weight, matrix in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight.flatten(1), matrix)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="AdamW"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_every_weight_has_one_optimizer():
    model = UNet(
        image_size=8, channels=8, channel_mults=(1, 2), attention=(False, True), num_classes=3
    )
    both = MuonAdamW(model, lr=0.1)
    muon, adamw = (
        {id(p) for group in part.param_groups for p in group["params"]} for part in both.parts
    )
    assert not muon & adamw and muon | adamw == {id(p) for p in model.parameters()}
    for part in (
        model.conv_in.weight, model.conv_out.weight, model.class_embedding.weight,
        model.conv_norm_out.weight,
    ):
        assert id(part) in adamw
    assert id(model.mid_block.resnets[0].conv1.weight) in muon


def test_the_learning_rate_reaches_both():
    both = make_optimizer(
        "muon", UNet(image_size=8, channels=8, channel_mults=(1, 2), attention=(False, True)), 0.1,
        0.0, False,
    )
    for group in both.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for group in both.param_groups for p in group["params"]]
    for group in both.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    both.step()
    assert all(
        torch.equal(p, old)
        for p, old in zip((p for g in both.param_groups for p in g["params"]), before, strict=True)
    )


def trainer(toy_images, out=None, **changes):
    torch.manual_seed(0)
    model = UNet(image_size=8, channels=8, channel_mults=(1, 2), attention=(False, True))
    settings = {
        "steps": 8, "batch_size": 4, "warmup": 2, "precision": "float32", "device": "cpu",
        "optimizer": "muon", **changes,
    }
    return Trainer(
        model, GaussianDiffusion(cosine_beta_schedule(20)), toy_images, TrainConfig(**settings),
        out=out,
    )


def test_resume_is_exact(toy_images, tmp_path):
    whole = trainer(toy_images).fit()
    trainer(toy_images, tmp_path).fit(4)
    rest = trainer(toy_images, tmp_path).resume().fit()
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_optimizer_is_refused_unless_said(toy_images, tmp_path):
    trainer(toy_images, tmp_path).fit(4)
    with pytest.raises(ValueError, match="optimizer was 'muon', now 'adamw'"):
        trainer(toy_images, tmp_path, optimizer="adamw").resume()
    other = trainer(toy_images, tmp_path, optimizer="adamw").resume(allow_changes=True).fit()
    assert other.step == 8


def test_a_foreign_state_is_refused():
    both = make_optimizer(
        "muon",
        UNet(image_size=8, channels=8, channel_mults=(1, 2), attention=(False, True)),
        0.1,
        0.0,
        False,
    )
    with pytest.raises(ValueError, match="not Muon"):
        both.load_state_dict({"state": {}, "param_groups": []})
