"""A person's data: giving them all of it, forgetting it, and expiring old conversations.

Forgetting removes content and keeps tombstones: the rows stay without content, so that counts, histories and the ids of
others' rows stay valid. Adapters that learned from it are marked for a clean retrain; the adapter of a night that is
still running is marked when it is announced (`adapters.add_adapter`).
"""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from feedback.accounts import roles, users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database import migrations, openings
from feedback.database.database import Database, now
from feedback.errors import Conflict, Refused
from feedback.kinds import current, history
from feedback.kinds.base import KINDS, spoken
from feedback.records import audit, nights, settings
from feedback.upkeep import imports

AMONG = "IN (SELECT value FROM json_each(?))"  # SQL: among those of a JSON list
RUNNING = """SELECT p.night FROM night_people p JOIN nights n ON n.id = p.night WHERE n.state = 'running' AND p.user = ?
    AND NOT EXISTS (SELECT 1 FROM adapters a WHERE a.night = n.id) ORDER BY p.night"""


@dataclass(frozen=True)
class Forgotten:
    """What was removed, and the adapters that learned from it: surely, or perhaps (no complete list was kept)."""

    conversations: int
    messages: int
    ratings: int
    trained_on_it: tuple[str, ...]
    perhaps: tuple[str, ...]
    nights: tuple[int, ...] = ()  # still running; their adapters are marked when announced


def forget(store: Database, user: User, by: int | None = None) -> Forgotten:
    """Irreversibly remove all that a person wrote and was answered, and their name, password, tokens and sessions.

    Of a rater whom an imported file names, what they alone rated goes, too, and the other fields of their rows. The
    user of a whole import goes with all raters of its file, which may then be imported again. Raises `Conflict` if they
    were forgotten already, are the last operator, or own this machine without accounts, and `Refused` if files cannot
    be removed or a kind of feedback is not known; then the ledger is unchanged.
    """
    if user.name == users.OWNER and not users.has_accounts(store):
        raise Conflict("the owner of a machine without accounts is not forgotten; remove the data folder instead")
    if missing := migrations.missing_steps(store.db):
        raise Refused(
            f"there is feedback of a kind that is not known here (step {missing[-1]}); put its file back first"
        )
    with store.transaction() as db:
        if store.row("SELECT 1 FROM users WHERE id = ? AND forgotten_at IS NOT NULL", user.id):
            raise Conflict(f"{user.name} was forgotten already")
        roles.require_another_operator(store, user)  # without accounts, everybody at this machine would be the owner
        conversations = [row["id"] for row in store.rows("SELECT id FROM conversations WHERE user = ?", user.id)]
        conversations += _rated_alone(store, user)
        number = imports.owned(store, user.id)
        gone = json.dumps([user.id] if number is None else imports.raters(store, number))
        said = sum(
            store.rows(f"SELECT count(*) AS n FROM {kind.table} WHERE user {AMONG}", gone)[0]["n"] for kind in spoken()
        )
        surely, perhaps = trained_on(store, user)
        running = tuple(row["night"] for row in store.rows(RUNNING, user.id))
        messages = _empty(store, conversations)
        _remove_account(store, user, gone)
        if number is not None:
            imports.forget(store, number)
        for adapter in (*surely, *perhaps):
            sql = "INSERT OR IGNORE INTO retrains (adapter, user, at) VALUES (?, ?, ?)"
            db.conn.execute(sql, (adapter, user.id, now()))
        _remove_files_of_nights(store, user)
        audit.record(store, by, "forget", f"user {user.id}")
    store.checkpoint()  # the log still held the removed content
    return Forgotten(len(conversations), messages, said, surely, perhaps, running)


def _remove_account(store: Database, user: User, gone: str) -> None:
    """Remove the words of these users' feedback, a JSON list of ids, their names and all that lets them in."""
    with store.transaction() as db:
        for kind in KINDS.values():
            for column, blank in kind.forgotten.items():
                db.conn.execute(f"UPDATE {kind.table} SET {column} = ? WHERE user {AMONG}", (blank, gone))
        db.conn.execute("UPDATE answered_requests SET answer = '{}' WHERE user = ?", (user.id,))
        db.conn.execute("UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE user = ?", (now(), user.id))
        db.conn.execute("DELETE FROM sessions WHERE user = ?", (user.id,))  # addresses are personal, too
        sql = f"UPDATE users SET name = 'forgotten ' || id, password_hash = NULL, forgotten_at = ? WHERE id {AMONG}"
        db.conn.execute(sql, (now(), gone))
        # The audit trail keeps the action, not the name.
        db.conn.execute("UPDATE audit SET subject = ? WHERE subject = ?", (f"user {user.id}", user.name))
        db.conn.execute("INSERT INTO consents (user, given, at) SELECT value, 0, ? FROM json_each(?)", (now(), gone))


def _rated_alone(store: Database, user: User) -> list[str]:
    """The imported conversations that this rater of a file, and nobody else, rated.

    The other fields of all rows that they rated are removed at once.
    """
    rated, shared = set(), set()
    for kind in spoken():
        sql = f"""SELECT DISTINCT c.id FROM {kind.table} t {current.with_whose(kind)}
            WHERE t.user = ? AND u.kind = 'imported' AND c.source = 'import'"""
        rated |= {row["id"] for row in store.rows(sql, user.id)}
    rows = json.dumps(sorted(rated))
    for kind in spoken():
        sql = f"""SELECT DISTINCT m.conversation FROM json_each(?) j JOIN messages m ON m.conversation = j.value
            JOIN {kind.table} t ON t.{kind.about} = m.id JOIN users u ON u.id = t.user
            WHERE t.user <> ? AND u.forgotten_at IS NULL"""
        shared |= {row["conversation"] for row in store.rows(sql, rows, user.id)}
    with store.transaction() as db:
        db.conn.execute(f"UPDATE imported_rows SET extra = '{{}}' WHERE conversation {AMONG}", (rows,))
    return sorted(rated - shared)


def _empty(store: Database, conversations: list[str]) -> int:
    """Remove the content of conversations; return the number of messages."""
    of = "SELECT value FROM json_each(?)"
    given = (json.dumps(conversations),)
    with store.transaction() as db:
        messages = f"SELECT id FROM messages WHERE conversation IN ({of})"
        db.conn.execute(
            f"""UPDATE replies SET token_ids = NULL, logprobs = NULL, sampled_logprobs = NULL
            WHERE message IN ({messages})""",
            given,
        )
        db.conn.execute(f"DELETE FROM reward_scores WHERE reply IN ({messages})", given)
        for kind in KINDS.values():
            for column in kind.quotes:
                sql = f"UPDATE {kind.table} SET {column} = ? WHERE {kind.about} IN ({messages})"
                db.conn.execute(sql, (kind.forgotten[column], *given))
        db.conn.execute(
            f"UPDATE imported_rows SET extra = '{{}}', beginning = NULL WHERE conversation IN ({of})", given
        )
        db.conn.execute(
            f"""UPDATE answered_requests SET answer = '{{"question": null}}' WHERE json_extract(answer, '$.question.id')
            IN (SELECT id FROM questions WHERE parent IN ({messages}))""",
            given,
        )
        sql = f"UPDATE conversations SET title = '', hidden_at = coalesce(hidden_at, ?) WHERE id IN ({of})"
        db.conn.execute(sql, (now(), *given))
        said = store.rows(f"SELECT content FROM messages WHERE role = 'user' AND conversation IN ({of})", *given)
        emptied = db.conn.execute(f"UPDATE messages SET content = '' WHERE conversation IN ({of})", given).rowcount
        openings.forget(db, [row["content"] for row in said])
        return emptied


def trained_on(store: Database, user: User) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adapters that learned from a person's feedback, or from feedback on their conversations: surely, and perhaps.

    Surely by the list of their night; perhaps if their night kept no list, or one that does not name all people, and
    they were made after the first such feedback.
    """
    sql = """SELECT a.id, EXISTS (SELECT 1 FROM night_people p WHERE p.night = a.night AND p.user = ?) AS surely,
        EXISTS (SELECT 1 FROM night_people p WHERE p.night = a.night AND p.complete) AS listed, a.created_at
        FROM adapters a ORDER BY a.created_at"""
    rows, first = store.rows(sql, user.id), _first_said(store, user)
    surely = tuple(row["id"] for row in rows if row["surely"])
    unlisted = (row for row in rows if not row["surely"] and not row["listed"])
    return surely, tuple(row["id"] for row in unlisted if first and row["created_at"] >= first)


def _first_said(store: Database, user: User) -> str:
    """The time of the first feedback by this person or on their conversations; empty if there is none."""
    moments = []
    for kind in spoken():
        sql = f"""SELECT min(at) AS at FROM {kind.table} WHERE user = :user UNION ALL
            SELECT min(t.at) FROM conversations c JOIN messages m ON m.conversation = c.id
            JOIN {kind.table} t ON t.{kind.about} = m.id WHERE c.user = :user"""
        moments += [row["at"] for row in store.rows(sql, {"user": user.id}) if row["at"]]
    return min(moments, default="")


def _remove_files_of_nights(store: Database, user: User) -> None:
    """Delete the examples and reward models of nights that learned, or perhaps learned, from this person.

    Raises `Refused` if they cannot be removed.
    """
    sql = """SELECT id FROM nights n WHERE EXISTS (SELECT 1 FROM night_people p WHERE p.night = n.id AND p.user = ?)
        OR NOT EXISTS (SELECT 1 FROM night_people p WHERE p.night = n.id AND p.complete)"""
    for row in store.rows(sql, user.id):
        folder = nights.reward_models_of(store, row["id"])
        words = nights.folder_of(store.data, row["id"]) / nights.EXAMPLES
        try:
            words.unlink(missing_ok=True)  # a running night has read it; one that was killed can no longer resume
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            raise Refused(f"nothing is forgotten yet, for {folder} cannot be removed: {error.strerror}") from error


def to_retrain(store: Database) -> list[str]:
    """The adapters to replace by clean retrains, because they learned from people forgotten since."""
    return [row["adapter"] for row in store.rows("SELECT DISTINCT adapter FROM retrains ORDER BY adapter")]


def own_data(store: Database, user: User) -> dict[str, Any]:
    """All data of one person, to be given to them."""
    kept = []
    for row in store.rows(
        "SELECT id, source, title, created_at FROM conversations WHERE user = ? ORDER BY seq", user.id
    ):
        nodes = [
            {"id": node.id, "parent": node.parent, "role": node.role, "content": node.content}
            for node in conversations.tree(store, row["id"])
        ]
        kept.append(row | {"messages": nodes})
    replies = [node["id"] for talked in kept for node in talked["messages"] if node["role"] == "assistant"]
    replies += _rated_elsewhere(store, user, set(replies))
    said = [
        {"reply": reply, "kind": each.kind, "at": each.at, "standing": each.standing, "said": each.said}
        for reply in replies
        for each in history.entries(store, user, reply)
    ]
    consents = store.rows("SELECT given, at FROM consents WHERE user = ? ORDER BY id", user.id)
    return {"name": user.name, "role": user.role, "consents": consents, "conversations": kept, "said": said}


def _rated_elsewhere(store: Database, user: User, own: set[str]) -> list[str]:
    """Replies in others' conversations that this person was asked about."""
    rows = store.rows("SELECT replies FROM questions WHERE user = ? ORDER BY seq", user.id)
    asked = dict.fromkeys(reply for row in rows for reply in json.loads(row["replies"]))
    return [reply for reply in asked if reply not in own]


def expire(store: Database) -> int:
    """Remove the content of conversations older than the setting `retention_days`; return their number."""
    days = settings.setting(store, "retention_days")
    if not days:
        return 0
    limit = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds")
    sql = """SELECT c.id FROM conversations c WHERE c.source <> 'import' AND NOT EXISTS
        (SELECT 1 FROM messages m WHERE m.conversation = c.id
            AND (m.created_at >= ? OR m.content = '' AND m.parent IS NULL))"""
    old = [row["id"] for row in store.rows(sql, limit)]
    if old:
        _empty(store, old)
        store.checkpoint()
    return len(old)
