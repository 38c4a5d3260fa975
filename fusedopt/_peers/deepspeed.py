"""DeepSpeed."""

from .peer import Peer
from .shared import adam_or_adamw

PEERS = {
    "DeepSpeedCPUAdam": Peer(adam_or_adamw, attributes={"adam_w_mode": True}),
    "FusedAdam": Peer(adam_or_adamw, attributes={"adam_w_mode": True}),
    "DeepSpeedCPUAdagrad": Peer("Adagrad", states={"exp_avg_sq": "sum"}),
}
OTHERS = {"DeepSpeedCPULion": "an element whose update is 0 moves by lr, where ours has sign(0) = 0"}
