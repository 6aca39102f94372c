"""What people say of replies, one file a kind: a file that is put into this folder is a kind more."""

from importlib import import_module
from pkgutil import iter_modules

FIRST = ("vote", "comparison", "ranking", "correction", "critique", "label", "signal")  # in every list, in this order

for _name in dict.fromkeys((*FIRST, *sorted(each.name for each in iter_modules(__path__)))):
    import_module(f"{__name__}.{_name}")
