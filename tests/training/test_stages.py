"""Stages: a night that begins from another one's adapter, or refers to it, and what becomes of that."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.kinds.vote import UP, vote
from feedback.records import adapters, nights
from feedback.upkeep import privacy
from tests.conftest import two_replies
from tests.helpers.nights import run
from tests.training.test_night import SMALL, last, say
from training.data.kl import KlFromBase
from training.model.packing import Row
from training.model.policy import REFERENCE, SERVING, Backbone
from training.model.reference import References
from training.night.plan import planner
from training.night.plan.stages import Wishes

ROWS = [Row([1, 2, 30 + at], [[40 + at, 50], [60 + at]]) for at in range(4)]
POLICY = ["ensemble_size=1", "checkpoint_every=1", "steps=1", "prompts=2", "replies=2", "max_completion_length=4"]
POLICY += ["truncated=keep", "learning_rate=1e-4", "kl_budget=50", "precision=float32", "rewards=length:1-3"]


@pytest.fixture(scope="module")
def first(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose first night has trained an adapter by imitation, which serves."""
    data = tmp_path_factory.mktemp("first")
    store = say(data)
    done = run(
        data, tiny.name, "--method", "sft", "--gate", "off", settings=["min_steps=4", "epochs=1", "kl_budget=50"]
    )
    assert done.returncode == 0, done.stderr
    assert adapters.serving(store) == "night-0001"
    store.close()
    return data


@pytest.fixture
def store(first: Path, tmp_path: Path) -> Any:
    """A copy of it."""
    shutil.copytree(first, tmp_path / "data")
    opened = Database(tmp_path / "data")
    yield opened
    opened.close()


def card_of(store: Database, adapter: str) -> dict[str, Any]:
    return dict(json.loads((adapters.directory(store, adapter) / "card.json").read_text()))


def backbone_of(tiny: Base, rank: int = 16) -> Backbone:
    return Backbone(tiny, torch.float32, "cpu", rank=rank, alpha=32, seed=5)


def test_a_policy_begins_as_the_adapter_is_and_refers_to_it_while_its_kl_is_from_the_base(
    tiny: Base, first: Path
) -> None:
    folder = first / "adapters" / "night-0001"
    fresh = backbone_of(tiny)
    fresh.hold(folder, SERVING)
    with fresh.as_serving(), torch.no_grad():
        adapters_own = [fresh.log_probs(row) for row in ROWS]
    with torch.no_grad():
        bases = [fresh.log_probs(row) for row in ROWS]  # a fresh adapter is the base
    assert any((one - other).abs().max() > 1e-3 for one, other in zip(adapters_own, bases, strict=True))

    begun = backbone_of(tiny)
    begun.start_as(folder)
    with torch.no_grad():
        assert all(torch.allclose(begun.log_probs(row), own) for row, own in zip(ROWS, adapters_own, strict=True))
    assert all(
        torch.allclose(begun.log_probs(row, reference=True), base) for row, base in zip(ROWS, bases, strict=True)
    )
    assert KlFromBase(begun, ROWS, []).measure().mean > 1e-5

    fresh.hold(folder, REFERENCE)
    assert all(
        torch.allclose(fresh.log_probs(row, reference=True), own) for row, own in zip(ROWS, adapters_own, strict=True)
    )
    assert KlFromBase(fresh, ROWS, []).measure().mean == pytest.approx(0, abs=1e-6)
    assert References(fresh).reference != References(begun).reference
    assert not any(f".{REFERENCE}." in name and each.requires_grad for name, each in fresh.peft.named_parameters())

    with pytest.raises(Refused, match="is not of rank 4"):
        backbone_of(tiny, rank=4).start_as(folder)


def test_a_chain_of_nights_is_on_the_cards_and_in_words(store: Database, tiny: Base) -> None:
    done = run(store.data, tiny.name, "--method", "dpo", "--from", "night-0001", "--gate", "off", settings=SMALL)
    assert done.returncode == 0, done.stderr
    second = card_of(store, "night-0002")
    assert (second["parent"], second["settings"]["start_from"]) == ("night-0001", "night-0001")
    assert adapters.adapter(store, "night-0002").parent == "night-0001"
    assert "; from night-0001; KL from the base" in last(store).reason
    told = run(store.data, tiny.name, "--method", "dpo", "--reference", "night-0001", "--dry-run", "--again")
    assert "; with night-0001 as its reference" in told.stdout
    done = run(store.data, tiny.name, "--method", "dpo", "--reference", "night-0001", "--gate", "off", settings=SMALL)
    assert done.returncode == 0, done.stderr
    third = card_of(store, "night-0003")
    assert (third["parent"], third["settings"]["reference"]) == (None, "night-0001")


def test_a_policy_begins_from_what_serves_while_that_has_room(store: Database, tiny: Base) -> None:
    plan, _ = planner.make_plan(store, tiny, Wishes("rloo", {"rewards": "length:1-3", "kl_budget": 50.0}, False))
    assert plan.settings["start_from"] == "night-0001"
    far = card_of(store, "night-0001")["metrics"]["kl"]
    for budget, start in ((far / 0.59, "night-0001"), (far / 0.61, "")):
        wishes = Wishes("rloo", {"rewards": "length:1-3", "kl_budget": budget}, False)
        assert planner.make_plan(store, tiny, wishes)[0].settings["start_from"] == start
    other = Wishes("rloo", {"rewards": "length:1-3", "kl_budget": 50.0, "rank": 4}, False)
    assert planner.make_plan(store, tiny, other)[0].settings["start_from"] == ""
    assert planner.make_plan(store, tiny, Wishes("dpo", {}, False))[0].settings["start_from"] == ""
    done = run(store.data, tiny.name, "--method", "rloo", "--gate", "off", settings=POLICY)
    assert done.returncode == 0, done.stderr
    assert card_of(store, "night-0002")["parent"] == "night-0001"
    again = run(store.data, tiny.name, "--method", "rloo", settings=POLICY)
    assert "nothing new since night 2" in again.stdout


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--from", "night-0009"], "there is no adapter 'night-0009'"),
        (["--reference", "../x"], "there is no adapter '../x'"),
        (["--from", "night-0001", "--set", "rank=4"], "rank is 16, that of night-0001, which training begins from"),
        (["--method", "reward", "--from", "night-0001"], "reward makes reward models, which begin as the base"),
    ],
)
def test_what_no_training_can_begin_from_is_refused_before_the_night(
    store: Database, tiny: Base, options: list[str], why: str
) -> None:
    done = run(store.data, tiny.name, *options)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert last(store).id == 1


def liking(store: Database, name: str) -> User:
    """A new person with four thumbs up."""
    user = users.add_user(store, name, "rater", None)
    users.set_consent(store, user, True)
    for number in range(4):
        _, left, _ = two_replies(store, user, f"{name} asks for tree number {number}.")
        vote(store, user, left, UP)
    return user


def test_who_is_forgotten_takes_along_what_began_as_what_learned_from_them(store: Database, tiny: Base) -> None:
    users.set_consent(store, users.local_owner(store), False)
    night = ["--method", "kto", "--gate", "off"]
    settings = [*SMALL, "kl_budget=50"]
    bob = liking(store, "bob")
    assert run(store.data, tiny.name, *night, settings=settings).returncode == 0
    users.set_consent(store, bob, False)  # so that the next night learns from ada alone
    ada = liking(store, "ada")
    done = run(store.data, tiny.name, *night, "--from", "night-0002", settings=settings)
    assert done.returncode == 0, done.stderr
    people = {row["user"] for row in store.rows("SELECT user FROM night_people WHERE night = 3")}
    assert {bob.id, ada.id} <= people
    privacy.forget(store, bob)
    assert nights.forgotten_people(store, 3) == [bob.id]
    done = run(store.data, tiny.name, *night, "--from", "night-0003", "--again")
    assert "night-0003 learned from somebody who was forgotten, so no training can begin from it" in done.stderr


def test_a_policy_begins_from_the_newest_imitation_where_what_serves_has_no_room(store: Database, tiny: Base) -> None:
    small = [each for each in SMALL if not each.startswith("learning_rate")]
    done = run(store.data, tiny.name, "--method", "sft", "--gate", "off", settings=[*small, "learning_rate=1e-6"])
    assert done.returncode == 0, done.stderr
    adapters.promote(store, "night-0001", None, "so", {})
    near, far = (card_of(store, name)["metrics"]["kl"] for name in ("night-0002", "night-0001"))
    assert near < far
    wishes = Wishes("rloo", {"rewards": "length:1-3", "kl_budget": max(far / 2, near / 0.59)}, False)
    plan, _ = planner.make_plan(store, tiny, wishes)
    assert plan.settings["start_from"] == "night-0002"
    assert plan.begins.startswith("it begins from night-0002, the newest imitation, as night-0001 is ")
    told = run(store.data, tiny.name, "--method", "rloo", "--dry-run", settings=["rewards=length:1-3"])
    assert "; it begins from night-000" in told.stdout
