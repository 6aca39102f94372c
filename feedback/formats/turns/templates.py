"""Text to which a chat template was applied: its turns, and replies without its marks.

A text with marks is read whole by one template, or not kept: a model would be taught the marks as words.
"""

import re
from dataclasses import dataclass

from feedback.formats.turns.dropped import Dropped

ENDS = (
    r"<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|<end_of_turn>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>|</s>|<eos>"
    r"|<｜end▁of▁sentence｜>"
)
END = re.compile(rf"(?:(?:{ENDS})\s*)+$")
BEGIN = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<\|startoftext\|>|<｜begin▁of▁sentence｜>)\s*)*"
)
MARK = re.compile(
    r"<\|(?:im_start|im_end|im_sep|start_header_id|end_header_id|header_start|header_end|start_of_role|end_of_role|eot_id"
    r"|eot|begin_of_text|end_of_text|startoftext|endoftext|system|user|assistant|end)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]|<｜[^｜]{1,30}｜>"
)
MARKED = "a text with a chat template's marks that cannot be told apart"
SYSTEM = re.compile(r"\s*(?:<<SYS>>(.*?)<</SYS>>|\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\])\s*", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """How a family of models marks turns."""

    name: str
    opens: re.Pattern[str]  # the beginning of a turn; its group is who speaks


TEMPLATES = (
    Template("ChatML", re.compile(r"<\|im_start\|>(\w+)\n")),
    Template("Llama 3", re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n{0,2}")),
    Template("Llama 4", re.compile(r"<\|header_start\|>(\w+)<\|header_end\|>\n{0,2}")),
    Template("Gemma", re.compile(r"<start_of_turn>(\w+)\n")),
    Template("Granite", re.compile(r"<\|start_of_role\|>(\w+)<\|end_of_role\|>")),
    Template("Zephyr and Phi", re.compile(r"<\|(system|user|assistant)\|>\n?")),
    Template("DeepSeek", re.compile(r"<｜(User|Assistant)｜>")),
)


def is_marked(text: str) -> bool:
    """Whether a text holds marks of a chat template."""
    return MARK.search(text) is not None


def turns(text: str) -> list[dict[str, str]] | None:
    """The turns of a templated text, the last one empty if the assistant is about to speak; None without marks.

    Raises `Dropped` on text outside of the marks, and on marks inside of a turn.
    """
    if not is_marked(text):
        return None
    body = text[_end_of_begin(text) :]
    if body.startswith(("[INST]", "[SYSTEM_PROMPT]")):
        found = _instructions(body)
    else:
        opens = next((each.opens for each in TEMPLATES if each.opens.match(body)), None)
        if opens is None:
            raise Dropped(MARKED)
        parts = opens.split(body)[1:]
        found = [_turn(who, END.sub("", said)) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if any(is_marked(each["content"]) for each in found):
        raise Dropped(MARKED)
    return [each for each in found if each["content"].strip() or each["role"] != "system"]


def _end_of_begin(text: str) -> int:
    begin = BEGIN.match(text)
    return begin.end() if begin else 0


def _turn(who: str, said: str) -> dict[str, str]:
    return {"role": who.lower(), "content": said}


def _instructions(body: str) -> list[dict[str, str]]:
    """The turns of Llama 2's and Mistral's templates: [INST] asked [/INST] answered </s>."""
    before, *rounds = body.split("[INST]")
    found = []
    for number, each in enumerate(rounds):
        asked, closed, answered = each.partition("[/INST]")
        if not closed or "[/INST]" in answered:
            raise Dropped(MARKED)
        told = SYSTEM.match(before or asked) if number == 0 else None
        if told:
            found.append(_turn("system", (told[1] or told[2] or "").strip()))
            asked = asked if before else asked[told.end() :]
        answered = END.sub("", answered.rstrip().removesuffix("<s>")).strip()
        found += [_turn("user", asked.strip()), _turn("assistant", answered)]
    if before and not (found and found[0]["role"] == "system"):
        raise Dropped(MARKED)
    return found


def without_end(text: str) -> str:
    """A reply without the marks that end it."""
    return END.sub("", text).rstrip() if "</s>" not in text and END.search(text) else text


def reply(text: str) -> str:
    """A reply without the marks that begin and end it. Raises `Dropped` if there are others inside."""
    if not is_marked(text) and not END.search(text):
        return text
    if not is_marked(text) and "<s>" in text.removeprefix("<s>"):
        return text  # struck out, in HTML
    opens = next(
        (found for each in TEMPLATES if (found := each.opens.match(text)) and found[1] in ("assistant", "model")), None
    )
    text = END.sub("", text[opens.end() if opens else _end_of_begin(text) :]).rstrip()
    if is_marked(text):
        raise Dropped("a reply with a chat template's marks")
    return text
