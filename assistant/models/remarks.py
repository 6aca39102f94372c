"""What an operator is told of a base before it answers or is trained: what is done to it that its files do not say."""

from typing import Any

from assistant.models import rounding, turns
from assistant.models.base_model import Base


def remarks(base: Base, tokenizer: Any) -> list[str]:
    """A sentence for everything worth telling; none for a model that is taken just as it is."""
    found = []
    if stored := rounding.rounded_from(base):
        found.append(
            f"the weights of {base.name!r} are stored as {stored} and rounded to bfloat16, for serving and training "
            f"alike; that cost {rounding.NATS:g} nats a token where it was measured"
        )
    if tokenizer.chat_template == turns.CHATML:
        found.append(f"the model {base.name!r} has no chat template: its turns are written as ChatML")
    taken = turns.manners(tokenizer)
    if not taken.first_system:
        found.append(f"the chat template of {base.name!r} takes no system turn: its text joins the first user turn")
    return found
