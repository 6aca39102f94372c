"""The registry of formats, and the recognition of a row's format.

Each format has its own file, in the folders beside this one; a plug-in with its own format calls `register`.
"""

import pkgutil
from importlib import import_module
from typing import Any

from feedback import formats
from feedback.errors import Refused
from feedback.formats.base import Format

FORMATS: dict[str, Format] = {}


def register(added: Format) -> None:
    """Add a format. Raises `ValueError` on a name in use."""
    if added.name in FORMATS:
        raise ValueError(f"there is a format {added.name!r} already")
    FORMATS[added.name] = added


def _register_ours() -> None:
    """Register the one format that each module in a folder of this package declares."""
    for family in pkgutil.iter_modules(formats.__path__, f"{formats.__name__}."):
        if family.ispkg:
            for each in pkgutil.iter_modules(import_module(family.name).__path__, f"{family.name}."):
                register(import_module(each.name).FORMAT)


_register_ours()


def writable() -> tuple[str, ...]:
    """The names of the formats that can be written."""
    return tuple(name for name, each in FORMATS.items() if each.write)


def format_named(name: str) -> Format:
    """The format of this name. Raises `Refused` on an unknown one."""
    if name not in FORMATS:
        raise Refused(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(raw: dict[str, Any]) -> Format:
    """The format with the most evidence for a row. Raises `Refused` if there is none, or two have the most."""
    found = {name: each.evidence(raw) for name, each in FORMATS.items()}
    most = max(found.values())
    best = sorted(name for name, evidence in found.items() if evidence == most)
    if not most:
        raise Refused(f"no format known here has rows with {', '.join(sorted(raw)[:8])}; name one with --format")
    if len(best) > 1:
        fields = ", ".join(sorted(raw)[:8])
        raise Refused(f"a row with {fields} may be {' or '.join(best)}; name one of them with --format")
    return FORMATS[best[0]]
