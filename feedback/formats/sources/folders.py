"""Which files of a folder are its rows: an export of ours, a data set of the Hub, or one that `datasets` saved.

Of several splits, the one called train is read, since the others are for judging.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from feedback.errors import NotFound, Refused
from feedback.upkeep.backup import facts

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # may end in .gz besides
KINDS = f"{', '.join(SUFFIXES)}, or {', '.join(f'{each}.gz' for each in PACKED)}"
TRAIN = re.compile(r"(?<![a-z])train(?![a-z])")
SHARD = re.compile(r"(.*?)[-_.]\d+(-of-\d+)?\.")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside the rows
LONGEST_CARD = 1_000_000  # bytes


def suffix_of(path: Path) -> str:
    """How a file's name ends, in lower case and without .gz; empty if it is none that is read."""
    name = path.name.lower()
    plain = Path(name.removesuffix(".gz")).suffix
    return plain if plain in (PACKED if name.endswith(".gz") else SUFFIXES) else ""


def files_of(path: Path) -> list[Path]:
    """The files that hold the rows. Raises `NotFound`, or `Refused` on a folder of which several may be meant."""
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    if not suffix_of(path):
        raise Refused(f"{path.name} ends in none of {KINDS}")
    return [path]


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, or of those of several files."""
    sums = [facts(each)[1] for each in files_of(path)]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _of_folder(path: Path) -> list[Path]:
    if splits := _json(path / "dataset_dict.json").get("splits"):
        return _of_folder(path / _train(path, [str(each) for each in splits]))
    if saved := _json(path / "state.json").get("_data_files"):
        return [_inside(path, str(each["filename"])) for each in saved]
    if configs := _configs(path / "README.md"):
        found = [each for pattern in _patterns(path, configs) for each in sorted(path.glob(pattern)) if suffix_of(each)]
        if found:
            return found
    return _by_name(path)


def _json(path: Path) -> dict[str, Any]:
    """A small JSON object beside the rows; empty if there is none."""
    try:
        found = json.loads(path.read_bytes()[:LONGEST_CARD]) if path.is_file() else {}
    except ValueError as error:
        raise Refused(f"{path.name} is no JSON ({str(error)[:120]})") from None
    return found if isinstance(found, dict) else {}


def _train(path: Path, splits: Sequence[str]) -> str:
    """The split to learn from. Raises `Refused` if none is called so and there are several."""
    if "train" not in splits and len(splits) > 1:
        raise Refused(f"{path} has the splits {', '.join(splits)[:200]}; name the folder of one")
    split = "train" if "train" in splits else splits[0]
    return _inside(path, split).name


def _inside(path: Path, name: str) -> Path:
    if Path(name).name != name or not (path / name).exists():
        raise Refused(f"{path} names a file that is not there: {name[:120]}")
    return path / name


def _configs(card: Path) -> list[dict[str, Any]]:
    """What the head of a card of the Hub says of its data files."""
    import yaml

    if not card.is_file():
        return []
    with card.open(encoding="utf-8", errors="replace") as file:
        _, mark, rest = file.read(LONGEST_CARD).partition("---\n")
    try:
        said = yaml.safe_load(rest.partition("\n---")[0]) if mark else None
    except yaml.YAMLError:
        return []
    found = said.get("configs") if isinstance(said, dict) else None
    return (
        [each for each in found if isinstance(each, dict) and each.get("data_files")] if isinstance(found, list) else []
    )


def _patterns(path: Path, configs: list[dict[str, Any]]) -> Iterator[str]:
    """The patterns of the training files of the one set that a card has, or that it calls the default."""
    default = [each for each in configs if each.get("default") or each.get("config_name") == "default"]
    if len(configs) > 1 and len(default) != 1:
        names = ", ".join(str(each.get("config_name")) for each in configs)
        raise Refused(f"{path} holds several data sets ({names[:200]}); name the file of one")
    files = (default or configs)[0]["data_files"]
    if isinstance(files, dict):
        files = [{"split": split, "path": each} for split, each in files.items()]
    if isinstance(files, list) and all(isinstance(each, dict) for each in files):
        splits = {str(each.get("split")): each.get("path") for each in files}
        files = splits["train" if "train" in splits else _only(path, list(splits))]
    for pattern in files if isinstance(files, list) else [files]:
        if (
            not isinstance(pattern, str)
            or "://" in pattern
            or Path(pattern).is_absolute()
            or ".." in Path(pattern).parts
        ):
            raise Refused(f"the card of {path} names files that are elsewhere: {str(pattern)[:120]}")
        yield pattern


def _only(path: Path, splits: list[str]) -> str:
    if len(splits) != 1:
        raise Refused(f"{path} has the splits {', '.join(splits)[:200]}; name the file of one")
    return splits[0]


def _by_name(path: Path) -> list[Path]:
    """The files called train, or the only file, or the parts of one."""
    found = sorted(each for pattern in ("*", "*/*") for each in path.glob(pattern) if each.is_file())
    found = [each for each in found if suffix_of(each) and each.name not in ABOUT and not each.name.startswith(".")]
    train = [each for each in found if TRAIN.search(str(each.relative_to(path)).lower())]
    chosen = train or found
    if not chosen:
        raise NotFound(f"there is no file in {path} that ends in {KINDS}")
    parts = {(each.parent, suffix_of(each), _whole_name(each)) for each in chosen}
    if len(parts) > 1:
        names = ", ".join(str(each.relative_to(path)) for each in chosen[:5])
        raise Refused(f"{path} holds several data sets ({names[:200]}); name the file or the folder of one")
    return chosen


def _whole_name(path: Path) -> str:
    """The name of the file that a file is a part of, as train for train-00000-of-00002.parquet."""
    part = SHARD.match(path.name)
    return part[1] if part else path.name
