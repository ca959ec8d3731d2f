"""The reference's update rules are torch.optim's."""

import pytest
import torch

from config.optimizer_schema import OptimizerSection
from engine.muon import orthogonalize, update_scale
from engine.reference import newton_schulz, update

SETTINGS = {
    "adamw": {"lr": 1e-2},
    "sgd": {"lr": 0.1},
    "rmsprop": {"lr": 1e-2},
    "muon": {"lr": 0.02},
}


def torch_optimizer(settings: OptimizerSection, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    match settings.name:
        case "adamw":
            return torch.optim.AdamW([parameter], betas=(0.9, 0.95), eps=1e-8, **common)
        case "sgd":
            return torch.optim.SGD([parameter], momentum=0.9, **common)
        case "rmsprop":
            return torch.optim.RMSprop([parameter], alpha=0.99, eps=1e-8, momentum=0.9, **common)
    scale = {"match_rms": "match_rms_adamw", "spectral": "original"}[settings.muon_scale]
    return torch.optim.Muon([parameter], momentum=0.95, adjust_lr_fn=scale, **common)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
@pytest.mark.parametrize(
    ("name", "extra"),
    [("adamw", {}), ("sgd", {}), ("rmsprop", {}), ("muon", {}), ("muon", {"muon_scale": "spectral"})],
)
def test_update_rules_are_torchs(name, extra, shape, monkeypatch):
    # torch's Muon orthogonalises in bf16 whatever it is given: here in fp32, to compare more than three digits.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    settings = OptimizerSection(name=name, weight_decay=0.1, **SETTINGS[name], **extra)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs, state = start.clone(), torch.nn.Parameter(start.clone()), {}
    optimizer = torch_optimizer(settings, theirs)
    for t in range(1, 9):
        gradient = torch.randn(shape, generator=generator)
        update(ours, gradient, state, name, t, settings.lr, settings.weight_decay, settings)
        theirs.grad = gradient.clone()
        optimizer.step()
    difference = (ours - theirs.detach()).abs().max().item()
    assert difference <= 2e-6, f"largest difference {difference:.1e}; moved by {(ours - start).abs().max():.2f}"


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_singular_vectors(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    for result in (orthogonalize(g), newton_schulz(g)):
        inside = u.T @ result @ vh.T
        assert (inside - inside.diag().diag()).abs().max() < 1e-4
        large = inside.diag()[s > 0.1 * s.max()]
        assert large.min() > 0.6 and large.max() < 1.25
    exact = torch.optim._muon._zeropower_via_newtonschulz(g, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert torch.equal(orthogonalize(g.bfloat16()), exact)


def test_match_rms_moves_a_matrix_as_far_as_adamw_would():
    g = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    update_RC = orthogonalize(g) * update_scale(g.shape, "match_rms")
    assert 0.15 < update_RC.square().mean().sqrt() < 0.25  # AdamW's updates have a root mean square of 0.2 to 0.4
