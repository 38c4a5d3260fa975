"""sophia-opt, the authors' Sophia-G: bs is an argument of its step, and an entry of a group here."""

from __future__ import annotations

from collections.abc import Mapping

from .peer import Peer

PEERS = {
    "SophiaG": Peer("SophiaG", attributes={"bs": 5120}, more_hypers=lambda group: {"bs": group["bs"]}),
}
OTHERS: Mapping[str, str] = {}
