"""A copy of everything that was said and learned, made while chats go on, and put back.

A backup is a folder: the database as it was at one moment, every adapter it announces, and `backup.json` with the size
and SHA-256 of each file. It appears under its name whole and checked, or not at all.
When backups are made is for the operator's own clock.
"""

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from feedback import atomic
from feedback.database import private_files
from feedback.database.database import Database, now, translated
from feedback.errors import Conflict, NotFound, Refused, Unavailable
from feedback.records import adapters

DATABASE, MANIFEST, SECRET, ADAPTERS = "nightschool.db", "backup.json", "secret", "adapters"
ROOM = 1.1  # of the size of what is copied, that the disk must have


class Damaged(Refused):
    """A backup that does not hold what it should; nothing was changed."""


@dataclass(frozen=True)
class Backup:
    """What a backup folder holds. `files` maps each path in it to its size in bytes and its SHA-256."""

    made_at: str
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for size, _ in self.files.values())


def back_up(store: Database, where: Path, by: int | None = None) -> Backup:
    """Copy everything into the new folder `where`, while others read and write.

    Raises `Conflict` where something is there already, `Unavailable` where there is no room, `Damaged` where the
    database itself is.
    """
    if where.exists():
        raise Conflict(f"there is already something at {where}; name a new folder")
    try:
        with atomic.folder(where) as making:
            require_room(making, store.path.stat().st_size + store.log_bytes() + size_of(store.data / ADAPTERS))
            copy_database(store, making / DATABASE)
            require_sound(making / DATABASE)
            for name in announced(making / DATABASE):
                if (folder := store.data / ADAPTERS / name).is_dir():  # `health` tells of those that are not
                    shutil.copytree(folder, making / ADAPTERS / name)
            if (store.data / SECRET).is_file():  # so that who is logged in stays so
                shutil.copy2(store.data / SECRET, making / SECRET)
            private_files.close([making])  # copies are as open as what they are copied from
            made = Backup(now(), {str(each.relative_to(making)): facts(each) for each in files_in(making)})
            (making / MANIFEST).touch(mode=0o600)
            (making / MANIFEST).write_text(json.dumps(asdict(made), indent=1))
        adapters.audit(store, by, "back up to", str(where), {"files": len(made.files)})
    except OSError as error:
        raise Unavailable(f"cannot write the backup {where}: {error.strerror}") from error
    return made


def restore(backup: Path, data: Path, replace: bool = False) -> Path | None:
    """Put a backup's contents into the data folder `data`, which nothing may be using; where the old contents went.

    Raises `NotFound` or `Damaged` on what is no whole backup, `Conflict` where there is data already and it is not to
    be replaced, or is in use.
    """
    made = verified(backup)
    occupied = (data / DATABASE).exists()
    if occupied and not replace:
        raise Conflict(f"there is Nightschool data in {data} already; --replace puts it aside")
    if occupied and in_use(data / DATABASE):
        raise Conflict(f"the data in {data} is in use; stop the server and any night first")
    try:
        private_files.make_data_folder(data)
        arriving = data / ".restoring"
        shutil.rmtree(arriving, ignore_errors=True)
        require_room(data, made.size)
        shutil.copytree(backup, arriving)
        verified(arriving)
        private_files.close([arriving])
        with closing(Database(arriving)) as store:  # what is restored says that it was
            adapters.audit(store, None, "restore", str(backup), {"backup of": made.made_at})
        for each in files_in(arriving):
            atomic.to_disk(each)
        aside = put_aside(data) if occupied else None
        for name in (SECRET, ADAPTERS, DATABASE):  # the database last: with it the data is there
            if (arriving / name).exists():
                (arriving / name).rename(data / name)
        atomic.to_disk(data)
        shutil.rmtree(arriving)
    except OSError as error:
        raise Unavailable(f"cannot restore into {data}: {error.strerror}") from error
    return aside


def verified(backup: Path) -> Backup:
    """What a backup holds, once every file was read and compared. Raises `NotFound` or `Damaged`."""
    try:
        raw = json.loads((backup / MANIFEST).read_text())
        made = Backup(raw["made_at"], {path: (size, digest) for path, (size, digest) in raw["files"].items()})
    except FileNotFoundError:
        raise NotFound(f"{backup} is no backup; there is no {MANIFEST} in it") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"the backup {backup} is damaged: {MANIFEST} cannot be read") from error
    for path, expected in made.files.items():
        if not (backup / path).is_file():
            raise Damaged(f"the backup {backup} is damaged: {path} is missing")
        if facts(backup / path) != expected:
            raise Damaged(f"the backup {backup} is damaged: {path} is not what was saved")
    return made


def copy_database(store: Database, to: Path) -> None:
    """The database as it is at this moment, in one file without a log."""
    with private_files.making_private():
        target = sqlite3.connect(to)
    try:
        with translated(store.path):
            store.db.conn.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    finally:
        target.close()


def require_sound(database: Path) -> None:
    """Raises `Damaged` unless SQLite finds nothing wrong with a database file."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        wrong = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        wrong += [f"a row of {row[0]} refers to nothing" for row in connection.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        wrong = [str(error)]
    finally:
        connection.close()
    if wrong:
        raise Damaged(f"the database is damaged ({wrong[0]}); restore it from an older backup")


def announced(database: Path) -> list[str]:
    """The adapters that a database file names."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return [row[0] for row in connection.execute("SELECT id FROM adapters ORDER BY id")]
    finally:
        connection.close()


def in_use(database: Path) -> bool:
    """Whether another process has it open."""
    connection = sqlite3.connect(database, timeout=0, isolation_level=None)
    try:
        # Each connection to a database in WAL mode keeps a shared lock on the file as long as it is open.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.DatabaseError:  # what is no database is nobody's
        return False
    finally:
        connection.close()
    return False


def put_aside(data: Path) -> Path:
    """Move what a data folder holds into a folder in it; that folder."""
    aside = data / f"replaced-{now()[:19].replace(':', '')}"
    aside.mkdir(mode=0o700)
    names = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", ADAPTERS, SECRET, "nights")
    for name in names:
        if (data / name).exists():
            (data / name).rename(aside / name)
    return aside


def require_room(where: Path, size: int) -> None:
    """Raises `Unavailable` where a disk has no room for so many bytes."""
    free = shutil.disk_usage(where).free
    if free < size * ROOM:
        raise Unavailable(f"{where} has room for {free // 2**20:,} MB, and {size * ROOM / 2**20:,.0f} MB are needed")


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(each.stat().st_size for each in files_in(folder))


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, in order."""
    return sorted(each for each in folder.rglob("*") if each.is_file())


def facts(file: Path) -> tuple[int, str]:
    """Its size and SHA-256."""
    with file.open("rb") as opened:
        return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
