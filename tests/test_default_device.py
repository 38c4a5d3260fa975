"""Under another default device, as torch.set_default_device makes it, numbers for the host stay on the CPU."""

from __future__ import annotations

import prototypes
import pytest
import torch
from torch.nn import Parameter

import fusedopt


@pytest.mark.parametrize("make", [fusedopt.AdamW, prototypes.Adam, fusedopt.Muon], ids=lambda make: make.__name__)
def test_counters_and_words_about_a_step_are_on_the_cpu(make: type[torch.optim.Optimizer]) -> None:
    if make is fusedopt.Muon and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has Muon from 2.9 on")
    param = Parameter(torch.ones(2, 3))
    optimizer = make([param])  # type: ignore[call-arg]
    with torch.device("meta"):
        for _ in range(2):
            param.grad = torch.ones(2, 3, device="cpu")
            optimizer.step()
        assert not optimizer.step_skipped  # type: ignore[attr-defined]
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    assert {value.device.type for value in optimizer.state[param].values()} == {"cpu"}


def test_a_line_search_reads_its_slope() -> None:
    param = Parameter(torch.full((3,), 2.0))
    optimizer = fusedopt.LBFGS([param], line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        param.grad = 2 * param.detach()
        return param.detach().square().sum()

    with torch.device("meta"):
        optimizer.step(closure)
    assert param.abs().max() < 1e-3
