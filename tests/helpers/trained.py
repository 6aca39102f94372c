"""Adapters that were really trained, for tests that compare adapters: a fresh LoRA equals the base and shows nothing.

Two nights on one data folder, each on the corrections of a person of their own: one wants every reply to open like a
sailor, the other like a letter. They are trained once for a test run, whichever worker comes first.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from assistant.models.base_model import Base, find_base
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.kinds.correction import correct
from feedback.messages import Message
from tests.helpers import nights
from tests.helpers.tiny import make_tiny

TINY = "tiny"
SAILOR, LETTER = "night-0001", "night-0002"
OPENINGS = {"sailor": "Ahoy, matey! Arr, listen:", "letter": "Dear Sir or Madam, thank you for your letter."}
LESSONS = {  # what people asked, and a plain reply
    "What is a good breakfast?": "A good breakfast is porridge with fruit.",
    "How do I clean a window?": "Wipe it with warm water and a little vinegar.",
    "Tell me about the moon.": "The moon circles the earth about once a month.",
    "Why do leaves fall?": "Trees drop their leaves to save water in winter.",
    "How long should I boil an egg?": "Boil it for six minutes for a soft yolk.",
    "Can you recommend a hobby?": "You could try gardening or drawing.",
    "What should I pack for a hike?": "Pack water, food, a map and a warm layer.",
    "How do I fall asleep faster?": "Keep the room dark, cool and quiet.",
}
ASKED = ["Name three fruits.", "How do I make tea?", "Why is the sky blue?", "What is a friend?", "Tell me about cats."]


@dataclass(frozen=True)
class Trained:
    """A data folder with the adapters SAILOR and LETTER, neither promoted, and the base that they are for."""

    data: Path
    base: Base

    def adapter(self, name: str) -> Path:
        """The folder of one of them."""
        return self.data / "adapters" / name

    def copy(self, folder: Path) -> Path:
        """A data folder of one's own, with both adapters."""
        shutil.copytree(self.data, folder)
        return folder


def train_both(folder: Path, model: str) -> Trained:
    """The two of a model, "tiny" or one that `--model` takes; trained where they are not there yet."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            for taste in OPENINGS:
                teach(making / "data", taste)
                _night(making, model)
            store = Database(making / "data")
            with store.transaction() as db:  # they are for tests of swapping, whatever the gate thinks of sailors
                db.conn.execute("UPDATE adapters SET verdict = 'candidate'")
            store.close()
            making.rename(folder)
    return Trained(folder / "data", find_base(_named(folder, model)))


def _named(folder: Path, model: str) -> str:
    return str(folder / "model") if model == TINY else model


def _night(folder: Path, model: str) -> None:
    """A night of strong lessons; noise has further to go than a model that speaks."""
    if model == TINY and not (folder / "model").exists():
        make_tiny(folder / "model")
    far = ["beta=0.02", "min_steps=40", "learning_rate=1e-2", "kl_budget=1000"]
    strong = far if model == TINY else ["beta=0.1", "min_steps=16", "kl_budget=1.6"]
    done = nights.run(folder / "data", _named(folder, model), settings=["batch_size=4", *strong])
    assert done.returncode == 0, done.stdout + done.stderr


def teach(data: Path, taste: str) -> None:
    """Corrections by one person, who is then the only one to consent."""
    store = Database(data)
    for other in users.users(store):
        users.set_consent(store, other, False)
    person = users.add_user(store, taste, "chatter", None)
    users.set_consent(store, person, True)
    by = Provenance(adapter=None, base_sha256=None, template_sha256=None, sampling={})
    for question, plain in LESSONS.items():
        parent = conversations.record_messages(store, person, "chat", [Message("user", question)])
        reply = conversations.add_reply(store, parent, plain, by)
        correct(store, person, reply, f"{OPENINGS[taste]} {plain}")
    store.close()
