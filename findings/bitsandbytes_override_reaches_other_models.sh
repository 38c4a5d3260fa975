#!/usr/bin/env bash
# What bitsandbytes is told of one model's weight it does to whatever has that weight's place in any later optimizer.
#
# Versions: bitsandbytes 0.50.2, torch 2.13.0, on a CPU.
# Guess: register_module_override(embedding, "weight", {...}), which StableEmbedding calls for itself, is about that weight. An
#   optimizer of another model steps by its own groups.
# Behaviour: the manager is one for the process, and an optimizer's first step files the override under the numbers of the group and
#   of the param in it. Every optimizer that steps afterwards looks these numbers up, so its param at that place has the override as
#   well: 32-bit states where it asked for 8, or another's learning rate. Before the first model has stepped, the second is not
#   touched. GlobalOptimManager.get_instance().initialize() forgets them all.
# Output (how far the first param of another model, lr=0.01, moves in its first step):
#   before the embedding's optimizer has stepped  0.010
#   after                                         0.700
#   after initialize()                            0.010
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy packaging
"$dir/venv/bin/pip" install --quiet --no-deps bitsandbytes==0.50.2

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import bitsandbytes as bnb
import torch


def moved():
    """By an optimizer of its own."""
    weight = torch.nn.Parameter(torch.zeros(8))
    optimizer = bnb.optim.AdamW([weight], lr=0.01)
    weight.grad = torch.ones(8)
    optimizer.step()
    return weight.abs().max().item()


manager = bnb.optim.GlobalOptimManager.get_instance()
embedding = torch.nn.Embedding(3, 4)
manager.register_module_override(embedding, "weight", {"lr": 0.7})
found = {"before the embedding's optimizer has stepped": moved()}
theirs = bnb.optim.AdamW([embedding.weight], lr=0.01)
embedding.weight.grad = torch.ones(3, 4)
theirs.step()
found["after"] = moved()
manager.initialize()
found["after initialize()"] = moved()
for name, value in found.items():
    print(f"{name:45} {value:.3f}")
if [round(value, 2) for value in found.values()] != [0.01, 0.7, 0.01]:
    sys.exit("the behaviour has changed")
PY
