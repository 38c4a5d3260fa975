#!/usr/bin/env bash
# Lightning's EMAWeightAveraging leaves the model untrained when its averaging was to start later than training ended.
#
# Versions: lightning 2.6.6, torch 2.13.0.
# Guess: until the average has started there is none, and a run that ends before (early stopping, fewer steps than planned) ends with the
#   weights it has trained. And update_starting_at_epoch=2 starts the average in epoch 2, as update_starting_at_step=6 does at step 6.
# Behaviour: the average is a copy of the model from before training, and the first update replaces it. At the end of fit() the average's
#   weights are copied into the model whether there was an update or not: all training is lost, without a word. With
#   update_starting_at_epoch alone the average starts with the first step all the same: the two starts are joined by "or", and
#   update_every_n_steps=1 means every step. From that epoch on, each epoch's last weights are counted a second time.
# Output (SGD that takes a weight from 0 to 12 in 12 steps, 3 in an epoch, decay 0.5: when the average first moved, the weight after fit):
#   no callback                   first update  -     weight after fit 12.000
#   defaults                      first update  1     weight after fit 11.000
#   update_starting_at_step=6     first update  7     weight after fit 11.031
#   update_starting_at_step=100   first update  never weight after fit 0.000
#   update_starting_at_epoch=2    first update  1     weight after fit 11.531
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy lightning==2.6.6

cd "$dir"
"$dir/venv/bin/python" -W ignore - 2>"$dir/err" <<'PY' || { cat "$dir/err" >&2; exit 1; }
import sys

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging


class Climber(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return -self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Watched(EMAWeightAveraging):
    first = "never"

    def on_train_batch_end(self, trainer, *rest):
        super().on_train_batch_end(trainer, *rest)
        if self.first == "never" and self._average_model.n_averaged > 0:
            self.first = trainer.global_step


def fit(options):
    model = Climber()
    callback = None if options is None else Watched(decay=0.5, **options)
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if callback is None else [callback],
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(3, 1)))
    return "-" if callback is None else callback.first, round(model.weight.item(), 3)


same = True
for options, expected in (
    (None, ("-", 12.0)),
    ({}, (1, 11.0)),
    ({"update_starting_at_step": 6}, (7, 11.031)),
    ({"update_starting_at_step": 100}, ("never", 0.0)),
    ({"update_starting_at_epoch": 2}, (1, 11.531)),
):
    name = "no callback" if options is None else ", ".join(f"{k}={v}" for k, v in options.items()) or "defaults"
    first, weight = seen = fit(options)
    print(f"{name:<29} first update  {first!s:<5} weight after fit {weight:.3f}")
    same &= seen == expected
if not same:
    sys.exit("the behaviour has changed")
PY
