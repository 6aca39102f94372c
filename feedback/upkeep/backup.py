"""Backup of the database and the adapters while chats go on, and restore of a backup.

A backup is a folder: the database at one moment, every adapter it announces, the secret that signs sessions, and
`backup.json` with the size and SHA-256 of each file. It appears under its name complete and checked, or not at all.
Nothing here runs on a schedule; the operator decides when to back up.
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
from feedback.records import audit

DATABASE, MANIFEST, SECRET, ADAPTERS = "nightschool.db", "backup.json", "secret", "adapters"
ROOM = 1.1  # free space required, as a multiple of the size to copy


class Damaged(Refused):
    """A backup or a database is damaged; nothing was changed."""


@dataclass(frozen=True)
class Backup:
    """The contents of a backup folder. `files` maps each path in it to its size in bytes and its SHA-256."""

    made_at: str
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """The total size in bytes."""
        return sum(size for size, _ in self.files.values())


def back_up(store: Database, where: Path, by: int | None = None) -> Backup:
    """Copy everything into the new folder `where`, while others read and write.

    Raises `Conflict` if `where` exists, `Unavailable` if there is no room or it cannot be written, and `Damaged` if
    the database is damaged.
    """
    if where.exists():
        raise Conflict(f"there is already something at {where}; name a new folder")
    try:
        with atomic.folder(where) as making:
            require_room(making, store.path.stat().st_size + store.log_bytes() + size_of(store.data / ADAPTERS))
            copy_database(store, making / DATABASE)
            require_sound(making / DATABASE)
            for name in announced(making / DATABASE):
                if (folder := store.data / ADAPTERS / name).is_dir():  # `health` reports missing folders
                    shutil.copytree(folder, making / ADAPTERS / name)
            if (store.data / SECRET).is_file():  # so that logged-in people stay logged in
                shutil.copy2(store.data / SECRET, making / SECRET)
            private_files.close([making])  # copies inherit the permissions of their originals
            made = Backup(now(), {str(each.relative_to(making)): facts(each) for each in files_in(making)})
            (making / MANIFEST).touch(mode=0o600)
            (making / MANIFEST).write_text(json.dumps(asdict(made), indent=1))
        audit.record(store, by, "back up to", str(where), {"files": len(made.files)})
    except OSError as error:
        raise Unavailable(f"cannot write the backup {where}: {error.strerror}") from error
    return made


def restore(backup: Path, data: Path, replace: bool = False) -> Path | None:
    """Restore a backup into `data`, which nothing may be using; return the folder that old contents moved to, if any.

    Raises `NotFound` or `Damaged` if the backup is not complete, `Conflict` if there is data already that is in use or
    that `replace` does not allow to replace, and `Unavailable` if files cannot be written.
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
        with closing(Database(arriving)) as store:  # the restored audit trail records the restore
            audit.record(store, None, "restore", str(backup), {"backup of": made.made_at})
        for each in files_in(arriving):
            atomic.to_disk(each)
        aside = put_aside(data) if occupied else None
        for name in (SECRET, ADAPTERS, DATABASE):  # the database last: it is what makes the data present
            if (arriving / name).exists():
                (arriving / name).rename(data / name)
        atomic.to_disk(data)
        shutil.rmtree(arriving)
    except OSError as error:
        raise Unavailable(f"cannot restore into {data}: {error.strerror}") from error
    return aside


def verified(backup: Path) -> Backup:
    """The contents of a backup, after comparing every file. Raises `NotFound` or `Damaged`."""
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
    """Copy the database as it is at this moment to one file, without a log."""
    with private_files.making_private():
        target = sqlite3.connect(to)
    try:
        with translated(store.path):
            store.db.conn.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
    finally:
        target.close()


def require_sound(database: Path) -> None:
    """Raises `Damaged` if SQLite finds anything wrong with a database file."""
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
    """The ids of the adapters in a database file."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return [row[0] for row in connection.execute("SELECT id FROM adapters ORDER BY id")]
    finally:
        connection.close()


def in_use(database: Path) -> bool:
    """Whether another process has a database file open."""
    connection = sqlite3.connect(database, timeout=0, isolation_level=None)
    try:
        # In WAL mode each open connection holds a shared lock on the file.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.DatabaseError:  # not a database, so nobody uses it
        return False
    finally:
        connection.close()
    return False


def put_aside(data: Path) -> Path:
    """Move a data folder's contents into a new folder inside it; return that folder."""
    aside = data / f"replaced-{now()[:19].replace(':', '')}"
    aside.mkdir(mode=0o700)
    names = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", ADAPTERS, SECRET, "nights")
    for name in names:
        if (data / name).exists():
            (data / name).rename(aside / name)
    return aside


def require_room(where: Path, size: int) -> None:
    """Raises `Unavailable` if the disk has no room for `size` bytes."""
    free = shutil.disk_usage(where).free
    if free < size * ROOM:
        raise Unavailable(f"{where} has room for {free // 2**20:,} MB, and {size * ROOM / 2**20:,.0f} MB are needed")


def size_of(folder: Path) -> int:
    """The total size in bytes of all files in a folder."""
    return sum(each.stat().st_size for each in files_in(folder))


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, sorted by path."""
    return sorted(each for each in folder.rglob("*") if each.is_file())


def facts(file: Path) -> tuple[int, str]:
    """The size in bytes and SHA-256 of a file."""
    with file.open("rb") as opened:
        return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
