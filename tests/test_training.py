"""Training set-ups around an optimizer: schedulers, groups, freezing, several optimizers on one network, averaging."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from cases import ONE_PER_OPTIMIZER, Case
from support import assert_close, make_params, train
from tiers import thinned
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

Build = Callable[..., Optimizer]


def classifier() -> nn.Module:
    torch.manual_seed(1)
    # No bias before the normalisation: its gradient would be rounding noise, which Adam blows up to full steps.
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    )


def batches(count: int, width: int = 6) -> Iterable[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(16, width, generator=generator) for _ in range(count))


def assert_same_tensors(ours: Iterable[Tensor], torchs: Iterable[Tensor]) -> None:
    for p, q in zip(ours, torchs, strict=True):
        torch.testing.assert_close(p, q)


def has_momentum(optimizer: Optimizer) -> bool:
    return bool({"momentum", "betas"} & optimizer.defaults.keys())


# Short periods, so that a dozen epochs cross every phase and restart.
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, 1.0, 5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.7)], [3]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.7)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 1e-3, 1e-2, 3, base_momentum=0.5, max_momentum=0.9, cycle_momentum=has_momentum(o)
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=14, cycle_momentum=has_momentum(o)),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.02, 4),
}


def test_every_scheduler_of_torch_is_in_the_table() -> None:
    theirs = {
        name
        for name, cls in vars(lr_scheduler).items()
        if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert theirs - {"LRScheduler"} <= SCHEDULERS.keys()


@thinned("a scheduler writes numbers that every class reads in one place", keep=lambda case: case.name == "adamw")
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_schedulers(case: Case, scheduler: str, tensor_lr: bool) -> None:
    def build(make: Build) -> tuple[Optimizer, Any]:
        lr = {"lr": torch.tensor(0.01)} if tensor_lr else {}
        groups = [{"params": make_params()}, {"params": make_params(seed=1), "weight_decay": 0.1}]
        optimizer = make(groups, **lr)
        return optimizer, SCHEDULERS[scheduler](optimizer)

    (ours, mine), (torchs, theirs) = build(case.ours), build(case.torchs)
    for i in range(12):
        for optimizer, schedule in ((ours, mine), (torchs, theirs)):
            train(optimizer, 1, first=i)
            schedule.step(*[1.0] if scheduler == "ReduceLROnPlateau" else [])
        for group, expected in zip(ours.param_groups, torchs.param_groups, strict=True):
            for key in ("lr", "momentum", "betas"):
                assert group.get(key) == expected.get(key)
    assert_close(ours, torchs)


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_groups_with_their_own_settings(case: Case) -> None:
    def run(make: Build) -> nn.Module:
        model = classifier()
        weights = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        head = weights.pop()
        optimizer = make(
            [
                {"params": weights, "weight_decay": 0.1, **case.own(0.05)},
                {"params": others, "weight_decay": 0.0},
                {"params": head, **case.own(0.2), "maximize": False},
            ],
            lr=0.01,
        )
        for i, x in enumerate(batches(6)):
            optimizer.zero_grad(set_to_none=i % 2 == 0)
            model(x).square().mean().backward()
            optimizer.step()
            for group in optimizer.param_groups if case.joint else [optimizer.param_groups[i % 3]]:
                group["lr"] *= 0.5
        return model

    assert_same_tensors(run(case.ours).parameters(), run(case.torchs).parameters())


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_filtered_list_freezing_and_unfreezing(case: Case) -> None:
    def run(make: Build) -> list[Tensor]:
        model = classifier()
        first = model[0]
        first.requires_grad_(False)
        optimizer = make(filter(lambda p: p.requires_grad, model.parameters()))
        seen = []
        for i, x in enumerate(batches(9)):
            if i == 2:
                model[3].requires_grad_(False)  # frozen with a state and, until zero_grad, a gradient
            if i == 4:
                model[3].requires_grad_(True)
                first.requires_grad_(True)
                optimizer.add_param_group({"params": first.parameters(), **case.own(0.01)})
            if i == 6:
                model[5].bias.requires_grad_(False)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            seen += [p.detach().clone() for p in model.parameters()]
        return seen

    assert_same_tensors(run(case.ours), run(case.torchs))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_autoencoder_and_decoder_optimizers(case: Case) -> None:
    def run(make: Build) -> nn.Module:
        torch.manual_seed(1)
        model = nn.ModuleDict({"encoder": nn.Linear(6, 3), "decoder": nn.Linear(3, 6)})
        both, decoder = make(model.parameters()), make(model["decoder"].parameters(), lr=0.03)
        for x in batches(6):
            for optimizer, code in ((both, model["encoder"](x)), (decoder, x[:, :3])):
                both.zero_grad()
                (model["decoder"](code) - x).square().mean().backward()
                optimizer.step()
        return model

    assert_same_tensors(run(case.ours).parameters(), run(case.torchs).parameters())


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_generator_and_discriminator(case: Case) -> None:
    def run(make: Build) -> list[Tensor]:
        torch.manual_seed(1)
        generator, discriminator = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        up, down = make(generator.parameters()), make(discriminator.parameters())
        for noise, real in zip(batches(6, 4), batches(6), strict=True):
            fake = generator(noise)
            down.zero_grad()
            (discriminator(fake.detach()).exp() - discriminator(real)).mean().backward()
            down.step()
            up.zero_grad()  # the discriminator also receives gradients here, which its own zero_grad drops
            (-discriminator(fake)).mean().backward()
            up.step()
        return [*generator.parameters(), *discriminator.parameters()]

    assert_same_tensors(run(case.ours), run(case.torchs))


AVERAGES: dict[str, dict[str, Any]] = {
    "swa": {},
    "ema": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "ema-with-buffers": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9), "use_buffers": True},
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_averaged_models(case: Case, average: dict[str, Any]) -> None:
    def run(make: Build) -> list[Tensor]:
        model = classifier()
        averaged = swa_utils.AveragedModel(model, **average)
        optimizer = make(model.parameters())
        scheduler = swa_utils.SWALR(optimizer, 0.02, 3)
        for x in batches(6):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            averaged.update_parameters(model)
            scheduler.step()
        swa_utils.update_bn(batches(3), averaged)
        # Training goes on from the average, written into the params in place.
        with torch.no_grad():
            for p, q in zip(model.parameters(), averaged.module.parameters(), strict=True):
                p.copy_(q)
        optimizer.step()
        return [*model.parameters(), *averaged.module.state_dict().values()]

    assert_same_tensors(run(case.ours), run(case.torchs))


@pytest.mark.parametrize("case", ONE_PER_OPTIMIZER, ids=str)
def test_gradient_accumulation_clipping_and_tied_weights(case: Case) -> None:
    def run(make: Build) -> nn.Module:
        model = classifier()
        model.add_module("tied", nn.Linear(8, 8))
        model.tied.weight = model[3].weight
        optimizer = make(model.parameters())
        for i, x in enumerate(batches(8)):
            (model[:5](x) + model.tied(model[0](x))).square().mean().backward()
            if i % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        return model

    assert_same_tensors(run(case.ours).parameters(), run(case.torchs).parameters())
