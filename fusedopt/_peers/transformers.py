"""transformers."""

from collections.abc import Mapping

from .peer import Peer
from .shared import ADAFACTOR_STATES, adafactor_hypers, adafactor_refusal, adafactor_states

PEERS = {
    "Adafactor": Peer(
        "Adafactor",
        more_hypers=lambda group: adafactor_hypers(group, *group["eps"]),
        keeps=ADAFACTOR_STATES,
        more_states=adafactor_states,
        refused=adafactor_refusal,
    )
}
OTHERS: Mapping[str, str] = {}
