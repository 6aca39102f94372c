"""How far feedback can be poisoned: bounds for one person, and what they cost honest people; on a real ledger."""

import random
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlite_utils

from benchmarks.poison import attack, compare_alone, correct_alone, dices, kept_share, known_share, share_of
from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.database import migrations, openings
from feedback.database.database import Database
from feedback.errors import TooOften
from feedback.example_types import Examples
from feedback.examples.build import gather
from feedback.examples.caps import PROBATION, Bounds, capped, newcomer_share, of_raters
from feedback.examples.split import places, secret_of, split
from feedback.formats import load
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.critique import critique
from feedback.kinds.label import label
from feedback.kinds.ranking import rank
from feedback.kinds.tally import counts
from feedback.kinds.vote import DOWN, NONE, UP, standing_vote, vote
from feedback.messages import Message
from feedback.raters import evidence
from feedback.records import settings
from feedback.upkeep import backup, privacy
from tests.conftest import BY_BASE, two_replies
from tests.feedback.test_split import QUESTIONS, pair
from training.night.plan import planner
from training.night.plan.stages import Wishes


def person(store: Database, name: str, role: str = "chatter") -> User:
    user = users.add_user(store, name, role, None)
    users.set_consent(store, user, True)
    return user


def weight_of(examples: Examples, user: User) -> float:
    (weight,) = {each.weight for each in examples if each.user == user.id}
    return weight


def share(examples: Examples, users: Iterable[int]) -> float:
    weights = [(each.user in set(users), each.weight) for each in examples]
    return sum(weight for theirs, weight in weights if theirs) / sum(weight for _, weight in weights)


# How much of a night


@pytest.mark.parametrize(
    ("honest", "attackers", "each", "most"), [(3, 1, 500, 0.3), (10, 1, 500, 0.1), (48, 1, 500, 0.03)]
)
def test_one_account_carries_a_bounded_share_of_a_night(store, honest, attackers, each, most):
    bad = attack(store, honest, attackers, each)
    found = gather(store)
    assert share(found, bad) <= newcomer_share(honest + 1) + 1e-9
    assert share_of(found, bad) <= most
    assert len(found.pairs) > 20 * honest  # nothing is thrown away; it weighs less


@pytest.mark.parametrize("people_", [3, 10, 50, 200])
def test_at_least_half_of_an_honest_teams_feedback_is_kept_where_one_person_says_most(store, people_):
    with store.transaction():
        compare_alone(store, person(store, "heavy", "rater"), 200)
        for number in range(people_ - 1):
            compare_alone(store, person(store, f"light {number}"), 3)
    kept = kept_share(gather(store))
    assert kept.weight >= 0.5
    assert kept.effective >= 0.5


def test_a_person_alone_and_two_who_say_the_same_lose_nothing(store):
    compare_alone(store, person(store, "ann"), 30)
    assert {each.weight for each in gather(store).pairs} == {1.0}
    compare_alone(store, person(store, "ben"), 30)
    assert {each.weight for each in gather(store).pairs} == {1.0}


def test_the_shares_hold_whatever_people_say():
    chance = random.Random(0)
    for count in (2, 3, 4, 10, 48, 60, 250):
        named = frozenset(range(0, count, 7))
        bounds = Bounds(count, named)
        for sums in (
            {user: 1.0 + 1000 * (user < 3) for user in range(count)},
            dict.fromkeys(range(count), 1.0),
            {user: 1.5 ** min(user, 60) for user in range(count)},
            {user: chance.paretovariate(1) for user in range(count)},
        ):
            kept = {user: sums[user] * factor for user, factor in capped(sums, bounds).items()}
            total = sum(kept.values())
            for user, own in kept.items():
                most = max(bounds.share(user) * total, bounds.kept(user) * sums[user])
                assert own <= most * (1 + 1e-6)
                assert own > 0
            assert any(kept[user] == pytest.approx(sums[user]) for user in sums)


def test_the_bounds_worked_by_hand():
    assert [newcomer_share(count) for count in (1, 2, 3, 10, 75, 1000)] == [0.5, 0.5, 0.5, 0.15, 0.02, 0.02]
    # Of 200, 3 and 3: 3 is the half of 6, and half of 200 is what somebody keeps whom an operator made a rater.
    assert capped({1: 200.0, 2: 3.0, 3: 3.0}, Bounds(3))[1] == pytest.approx(6 / 200)
    assert capped({1: 200.0, 2: 3.0, 3: 3.0}, Bounds(3, frozenset({1})))[1] == pytest.approx(0.5)
    # Ten people, one of them typical: a third of x + 90 is x = 45.
    found = capped({0: 200.0, **dict.fromkeys(range(1, 10), 10.0)}, Bounds(10, typical=frozenset({0})))
    assert found[0] == pytest.approx(45 / 200)
    assert capped({1: 500.0}, Bounds(1)) == {1: 1.0}


def test_who_ranks_and_who_compares_reach_their_share_with_as_much_said(store):
    """Twelve comparisons and four rankings of four are equal shares of two, and neither person is cut."""
    ann, ben = person(store, "ann"), person(store, "ben")
    compare_alone(store, ann, 12)
    for number in range(4):
        parent = conversations.record_messages(store, ben, "chat", [Message("user", f"{number}: rank these")])
        replies = [conversations.add_reply(store, parent, text, BY_BASE) for text in ("one", "two", "three", "four")]
        rank(store, ben, replies, [1, 2, 3, 4])
    found = gather(store)
    assert {each.weight for each in found.pairs if each.user == ann.id} == {1.0}
    assert {each.weight for each in found.pairs if each.user == ben.id} == {0.5}
    assert share(found, [ben.id]) == pytest.approx(0.5)


def test_a_night_that_learns_from_some_kinds_bounds_their_shares(store, embedded):
    with store.transaction():
        for number in range(9):
            user = person(store, f"thumbs {number}")
            for _ in range(10):
                _, left, _ = two_replies(store, user, f"{user.name} {random.random()}")
                vote(store, user, left, UP)
        for number in range(3):
            correct_alone(store, person(store, f"corrects {number}"), 3)
        bad = person(store, "bad")
        correct_alone(store, bad, 100)
    _, examples = planner.make_plan(store, embedded, Wishes("sft", {}, False))
    assert share(examples, [bad.id]) <= newcomer_share(4) + 1e-9


def test_newcomers_weigh_less_until_somebody_established_has_rated_the_same(store):
    with store.transaction():
        ann, ben, new = person(store, "ann", "rater"), person(store, "ben"), person(store, "new")
        for number in range(12):
            shared_choice(store, [ann, ben], f"both see {number}")
        compare_alone(store, new, 12)
    found = gather(store)
    assert weight_of(found, ben) == weight_of(found, ann) == 1.0
    assert weight_of(found, new) == pytest.approx(PROBATION, abs=0.01)


def test_accounts_that_only_agree_with_each_other_stay_newcomers_beside_a_rater(store):
    with store.transaction():
        ann, ben = person(store, "ann", "rater"), person(store, "ben")
        clique = [person(store, f"clique {number}") for number in range(3)]
        for number in range(12):
            shared_choice(store, [ann, ben], f"both see {number}")
            shared_choice(store, clique, f"the clique sees {number}")
    bounds, weights = of_raters(store, [each.id for each in (ann, ben, *clique)])
    assert weights[ben.id] == 1.0
    assert [weights[each.id] for each in clique] == [PROBATION] * 3
    assert not bounds.typical & {each.id for each in clique}


def shared_choice(store: Database, users: list[User], said: str) -> None:
    """All these people choose the same of two replies, which belong to the first of them; the others were asked."""
    parent, left, right = two_replies(store, users[0], said)
    better, worse = (left, right) if random.Random(said).random() < 0.5 else (right, left)
    for user in users:
        row = {"kind": "comparison", "parent": parent, "replies": [left, right], "why": "test", "propensity": 1.0}
        store.insert("questions", row | {"id": f"{user.id} {parent}", "user": user.id, "asked_at": "2026-01-01"})
        compare(store, user, better, worse, "left")


def test_typical_raters_are_recognised_and_careless_ones_are_not(shared_data):
    assert known_share(*dices(20, seed=0))[0] > 0.4
    for seed in range(3):
        honest, bad = known_share(*dices(50, seed))
        assert honest > 0.6
        assert bad == 0


def test_imported_raters_never_weigh_more_than_people_and_those_without_a_name_count_as_one(store, tmp_path):
    for number in range(2):
        rows = [f'{{"prompt": "Q{number} {n}", "chosen": "yes", "rejected": "no"}}\n' for n in range(40)]
        (tmp_path / f"{number}.jsonl").write_text("".join(rows))
        load.import_file(store, tmp_path / f"{number}.jsonl")
    alone = gather(store)
    assert {each.weight for each in alone.pairs} == {1.0}  # without people nobody is to be protected

    users = [person(store, f"person {number}") for number in range(10)]
    for user in users:
        compare_alone(store, user, 5)
    found = gather(store)

    imported = {each.user for each in found.pairs if each.by == "imported"}
    assert len(imported) == 2
    assert share(found, imported) <= newcomer_share(10) + 1e-9
    assert max(each.weight for each in found.pairs if each.by == "imported") < weight_of(found, users[0]) == 1.0


# How much of the gate


def judged(people: dict[int, list[float]]) -> evidence.Votes:
    """What people's conversations say: 1 for the candidate, 0 against it."""
    return evidence.votes_of(people, {})


def test_one_person_of_several_cannot_promote_and_one_person_alone_can():
    alone = {1: [1.0] * 60}
    assert evidence.promotes(judged(alone), 0.0023)
    beside = alone | {2: [0.0, 0.0], 3: [0.0, 0.0]}
    assert float(evidence.preference(judged(beside)).gain) == pytest.approx(1 / 3 - 1 / 2)
    assert not evidence.promotes(judged(beside), 0.5)


def test_the_gate_is_as_sure_of_a_candidate_as_of_what_serves():
    chance = random.Random(1)
    people = {user: [chance.randrange(3) / 2 for _ in range(chance.randrange(8, 40))] for user in range(12)}
    turned = {user: [1 - each for each in said] for user, said in people.items()}
    found, mirrored = (evidence.preference(judged(each)) for each in (people, turned))
    assert float(found.gain) == pytest.approx(-float(mirrored.gain))
    assert (float(found.odd), float(found.error)) == (float(mirrored.odd), pytest.approx(float(mirrored.error)))


def test_the_gate_stays_valid_where_one_person_says_most():
    chance, promoted = random.Random(0), 0
    for _ in range(400):  # a candidate that is no better: every conversation is a fair coin
        counts = {0: 120, **dict.fromkeys(range(1, 9), 6)}
        votes = judged({user: [chance.choice((0.0, 1.0)) for _ in range(count)] for user, count in counts.items()})
        promoted += bool(evidence.promotes(votes, 0.025))
    assert promoted / 400 <= 0.025 + 0.02


# Where a conversation belongs


def test_two_data_folders_place_the_same_openings_otherwise_and_each_for_ever(tmp_path):
    command = (
        "import sys; from feedback.database.database import Database; [Database(each).close() for each in sys.argv[1:]]"
    )
    folders = [str(tmp_path / name) for name in ("one", "two")]
    subprocess.run([sys.executable, "-c", command, *folders], check=True)
    parts = []
    for folder in folders * 2:
        store = Database(folder)
        assert len(secret_of(store)) == 64
        parts.append([places(store).part_of(pair(each)) for each in QUESTIONS])
        store.close()
    assert parts[0] == parts[2]
    assert parts[1] == parts[3]
    differ = sum(one != two for one, two in zip(parts[0], parts[1], strict=True))
    assert differ / len(QUESTIONS) == pytest.approx(1 - 0.75**2 - 0.15**2 - 0.1**2, abs=0.1)


def old_part(text: str) -> str:
    """As it was placed before there was a secret."""
    from hashlib import sha256

    opening = " ".join(text.casefold().split())[:200]
    place = int.from_bytes(sha256(f"conversation {opening}".encode()).digest()[:8]) / 2**64
    return "held_out" if place < 0.15 else "stopping" if place < 0.25 else "training"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A data folder of before there was a secret, with two hundred conversations."""
    db = sqlite_utils.Database(tmp_path / "nightschool.db")
    db.execute("PRAGMA synchronous = OFF")
    for step in migrations.steps.pending(db):
        if step.name >= "m0007":
            break
        step.fn(db)
        table = "_sqlite_migrations"
        db[table].insert({"migration_set": "nightschool", "name": step.name, "applied_at": "2026-01-01"}, alter=True)
    db.execute("INSERT INTO users (name, role, created_at) VALUES ('owner', 'operator', '2026-01-01')")
    for number, text in enumerate(QUESTIONS[:200]):
        db.execute(
            "INSERT INTO conversations (id, user, source, created_at) VALUES (?, 1, 'chat', '2026')", (str(number),)
        )
        row = (f"s{number}", str(number), None, "system", "Be kind.")
        asked = (f"m{number}", str(number), f"s{number}" if number % 2 else None, "user", text)
        for each in (row, asked) if number % 2 else (asked,):
            sql = "INSERT INTO messages (id, conversation, parent, role, content, created_at) VALUES (?,?,?,?,?,'2026')"
            db.execute(sql, each)
    db.conn.commit()
    db.close()
    return tmp_path


def test_what_was_placed_before_there_was_a_secret_keeps_its_place(before):
    store = Database(before)
    where = places(store)
    assert [where.part_of(pair(each)) for each in QUESTIONS[:200]] == [old_part(each) for each in QUESTIONS[:200]]
    assert [where.part_of(pair(each)) for each in QUESTIONS[200:]] != [old_part(each) for each in QUESTIONS[200:]]
    kept = " ".join(str(row) for row in store.rows("SELECT * FROM split_openings"))
    assert not any(each in kept for each in QUESTIONS[:200])
    store.close()


def test_a_backup_carries_where_things_were_placed(before, tmp_path):
    store = Database(before)
    said = [places(store).part_of(pair(each)) for each in QUESTIONS]
    backup.back_up(store, tmp_path / "copy")
    store.close()
    backup.restore(tmp_path / "copy", tmp_path / "again")
    again = Database(tmp_path / "again")
    assert [places(again).part_of(pair(each)) for each in QUESTIONS] == said
    again.close()


def test_forgetting_leaves_no_trace_of_how_a_conversation_opened(before):
    store = Database(before)
    names = {openings.name_of(secret_of(store), openings.alike(each)) for each in QUESTIONS[:200]}
    assert {row["opening"] for row in store.rows("SELECT opening FROM split_openings")} >= names
    other = users.add_user(store, "other", "operator", "hash")
    conversations.record_messages(store, other, "chat", [Message("user", QUESTIONS[0])])
    privacy.forget(store, users.local_owner(store))
    left = {row["opening"] for row in store.rows("SELECT opening FROM split_openings")}
    assert left & names == {openings.name_of(secret_of(store), openings.alike(QUESTIONS[0]))}
    store.close()


def test_an_attacker_who_knows_the_program_cannot_choose_what_judges(store):
    chosen = [text for text in (f"question {n}" for n in range(2000)) if old_part(text) == "held_out"]
    where = places(store)
    judging = sum(where.part_of(pair(text)) == "held_out" for text in chosen)
    assert judging / len(chosen) == pytest.approx(0.15, abs=0.08)


def test_a_split_keeps_every_example_and_people_who_judge(store):
    where = places(store, frozenset({7}))
    parts = split(Examples(tuple(pair(each, user=7) for each in QUESTIONS[:20])), where)
    assert len(parts.held_out.pairs) == 20


# How much in an hour


@pytest.fixture
def talker(store: Database) -> tuple[User, str, str]:
    """Somebody with two replies to rate, who may say five things an hour."""
    settings.set_setting(store, None, "feedback_per_hour", 5)
    user = person(store, "ann")
    _, left, right = two_replies(store, user)
    return user, left, right


def test_more_than_an_hours_feedback_is_refused_in_one_sentence_and_changes_nothing(store, talker):
    user, left, right = talker
    vote(store, user, left, UP)
    compare(store, user, left, right, "left")
    rank(store, user, [left, right], [1, 2])
    correct(store, user, left, "better")
    label(store, user, left, "untrue")
    before = counts(store)
    for more in (
        lambda: vote(store, user, right, DOWN),
        lambda: compare(store, user, left, right, "right"),
        lambda: rank(store, user, [left, right], [2, 1]),
        lambda: correct(store, user, right, "better"),
        lambda: critique(store, user, right, "too long"),
        lambda: label(store, user, right, "unsafe"),
    ):
        with pytest.raises(TooOften, match=r"5 pieces of feedback in the last hour.*go on in 60 min") as refused:
            more()
        assert 3590 <= refused.value.retry_after_s <= 3601
    assert counts(store) == before

    other = person(store, "ben")
    _, theirs, _ = two_replies(store, other)
    vote(store, other, theirs, UP)


def test_what_is_taken_back_is_always_heard(store, talker):
    user, left, right = talker
    for _ in range(5):
        vote(store, user, left, UP)
    vote(store, user, left, NONE)
    compare(store, user, left, right, "taken_back")
    rank(store, user, [left, right], [1, 2], taken_back=True)
    correct(store, user, left, "")
    critique(store, user, left, "")
    label(store, user, left, "untrue", given=False)
    assert standing_vote(store, user, left) is None


def test_an_hour_later_there_is_room_again(store, talker):
    user, left, _ = talker
    for _ in range(5):
        vote(store, user, left, UP)
    with store.transaction() as db:
        earlier = (datetime.now(UTC) - timedelta(minutes=61)).isoformat(timespec="milliseconds")
        db.conn.execute("UPDATE votes SET at = ? WHERE id = 1", (earlier,))
    vote(store, user, left, DOWN)
    with pytest.raises(TooOften):
        vote(store, user, left, UP)


def test_the_owner_of_a_machine_without_accounts_is_not_hurried(store, owner):
    settings.set_setting(store, None, "feedback_per_hour", 2)
    _, left, _ = two_replies(store, owner)
    for _ in range(4):
        vote(store, owner, left, UP)
    users.set_password(store, owner.name, "hash")
    with pytest.raises(TooOften):
        vote(store, owner, left, UP)


def test_the_bound_of_an_hour_is_found_by_an_index(store):
    from feedback.kinds.rate_limit import given

    plan = store.rows(f"EXPLAIN QUERY PLAN {given()}", {"user": 1, "since": "2026"})
    assert [row["detail"] for row in plan if "SCAN" in row["detail"]] == []
    assert sum("_by_user" in row["detail"] for row in plan) == 6


# What weights do in training


def test_what_is_kept_aside_says_when_to_stop_by_its_weight():
    import torch

    from training.data.kl import mean_and_error

    values = torch.tensor([1.0, 2.0, 4.0, -100.0])
    mean, error = mean_and_error(values[:3], torch.ones(3))
    assert (mean, error) == (pytest.approx(7 / 3), pytest.approx(float(values[:3].std()) / 3**0.5))
    assert mean_and_error(values, torch.tensor([1.0, 1.0, 1.0, 1e-6]))[0] == pytest.approx(7 / 3, abs=1e-3)
