"""Where the tokens of OAUTHBEARER come from: a command, a file, or a function. Each new connection asks for one."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiokafka import errors as kafka
from aiokafka.abc import AbstractTokenProvider

from microflow.errors import SettingsError

PATIENCE = 10.0


class TokenCommand(AbstractTokenProvider):
    """Runs a command in the shell; what it prints is the token."""

    def __init__(self, command: str) -> None:
        self._command = command

    async def token(self) -> str:
        running = await asyncio.create_subprocess_shell(
            self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            said, complaint = await asyncio.wait_for(running.communicate(), PATIENCE)
        except TimeoutError:
            running.kill()
            await running.wait()
            raise kafka.AuthenticationFailedError(
                f"sasl_oauth_token_command has printed no token in {PATIENCE:.0f} s"
            ) from None
        if running.returncode or not said.strip():
            why = complaint.decode(errors="replace").strip().splitlines()
            raise kafka.AuthenticationFailedError(
                f"sasl_oauth_token_command ended with {running.returncode} and no token"
                + (f": {why[-1]}" if why else "")
            )
        return said.decode().strip()


class TokenFile(AbstractTokenProvider):
    """Reads a file that somebody else renews."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def token(self) -> str:
        try:
            token = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as cause:
            raise kafka.AuthenticationFailedError(f"sasl_oauth_token_file cannot be read: {cause}") from cause
        if not token:
            raise kafka.AuthenticationFailedError(f"sasl_oauth_token_file {self._path} is empty")
        return token


class TokenFunction(AbstractTokenProvider):
    """Calls a function of the user's, asynchronous or not."""

    def __init__(self, function: Callable[[], Any], name: str) -> None:
        self._function = function
        self._name = name

    @classmethod
    def load(cls, name: str, *, where: str) -> TokenFunction:
        """The function that `module:name` says. Raises SettingsError if there is none."""
        module, _, attribute = name.partition(":")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as cause:
            raise SettingsError(f"{where}: {name!r} cannot be loaded: {cause}.", fix="module:function") from cause
        if not callable(function):
            raise SettingsError(f"{where}: {name!r} is not to be called.", fix="module:function")
        return cls(function, name)

    async def token(self) -> str:
        try:
            said = self._function()
            token = await said if inspect.isawaitable(said) else said
        except Exception as cause:
            # Only its kind: what the error says may hold what the token was asked for with.
            raise kafka.AuthenticationFailedError(f"{self._name} raised {type(cause).__name__}") from cause
        if not isinstance(token, str) or not token:
            raise kafka.AuthenticationFailedError(f"{self._name} returned no token but {type(token).__name__}")
        return token
