"""The standard library's logging as the command sets it up: lines for a person, or JSON for a program."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from microflow.causes import said_by
from microflow.frames import user_frames
from microflow.log_context import NAMES, FlowFilter

KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
OF_CONTEXT = frozenset(NAMES)
COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}


def set_up_logging(
    write: Callable[[str], None], *, level: str, as_json: bool, colour: bool = False, all_frames: bool = False
) -> None:
    """Send all logging, the user's too, to `write`, one line for each record. Replaces what was set up before.

    Tracebacks show the user's frames, or with `all_frames` every one.
    """
    handler = _Writing(write)
    handler.addFilter(FlowFilter())
    handler.setFormatter(JsonFormatter(all_frames=all_frames) if as_json else ConsoleFormatter(colour, all_frames))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # What happens in these is ours to tell, in our own words; with -v their own are wanted too.
    for name, lowest in (("aiokafka", logging.CRITICAL), ("asyncio", logging.WARNING)):
        logging.getLogger(name).setLevel(logging.DEBUG if all_frames else lowest)


class _Writing(logging.Handler):
    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
        except Exception:
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: at, level, logger, message, whatever was given as `extra`, and the error."""

    def __init__(self, *, all_frames: bool = False) -> None:
        super().__init__()
        self._all_frames = all_frames

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "at": _instant(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = said_by(record.exc_info[1])
            fields["trace"] = _trace(record.exc_info[1], self._all_frames)
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=str)


class ConsoleFormatter(logging.Formatter):
    """A record as a line with its time of day; the level is named from warnings on."""

    def __init__(self, colour: bool = False, all_frames: bool = False) -> None:
        super().__init__()
        self._colour = colour
        self._all_frames = all_frames

    def format(self, record: logging.LogRecord) -> str:
        at = _instant(record).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        if self._colour and record.levelno in COLOURS:
            level = f"\033[{COLOURS[record.levelno]}m{level}\033[0m"
        # Who of the user's says it; what we say names its service itself.
        name = "" if record.name.partition(".")[0] in {"microflow", "root"} else f"{record.name}: "
        extra = {key: value for key, value in _extra(record).items() if self._all_frames or key not in OF_CONTEXT}
        about = f"  ({', '.join(f'{key} {value}' for key, value in extra.items())})" if extra else ""
        lines = [f"{at} {level}{name}{record.getMessage()}{about}"]
        if record.exc_info and record.exc_info[1] is not None:
            lines.append(_trace(record.exc_info[1], self._all_frames))
            lines.append(f"  {said_by(record.exc_info[1])}")
        return "\n".join(line for line in lines if line)


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in KNOWN}


def _instant(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, tz=UTC)


def _trace(error: BaseException, all_frames: bool) -> str:
    frames = traceback.extract_tb(error.__traceback__) if all_frames else user_frames(error)
    return "".join(traceback.format_list(frames)).rstrip()
