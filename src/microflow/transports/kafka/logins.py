"""Logins in the driver's log: at the level `debug` aiokafka writes out every request, and one is the password."""

from __future__ import annotations

import logging

from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.protocol.api import RequestStruct, Response

API_KEY = SaslAuthenticateRequest.API_KEY


def keep_logins_secret() -> None:
    """From now on no login is logged, by whatever level. Called again, it changes nothing."""
    logging.getLogger("aiokafka.conn").addFilter(_is_no_login)


def _is_no_login(record: logging.LogRecord) -> bool:
    given = record.args if isinstance(record.args, tuple) else ()
    return not any(isinstance(each, RequestStruct | Response) and each.API_KEY == API_KEY for each in given)
