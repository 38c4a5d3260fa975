"""The Trainer's two ways of taking an optimizer train as with torch's class, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import fusedopt

STEPS = 6


class Model(nn.Module):
    """A regression, with what the Trainer asks of a model's results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.layers(x)
        return {"loss": 10 * nn.functional.mse_loss(y.float(), labels), "logits": y}


def _data() -> list[dict[str, Tensor]]:
    x = torch.randn(4 * STEPS, 8, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": 3 * row.sum(0, keepdim=True)} for row in x]


def _train(folder: Path, cls: Any, by: str, resume: str | None = None, **kwargs: Any) -> Trainer:
    model: Any = Model()
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        save_steps=STEPS // 2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=3,
        bf16=kwargs.pop("bf16", False),
    )
    given: dict[str, Any] = {}
    if by == "optimizers":
        given["optimizers"] = (cls(model.parameters(), lr=1e-2, **kwargs), None)
    else:
        given["optimizer_cls_and_kwargs"] = (cls, {"lr": 1e-2, **kwargs})
    trainer = Trainer(model=model, args=arguments, train_dataset=_data(), **given)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def _params(trainer: Trainer) -> list[Tensor]:
    return [p.detach() for p in trainer.model.parameters()]  # type: ignore[union-attr]


@pytest.mark.slot("`Trainer(optimizers=)` and `optimizer_cls_and_kwargs=`", "transformers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", ["optimizers", "optimizer_cls_and_kwargs"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_trains_as_torchs(tmp_path: Path, name: str, by: str) -> None:
    ends = [_params(_train(tmp_path, getattr(package, name), by)) for package in (fusedopt, torch.optim)]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.slot("`resume_from_checkpoint=`, with `ema_decay`", "transformers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", ["optimizers", "optimizer_cls_and_kwargs"])
def test_resumes_with_what_options_keep(tmp_path: Path, by: str) -> None:
    """To the bit, the moving average with it."""
    through = _train(tmp_path / "one", fusedopt.AdamW, by, ema_decay=0.9)
    checkpoint = str(tmp_path / "one" / f"checkpoint-{STEPS // 2}")
    resumed = _train(tmp_path / "two", fusedopt.AdamW, by, checkpoint, ema_decay=0.9)
    assert all(torch.equal(p, q) for p, q in zip(_params(through), _params(resumed), strict=True))
    averages = [[state["ema"] for state in one.optimizer.optimizer.state.values()] for one in (through, resumed)]  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


@pytest.mark.slot("`bf16=True`", "transformers")
@pytest.mark.filterwarnings("ignore")
def test_bfloat16_by_autocast(tmp_path: Path) -> None:
    ends = [_params(_train(tmp_path, package.AdamW, "optimizers", bf16=True)) for package in (fusedopt, torch.optim)]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
