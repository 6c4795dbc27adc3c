"""What we ask of a broker and aiokafka does not.

That is metadata with the identity of each topic (KIP-516, from Kafka 2.8 on), what we may do with topics and groups
(KIP-430), and to change single settings. A topic
that was deleted and created again has the same name and another id: nothing else tells the two apart.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Any

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    Bytes,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

NO_ID = bytes(16)


class Uuid(AbstractType[bytes]):
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class MetadataResponse_v10(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class MetadataRequest_v10(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class DescribeTopics(Request[MetadataRequest_v10]):
    """Ask for topics with their ids; None asks for all. With `create` a broker that creates topics by itself does, with
    `permissions` it says what we may do with each."""

    API_KEY = 3

    def __init__(self, names: Collection[str] | None, *, create: bool = False, permissions: bool = False) -> None:
        self._names = names
        self._create = create
        self._permissions = permissions

    def build(self, request_struct_class: Any) -> Any:
        topics: list[tuple[bytes, str, dict[int, bytes]]] | None = (
            None if self._names is None else [(NO_ID, name, {}) for name in self._names]
        )
        return request_struct_class(topics, self._create, False, self._permissions, {})


def id_in_text(topic_id: bytes) -> str:
    """A topic's id as Kafka's own tools print it."""
    return base64.urlsafe_b64encode(topic_id).rstrip(b"=").decode()


class DescribeGroupResponse_v3(Response):
    API_KEY = 15
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            Array(
                ("error_code", Int16),
                ("group", String("utf-8")),
                ("state", String("utf-8")),
                ("protocol_type", String("utf-8")),
                ("protocol", String("utf-8")),
                (
                    "members",
                    Array(
                        ("member_id", String("utf-8")),
                        ("client_id", String("utf-8")),
                        ("client_host", String("utf-8")),
                        ("member_metadata", Bytes),
                        ("member_assignment", Bytes),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    )


class DescribeGroupRequest_v3(RequestStruct):
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupResponse_v3
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class DescribeGroup(Request[DescribeGroupRequest_v3]):
    """Ask who is in a group and what we may do with it; aiokafka's own request has no place for the latter."""

    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([self._group], True)


class AlterSettingsResponse_v0(Response):
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class AlterSettingsRequest_v0(RequestStruct):
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = AlterSettingsResponse_v0
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("configs", Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8")))),
            ),
        ),
        ("validate_only", Boolean),
    )


class AlterSettings(Request[AlterSettingsRequest_v0]):
    """Set some settings of resources and leave all others alone (KIP-339); aiokafka's own request resets the others."""

    API_KEY = 44
    SET = 0

    def __init__(self, resource_type: int, settings: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        self._resource_type = resource_type
        self._settings = settings

    def build(self, request_struct_class: Any) -> Any:
        resources = [
            (self._resource_type, resource, [(name, self.SET, value) for name, value in settings])
            for resource, settings in self._settings.items()
        ]
        return request_struct_class(resources, False)
