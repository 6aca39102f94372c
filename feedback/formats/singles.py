"""Formats whose rows are of one reply, and the ledger's own, which can say everything."""

import re
from dataclasses import asdict
from typing import Any

from feedback.annotations import DEMONSTRATION
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text, turns_of
from feedback.kinds.vote import REASONS
from feedback.messages import Message

MODEL_ANSWER = (Annotation("label", (0,), label=DEMONSTRATION),)


def read_unpaired(raw: dict[str, Any]) -> Record:
    """TRL's unpaired preference data; also thumbs as {prompt, response, thumb}."""
    if "completion" in raw:
        if not isinstance(raw["label"], bool):
            raise Dropped("a label that is neither true nor false")
        said = Annotation("thumb", (0,), value=1 if raw["label"] else -1)
        extra = rest(raw, "prompt", "completion", "label")
        return Record(messages(raw["prompt"]), (Reply(text(raw["completion"])),), (said,), extra)
    if raw["thumb"] not in (1, 0, -1):
        raise Dropped("a thumb that is neither up nor down")
    said = Annotation("thumb", (0,), raw.get("rater") or "", value=1 if raw["thumb"] == 1 else -1)
    reply = Reply(text(raw["response"]), raw.get("model") or "")
    return Record(messages(raw["prompt"]), (reply,), (said,), rest(raw, "prompt", "response", "thumb"))


def write_unpaired(row: Record, number: int) -> dict[str, Any]:
    """Conversational."""
    (said,) = row.said
    completion = [{"role": "assistant", "content": row.replies[0].text}]
    return {"prompt": as_turns(row.messages), "completion": completion, "label": said.value == 1}


def read_sft(raw: dict[str, Any]) -> Record:
    """Demonstrations as {messages}, or {prompt, completion}."""
    if "messages" not in raw:
        said = rest(raw, "prompt", "completion")
        return Record(messages(raw["prompt"]), (Reply(text(raw["completion"])),), MODEL_ANSWER, said)
    return _demonstration(turns_of(raw["messages"]), rest(raw, "messages"))


def _demonstration(turns: tuple[Message, ...], extra: dict[str, Any]) -> Record:
    if not turns or turns[-1].role != "assistant":
        raise Dropped("the conversation does not end with a reply")
    return Record(messages(as_turns(turns[:-1])), (Reply(text(turns[-1].content)),), MODEL_ANSWER, extra)


def write_sft(row: Record, number: int) -> dict[str, Any]:
    """The whole conversation as messages."""
    return {"messages": as_turns(whole(row))}


def whole(row: Record) -> tuple[Message, ...]:
    """A conversation with the reply that it should have."""
    return (*row.messages, Message("assistant", row.replies[0].text))


def read_sharegpt(raw: dict[str, Any]) -> Record:
    """ShareGPT's conversations of human and gpt."""
    before = (Message("system", raw["system"]),) if raw.get("system") else ()
    return _demonstration((*before, *turns_of(raw["conversations"])), rest(raw, "conversations", "system"))


def write_sharegpt(row: Record, number: int) -> dict[str, Any]:
    """The system message by itself, as most readers of it want."""
    who = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = whole(row)
    system = {"system": turns[0].content} if turns[0].role == "system" else {}
    turns = turns[1:] if system else turns
    return {"conversations": [{"from": who[turn.role], "value": turn.content} for turn in turns]} | system


CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n?", re.DOTALL)


def read_chatml(raw: dict[str, Any]) -> Record:
    """Demonstrations as text with ChatML's marks."""
    if CHATML.sub("", raw["text"]).strip():
        raise Dropped("text outside of ChatML's marks")
    turns = [{"role": role, "content": said} for role, said in CHATML.findall(raw["text"])]
    return _demonstration(turns_of(turns), rest(raw, "text"))


def write_chatml(row: Record, number: int) -> dict[str, Any]:
    """One text with ChatML's marks."""
    turns = whole(row)
    if any("<|im_end|>" in turn.content or "<|im_start|>" in turn.content for turn in turns):
        raise Dropped("a turn that holds ChatML's own marks")
    return {"text": "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)}


def read_open_webui(raw: dict[str, Any]) -> Record:
    """One rating of Open WebUI's feedback export, with the conversation from its snapshot."""
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
    if data.get("reason") and key is None:  # a reason of theirs
        words = f"{data['reason']}: {words}" if words else data["reason"]
    reasons = (key,) if key else ()
    rater = str(raw.get("user_id") or "")
    said = Annotation("thumb", (0,), rater, value=data["rating"], words=words, reasons=reasons)
    known = ("rating", "reason", "comment", "model_id")
    return Record(messages(turns[:-1]), (reply,), (said,), rest(raw, "user_id") | {"data": rest(data, *known)})


def write_open_webui(row: Record, number: int) -> dict[str, Any]:
    """One rating with a snapshot of its conversation, as its own export has it."""
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
    if "snapshot" in row.extra:  # it came from there, and keeps its own ids
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


def read_critiques(raw: dict[str, Any]) -> Record:
    """A reply, what is wrong with it in words, and sometimes how it should have been."""
    said = []
    if raw.get("critique"):
        said.append(Annotation("critique", (0,), text=text(raw["critique"])))
    if raw.get("revision"):
        said.append(Annotation("correction", (0,), text=text(raw["revision"])))
    if not said:
        raise Dropped("nothing is said of the reply")
    extra = rest(raw, "prompt", "response", "critique", "revision")
    return Record(messages(raw["prompt"]), (Reply(text(raw["response"])),), tuple(said), extra)


SPEAKER = re.compile(r"^(USER|LAMDA): ?", re.MULTILINE)


def read_safety(raw: dict[str, Any]) -> Record:
    """DICES: a conversation, a reply, and whether many raters find it safe, each by their place in the list."""
    parts = SPEAKER.split(raw["context"])[1:]
    turns = [
        {"role": "user" if who == "USER" else "assistant", "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    label = {"No": "unsafe", "Yes": "custom:safe", "Unsure": "custom:unsure"}
    said = tuple(Annotation("label", (0,), str(n), label=label[vote]) for n, vote in enumerate(raw["safe_votes"]))
    return Record(
        messages(turns), (Reply(text(raw["response"])),), said, rest(raw, "context", "response", "safe_votes")
    )


def read_prompts(raw: dict[str, Any]) -> Record:
    """Prompts for evaluation: nothing is said of any reply."""
    raise Dropped("a prompt for evaluation, without a reply that anybody rated")


def read_own(raw: dict[str, Any]) -> Record:
    """The ledger's own rows. Raises `Dropped` on one that says nothing it knows."""
    try:
        said: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in raw["said"].items()
        }
        replies = tuple(Reply(each["text"], each["model"], str(each["id"])) for each in raw["replies"])
        one = Annotation(**said)
        if not one.of or max(one.of) >= len(replies):
            raise Dropped("it says something of a reply that is not there")
    except (TypeError, AttributeError, KeyError):
        raise Dropped("it is not what the ledger writes") from None
    extra = rest(raw, "message", "messages", "replies", "said")
    return Record(turns_of(raw["messages"]), replies, (one,), extra, str(raw["message"]))


def write_own(row: Record, number: int) -> dict[str, Any]:
    """Everything that was said, with who, when and of what."""
    (said,) = row.said
    empty = vars(Annotation(said.kind, said.of))
    kept = {name: each for name, each in vars(said).items() if name in ("kind", "of") or each != empty[name]}
    replies = [asdict(each) for each in row.replies]
    return {"message": row.message, "messages": as_turns(row.messages), "replies": replies, "said": kept}
