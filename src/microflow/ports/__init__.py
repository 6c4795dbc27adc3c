"""The ports: what the runtime asks of a log, a database and a clock. Each states what it promises; adapters keep it.

`microflow.conformance` proves the promises: an adapter, ours or a user's, is right when its suite passes.
"""

from __future__ import annotations

from microflow.connection import Connection as Connection
from microflow.connection import Row as Row
from microflow.ports.administration import FOREVER as FOREVER
from microflow.ports.administration import Administration as Administration
from microflow.ports.administration import TopicLayout as TopicLayout
from microflow.ports.clock import Clock as Clock
from microflow.ports.database import Appended as Appended
from microflow.ports.database import Beginning as Beginning
from microflow.ports.database import Blocked as Blocked
from microflow.ports.database import Changes as Changes
from microflow.ports.database import Claim as Claim
from microflow.ports.database import ClaimKey as ClaimKey
from microflow.ports.database import ClaimStatus as ClaimStatus
from microflow.ports.database import DeadLetter as DeadLetter
from microflow.ports.database import DeadLetters as DeadLetters
from microflow.ports.database import DeadLetterState as DeadLetterState
from microflow.ports.database import Handlers as Handlers
from microflow.ports.database import Inbox as Inbox
from microflow.ports.database import Mark as Mark
from microflow.ports.database import Migration as Migration
from microflow.ports.database import OrderingKey as OrderingKey
from microflow.ports.database import Outbox as Outbox
from microflow.ports.database import OutboxRow as OutboxRow
from microflow.ports.database import OutboxStatus as OutboxStatus
from microflow.ports.database import Owner as Owner
from microflow.ports.database import Ownership as Ownership
from microflow.ports.database import Parked as Parked
from microflow.ports.database import Parking as Parking
from microflow.ports.database import Partitions as Partitions
from microflow.ports.database import Registered as Registered
from microflow.ports.database import Registry as Registry
from microflow.ports.database import Store as Store
from microflow.ports.database import Suspects as Suspects
from microflow.ports.database import Transaction as Transaction
from microflow.ports.inspection import DatabaseState as DatabaseState
from microflow.ports.inspection import GroupMember as GroupMember
from microflow.ports.inspection import GroupState as GroupState
from microflow.ports.inspection import Inspection as Inspection
from microflow.ports.inspection import LogState as LogState
from microflow.ports.inspection import ServerState as ServerState
from microflow.ports.inspection import TopicState as TopicState
from microflow.ports.log import Bounds as Bounds
from microflow.ports.log import Committed as Committed
from microflow.ports.log import RebalanceListener as RebalanceListener
from microflow.ports.log import Subscription as Subscription
from microflow.ports.log import Topic as Topic
from microflow.ports.log import Topics as Topics
from microflow.ports.log import Transport as Transport
from microflow.records import Headers as Headers
from microflow.records import Record as Record
from microflow.records import TopicPartition as TopicPartition
from microflow.retries import Order as Order
