"""Every kind of feedback, said and learned from, and then withdrawn in every way there is: nothing uses it any more.

Cora talks. Rita and Ben are shown what was replied to her, and rate it. A piece of feedback has two owners: who gave
it, and whose conversation it is of.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from assistant.models.base_model import Base
from feedback.accounts import idempotency, users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database.database import Database, now
from feedback.errors import Refused
from feedback.example_types import KINDS
from feedback.examples.build import gather, still_standing
from feedback.formats import export, files
from feedback.formats.registry import FORMATS, writable
from feedback.kinds import base
from feedback.kinds.base import spoken, teaching
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.critique import critique
from feedback.kinds.label import label
from feedback.kinds.ranking import rank
from feedback.kinds.signal import SIGNALS, signal
from feedback.kinds.tally import counts
from feedback.kinds.vote import NONE, UP, vote
from feedback.messages import Message
from feedback.raters import agreement, leaderboard, questions, reliability
from feedback.records import adapters, nights, settings
from feedback.records.adapters import Adapter
from feedback.upkeep import privacy, schedules
from tests.conftest import BY_BASE, two_replies
from tests.helpers.over_http import assistant, key, loaded, token_of, web

__all__ = ["assistant", "loaded", "web"]  # fixtures

SECRET = "My secret is 4711."
Act = Callable[[Database, User, str, str], object]


@dataclass(frozen=True)
class Case:
    """One way to say something of two replies, how it is taken back, and a method that learns from it."""

    table: str
    say: Act
    take_back: Act
    method: str
    used_in: frozenset[str]  # some of `uses` that show it

    @property
    def teaches(self) -> bool:
        return "examples" in self.used_in


CASES = {
    "thumb": Case(
        "votes",
        lambda store, who, left, _: vote(store, who, left, UP, words="as it should be"),
        lambda store, who, left, _: vote(store, who, left, NONE),
        "kto",
        frozenset({"examples", "shared ratings", "weights", "export trl-unpaired", "export nightschool"}),
    ),
    "choice": Case(
        "comparisons",
        lambda store, who, left, right: compare(store, who, left, right, "left"),
        lambda store, who, left, right: compare(store, who, left, right, "taken_back"),
        "dpo",
        frozenset({"examples", "shared ratings", "choices", "sides", "gold", "agreement", "export trl", "export hh"}),
    ),
    "tie": Case(
        "comparisons",
        lambda store, who, left, right: compare(store, who, left, right, "tie"),
        lambda store, who, left, right: compare(store, who, right, left, "taken_back"),
        "reward",
        frozenset({"examples", "shared ratings", "choices", "export arena"}),
    ),
    "ranking": Case(
        "rankings",
        lambda store, who, left, right: rank(store, who, [left, right], [1, 2]),
        lambda store, who, left, right: rank(store, who, [left, right], [1, 2], taken_back=True),
        "dpo",
        frozenset({"examples", "shared ratings", "agreement", "export trl", "export ultrafeedback"}),
    ),
    "correction": Case(
        "corrections",
        lambda store, who, left, _: correct(store, who, left, f"Good day, {who.name}."),
        lambda store, who, left, _: correct(store, who, left, ""),
        "sft",
        frozenset({"examples", "export trl", "export sft", "export sharegpt"}),
    ),
    "critique": Case(
        "critiques",
        lambda store, who, left, _: critique(store, who, left, "too short"),
        lambda store, who, left, _: critique(store, who, left, ""),
        "auto",
        frozenset({"export nightschool"}),
    ),
    "label": Case(
        "labels",
        lambda store, who, left, _: label(store, who, left, "demonstration"),
        lambda store, who, left, _: label(store, who, left, "demonstration", given=False),
        "sft",
        frozenset({"examples", "export sft", "export chatml"}),
    ),
}


@dataclass(frozen=True)
class World:
    """Who is there, and two replies to Cora that Rita and Ben were shown."""

    store: Database
    cora: User
    rita: User
    ben: User
    conversation: str
    left: str
    right: str

    def say(self, case: Case, who: User) -> object:
        return case.say(self.store, who, self.left, self.right)


def person(store: Database, name: str, role: str = "rater") -> User:
    user = users.add_user(store, name, role, None)
    users.set_consent(store, user, True)
    return user


@pytest.fixture
def world(store: Database) -> World:
    settings.set_setting(store, None, "raters_per_question", 9)
    cora, rita, ben = person(store, "cora", "chatter"), person(store, "rita"), person(store, "ben")
    message = conversations.record_messages(store, cora, "chat", [Message("user", SECRET)])
    conversation = conversations.node(store, message).conversation
    left = conversations.add_reply(store, message, "good day to you", replace(BY_BASE, sampling={"model": "kind"}))
    right = conversations.add_reply(store, message, "go away", BY_BASE)
    for rater in (rita, ben):
        assert questions.next_question(store, rater) is not None
    more = conversations.add_message(store, conversation, left, "user", "And then?")
    for text in ("nothing", "everything"):  # what is left to be asked about
        conversations.add_reply(store, more, text, BY_BASE)
    agreement.add_gold(store, person(store, "olga", "operator"), left, right)
    return World(store, cora, rita, ben, conversation, left, right)


def uses(store: Database) -> dict[str, Any]:
    """All that is made of feedback, by what makes it."""
    gathered, report = gather(store), agreement.report(store)
    rows = {f"export {name}": list(export.rows(store, FORMATS[name], Counter())) for name in writable()}
    return rows | {
        "examples": {kind: getattr(gathered, kind) for kind in KINDS},
        "weights": reliability.weights(store),
        "shared ratings": reliability.shared_ratings(store),
        "choices": leaderboard.choices(store),
        "sides": (report.left, report.longer),
        "agreement": (report.agreement, report.alpha, report.consistency),
        "gold": {each.name: each.gold for each in report.raters if each.gold.whole},
    }


def night_begun(store: Database, base: Base, method: str) -> int:
    """A night that began as nights do: whose words it learns from is written down."""
    from training.night.night import begin, command
    from training.night.plan.stages import Wishes

    asked = SimpleNamespace(**command.make_context("night", ["--again"]).params)
    begin(store, base, Wishes(method, {}, False), asked)
    return nights.nights(store)[0].id


def adapter_of(store: Database, night: int, method: str) -> str:
    """The adapter of a night, announced."""
    name = f"night-{night:04d}"
    adapters.add_adapter(store, Adapter(name, None, night, method, "b", "w", "candidate", "fine", now()))
    return name


def learned(store: Database, base: Base, case: Case) -> tuple[str, ...]:
    """A whole night, and its adapter if there was something to learn."""
    night = night_begun(store, base, case.method)
    made = (adapter_of(store, night, case.method),) if case.teaches else ()
    nights.end_night(store, night, "done", "learned", *made)
    time.sleep(0.005)  # what is said in the same millisecond counts as said after it
    return made


ACTS: dict[str, Callable[[World, Case], object]] = {
    "taken back": lambda world, case: case.take_back(world.store, world.rita, world.left, world.right),
    "withdrawn by who rated": lambda world, _: users.set_consent(world.store, world.rita, False),
    "withdrawn by whose it is": lambda world, _: users.set_consent(world.store, world.cora, False),
    "withheld": lambda world, _: users.set_conversation_consent(world.store, world.cora, world.conversation, False),
    "who rated is forgotten": lambda world, _: privacy.forget(world.store, world.rita),
    "whose it is is forgotten": lambda world, _: privacy.forget(world.store, world.cora),
}
BY_OWNER = ("withdrawn by whose it is", "withheld", "whose it is is forgotten")


def test_the_walk_knows_every_kind_of_feedback_and_so_does_every_list() -> None:
    assert {case.table for case in CASES.values()} == {kind.table for kind in spoken()}
    assert {case.table for case in CASES.values() if case.teaches} == {kind.table for kind in teaching()}
    assert set(base.KINDS) - {kind.table for kind in spoken()} == {"signals"}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_may_not_be_used_is_used_nowhere(world: World, embedded: Base, case: Case, act: str) -> None:
    store, blank = world.store, uses(world.store)
    world.say(case, world.ben)
    silent = uses(store)
    world.say(case, world.rita)
    said = uses(store)
    assert case.used_in <= {name for name in said if said[name] != silent[name]}
    made = learned(store, embedded, case)
    assert schedules.why_nothing_new(store) == "nothing new was said since night 1 began"
    assert questions.next_question(store, world.rita) is not None

    done = ACTS[act](world, case)

    left = uses(store)
    expected = blank if act in BY_OWNER else silent
    assert {name for name in left if left[name] != expected[name]} == set()
    assert schedules.why_nothing_new(store) == ""
    if isinstance(done, privacy.Forgotten):
        assert (done.trained_on_it, done.perhaps) == (made, ())
        assert privacy.to_retrain(store) == list(made)
    for each in (world.rita, world.cora):  # whoever asks to be forgotten later is told, too
        assert privacy.trained_on(store, each) == (made, ())


@pytest.mark.parametrize("act", ACTS)
def test_nobody_is_asked_about_it_and_nothing_more_is_taken(world: World, act: str) -> None:
    store, case = world.store, CASES["thumb"]
    world.say(case, world.rita)
    assert questions.next_question(store, world.rita) is not None

    ACTS[act](world, case)

    assert (questions.next_question(store, world.rita) is not None) == (act == "taken back")
    assert (questions.next_question(store, person(store, "dan")) is not None) == (act not in BY_OWNER)
    before = counts(store)
    for each in CASES.values():
        if act == "taken back":
            world.say(each, world.rita)
        else:
            with pytest.raises(Refused, match=r"ask for another question|agree first"):
                world.say(each, world.rita)
    assert (counts(store) == before) == (act != "taken back")
    if "forgotten" not in act:  # what one said stays one's own to read
        assert len(privacy.own_data(store, world.rita)["said"]) > 0
    for each in CASES.values():  # and one's own conversation one's own to rate
        world.say(each, world.cora)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_was_said_may_be_taken_back_though_the_owner_says_no(world: World, case: Case) -> None:
    store, nothing = world.store, uses(world.store)
    world.say(case, world.rita)
    users.set_consent(store, world.cora, False)
    with pytest.raises(Refused, match="has not let others use it"):
        world.say(case, world.rita)
    case.take_back(store, world.rita, world.left, world.right)
    users.set_consent(store, world.cora, True)
    assert uses(store) == nothing


def test_an_open_question_makes_room_for_another_and_comes_back(world: World) -> None:
    store = world.store
    two_replies(store, person(store, "dora", "chatter"), "Dora's")
    asked = questions.next_question(store, world.rita)
    assert asked is not None
    assert asked.messages[0].content == SECRET

    users.set_consent(store, world.cora, False)

    other = questions.next_question(store, world.rita)
    assert other is not None
    assert other.messages == (Message("user", "Dora's"),)
    users.set_consent(store, world.cora, True)
    assert questions.next_question(store, world.rita) == asked


def test_who_never_agreed_is_as_good_as_who_said_no(store: Database) -> None:
    silent, rita = users.add_user(store, "silent", "rater", None), person(store, "rita")
    two_replies(store, silent)
    assert questions.next_question(store, rita) is None
    _, left, _ = two_replies(store, rita)
    assert questions.next_question(store, silent) is not None  # one's own, always
    with store.transaction() as db:  # as before consent was asked of both
        db.conn.execute(
            "UPDATE questions SET parent = ?, replies = ?", (conversations.node(store, left).parent, f'["{left}"]')
        )
    with pytest.raises(Refused, match="agree first"):
        vote(store, silent, left, UP)


def test_an_answer_that_may_not_be_used_is_asked_of_somebody_else(world: World) -> None:
    store = world.store
    settings.set_setting(store, None, "raters_per_question", 1)
    with store.transaction() as db:  # only the first message is left to ask about
        db.conn.execute("UPDATE messages SET content = '' WHERE content IN ('nothing', 'everything')")
    world.say(CASES["choice"], world.rita)
    dan = person(store, "dan")
    assert questions.next_question(store, dan) is None
    users.set_consent(store, world.rita, False)
    assert questions.next_question(store, dan) is not None


def test_agreement_with_oneself_ends_with_the_consent_to_it(world: World) -> None:
    store = world.store
    for why in ("even", "repeat"):
        row = {
            "id": why,
            "user": world.rita.id,
            "kind": "comparison",
            "parent": conversations.node(store, world.left).parent,
        }
        row |= {"replies": json.dumps([world.left, world.right]), "why": why, "propensity": 1.0, "asked_at": now()}
        store.insert("questions", row)
        world.say(CASES["choice"], world.rita)
        with store.transaction() as db:
            db.conn.execute("UPDATE comparisons SET question = ? WHERE id = (SELECT max(id) FROM comparisons)", (why,))
            db.conn.execute("UPDATE questions SET answered_at = 'now' WHERE id = ?", (why,))
    assert agreement.consistency(store).whole == 1
    users.set_consent(store, world.cora, False)
    assert agreement.consistency(store).whole == 0
    users.set_consent(store, world.cora, True)
    compare(store, world.rita, world.left, world.right, "taken_back")
    assert agreement.consistency(store).whole == 0


def test_a_signal_is_used_nowhere(world: World, embedded: Base) -> None:
    before = uses(world.store)
    for kind in SIGNALS:
        signal(world.store, world.cora, world.left, kind)
    assert uses(world.store) == before
    night_begun(world.store, embedded, "auto")
    assert nights.nights(world.store)[0].state == "nothing"
    assert privacy.trained_on(world.store, world.cora) == ((), ())


@pytest.mark.parametrize("kind", ["model", "imported"])
def test_reliability_counts_people_alone(world: World, kind: str) -> None:
    store = world.store
    for case in ("thumb", "choice", "ranking"):
        for who in (world.rita, world.ben):
            world.say(CASES[case], who)
    assert {each.user for each in reliability.shared_ratings(store)} == {world.rita.id, world.ben.id}
    with store.transaction() as db:
        db.conn.execute("UPDATE users SET kind = 'anonymous' WHERE name = 'ben'")
    assert len(reliability.shared_ratings(store)) == 6
    with store.transaction() as db:
        db.conn.execute("UPDATE users SET kind = ? WHERE name = 'ben'", (kind,))
    assert reliability.shared_ratings(store) == []


def test_what_a_person_exports_of_their_own_holds_no_words_of_who_said_no(world: World) -> None:
    store = world.store
    world.say(CASES["choice"], world.rita)
    _, left, right = two_replies(store, world.rita, "mine")
    compare(store, world.rita, left, right, "left")

    def own() -> str:
        return json.dumps(list(export.rows(store, FORMATS["nightschool"], Counter(), world.rita)))

    assert SECRET in own()
    users.set_consent(store, world.cora, False)
    users.set_consent(store, world.rita, False)
    assert SECRET not in own()
    assert "mine" in own()


# A night that was running meanwhile, and lists of an older program


def test_an_adapter_of_a_night_that_ran_meanwhile_is_marked_when_it_is_announced(world: World, embedded: Base) -> None:
    store = world.store
    world.say(CASES["label"], world.rita)
    night = night_begun(store, embedded, "sft")
    words = nights.folder_of(store.data, night) / nights.EXAMPLES
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text(SECRET)

    done = privacy.forget(store, world.cora)
    assert (done.trained_on_it, done.nights, words.exists()) == ((), (night,), False)

    assert privacy.to_retrain(store) == []
    assert adapter_of(store, night, "sft") == "night-0001"
    assert privacy.to_retrain(store) == ["night-0001"]


@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("forgotten", ["", "rita", "cora"])
def test_the_gate_promotes_nothing_that_learned_from_who_was_forgotten_meanwhile(
    world: World, embedded: Base, forgotten: str, mode: str
) -> None:
    from assistant.models.adapter import AdapterCard, Agreement
    from training.data.kl import Kl
    from training.evaluation import gate
    from training.evaluation.held_out import HeldOut
    from training.night import learning, pipeline
    from training.night.run_dir import Plan

    store = world.store
    world.say(CASES["choice"], world.rita)
    night = night_begun(store, embedded, "dpo")
    plan = Plan(embedded.name, embedded.sha256, "dpo", {}, "float32", 1)
    work = learning.Work(night, plan, gather(store), gate=mode)
    card = AdapterCard(work.adapter, embedded.name, embedded.sha256, None, "dpo", "w", "d", {}, {}, 0, {})
    found = HeldOut(9, 12, looked=True, alpha=0.01, promotes=True)
    verdict = gate.judge(found, Kl(0.0), 1.0, [], 1.0) if mode == "on" else None
    if forgotten:
        privacy.forget(store, {"rita": world.rita, "cora": world.cora}[forgotten])

    said = pipeline.announce(store, work, card, "learned", verdict, Agreement(0.0, 0.0, 1.0, 0.0, 0.0), None, found)

    assert adapters.serving(store) == (None if forgotten else work.adapter)
    assert ("forgotten meanwhile" in said) == bool(forgotten)
    assert privacy.to_retrain(store) == [work.adapter] * bool(forgotten)
    assert nights.night(store, night).verdict == ("candidate" if forgotten else "promoted" if verdict else None)


def test_reward_models_that_were_made_meanwhile_do_not_outlive_their_night(world: World, embedded: Base) -> None:
    store = world.store
    world.say(CASES["tie"], world.rita)
    night = night_begun(store, embedded, "reward")
    privacy.forget(store, world.rita)
    folder = nights.reward_models_of(store, night)
    folder.mkdir(parents=True)
    nights.end_night(store, night, "done", "reward models")
    assert not folder.exists()


def test_what_judges_is_what_stands_when_it_judges(world: World) -> None:
    store = world.store
    for case in ("thumb", "choice", "tie", "label"):
        world.say(CASES[case], world.rita)
    gathered = gather(store)
    assert still_standing(store, gathered) == gathered
    CASES["thumb"].take_back(store, world.rita, world.left, world.right)
    assert [len(getattr(still_standing(store, gathered), kind)) for kind in KINDS] == [0, 0, 1, 1]
    users.set_conversation_consent(store, world.cora, world.conversation, False)
    assert len(still_standing(store, gathered)) == 0


def test_a_list_of_an_older_program_names_who_rated_and_perhaps_everybody_else(world: World, embedded: Base) -> None:
    store = world.store
    world.say(CASES["choice"], world.rita)
    night = nights.start_night(store, "dpo", {}, 1)
    store.insert("night_people", {"night": night, "user": world.rita.id, "examples": 1})
    adapter = adapter_of(store, night, "dpo")
    assert privacy.trained_on(store, world.rita) == ((adapter,), ())
    assert privacy.trained_on(store, world.cora) == ((), (adapter,))
    assert privacy.trained_on(store, person(store, "nobody")) == ((), ())


def test_ties_alone_say_which_reply_is_better_to_no_method(store: Database, embedded: Base) -> None:
    from training.night.plan import planner
    from training.night.plan.stages import Wishes

    me = person(store, "me")
    for number in range(8):
        _, left, right = two_replies(store, me, f"question {number}")
        compare(store, me, left, right, "tie")
    for method, something, learns in (
        ("reward", True, "preferences and thumbs of both kinds"),
        ("auto", False, "preferences and thumbs"),
    ):
        plan, examples = planner.make_plan(store, embedded, Wishes(method, {}, False))
        assert (len(examples), examples.people()) == ((8, {me.id: 8}) if something else (0, {}))
        reason = planner.why_nothing(store, examples, plan, again=False)
        assert reason == f"nothing to learn from: all 8 comparisons are ties, and {method} learns from {learns}"


# Over HTTP


def test_a_rater_is_shown_no_more_of_who_said_no_and_nothing_of_it_leaves(
    web: TestClient, store: Database, tmp_path: Path
) -> None:
    cora, rita = token_of(store, "cora", "chatter"), token_of(store, "rita", "rater")

    def send(who: dict[str, str], path: str, body: Any, under: dict[str, str] | None = None) -> Any:
        return web.post(f"/api/{path}", json=body, headers=who | (under or key()))

    for who in (cora, rita):
        assert send(who, "consent", {"given": True}).status_code == 200
    pair = send(cora, "pairs", {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 8, "seed": 1}).json()
    left, right = pair["left"]["reply"], pair["right"]["reply"]
    once = key()
    asked = send(rita, "questions", None, once).json()
    assert asked["messages"] == [{"role": "user", "content": SECRET}]
    assert send(rita, "questions", None, once).json() == asked
    bodies = {
        "votes": {"reply": left, "value": 1},
        "comparisons": {"left": left, "right": right, "choice": "left"},
        "rankings": {"replies": [left, right], "ranks": [1, 2]},
        "corrections": {"reply": left, "text": "I will keep it."},
        "critiques": {"reply": left, "text": "Too short."},
        "labels": {"reply": left, "label": "demonstration"},
    }
    assert set(bodies) == {kind.table for kind in spoken()}
    for path, body in bodies.items():
        assert send(rita, path, body).status_code == 200
    assert len(gather(store)) > 0
    assert SECRET not in json.dumps(store.rows("SELECT answer FROM answered_requests WHERE user = 2"))

    assert send(cora, "consent", {"given": False}).status_code == 200

    assert (send(rita, "questions", None).json(), send(rita, "questions", None, once).json()) == (None, None)
    before = counts(store)
    for path, body in bodies.items():
        answer = send(rita, path, body)
        assert (answer.status_code, "ask for another question" in answer.json()["error"]) == (400, True)
        assert send(cora, path, body).status_code == 200  # one's own
    assert counts(store) == {table: count + 1 for table, count in before.items()}
    assert len(gather(store)) == 0
    for name in writable():
        files.write(tmp_path / f"{name}.jsonl", export.rows(store, FORMATS[name], Counter()))
        assert "4711" not in (tmp_path / f"{name}.jsonl").read_text()
    mine = web.get("/api/me", headers=rita)
    assert (mine.status_code, "4711" in mine.text, len(mine.json()["said"]) >= 6) == (200, False, True)
    assert web.get(f"/api/replies/{left}/feedback", headers=rita).status_code == 200


def test_a_question_that_an_older_program_kept_whole_is_forgotten_too(world: World) -> None:
    store = world.store
    asked = questions.next_question(store, world.rita)
    assert asked is not None
    kept = {"question": {"id": asked.id, "messages": [{"role": "user", "content": SECRET}]}}
    idempotency.once(store, world.rita, "a key", {}, lambda: kept)
    privacy.forget(store, world.cora)
    assert idempotency.once(store, world.rita, "a key", {}, dict) == ({"question": None}, True)
    store.checkpoint()
    assert b"4711" not in store.path.read_bytes()
