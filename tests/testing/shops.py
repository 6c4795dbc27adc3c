"""Services that a test defines inside of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from microflow.service import Service


def shop_of(*handlers: Callable[..., Any], name: str = "shop", **keywords: Any) -> Service:
    """A service with these handlers only."""
    service = Service(name, **keywords)
    service.module = handlers[0].__module__
    service.namespace = {function.__name__: function for function in handlers}
    return service
