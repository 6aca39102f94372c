"""What a turn says: one text, or a list of parts, of which only text is kept."""

from typing import Any

from feedback.formats.turns.dropped import Dropped

TEXT = ("text", "input_text", "output_text")
MEDIA = {"image": "an image", "audio": "sound", "video": "a film", "file": "a file"}
ATTACHED = ("images", "videos", "audios")  # columns of files whose turns are about what lies there


def joined(value: Any) -> Any:
    """The text of a list of parts; anything else as it is. Raises `Dropped` on a part that is not text."""
    return "".join(map(_text_of, value)) if is_parts(value) else value


def is_parts(value: Any) -> bool:
    """Whether a value is a list of parts of one turn, rather than of turns or of texts."""
    if not isinstance(value, list) or not any(map(_is_part, value)):
        return False
    return all(isinstance(each, str) or _is_part(each) for each in value)


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, dict) and value.keys().isdisjoint(("role", "from")) and bool(value.keys() & {"type", "text"})
    )


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind, text = str(part.get("type", "text")), part.get("text")
    if kind in TEXT and isinstance(text, str):
        return text
    said = next((words for name, words in MEDIA.items() if name in kind), "a part that is not text")
    raise Dropped(f"a message with {said}")


def require_text_alone(raw: dict[str, Any]) -> None:
    """Raises `Dropped` on a row with images or the like in a column of their own."""
    if any(raw.get(name) for name in ATTACHED):
        raise Dropped("a message with an image")
