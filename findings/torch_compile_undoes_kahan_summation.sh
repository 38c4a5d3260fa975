#!/usr/bin/env bash
# Under torch.compile the Kahan summation of optimi and pytorch_optimizer does nothing: bfloat16 weights stand still, as without it.
#
# Versions: torch 2.13.0, torch-optimi 0.3.3, pytorch_optimizer 4.1.0, on a CPU (torch.compile needs a C++ compiler there).
# Guess: torch.compile makes fewer kernels of the same arithmetic. It never reorders sums as -ffast-math does, which is what the warnings about
#   Kahan summation are about, and what it keeps in float32 where eager rounds to bfloat16 can only be nearer to the truth.
# Behaviour: what it keeps in float32 is the end of it. Kahan's error is the weight before the step minus the weight after it, as rounded
#   to bfloat16. In one fused kernel the weight after it is still the float32 sum, so the error comes out as 0 each time and is stored,
#   while the weight is rounded at its store: what the step was too small to add is thrown away. Nothing warns of it. With
#   torch._inductor.config.emulate_precision_casts both do as in eager. So does create_optimizer(..., compile=True) of
#   pytorch_optimizer, which leaves these lines out of what it compiles.
# Output (how far 50 steps move weights between 1 and 2, in units of lr; lr is 1e-3, a quarter of half a last place):
#                                      optimi.AdamW   StableAdamW of pytorch_optimizer
#   without Kahan summation, eager     0.0            0.0
#   eager                              46.9           46.9
#   torch.compile(optimizer.step)      0.0            0.0
#   with emulate_precision_casts       46.9           46.9
#   create_optimizer(compile=True)     -              46.9
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$dir/venv/bin/pip" install --quiet --no-deps torch-optimi==0.3.3 pytorch_optimizer==4.1.0 packaging==26.4
export TORCHINDUCTOR_CACHE_DIR="$dir/cache"

cat > "$dir/steps.py" <<'PY'
import sys

import optimi
import pytorch_optimizer
import torch
import torch._inductor.config

LR = 1e-3


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(1.1, 1.9, 256).bfloat16())


def moved(make, compiled=False):
    model = Model()
    before = model.weight.detach().double()
    optimizer = make(model)
    step = torch.compile(optimizer.step) if compiled else optimizer.step
    for _ in range(50):
        model.weight.grad = torch.ones_like(model.weight)
        step()
    return (before - model.weight.detach().double()).mean().item() / LR


def of_optimi(kahan):
    return lambda model: optimi.AdamW(model.parameters(), lr=LR, weight_decay=0, kahan_sum=kahan, triton=False)


def of_pytorch_optimizer(kahan):
    return lambda model: pytorch_optimizer.StableAdamW(model.parameters(), lr=LR, weight_decay=0, kahan_sum=kahan)


def own_compile(model):
    options = {"lr": LR, "weight_decay": 0, "kahan_sum": True, "compile": True}
    return pytorch_optimizer.create_optimizer(model, "stableadamw", **options)


found = {
    "without Kahan summation, eager": (moved(of_optimi(False)), moved(of_pytorch_optimizer(False))),
    "eager": (moved(of_optimi(True)), moved(of_pytorch_optimizer(True))),
    "torch.compile(optimizer.step)": (moved(of_optimi(True), True), moved(of_pytorch_optimizer(True), True)),
}
torch.compiler.reset()
torch._inductor.config.emulate_precision_casts = True
found["with emulate_precision_casts"] = moved(of_optimi(True), True), moved(of_pytorch_optimizer(True), True)
torch._inductor.config.emulate_precision_casts = False
torch.compiler.reset()
found["create_optimizer(compile=True)"] = None, moved(own_compile)
print(" " * 34, "optimi.AdamW   StableAdamW of pytorch_optimizer")
for name, numbers in found.items():
    print(f"{name:34}", *("-".ljust(14) if number is None else f"{number:<14.1f}" for number in numbers))
stand = found["without Kahan summation, eager"] + found["torch.compile(optimizer.step)"]
move = found["eager"] + found["with emulate_precision_casts"] + found["create_optimizer(compile=True)"][1:]
if any(number != 0 for number in stand) or not all(40 < number < 60 for number in move):
    sys.exit("the behaviour has changed")
PY
TORCH_LOGS="-dynamo" "$dir/venv/bin/python" -W ignore "$dir/steps.py" 2> "$dir/errors" || { tail -n 5 "$dir/errors" >&2; exit 1; }
