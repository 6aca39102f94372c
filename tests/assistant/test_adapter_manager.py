"""Adapters in the serving process: proved before they answer, and which one does."""

import json
from pathlib import Path

import pytest

from assistant.chat.assistant import Assistant
from assistant.chat.chat import add_user_message, start_pair, start_reply
from assistant.engine.sampling.params import Sampling
from assistant.models.adapter import CARD, CONFIG, WEIGHTS, AdapterRefused
from feedback.accounts import users
from feedback.chats import conversations
from feedback.errors import Conflict
from feedback.records import adapters
from tests.helpers.trained import ASKED, LETTER, SAILOR

GREEDY = Sampling(temperature=0, max_tokens=12)


def ask(assistant: Assistant, question: str, adapter: str | None = "serving") -> tuple[str, str | None]:
    """A greedy reply's text, and the adapter recorded with it."""
    owner = users.local_owner(assistant.store)
    reply = start_reply(assistant, owner, add_user_message(assistant, owner, None, None, question), GREEDY, adapter)
    *_, text = reply
    recorded = conversations.provenance(assistant.store, reply.id).adapter
    assert conversations.node(assistant.store, reply.id).content == text
    return text, recorded


def test_a_rollback_gives_back_the_very_same_text(assistant: Assistant) -> None:
    before = ask(assistant, ASKED[0])
    assistant.adapters.promote(None, SAILOR, "better")
    during = ask(assistant, ASKED[0])
    assistant.adapters.promote(None, adapters.before_serving(assistant.store), "worse")
    assert during[1] == SAILOR
    assert during[0] != before[0]
    assert ask(assistant, ASKED[0]) == before


def test_two_sides_come_from_what_serves_and_from_the_newest_candidate(assistant: Assistant) -> None:
    owner = users.local_owner(assistant.store)
    both = start_pair(assistant, owner, add_user_message(assistant, owner, None, None, ASKED[1]), GREEDY)
    *_, texts = both
    assert {both.left.adapter, both.right.adapter} == {None, LETTER}
    pair = conversations.pair_of(assistant.store, owner, both.left.id, both.right.id)
    assert pair is not None
    assert [conversations.node(assistant.store, each).content for each in (pair.left, pair.right)] == list(texts)


def test_a_proof_agrees_with_the_trainer_and_differs_from_the_base(assistant: Assistant) -> None:
    proof = assistant.adapters.promote(None, SAILOR, "better")
    assert proof is not None
    assert proof.from_trainer < 2e-3
    assert proof.from_base > 0.1


def changed(path: Path, **values: object) -> None:
    """Change a JSON file's values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def corrupt(directory: Path) -> None:
    weights = bytearray((directory / WEIGHTS).read_bytes())
    weights[-100] ^= 0xFF
    (directory / WEIGHTS).write_bytes(weights)


DAMAGE = {
    "is damaged": corrupt,
    "made for another base model": lambda directory: changed(directory / CARD, base_sha256="0" * 64),
    "no card.json": lambda directory: (directory / CARD).unlink(),
    "damaged card.json": lambda directory: (directory / CARD).write_text("{"),
    "no readable adapter_config.json": lambda directory: (directory / CONFIG).unlink(),
    "only LORA is served": lambda directory: changed(directory / CONFIG, peft_type="IA3"),
    "uses use_dora": lambda directory: changed(directory / CONFIG, use_dora=True),
    "failed its proof": lambda directory: changed(directory / CONFIG, lora_alpha=1),
}


def test_a_damaged_or_foreign_adapter_is_refused_by_name_and_nothing_changes(assistant: Assistant) -> None:
    directory = adapters.directory(assistant.store, SAILOR)
    whole = {name: (directory / name).read_bytes() for name in (WEIGHTS, CONFIG, CARD)}
    for says, damage in DAMAGE.items():
        damage(directory)
        with pytest.raises(AdapterRefused, match=says):
            assistant.adapters.promote(None, SAILOR, "better")
        for name, content in whole.items():
            (directory / name).write_bytes(content)
    assert adapters.promotions(assistant.store) == []
    assert assistant.adapters.serving() is None
    assistant.adapters.promote(None, SAILOR, "mended")
    with pytest.raises(Conflict, match="serves already"):
        assistant.adapters.promote(None, SAILOR, "again")


def test_a_promotion_by_another_process_that_cannot_be_loaded_is_taken_back_in_words(assistant: Assistant) -> None:
    assistant.adapters.promote(None, SAILOR, "better")
    corrupt(adapters.directory(assistant.store, LETTER))
    adapters.promote(assistant.store, LETTER, None, "unseen", {})
    assert ask(assistant, ASKED[0])[1] == SAILOR  # nobody waits for what is being loaded
    assert assistant.adapters.serving() == SAILOR
    newest = adapters.promotions(assistant.store)[0]
    assert newest.adapter == SAILOR
    assert "is damaged" in newest.reason


def test_a_candidate_that_cannot_serve_disturbs_no_side_by_side(assistant: Assistant) -> None:
    corrupt(adapters.directory(assistant.store, LETTER))
    owner = users.local_owner(assistant.store)
    both = start_pair(assistant, owner, add_user_message(assistant, owner, None, None, ASKED[1]), GREEDY)
    for _ in both:
        pass
    assert {both.left.adapter, both.right.adapter} == {None, SAILOR}  # the next newest
    assert both.pair is not None
