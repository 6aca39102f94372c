"""What a chat template takes, found out by probing it once, and the mending of conversations that it does not take.

Some templates refuse a system turn or two turns of one role (Gemma 2 does both), some drop them without a word, and
some want a turn's content as a list of parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from feedback.errors import Refused
from feedback.messages import Message

BETWEEN = "\n\n"  # two texts that become one turn

# ChatML, for a base without a template of its own. The comment tells it from one that came with a base.
START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{# the default of Nightschool #}{% for message in messages %}"
    f"{{{{ '{START}' + message['role'] + '\\n' + message['content'] + '{END}\\n' }}}}"
    f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{START}assistant\\n' }}}}{{% endif %}}"
)


class TemplateRefuses(Refused):
    """A chat template does not take a conversation; `reason` is its own."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model's chat template does not take this conversation: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Manners:
    """What a template takes: whether content comes in parts, and which turns need not be mended."""

    in_parts: bool = False
    first_system: bool = True
    later_system: bool = True
    same_role_twice: bool = True


def render(tokenizer: Any, messages: Sequence[Message], in_parts: bool, tokenize: bool) -> Any:
    """Apply a chat template up to where the assistant's turn begins: text, or token ids. Raises `TemplateRefuses`."""
    turns = [
        {"role": each.role, "content": [{"type": "text", "text": each.content}] if in_parts else each.content}
        for each in messages
    ]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=tokenize, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # a template is a program of somebody else and fails in any way
        raise TemplateRefuses(" ".join(str(error).split())[:200] or type(error).__name__) from error


def manners(tokenizer: Any) -> Manners:
    """What a tokenizer's template takes; probed once. Raises `TemplateRefuses` if not even one user turn."""
    return _probed(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)  # another template of the same tokenizer is probed anew
def _probed(tokenizer: Any, template: str) -> Manners:
    in_parts = False
    if _fault(tokenizer, ["user"], in_parts=False):
        in_parts = not _fault(tokenizer, ["user"], in_parts=True)
    if fault := _fault(tokenizer, ["user"], in_parts):
        raise TemplateRefuses(fault)

    def takes(*conversations: Sequence[str]) -> bool:
        return not any(_fault(tokenizer, roles, in_parts) for roles in conversations)

    first_system = takes(["system", "user"])
    return Manners(
        in_parts,
        first_system,
        first_system and takes(["user", "assistant", "system", "user"], ["system", "system", "user"]),
        takes(["user", "user"], ["user", "assistant", "assistant", "user"]),
    )


def _fault(tokenizer: Any, roles: Sequence[str], in_parts: bool) -> str:
    """What is wrong with a rendered conversation of these roles, in words; empty if every turn's text is in it."""
    said = [f"probe{number}probe" for number in range(len(roles))]
    try:
        text = render(tokenizer, [Message(*each) for each in zip(roles, said, strict=True)], in_parts, tokenize=False)
    except TemplateRefuses as error:
        return error.reason
    return "" if all(each in text for each in said) else "it leaves out what is said"


def mended(messages: Sequence[Message], taken: Manners) -> list[Message]:
    """A conversation as a template takes it.

    The text of a system turn that it does not take joins the user turn beside it, and neighbouring turns of one role
    that it does not take become one. The rest is as it was.
    """
    turns: list[Message] = []
    joins = False  # whether the turn before was a system turn and has become the user's
    for at, message in enumerate(messages):
        system_taken = taken.later_system if at else taken.first_system
        moved = message.role == "system" and not system_taken
        turn = Message("user", message.content) if moved else message
        if turns and turns[-1].role == turn.role and (joins or moved or not taken.same_role_twice):
            turn = Message(turn.role, BETWEEN.join(filter(None, (turns.pop().content, turn.content))))
        turns.append(turn)
        joins = moved
    return turns
