"""The registry of sources of reward by name.

Each file of this folder registers its own; one from elsewhere does so when it is imported.
"""

import importlib
import math
import pkgutil
import re
from functools import cache

from feedback.errors import Refused
from training.rewards.base import Asked, Source

MODELS = "models"  # the source that a policy learns by if none is named
MOST_WEIGHT = 1000.0
WEIGHT = re.compile(r"(.*)=\s*([-+.\w]+)", re.DOTALL)

_SOURCES: dict[str, Source] = {}


def register(source: Source) -> Source:
    """Add a source. Raises `ValueError` on a name in use."""
    if source.name in _SOURCES:
        raise ValueError(f"there is a source of reward {source.name!r} already")
    _SOURCES[source.name] = source
    return source


def every() -> dict[str, Source]:
    """All sources by name, that of the default first."""
    _import_files()
    return {name: _SOURCES[name] for name in sorted(_SOURCES, key=lambda name: (name != MODELS, name))}


@cache
def _import_files() -> None:
    package = importlib.import_module(__package__)
    for each in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{each.name}")


def asked(said: str) -> list[Asked]:
    """The sources that a text names, as in "models=1,length:20-120=0.5". Raises `Refused` on what names none."""
    found, sources = list[Asked](), every()
    for each in (part.strip() for part in said.split(",")):
        weighed = WEIGHT.fullmatch(each)
        named, weight = (weighed[1].strip(), _weight(weighed[2], each)) if weighed else (each, 1.0)
        name, _, argument = named.partition(":")
        if name not in sources:
            raise Refused(f"there is no source of reward {name[:40]!r}; there are {', '.join(sources)}")
        source = sources[name]
        if bool(argument) != bool(source.argument) and not (source.is_optional and not argument):
            wanted = f"{name}:{source.argument}" if source.argument else f"{name} alone"
            raise Refused(f"a source of reward is {wanted}, not {named[:60]!r}")
        source.check(argument)
        found.append(Asked(source, argument, weight))
    if not any(each.weight > 0 for each in found):
        raise Refused("every source of reward has the weight 0")
    return found


def trains_models(said: str) -> bool:
    """Whether there must be comparisons to learn by the sources that a text names."""
    return any(each.source.trains_models for each in asked(said))


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MOST_WEIGHT:
        raise Refused(f"the weight of a source of reward is a number from 0 to {MOST_WEIGHT:g}, not in {where[:60]!r}")
    return weight
