"""Modules of other people that declare something more, e.g. a training method.

`NIGHTSCHOOL_PLUGINS` names them, divided by commas; each program imports them before it reads its options, and to
import one is to register what it declares. They are found as Python finds any module: installed, or in `PYTHONPATH`.
"""

import importlib
import os

from feedback.errors import Refused

VARIABLE = "NIGHTSCHOOL_PLUGINS"


def load() -> None:
    """Import the modules that the environment names. Raises `Refused` where one cannot be imported."""
    for name in filter(None, (each.strip() for each in os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Refused(f"{VARIABLE} names {name!r}, which cannot be imported: {error}") from error
