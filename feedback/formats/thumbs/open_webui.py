"""The format of Open WebUI's feedback export."""

from collections.abc import Iterator, Mapping
from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text, turns_of, whole
from feedback.formats.turns.details import without_reasoning
from feedback.formats.turns.verdicts import verdict
from feedback.kinds.vote import REASONS
from feedback.messages import Message

WHOLE_CHAT = "a whole chat; export the ratings instead (Admin Panel, Evaluations, Feedback)"


def read(raw: dict[str, Any]) -> Record:
    """Read one rating, with the conversation from its snapshot.

    If other models answered as well, it is a comparison with their replies: Open WebUI's leaderboard counts it so.
    """
    if "data" not in raw:
        raise Dropped(WHOLE_CHAT)
    data, meta = raw.get("data") or {}, raw.get("meta") or {}
    good = verdict(data.get("rating"))
    if good is None or str(data.get("rating")).lower() in ("0", "false", "true"):
        raise Dropped("a rating that is neither up nor down")
    chat = ((raw.get("snapshot") or {}).get("chat") or {}).get("chat") or {}
    nodes = (chat.get("history") or {}).get("messages") or {}
    turns = _path(nodes, meta.get("message_id"))
    if len(turns) < 2:
        raise Dropped("no snapshot of the conversation")
    reply = Reply(_reply(turns[-1]), str(data.get("model_id") or ""))
    others = [Reply(_reply(each), str(each["model"])) for each in _siblings(nodes, turns[-1], data)]
    said = _said(data, str(raw.get("user_id") or ""), good, len(others))
    known = ("rating", "reason", "comment", "model_id")
    extra = rest(raw, "user_id") | {"data": rest(data, *known)}
    return Record(messages(as_turns((*_system(chat), *_asked(turns[:-1])))), (reply, *others), tuple(said), extra)


def _path(nodes: Mapping[str, dict[str, Any]], at: Any) -> list[dict[str, Any]]:
    """The messages from the first one to this one."""
    turns: list[dict[str, Any]] = []
    while at in nodes and len(turns) < len(nodes):
        turns.append(nodes[at])
        at = nodes[at].get("parentId")
    return turns[::-1]


def _asked(nodes: list[dict[str, Any]]) -> Iterator[Message]:
    for node in nodes:
        if any(str(each.get("type")).startswith("image") for each in node.get("files") or []):
            raise Dropped("a message with an image")
        (turn,) = turns_of([node])
        yield Message(turn.role, without_reasoning(turn.content) if turn.role == "assistant" else turn.content)


def _reply(node: Mapping[str, Any]) -> str:
    return text({"content": without_reasoning(text({"content": node.get("content")}))})


def _siblings(nodes: Mapping[str, dict[str, Any]], rated: Mapping[str, Any], data: Mapping[str, Any]) -> list[Any]:
    """The replies to the same message by the models that the rating names besides."""
    models = data.get("sibling_model_ids") or []
    beside = [each for each in nodes.values() if each.get("parentId") == rated.get("parentId") and each is not rated]
    return [each for each in beside if each.get("model") in models and each.get("content")]


def _system(chat: Mapping[str, Any]) -> tuple[Message, ...]:
    said = (chat.get("params") or {}).get("system") or chat.get("system") or ""
    return (Message("system", said),) if isinstance(said, str) and said.strip() else ()


def _said(data: Mapping[str, Any], rater: str, good: bool, others: int) -> Iterator[Annotation]:
    key = {words: name for name, words in REASONS.items()}.get(data.get("reason") or "")
    words = data.get("comment") or ""
    if data.get("reason") and key is None:  # a reason that `REASONS` does not have
        words = f"{data['reason']}: {words}" if words else data["reason"]
    reasons = (key,) if key else ()
    if not others:
        yield Annotation("thumb", (0,), rater, value=1 if good else -1, words=words, reasons=reasons)
    for other in range(1, others + 1):
        choice = "left" if good else "right"
        yield Annotation("comparison", (0, other), rater, choice=choice, words=words, reasons=reasons)


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


ROWS = (
    Row("data snapshot", perhaps="meta type user_id"),
    Row("data meta type", perhaps="user_id", where={"type": lambda value: value == "rating"}),
    Row("chat title", perhaps="user_id", where={"chat": lambda value: isinstance(value, dict) and "history" in value}),
)
FORMAT = Format("open-webui", "Open WebUI's feedback", ROWS, read, write, frozenset({"thumb"}))
