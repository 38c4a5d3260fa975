"""A few steps of everything, small enough for compute-sanitizer: every variant, storage and layout, tiny and odd sizes.

compute-sanitizer --tool memcheck python benchmarks/gpu_sanitize.py

Tensors are filled on the CPU and copied, so that hardly any kernel but ours runs: each one that does is instrumented
first, which takes longer than running it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fusedopt

# Below, at and above a lane, a vector, a warp's tile and a chunk.
SIZES = (0, 1, 3, 8, 33, 255, 1024, 1025, 4099)
# A buffer and a view of it: misaligned, every second element, transposed, channels last, with gaps.
VIEWS: tuple[tuple[tuple[int, ...], Callable[[Tensor], Tensor]], ...] = (
    ((2051,), lambda base: base[1:]),
    ((515,), lambda base: base[::2]),
    ((33, 65), lambda base: base.t()),
    ((4, 5, 6, 3), lambda base: base.permute(0, 3, 1, 2)),
    ((5, 8, 7, 13), lambda base: base[1:, 1:7:2, 1:6, 2:13:2]),
)
ALL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
STEPS = 3


def cases() -> list[Any]:
    """The variants that the tests run, which every rule must have."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    return list(importlib.import_module("cases").CASES)


class Stepper:
    """Params of one dtype in every layout, and an optimizer over them."""

    def __init__(
        self,
        make: Callable[..., torch.optim.Optimizer],
        dtype: torch.dtype,
        device: str,
        shapes: Sequence[tuple[tuple[int, ...], Callable[[Tensor], Tensor]]],
        group_each: bool = False,
    ) -> None:
        self.dtype, self.device, self.shapes = dtype, device, shapes
        self.params = [self.tensor(i).requires_grad_() for i in range(len(shapes))]
        groups: Any = [{"params": [param]} for param in self.params] if group_each else self.params
        self.optimizer = make(groups)

    def tensor(self, index: int) -> Tensor:
        base, view = self.shapes[index]
        return view(torch.randn(base).to(self.dtype).to(self.device))

    def new_gradients(self) -> None:
        for index, param in enumerate(self.params):
            param.grad = self.tensor(index)

    def steps(self, count: int = STEPS) -> None:
        for _ in range(count):
            self.new_gradients()
            self.optimizer.step()
        self.check()

    def check(self) -> None:
        for param in self.params:
            if not param.detach().cpu().isfinite().all():
                raise AssertionError(f"{type(self.optimizer).__name__}, {self.dtype}: a param is not finite")


def contiguous(sizes: Iterable[int]) -> list[tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]:
    return [((size,), lambda base: base) for size in sizes]


def variants(device: str) -> int:
    """Every variant in float32 and bfloat16; each optimizer once in the others."""
    done, seen = 0, set()
    for case in cases():
        first = case.optimizer not in seen
        seen.add(case.optimizer)
        for dtype in ALL_DTYPES if first else (torch.float32, torch.bfloat16):
            Stepper(case.ours, dtype, device, [*contiguous(SIZES), *VIEWS]).steps()
            done += 1
    return done


def float32_state(device: str) -> None:
    stepper = Stepper(fusedopt.AdamW, torch.bfloat16, device, [*contiguous(SIZES), *VIEWS])
    stepper.steps(1)
    for state in stepper.optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].float()
    stepper.steps()


def many(device: str) -> None:
    """More new addresses and groups than one launch's parameters hold."""
    Stepper(fusedopt.AdamW, torch.float32, device, contiguous([5] * 700)).steps()
    Stepper(fusedopt.SGD, torch.float32, device, contiguous([5] * 300), group_each=True).steps()


def scaled(device: str) -> None:
    """As GradScaler does it: a scale to divide by, and now and then an infinity that skips the step."""
    stepper = Stepper(fusedopt.Adam, torch.float32, device, contiguous(SIZES))
    optimizer: Any = stepper.optimizer
    optimizer.grad_scale = torch.tensor(1024.0).to(device)
    for infinite in (0.0, 1.0, 0.0):
        optimizer.found_inf = torch.tensor(infinite).to(device)
        stepper.steps(1)


def graphed(device: str) -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        return fusedopt.AdamW(params, capturable=True)

    stepper = Stepper(make, torch.float32, device, [*contiguous(SIZES), *VIEWS])
    stepper.steps()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stepper.optimizer.step()
    for lr in (1e-3, 1e-4):
        for group in stepper.optimizer.param_groups:
            group["lr"] = lr
        stepper.optimizer.refresh_hyperparameters()  # type: ignore[attr-defined]
        graph.replay()
    stepper.check()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Step everything once or twice, for compute-sanitizer to watch.")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the script itself works")
    device: str = parser.parse_args(arguments).device
    torch.manual_seed(0)
    done = variants(device)
    float32_state(device)
    many(device)
    scaled(device)
    # Memory cannot be had from the driver while a graph is captured, so a run without torch's cache has none.
    if device == "cuda" and os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") != "1":
        graphed(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} variants and storages stepped on {device}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
