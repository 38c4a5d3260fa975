#!/usr/bin/env bash
# An AveragedModel of weights that never change computes something else than the model: EMA moves its integer buffers down.
#
# Versions: torch 2.13.0, transformers 5.24.0 (for a model with such a buffer).
# Guess: the average of equal numbers is that number, and integers of a few hundred are exact in float32. So with use_buffers=True, which
#   Lightning's EMAWeightAveraging and torchvision's recipes set, tables of indices stay as they are: position_ids of BERT,
#   relative_position_index of Swin.
# Behaviour: an integer buffer becomes decay * old + (1 - decay) * new in float32, and copying that into the integers cuts the fraction off.
#   Where rounding leaves 510.99997, 511 becomes 510. Whether it does hangs on the digits of the decay: 0.999 and 0.9998 leave all of the
#   first 2,048 integers as they are, 0.9995 and 0.9999 move every third and every fifth. get_ema_avg_fn does the same, and a default
#   AveragedModel (SWA) divides integers and keeps BatchNorm's num_batches_tracked at 1 for good. use_buffers=False copies buffers.
# Output (three updates of the average by the same model; its position_ids that changed, and the largest difference of BERT's output):
#   decay 0.9       weights equal: True    position_ids changed 147    output off by 2.42
#   decay 0.99      weights equal: True    position_ids changed 0      output off by 0.00
#   decay 0.999     weights equal: True    position_ids changed 0      output off by 0.00
#   decay 0.9995    weights equal: True    position_ids changed 160    output off by 3.05
#   decay 0.9999    weights equal: True    position_ids changed 99     output off by 2.00
#   num_batches_tracked after five batches    model 5    SWA with use_buffers=True 1
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0

"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from transformers import BertConfig, BertModel

DECAYS = {0.9: True, 0.99: False, 0.999: False, 0.9995: True, 0.9999: True}  # whether integers move

torch.manual_seed(0)
model = BertModel(
    BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
).eval()
tokens = torch.arange(64)[None]
same = True
for decay, moves in DECAYS.items():
    changed = []
    for options in ({"multi_avg_fn": get_ema_multi_avg_fn(decay)}, {"avg_fn": get_ema_avg_fn(decay)}):
        average = AveragedModel(model, use_buffers=True, **options)
        for _ in range(3):
            average.update_parameters(model)
        changed.append((average.module.embeddings.position_ids != model.embeddings.position_ids).sum().item())
    with torch.no_grad():
        off = (average(tokens).last_hidden_state - model(tokens).last_hidden_state).abs().max().item()
    # The floating-point average of equal weights may be off by a last place, not more.
    equal = all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(average.module.parameters(), model.parameters()))
    print(f"decay {decay:<9} weights equal: {equal}    position_ids changed {changed[0]:<6} output off by {off:.2f}")
    same &= equal and changed[0] == changed[1] and (changed[0] > 0) == moves and (off > 0.1) == moves

norm = torch.nn.BatchNorm1d(2)
average = AveragedModel(norm, use_buffers=True)
for _ in range(5):
    norm(torch.randn(4, 2))
    average.update_parameters(norm)
counted, kept = norm.num_batches_tracked.item(), average.module.num_batches_tracked.item()
print(f"num_batches_tracked after five batches    model {counted}    SWA with use_buffers=True {kept}")
if not (same and counted == 5 and kept == 1):
    sys.exit("the behaviour has changed")
PY
