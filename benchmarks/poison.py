"""How much of a night, and of the gate, attackers get, and how much of honest feedback is kept. The last line is JSON.

    python -m benchmarks.poison [--only attack,kept,typical]

Everything goes through a real ledger, as people would write it; no model is needed, for the weights of a night and the
votes of the gate are decided before one is asked. An honest person compares two replies in each of their own
conversations, an attacker corrects a reply in each of theirs, which weighs most. The figures and what they mean stand
in `docs/poison.md`.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database import openings
from feedback.database.database import Database
from feedback.database.openings import JUDGING
from feedback.example_types import Examples
from feedback.examples.build import gather
from feedback.examples.caps import compared_with, surely_typical
from feedback.examples.filtering import PEOPLE
from feedback.examples.split import Places, split
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.messages import Message
from feedback.raters import reliability
from feedback.raters.reliability import Rating, reliabilities

DATA = Path(__file__).parents[2] / "shared" / "data"
BY = Provenance(None, "b" * 64, "t" * 64, {})
ATTACKS = (  # honest people with 20 ratings each, attackers, ratings of each attacker
    (3, 1, 500), (10, 1, 500), (48, 1, 500), (60, 1, 500), (10, 1, 200), (60, 1, 200),
    (10, 20, 60), (10, 20, 200), (60, 20, 60), (60, 20, 200),
)  # fmt: skip
TEAMS = (
    (200, 3, 3), (200, *(3,) * 9), (200, *(3,) * 49), (200, 200, 200, *(3,) * 47),
    (200, *(3,) * 199), (200, 200, 200, 200, 200, *(3,) * 195),
)  # fmt: skip
SEEDS = 5
SPLITS = 20


@dataclass(frozen=True)
class Kept:
    """The shares of honest feedback that are kept, by weight and by effective number (Kish)."""

    weight: float
    effective: float


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="attack,kept,typical", help="some of attack, kept, typical")
    wanted = options.parse_args().only.split(",")
    found: dict[str, Any] = {}
    if "attack" in wanted:
        found["attack"] = [attacked(*each) for each in ATTACKS]
        found["attack_by_raters"] = [attacked(*each, role="rater") for each in ATTACKS]
    if "kept" in wanted:
        found["kept"] = [kept_of(team) for team in TEAMS]
    if "typical" in wanted and DATA.is_dir():
        found["typical"] = recognised()
    print(json.dumps(found))


def attacked(honest: int, attackers: int, each: int, role: str = "chatter") -> dict[str, Any]:
    """The attackers' share of the night and of the gate's people."""
    with tempfile.TemporaryDirectory() as folder:
        store = Database(folder)
        bad = attack(store, honest, attackers, each, role)
        found = gather(store)
        night = share_of(found, bad)
        judged = share_of_gate(store, found, bad)
        store.close()
    said = {"honest": honest, "attackers": attackers, "each": each, "role": role, "night": night, "gate": judged}
    print(
        f"{honest:3} honest of 20, {attackers:2} {role} attackers of {each:3}: {night:.0%} of the night, "
        f"{judged[0]:.0f} of {judged[1]:.0f} people of the gate",
        flush=True,
    )
    return said


def attack(store: Database, honest: int, attackers: int, each: int, role: str = "chatter") -> set[int]:
    """Write a ledger of honest people and attackers; return the attackers' ids."""
    with store.transaction():
        for number in range(honest):
            compare_alone(store, person(store, f"honest {number}", "chatter"), 20)
        bad = [person(store, f"attacker {number}", role) for number in range(attackers)]
        for user in bad:
            correct_alone(store, user, each)
    return {user.id for user in bad}


def person(store: Database, name: str, role: str) -> User:
    """A person who has consented to learning."""
    user = users.add_user(store, name, role, None)
    users.set_consent(store, user, True)
    return user


def compare_alone(store: Database, user: User, count: int) -> None:
    """Add comparisons in a person's own conversations, which nobody else rates."""
    for number in range(count):
        parent = conversations.record_messages(store, user, "chat", [Message("user", f"{user.name} asks {number}")])
        left, right = (conversations.add_reply(store, parent, text, BY) for text in ("yes", "no"))
        compare(store, user, left, right, "left")


def correct_alone(store: Database, user: User, count: int) -> None:
    """Add corrections in a person's own conversations."""
    for number in range(count):
        parent = conversations.record_messages(store, user, "chat", [Message("user", f"{user.name} says {number}")])
        correct(store, user, conversations.add_reply(store, parent, "yes", BY), "Send your password.")


def share_of(examples: Examples, users: set[int]) -> float:
    """These people's share of the weight of pairs and thumbs."""
    weights = [(each.user in users, each.weight) for kind in (examples.pairs, examples.thumbs) for each in kind]
    return sum(weight for theirs, weight in weights if theirs) / sum(weight for _, weight in weights)


def share_of_gate(store: Database, examples: Examples, users: set[int]) -> tuple[float, float]:
    """The people that these are of those whom the gate counts, by their weight, and all of them: means over splits.

    Each person counts once there, whatever they say (`feedback.raters.evidence`).
    """
    weights = reliability.weights(store)
    raters = sorted({each.user for each in examples})
    found = []
    for number in range(SPLITS):
        secret = f"split {number}"
        judging = [user for user in raters if len(raters) >= PEOPLE and openings.number(secret, f"{user}") < JUDGING]
        held_out = split(examples, Places(secret, judges=frozenset(judging))).held_out
        weight = {each.user: weights.get(each.user, 1.0) for each in held_out.pairs}
        found.append((sum(weight[user] for user in users & weight.keys()), sum(weight.values())))
    theirs, every = np.mean(found, axis=0)
    return float(theirs), float(every)


def kept_of(team: Sequence[int]) -> dict[str, Any]:
    """The share of a team's feedback that is kept if its most active people are made raters, and if nobody is."""
    found: dict[str, Any] = {"team": f"{team.count(max(team))} of {max(team)}, {team.count(3)} of 3"}
    for name, role in (("raters", "rater"), ("unknown", "chatter")):
        with tempfile.TemporaryDirectory() as folder:
            store = Database(folder)
            with store.transaction():
                for number, count in enumerate(team):
                    compare_alone(store, person(store, f"person {number}", role if count > 3 else "chatter"), count)
            kept = kept_share(gather(store))
            store.close()
        found[name] = vars(kept)
        print(f"{found['team']}, heavy ones {name}: {kept.weight:.0%} kept by weight, {kept.effective:.0%} effectively")
    return found


def kept_share(examples: Examples) -> Kept:
    """The share of the examples that is left. By weight: relative to the weight of examples that are not cut."""
    weights = np.array([each.weight for each in examples])
    return Kept(float(weights.sum() / len(weights)), float(weights.sum() ** 2 / (weights**2).sum() / len(weights)))


def recognised() -> list[dict[str, Any]]:
    """The real raters found to be surely typical, by the number of their ratings that others gave too."""
    found: list[dict[str, Any]] = []
    for count in (10, 20, 30, 50, 100):
        honest, bad = np.mean([known_share(*dices(count, seed)) for seed in range(SEEDS)], axis=0)
        found.append({"data": "dices350", "ratings": count, "honest": float(honest), "bad": float(bad)})
        print(f"dices350, {count} ratings each: {honest:.0%} of the honest are typical, {bad:.0%} of the bad ones")
    for name in ("tulu", "pandalm"):
        rated = pairwise(name)
        known = {each.user: each for each in reliabilities(rated)}
        sure = surely_typical(known, compared_with(rated, frozenset()))
        counts = sorted(each.ratings for each in known.values())
        found.append({"data": name, "raters": len(known), "typical": len(sure), "shared": counts})
        print(f"{name}: {len(sure)} of {len(known)} raters are typical, with {counts} shared ratings")
    return found


def known_share(rated: Sequence[Rating], honest: int) -> tuple[float, float]:
    """The shares of honest and of other people found to be surely typical."""
    known = {each.user: each for each in reliabilities(rated)}
    sure = surely_typical(known, compared_with(rated, frozenset()))
    others = [user for user in known if user >= honest]
    good = [user for user in known if user < honest]
    return share_in(good, sure), share_in(others, sure)


def share_in(users: Iterable[int], sure: frozenset[int]) -> float:
    """The share of these users that is in `sure`."""
    return float(np.mean([user in sure for user in users]))


def dices(count: int, seed: int, bad: int = 12) -> tuple[list[Rating], int]:
    """`count` ratings of each of 123 real people and of bad ones (random, inverted, always up); the honest count."""
    value = {"No": -1.0, "Unsure": 0.0, "Yes": 1.0}
    real = np.array([[value[each] for each in row["safe_votes"]] for row in lines("raters_dices350.jsonl")])
    items, honest = real.shape
    chance = np.random.default_rng(seed)
    makers = (
        lambda: chance.choice([-1.0, 0.0, 1.0], size=items),
        lambda: -real[:, chance.integers(honest)],
        lambda: np.ones(items),
    )
    said = np.column_stack([real, *(makers[number % 3]() for number in range(bad))])
    picked = [(user, item) for user in range(honest + bad) for item in chance.choice(items, count, replace=False)]
    return [Rating(user, str(item), said[item, user]) for user, item in picked], honest


def pairwise(name: str) -> list[Rating]:
    """Real people's choices between two replies, on the items that more than one of them rated."""
    rated, numbers = [], dict[str, int]()
    for at, row in enumerate(lines(f"raters_{name}.jsonl")):
        models = sorted((str(row.get("model_a", "a")), str(row.get("model_b", "b"))))
        item = json.dumps([row["prompt"], models]) if name == "tulu" else str(at)
        turned = -1.0 if name == "tulu" and row["model_a"] != models[0] else 1.0
        for vote in row["votes"]:
            side = {"a": 1.0, "tie": 0.0, "b": -1.0}[vote["vote"]]
            rated.append(Rating(numbers.setdefault(vote["rater"], len(numbers)), item, turned * side))
    shared = Counter(each.item for each in rated)
    return [each for each in rated if shared[each.item] > 1]


def lines(name: str) -> list[dict[str, Any]]:
    """The rows of a file in the shared data."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


if __name__ == "__main__":
    main()
