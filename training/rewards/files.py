"""The files of sources of reward: plain names in the data folder's `rewards/`, and nowhere else."""

import re
from pathlib import Path

from feedback.errors import Refused

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def require_name(name: str, suffix: str) -> None:
    """Raises `Refused` unless this is a plain file name with this suffix."""
    if not NAME.fullmatch(name) or not name.endswith(suffix):
        raise Refused(f"a file of a source of reward is named like reward{suffix}, without a folder, not {name[:60]!r}")


def of_folder(folder: Path, name: str) -> Path:
    """A file in the folder. Raises `Refused` if there is none, or it is a link that leads elsewhere."""
    path = folder / name
    if not path.is_file():
        raise Refused(f"there is no file {name} in {folder}")
    if path.resolve().parent != folder.resolve():
        raise Refused(f"{name} leads out of {folder}")
    return path
