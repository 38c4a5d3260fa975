#!/usr/bin/env bash
# On CPU, FSDP1's optim_state_dict returns exp_avg with the numbers of exp_avg_sq.
#
# Versions: torch 2.13.0, gloo, 2 processes. The weights live on the CPU (device_id=cpu).
# Guess: offload_to_cpu only says where the tensors end up. On a CPU nothing has to move, so True and False give the same state.
# Behaviour: with use_orig_params=True, the full state dict and offload_to_cpu=True (the default, also of a call without
#   any settings), every tensor key of a parameter shares one memory and holds the last key's numbers. So a
#   checkpoint has exp_avg_sq in place of exp_avg. The optimizer's own state is right. There is no warning.
#   offload_to_cpu=False is right, so are sharded state dicts and use_orig_params=False.
# Output:
#   full, use_orig_params, offload_to_cpu=True   exp_avg == truth: False  == exp_avg_sq: True   same memory: True
#   full, use_orig_params, offload_to_cpu=False  exp_avg == truth: True   == exp_avg_sq: False  same memory: False
#   full, flat parameters, offload_to_cpu=True   exp_avg == truth: True   == exp_avg_sq: False  same memory: False
#   full, use_orig_params, no settings           exp_avg == truth: False  == exp_avg_sq: True   same memory: True
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy

cat > "$dir/run.py" <<'PY'
import sys
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import FullOptimStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

CASES = [  # name, use_orig_params, offload_to_cpu (None: no settings at all), whether the numbers are wrong
    ("full, use_orig_params, offload_to_cpu=True ", True, True, True),
    ("full, use_orig_params, offload_to_cpu=False", True, False, False),
    ("full, flat parameters, offload_to_cpu=True ", False, True, False),
    ("full, use_orig_params, no settings         ", True, None, True),
]


def train(wrap):
    torch.manual_seed(0)
    model = wrap(torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def work(rank, store):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # Both processes see the same data, so one process without FSDP has the true moments.
    plain, true = train(lambda model: model)
    truth = true.state[plain[0].weight]["exp_avg"]
    changed = False
    for name, orig, offload, wrong in CASES:
        model, optimizer = train(lambda m: FSDP(m, use_orig_params=orig, device_id=torch.device("cpu")))
        if offload is not None:
            config = FullOptimStateDictConfig(offload_to_cpu=offload, rank0_only=False)
            FSDP.set_state_dict_type(model, StateDictType.FULL_STATE_DICT, optim_state_dict_config=config)
        state = FSDP.optim_state_dict(model, optimizer)["state"]["0.weight"]
        right = torch.allclose(state["exp_avg"], truth, rtol=1e-4, atol=1e-7)
        square = torch.equal(state["exp_avg"], state["exp_avg_sq"])
        shared = state["exp_avg"].data_ptr() == state["exp_avg_sq"].data_ptr()
        if rank == 0:
            print(f"{name}  exp_avg == truth: {right!s:5}  == exp_avg_sq: {square!s:5}  same memory: {shared}")
        changed |= (right, square, shared) != (not wrong, wrong, wrong)
    dist.destroy_process_group()
    if changed:
        sys.exit("the behaviour has changed")


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1],), nprocs=2)
PY
OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES='' "$dir/venv/bin/python" "$dir/run.py" "$dir/store" 2> "$dir/errors" || { cat "$dir/errors" >&2; exit 1; }
