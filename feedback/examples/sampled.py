"""Replies that the base or an adapter on it wrote in conversations whose words may be used, judged or not.

Nothing is learned from them: they show what the models write, which a KL is measured on.
"""

from feedback.accounts import consent
from feedback.database.database import Database
from feedback.example_types import Demonstration, Examples
from feedback.examples.split import Places
from feedback.kinds import current
from feedback.kinds.base import answer_of

LOOKED_AT = 20_000  # newest replies


def sampled(store: Database, base_sha256: str, template_sha256: str, before: str, where: Places, most: int) -> Examples:
    """At most so many such replies, the newest before a time, each as the demonstration that it would be.

    Conversations that are held out are left out here, too.
    """
    sql = f"""SELECT m.id FROM (
            SELECT * FROM messages WHERE role = 'assistant' AND created_at < ? ORDER BY seq DESC LIMIT {LOOKED_AT}
        ) m JOIN replies r ON r.message = m.id JOIN conversations c ON c.id = m.conversation
        WHERE length(r.token_ids) > 0 AND r.base_sha256 = ? AND r.template_sha256 = ? AND {consent.shared("c")}
        ORDER BY m.seq DESC LIMIT ?"""
    ids = [row["id"] for row in store.rows(sql, before, base_sha256, template_sha256, most)]
    told = current.texts(store, ids)
    made = [Demonstration(told[each].messages, answer_of(told[each])) for each in ids if each in told]
    return Examples(demonstrations=tuple(each for each in made if where.part_of(each) != "held_out"))
