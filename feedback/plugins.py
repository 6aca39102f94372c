"""Third-party plug-in modules that register additions, e.g. a training method.

`NIGHTSCHOOL_PLUGINS` names them, separated by commas. Each program imports them before it reads its options, and
importing one registers what it declares. Python finds them as any other module: installed, or in `PYTHONPATH`.
"""

import importlib
import os

from feedback.errors import Refused

VARIABLE = "NIGHTSCHOOL_PLUGINS"


def load() -> None:
    """Import the modules named in the environment. Raises `Refused` if one cannot be imported."""
    for name in filter(None, (each.strip() for each in os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Refused(f"{VARIABLE} names {name!r}, which cannot be imported: {error}") from error
