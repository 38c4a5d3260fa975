"""timm."""

from __future__ import annotations

from .peer import Group, Peer
from .shared import adafactor_hypers, adafactor_refusal, adafactor_states


def _refused_sgd(group: Group) -> str | None:
    apart = "it decays p by 1 - lr * weight_decay, where ours adds weight_decay * p to the gradient"
    return apart if group["weight_decay"] else None


def _refused_adafactor(group: Group) -> str | None:
    if any(p.ndim > 2 for p in group["params"]):
        return "of a tensor of more dimensions it factors the largest two, ours the last two"
    smallest = group["min_dim_size_to_factor"]
    if any(p.ndim == 2 and min(p.shape) <= smallest for p in group["params"]):
        return f"it keeps the whole second moment of matrices with a side of at most {smallest}, ours factors them"
    return adafactor_refusal(group)


PEERS = {
    # It clips by the constructor's argument, whatever the groups say.
    "Lamb": Peer("LAMB", group_step=True, once=lambda group: {"max_grad_norm": group["max_grad_norm"]}),
    "Lars": Peer("LARS"),
    "Lion": Peer("Lion"),
    "Adan": Peer("Adan", group_step=True),
    "AdamWLegacy": Peer("AdamW"),
    "NAdamLegacy": Peer("NAdam", hypers={"schedule_decay": "momentum_decay"}, states={"m_schedule": "mu_product"}),
    "RAdamLegacy": Peer("RAdam", fixed={"decoupled_weight_decay": True}),
    "SGDW": Peer("SGD", refused=_refused_sgd),
    "Adafactor": Peer(
        "Adafactor",
        more_hypers=lambda group: adafactor_hypers(group, group["eps"], group["eps_scale"]),
        more_states=adafactor_states,
        refused=_refused_adafactor,
    ),
}
OTHERS = {
    "NAdamW": "it has no momentum schedule: the update averages exp_avg with the gradient once more",
    "RMSpropTF": "it takes the root of square_avg + eps, where ours adds eps to the root, and square_avg starts at 1",
    "Muon": "by default its coefficients are of another set in each iteration, and it steps vectors by AdamW",
}
