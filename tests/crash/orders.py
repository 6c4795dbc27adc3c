"""How a process under test is told what to be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Ablation: TypeAlias = Literal[
    "",
    "no inbox",
    "outbox outside the transaction",
    "no fence",
    "offsets by a lane's own maximum",
    "relay without order",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """`process` names it and its log; `relay_name` is who it says it is to other relays, by default a fresh name.

    It publishes as many events at once as `publishes`, and from memory unless it `scans_only`.
    `fault` is a specification of faults, `refusal` the ordinal of the one record that the log refuses once, `gate`
    whether slow events wait for the file `gate` in the folder, `long` how many seconds long ones take; `batch` bounds
    its transactions. It waits `patience` seconds for a broker's answer, also while it is stopped, if that is not 0.
    `prefix` begins the names of services and topics; without `kafka` and `database` the log and the database are files
    in the folder. With `clock_steps` the clock of its machine is ahead by the seconds that the file `clock-<process>`
    says.
    """

    folder: str
    service: str
    process: str
    fault: str = ""
    ablation: Ablation = ""
    gate: bool = False
    lanes: int = 1
    batch: int = 6
    publishes: int = 6
    scans_only: bool = False
    session_timeout: float = 1.5
    patience: float = 0.0
    refusal: int = 0
    long: float = 0.0
    clock_steps: bool = False
    seed: int = 0
    prefix: str = ""
    kafka: str = ""
    database: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Orders:
        return cls(**json.loads(text))
