"""Adapters that were really trained, for tests that compare adapters: a fresh LoRA equals the base and shows nothing.

Two nights on one data folder, each on the corrections of a person of their own: one wants every reply to open like a
sailor, the other like a letter. They are trained once for a test run, whichever worker comes first.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.kinds.correction import correct
from feedback.messages import Message

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


def train_both(folder: Path) -> Path:
    """A data folder with the adapters SAILOR and LETTER, neither promoted; trained where it is not there yet."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_suffix(".making")
            for taste in OPENINGS:
                teach(making, taste)
                night(making)
            store = Database(making)
            with store.transaction() as db:  # they are for tests of swapping, whatever the gate thinks of sailors
                db.conn.execute("UPDATE adapters SET verdict = 'candidate'")
            store.close()
            making.rename(folder)
    return folder


def copy_of(trained: Path, folder: Path) -> Path:
    """A data folder of one's own, with both adapters."""
    shutil.copytree(trained, folder)
    return folder


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


def night(data: Path, *options: str) -> None:
    """Run a night to its end, as a process."""
    strong = ["--set", "beta=0.1", "--set", "batch_size=4", "--set", "min_steps=16", "--set", "kl_budget=1.6"]
    command = [sys.executable, "-m", "training.night", "--data", str(data), *strong, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
