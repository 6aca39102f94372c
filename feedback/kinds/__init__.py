"""The kinds of feedback, one file each: every module in this folder is imported and registers its kind."""

from importlib import import_module
from pkgutil import iter_modules

FIRST = ("vote", "comparison", "ranking", "correction", "critique", "label", "signal")  # first in lists

for _name in dict.fromkeys((*FIRST, *sorted(each.name for each in iter_modules(__path__)))):
    import_module(f"{__name__}.{_name}")
