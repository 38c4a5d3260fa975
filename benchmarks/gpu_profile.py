"""One step of each kind that ncu is to look into, between the marks that it starts and stops at.

ncu --profile-from-start off python benchmarks/gpu_profile.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

import fusedopt

ELEMENTS = 2**26  # 1 GiB of param, gradient and state in float32, many times the L2 cache
F32, BF16 = torch.float32, torch.bfloat16
LARGE = ((F32, F32), (BF16, BF16), (BF16, F32))  # of param and state


def optimizer_over(sizes: Sequence[int], dtype: torch.dtype, state: torch.dtype, device: str) -> fusedopt.Adam:
    params = [torch.randn(size, device=device).to(dtype).requires_grad_() for size in sizes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = fusedopt.Adam(params)
    optimizer.step()
    for kept in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            kept[key] = kept[key].to(state)
    optimizer.step()
    return optimizer


def watched_step(optimizer: fusedopt.Adam, device: str) -> None:
    if device == "cpu":
        optimizer.step()
        return
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main(device: str = "cuda", size: str = "") -> None:
    torch.manual_seed(0)
    elements = int(size or ELEMENTS)
    for dtype, state in LARGE:
        print(f"Adam over {elements} elements: params {dtype}, state {state}", flush=True)
        watched_step(optimizer_over([elements], dtype, state, device), device)
    # Here the advance kernel has the most to do: every gradient is a new one.
    many = optimizer_over([1024] * 1000, F32, F32, device)
    old = [param.grad for group in many.param_groups for param in group["params"]]
    for group in many.param_groups:
        for param in group["params"]:
            param.grad = torch.randn_like(param)
    print("Adam over 1000 tensors of 1024 elements with new gradients", flush=True)
    watched_step(many, device)
    del old


if __name__ == "__main__":
    main(*sys.argv[1:])
