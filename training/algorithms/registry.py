"""The registry of training methods by name.

Each file of this folder registers its own; one from elsewhere does so when it is imported.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from feedback.errors import Refused
from feedback.records import methods, old_names
from training.algorithms.base import Method
from training.loop.config import shown

_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Register a method, so that it can be chosen by name and appears in every list of methods."""
    methods.declare(method.facts)
    _METHODS[method.name] = method
    return method


def find(name: str) -> Method:
    """The method of this name. Raises `Refused` if there is none."""
    found = every().get(name)
    if found is None:
        raise Refused(f"there is no method {name!r}; methods are {', '.join(every())}")
    return found


def every() -> dict[str, Method]:
    """All methods, in the order in which they are listed."""
    _import_files()
    return {name: _METHODS[name] for name in methods.FACTS if name in _METHODS}


@cache
def _import_files() -> None:
    package = importlib.import_module(__package__)
    for each in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{each.name}")


def parse_settings(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parse and check `name=value` settings. Raises `Refused` on an unknown name or a value that is not allowed."""
    config = find(method).config
    kinds: dict[str, Any] = {name: type(each.default) for name, each in config.model_fields.items()}
    values: dict[str, Any] = {}
    for pair in pairs:
        written, equals, text = (part.strip() for part in pair.partition("="))
        name = old_names.SETTINGS.get(written, written)
        if not equals or name not in kinds:
            raise Refused(f"there is no setting {shown(written)!r}; settings are {', '.join(kinds)}")
        try:
            values |= old_names.settings({written: kinds[name](text)})
        except ValueError as error:
            wanted = "a whole number" if kinds[name] is int else "a number"
            raise Refused(f"{written} is {wanted}, not {shown(text)!r}") from error
    decided = config(**values)  # where a value means "as the others say", what they say
    return {name: getattr(decided, name) for name in values}
