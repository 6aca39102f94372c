"""What tests share: a real store, the real embedded model, real data where it is present."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from assistant.environment import prepare

prepare("embedded")
if "NIGHTSCHOOL_CHROMIUM" not in os.environ:
    os.environ["NIGHTSCHOOL_CHROMIUM"] = shutil.which("chromium") or shutil.which("google-chrome") or ""

from assistant.models.base_model import EMBEDDED, Base, find_base
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database import openings
from feedback.database.database import Database
from feedback.examples.split import Places
from tests.helpers.tiny import make_tiny
from tests.helpers.trained import TINY, Trained, train_both

if TYPE_CHECKING:
    from assistant.chat.assistant import Assistant

REPOSITORY = Path(__file__).parents[1]
SLOW = REPOSITORY / "tests" / "slow.txt"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
BY_BASE = Provenance(adapter=None, base_sha256="b" * 64, template_sha256="t" * 64, sampling={"temperature": 0.7})

# What is tested on a tiny model each time is tested on the embedded one by `make soak`.
BASES = [TINY, pytest.param(EMBEDDED, marks=pytest.mark.soak)]

# The secret of every data folder that a test makes, so that the same conversations judge each time; with this one all
# parts have some of the few that most tests use. `test_poison` looks at real ones.
PLACES = Places(f"{12485653:064x}")


def pytest_configure() -> None:
    """A known split. Several workers on two cores: each takes one thread, or they would wait for each other."""
    openings.new_secret = lambda: PLACES.secret
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # the servers and nights that tests start, too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what took long when it was last measured (`scripts/slow_tests.py`), and begin with the longest files."""
    slow = set(SLOW.read_text().split())
    for item in items:
        if item.nodeid.split("[")[0] in slow:
            item.add_marker("slow")
    longest_first(items)


def longest_first(items: list[pytest.Item]) -> None:
    """What takes long comes first: begun last, it would keep one worker busy and leave the others with nothing."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What importing has left is no garbage: the collector need not look through all of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def owner(store: Database) -> User:
    return users.local_owner(store)


@pytest.fixture
def consenting(store: Database, owner: User) -> User:
    """The owner, who lets ratings teach."""
    users.set_consent(store, owner, True)
    return owner


@pytest.fixture(scope="session")
def embedded() -> Base:
    return find_base("embedded")


def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of a test run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Base:
    """A very small model that writes noise, with the embedded model's tokenizer; one for all tests."""
    folder = shared_folder(tmp_path_factory, worker_id) / "tiny-model"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_tiny(folder.with_suffix(".making")).rename(folder)
    return find_base(str(folder))


@pytest.fixture(scope="session", params=BASES)
def model(request: pytest.FixtureRequest) -> str:
    """What `--model` is given: a tiny one, and in `make soak` the embedded one."""
    return str(request.getfixturevalue("tiny").name) if request.param == TINY else EMBEDDED


@pytest.fixture(scope="session")
def base(model: str) -> Base:
    """The same model, found."""
    return find_base(model)


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared preference data is not on this machine")
    return SHARED_DATA


def two_replies(store: Database, user: User, said: str = "hello") -> tuple[str, str, str]:
    """A message with two replies: their ids."""
    conversation = conversations.start_conversation(store, user)
    message = conversations.add_message(store, conversation, None, "user", said)
    left = conversations.add_reply(store, message, "good day to you", BY_BASE)
    right = conversations.add_reply(store, message, "go away", BY_BASE)
    return message, left, right


@pytest.fixture(scope="session", params=BASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Trained:
    """Two trained adapters of a tiny model, and in `make soak` of the embedded one; copy them before writing there."""
    return train_both(shared_folder(tmp_path_factory, worker_id) / request.param, request.param)


@pytest.fixture
def assistant(trained: Trained, tmp_path: Path) -> Iterator["Assistant"]:
    """Whoever answers with the trained adapters, exactly."""
    from assistant.chat.assistant import open_assistant

    store = Database(trained.copy(tmp_path / "data"))
    opened = open_assistant(store, trained.base.name, dtype="float32")
    yield opened
    opened.close()
    store.close()
