"""The format of Open WebUI's feedback export."""

from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, messages, rest, text, whole
from feedback.kinds.vote import REASONS


def read(raw: dict[str, Any]) -> Record:
    """Read one rating, with the conversation from its snapshot."""
    data, meta = raw.get("data") or {}, raw.get("meta") or {}
    if data.get("rating") not in (1, -1):
        raise Dropped("a rating that is neither up nor down")
    chat = ((raw.get("snapshot") or {}).get("chat") or {}).get("chat") or {}
    nodes = (chat.get("history") or {}).get("messages") or {}
    turns: list[dict[str, Any]] = []
    at = meta.get("message_id")
    while at in nodes and len(turns) < len(nodes):
        turns.insert(0, nodes[at])
        at = nodes[at].get("parentId")
    if len(turns) < 2:
        raise Dropped("no snapshot of the conversation")
    reply = Reply(text(turns[-1].get("content")), str(data.get("model_id") or ""))
    key = {words: name for name, words in REASONS.items()}.get(data.get("reason") or "")
    words = data.get("comment") or ""
    if data.get("reason") and key is None:  # a reason that `REASONS` does not have
        words = f"{data['reason']}: {words}" if words else data["reason"]
    reasons = (key,) if key else ()
    rater = str(raw.get("user_id") or "")
    said = Annotation("thumb", (0,), rater, value=data["rating"], words=words, reasons=reasons)
    known = ("rating", "reason", "comment", "model_id")
    return Record(messages(turns[:-1]), (reply,), (said,), rest(raw, "user_id") | {"data": rest(data, *known)})


def write(row: Record, number: int) -> dict[str, Any]:
    """Write one rating with a snapshot of its conversation, as Open WebUI exports it."""
    (said,) = row.said
    if len(said.reasons) > 1:
        raise Dropped("several reasons, which this format cannot say")
    turns = whole(row)
    ids = [f"{number}-{each}" for each in range(len(turns))]
    nodes = {
        name: {
            "id": name,
            "parentId": ids[each - 1] if each else None,
            "childrenIds": ids[each + 1 : each + 2],
            "role": turn.role,
            "content": turn.content,
        }
        for each, (name, turn) in enumerate(zip(ids, turns, strict=True))
    }
    model = row.replies[0].model
    data = {
        "rating": said.value,
        "model_id": model,
        "sibling_model_ids": None,
        "reason": REASONS[said.reasons[0]] if said.reasons else "",
        "comment": said.words,
    }
    data |= {name: value for name, value in row.extra.pop("data", {}).items() if name not in data}
    if "snapshot" in row.extra:  # imported from Open WebUI: keep its ids
        return {"id": row.extra["id"], "user_id": said.rater, "version": 0, "type": "rating", "data": data}
    meta = {"model_id": model, "message_id": ids[-1], "message_index": len(ids) - 1, "chat_id": str(number)}
    chat = {"models": [model], "history": {"messages": nodes, "currentId": ids[-1]}}
    snapshot = {"chat": {"id": str(number), "chat": chat}}
    return {
        "id": str(number),
        "user_id": said.rater,
        "version": 0,
        "type": "rating",
        "data": data,
        "meta": meta,
        "snapshot": snapshot,
    }


ROW = Row("data snapshot", perhaps="meta")
FORMAT = Format("open-webui", "Open WebUI's feedback", (ROW,), read, write, frozenset({"thumb"}))
