"""Targets: what was typed (`payments.py`, `shop.payments`, `shop:payments`) becomes the service it names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from microflow.errors import MicroflowError, TargetError, nearest
from microflow.frames import place_raised, user_frames
from microflow.service import Service

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """A service as it was asked for: `text` is what was typed."""

    text: str
    service: Service
    module: ModuleType


def load_target(text: str) -> Target:
    """Import what a target names and return its service.

    `module`, `path.py`, `module:attribute` or `path.py:attribute`; the attribute may be dotted, and a factory ends
    with `()`. The working directory, and for a path the folder it is imported from, are put where Python looks for
    modules. A module without a `Service` is one. Raises TargetError, and DefinitionError for misuse in the module.
    """
    name, _, attribute = text.partition(":")
    if not name:
        raise TargetError(f"{text!r} names no module.", fix="microflow run payments.py")
    if Path(name).is_file() and Path(name).suffix not in ("", ".py"):
        raise _no_python_file(Path(name), text)
    _look_in(Path.cwd())
    module = _import_path(Path(name), text) if _is_path(name) else _import_name(name, text)
    found = _follow(module, attribute, text) if attribute else module
    return Target(text, _service(found, module, text), module)


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or (Path(name).is_dir() and not Path(name, "__init__.py").exists())


def _look_in(folder: Path, *, first: bool = True) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0 if first else len(sys.path), str(folder))


# ── importing ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _import_path(path: Path, text: str) -> ModuleType:
    if path.is_dir():
        files = sorted(each.name for each in path.glob("*.py") if each.name != "__init__.py")
        raise TargetError(
            f"{path} is a folder.",
            why=f"It holds {_listed(files)}." if files else "It holds no Python files.",
            fix=f"microflow run {path / files[0]}" if files else "microflow new NAME",
        )
    if not path.is_file():
        raise _no_such_file(path, text)
    path = path.resolve()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").exists():  # a module of a package is imported as one: it may import its neighbours
        root, parts = root.parent, [root.name, *parts]
    _look_in(root)
    name = ".".join(parts)
    if len(parts) > 1:
        _look_in(path.parent, first=False)
        module = _imported(name, text)
    else:
        module = _imported_from(path, name, text)
    if Path(module.__file__ or "").resolve() != path:
        raise TargetError(
            f"{text} cannot be loaded as {name}: another module has this name.",
            why=f"It is {module.__file__ or 'built into Python'}.",
            fix="Give the file a name of its own.",
        )
    return module


def _imported_from(path: Path, name: str, text: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise TargetError(f"{text} is no Python file.", fix="microflow run payments.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        _guarded(partial(specification.loader.exec_module, module), text)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_name(name: str, text: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TargetError(f"{text!r} names no module.", fix="microflow run payments.py")
    return _imported(name, text)


def _imported(name: str, text: str) -> ModuleType:
    return _guarded(partial(importlib.import_module, name), text, name=name)


def _guarded(load: Callable[[], T], text: str, *, name: str | None = None) -> T:
    """Run an import; whatever goes wrong in it is told as the user's."""
    try:
        return load()
    except MicroflowError:
        raise
    except SyntaxError as cause:
        raise _syntax_error(cause, text) from cause
    except ModuleNotFoundError as cause:
        if name is not None and cause.name is not None and f"{name}.".startswith(f"{cause.name}."):
            raise _no_such_module(name, cause.name, text) from cause
        raise _broken(cause, text) from cause
    except (Exception, SystemExit) as cause:
        raise _broken(cause, text) from cause


def _syntax_error(cause: SyntaxError, text: str) -> TargetError:
    line = (cause.text or "").rstrip()
    indent = len(line) - len(line.lstrip())
    caret = " " * max(0, (cause.offset or 1) - 1 - indent) + "^"
    return TargetError(
        f"{cause.msg[:1].upper()}{cause.msg[1:]}.",
        where=place_raised(cause),
        why=f"{line.strip()}\n{caret}" if line else None,
        fix=f"{text} cannot be loaded until this is mended.",
    )


def _broken(cause: BaseException, text: str) -> TargetError:
    said = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    if isinstance(cause, SystemExit):
        said = f"it called sys.exit({cause.code!r})"
    frames = "".join(traceback.format_list(user_frames(cause))).rstrip()
    return TargetError(f"{text} cannot be loaded: {said}", where=place_raised(cause), why=_dedented(frames))


def _dedented(frames: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in frames.splitlines())


def _no_such_file(path: Path, text: str) -> TargetError:
    attribute = text.partition(":")[2]
    folder = path.parent
    if not folder.is_dir():
        return TargetError(f"There is no {path}.", why=f"There is no folder {folder}.", fix="microflow run payments.py")
    files = sorted(each.name for each in folder.glob("*.py"))
    near = nearest(path.name, files)
    return TargetError(
        f"There is no {path}.",
        why=f"{_folder_in_words(folder)} holds {_listed(files)}." if files else f"{folder} holds no Python files.",
        fix=f"Did you mean microflow run {_with(str(folder / near), attribute)}" if near else "microflow new NAME",
    )


def _no_python_file(path: Path, text: str) -> TargetError:
    files = sorted(each.name for each in path.parent.glob("*.py"))
    meant = nearest(f"{path.stem}.py", files) or next(iter(files), None)
    return TargetError(
        f"{path} is no Python file.",
        why=f"{_folder_in_words(path.parent)} holds {_listed(files)}." if files else None,
        fix=f"Did you mean microflow run {_with(str(path.parent / meant), text.partition(':')[2])}"
        if meant
        else "microflow run payments.py",
    )


def _no_such_module(name: str, missing: str, text: str) -> TargetError:
    attribute = text.partition(":")[2]
    folder = Path.cwd().joinpath(*missing.split(".")[:-1])
    modules = sorted({each.stem for each in folder.glob("*.py")} | {each.parent.name for each in folder.glob("*/*.py")})
    near = nearest(missing.rpartition(".")[2], modules)
    suggestion = ".".join([*missing.split(".")[:-1], near]) if near else None
    return TargetError(
        f"There is no module {missing}." if missing == name else f"There is no module {name}: {missing} is missing.",
        why=f"{_folder_in_words(folder)} holds {_listed(modules)}." if modules else None,
        fix=f"Did you mean microflow run {_with(suggestion, attribute)}" if suggestion else "microflow run payments.py",
    )


def _folder_in_words(folder: Path) -> str:
    return "This folder" if folder.resolve() == Path.cwd() else str(folder)


def _with(name: str, attribute: str) -> str:
    return f"{name}:{attribute}" if attribute else name


def _listed(names: list[str], *, most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


# ── finding the service ───────────────────────────────────────────────────────────────────────────────────────────


def _follow(module: ModuleType, attribute: str, text: str) -> Any:
    found: Any = module
    for name in attribute.removesuffix("()").split("."):
        if not name or not hasattr(found, name):
            raise _missing(module, found, name, text)
        found = getattr(found, name)
    if not attribute.endswith("()"):
        return found
    if not callable(found):
        raise TargetError(f"{text}: {attribute.removesuffix('()')} cannot be called.", fix=text.removesuffix("()"))
    return _guarded(found, text)


def _missing(module: ModuleType, holder: Any, name: str, text: str) -> TargetError:
    services = _services(module)
    defined = list(services) or _defined_in(holder)
    near = nearest(name, defined)
    what = f"{Path(holder.__file__).name}" if isinstance(holder, ModuleType) and holder.__file__ else f"{holder!r}"
    suggestion = near or (defined[0] if len(services) == 1 else None)
    typed = text.partition(":")[0]
    return TargetError(
        f'Cannot load "{text}": {what} has no "{name}".',
        why=f"It defines: {_listed(defined)}." if defined else "It defines nothing.",
        fix=f"{'Did you mean' if near else 'Try'}  microflow run {typed}{f':{suggestion}' if suggestion else ''}",
    )


def _defined_in(holder: Any) -> list[str]:
    """The public names of an object; of a module those that it has not imported."""
    names = [name for name in vars(holder) if not name.startswith("_")]
    if not isinstance(holder, ModuleType):
        return names
    values = ((name, getattr(holder, name)) for name in names)
    return [
        name
        for name, value in values
        if not isinstance(value, ModuleType) and getattr(value, "__module__", holder.__name__) == holder.__name__
    ]


def _service(found: Any, module: ModuleType, text: str) -> Service:
    if isinstance(found, Service):
        return found
    if isinstance(found, ModuleType):
        return _service_of_module(found, text)
    typed = text.partition(":")[0]
    services = _services(module)
    if callable(found) and not text.endswith("()"):
        raise TargetError(
            f"{text} is {_kind(found)}, and no Service.",
            fix=f"If it makes one:  microflow run '{text}()'" if not isinstance(found, type) else f"Try  {typed}",
        )
    raise TargetError(
        f"{text} is {_kind(found)}, and no Service.",
        why=f"The services of {typed}: {_listed(list(services))}." if services else None,
        fix=f"microflow run {typed}" if len(services) < 2 else f"microflow run {typed}:{next(iter(services))}",
    )


def _kind(found: Any) -> str:
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _service_of_module(module: ModuleType, text: str) -> Service:
    services = _services(module)
    own = {name: each for name, each in services.items() if each.module == module.__name__} or services
    if not own:
        return Service.of_module(module)
    if len(own) > 1:
        typed = text.partition(":")[0]
        raise TargetError(
            f"{text} has several services: {_listed(list(own))}.",
            why="Which one is meant?",
            fix="microflow run " + " ".join(f"{typed}:{name}" for name in own),
        )
    return next(iter(own.values()))


def _services(module: ModuleType) -> dict[str, Service]:
    """The services that a module holds, by the first of their names."""
    seen: set[int] = set()
    found: dict[str, Service] = {}
    for name, value in vars(module).items():
        if isinstance(value, Service) and id(value) not in seen:
            seen.add(id(value))
            found[name] = value
    return found
