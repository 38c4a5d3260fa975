"""torch_optimizer."""

from __future__ import annotations

from .peer import Group, Peer
from .shared import ADAFACTOR_STATES, adafactor_hypers, adafactor_refusal, adafactor_states


def _refused_lamb(group: Group) -> str | None:
    if group["debias"]:
        return "the bias correction is outside of the trust ratio, ours within"
    if group["adam"]:
        return "with adam=True the trust ratio is 1"
    return None


PEERS = {
    "Lamb": Peer(
        "LAMB",
        keeps=frozenset({"trust_ratio"}),
        attributes={"clamp_value": 10, "adam": False, "debias": False},
        fixed={"bias_correction": False, "always_adapt": True},
        refused=_refused_lamb,
    ),
    "LARS": Peer("LARS", hypers={"trust_coefficient": "trust_coeff"}),
    "RAdam": Peer("RAdam", fixed={"decoupled_weight_decay": True}),
    "Adafactor": Peer(
        "Adafactor",
        more_hypers=lambda group: adafactor_hypers(group, *group["eps2"]),
        keeps=ADAFACTOR_STATES,
        more_states=adafactor_states,
        refused=adafactor_refusal,
    ),
}
OTHERS = {"SGDW": "its decay takes lr * weight_decay from every element, whatever that is"}
