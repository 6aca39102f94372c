"""The formats there are, and how to tell which one a row is in.

Each stands in a file of its own, in the folders beside this one; a program that brings its own calls `register`.
"""

import pkgutil
from importlib import import_module
from typing import Any

from feedback import formats
from feedback.errors import Refused
from feedback.formats.base import Format

FORMATS: dict[str, Format] = {}


def register(added: Format) -> None:
    """Let a format be read, written and told by its rows. Raises `ValueError` where its name is taken."""
    if added.name in FORMATS:
        raise ValueError(f"there is a format {added.name!r} already")
    FORMATS[added.name] = added


def _register_ours() -> None:
    """Every module in a folder of this package declares one format."""
    for family in pkgutil.iter_modules(formats.__path__, f"{formats.__name__}."):
        if family.ispkg:
            for each in pkgutil.iter_modules(import_module(family.name).__path__, f"{family.name}."):
                register(import_module(each.name).FORMAT)


_register_ours()


def writable() -> tuple[str, ...]:
    """The names of the formats that can be written."""
    return tuple(name for name, each in FORMATS.items() if each.write)


def format_named(name: str) -> Format:
    """Raises `Refused` on an unknown name."""
    if name not in FORMATS:
        raise Refused(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(raw: dict[str, Any]) -> Format:
    """The format that accounts for most of a row. Raises `Refused` where none does, or two do equally well."""
    found = {name: each.evidence(raw) for name, each in FORMATS.items()}
    most = max(found.values())
    best = sorted(name for name, evidence in found.items() if evidence == most)
    if not most:
        raise Refused(f"no format known here has rows with {', '.join(sorted(raw)[:8])}; name one with --format")
    if len(best) > 1:
        fields = ", ".join(sorted(raw)[:8])
        raise Refused(f"a row with {fields} may be {' or '.join(best)}; name one of them with --format")
    return FORMATS[best[0]]
