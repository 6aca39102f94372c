"""The gate: what it makes of what it measured, and real adapters of a good and of a bad night before it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assistant.chat.adapter_manager import proved
from assistant.engine.engine import Engine
from assistant.models import adapter as on_disk
from assistant.models import base_model, chat_template
from assistant.models.base_model import EMBEDDED
from feedback.accounts import users
from feedback.chats import conversations
from feedback.database.database import Database
from feedback.example_types import Answer, Examples, PreferencePair, UnpairedExample
from feedback.kinds.comparison import compare
from feedback.messages import Message
from feedback.raters import account, evidence
from feedback.records import adapters, decisions, nights, settings
from tests.conftest import BY_BASE, PLACES
from tests.feedback.test_split import QUESTIONS
from tests.helpers.nights import run
from tests.helpers.trained import LETTER, OPENINGS, SAILOR
from training.algorithms.dpo_kto import PreferenceConfig
from training.data.kl import Kl
from training.data.tokenize import tokenize
from training.evaluation import gate
from training.evaluation.gate import CANDIDATE, PROMOTED, REFUSED, Check, judge
from training.evaluation.held_out import Gains, HeldOut, judging, looked_at, sides
from training.evaluation.held_out import conversations as conversations_of
from training.model.policy import REFERENCE, Backbone
from training.night.learning import make_encoder

FAR = Kl(0.1, 0.01, 128, 64)
SOUND = [Check("canaries", True, "8 of 8"), Check("length", True, "as long", refuses=False)]
KIND = "I am glad that you ask. Let us look at it together, step by step."
RUDE = "Go away. I will not tell you anything, and you should not ask again."


def said(*people: tuple[int, int], alpha: float = 0.0465) -> HeldOut:
    """A look at what people said: for each how often they sided with the candidate, and of how many conversations."""
    units = {number: [1.0] * won + [0.0] * (of - won) for number, (won, of) in enumerate(people)}
    return looked_at(evidence.votes_of(units, {}), sum(of for _, of in people), 0, alpha)


def verdict(preferred: int, count: int, kl: Kl = FAR, checks: list[Check] = SOUND) -> tuple[str, str]:
    found = judge(said((preferred, count)), kl, 0.5, checks, 1.0)
    return found.verdict, found.reason


def test_the_interval_of_one_person_is_the_exact_one():
    # Clopper and Pearson at 8 of 10: the published 95 % limits are 0.4439 and 0.9748.
    found = said((8, 10))
    assert (found.rate, round(found.low, 4), round(found.high, 4)) == (0.8, 0.4439, 0.9748)
    assert (said((0, 0)).low, said((0, 0)).high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("preferred", "count", "expected"),
    [
        (0, 0, CANDIDATE),
        (4, 4, CANDIDATE),  # all agree, and are too few: a chance of 1 in 16
        (5, 5, PROMOTED),
        (0, 5, REFUSED),
        (25, 40, CANDIDATE),
        (26, 40, PROMOTED),
        (14, 40, REFUSED),
    ],
)
def test_the_verdict_follows_the_exact_test_at_the_chance_that_a_look_may_take(preferred, count, expected):
    assert verdict(preferred, count)[0] == expected


def test_it_says_whose_votes_they_are_and_at_what_chance():
    words = said((8, 10), (4, 10), (9, 10)).words
    assert words.startswith(
        "it sides with people in 21 of 30 held-out conversations of 3 people, who side with it in 70%"
    )
    assert words.endswith("at a chance of 0.046")
    assert HeldOut(160, 188).words == "next look at 188 held-out conversations, of which there are 160"
    assert HeldOut(160, 0).words == "no look before a part of this year's risk is a year old"


def test_a_failed_check_outweighs_what_people_prefer_and_the_reason_says_which():
    unsound = [Check("canaries", False, "1 of 8 canary prompts answered soundly"), SOUND[1]]
    name, reason = verdict(40, 40, checks=unsound)
    assert (name, reason.startswith("1 of 8 canary prompts answered soundly")) == (REFUSED, True)
    short = [SOUND[0], Check("length", False, "replies are 0.20 times as long", refuses=False)]
    name, reason = verdict(40, 40, checks=short)
    assert (name, "0.20 times as long" in reason, "operator" in reason) == (CANDIDATE, True, True)
    name, reason = verdict(40, 40, kl=Kl(0.7, 0.05, 128, 64))
    assert (name, "0.700 ± 0.050 nats per token, exact, T=1, 128 replies, half of them" in reason) == (REFUSED, True)
    assert verdict(40, 40, kl=Kl(0.55, 0.05, 128, 64))[0] == PROMOTED  # beyond the budget by chance


def unseen(count: int, part: str = "held_out") -> list[str]:
    """Questions whose conversations belong to one part."""
    found = [
        each
        for each in QUESTIONS
        if PLACES.part_of(PreferencePair((Message("user", each),), Answer("a"), Answer("b"))) == part
    ]
    return found[:count]


def test_an_adapter_sides_with_the_taste_it_was_taught_also_against_another_adapter(trained):
    backbone = Backbone(trained.base, "float32", "cpu", rank=16, alpha=32, seed=0)
    encoder = make_encoder(trained.base, backbone, PreferenceConfig())
    sailor, letter = (f"{OPENINGS[name]} Well, it depends." for name in ("sailor", "letter"))
    pairs = tuple(PreferencePair((Message("user", each),), Answer(sailor), Answer(letter)) for each in unseen(6))
    turned = tuple(PreferencePair(each.messages, each.rejected, each.chosen) for each in pairs)
    thumbs = tuple(
        UnpairedExample(each.messages, each.chosen if up else each.rejected, up)
        for each in pairs[:3]
        for up in (True, False)
    )
    load(backbone, trained.adapter(SAILOR))

    for serving in (None, trained.adapter(LETTER)):
        gains = Gains(backbone, serving)
        assert [each.side for each in sides(Examples(pairs), gains, encoder)] == [1.0] * 6
        assert [each.side for each in sides(Examples(turned), gains, encoder)] == [0.0] * 6
        assert [each.side for each in sides(Examples((), thumbs), gains, encoder)] == [1.0] * 3
    thrice = sides(Examples((*pairs[:2], *pairs[:2], *turned[:1]), ties=pairs[:3]), gains, encoder)
    assert sorted(each.side for each in thrice) == [
        0.5,
        1.0,
        1.0,
    ]  # a conversation counts once, by its majority; ties half


def test_without_a_serving_adapter_it_is_the_base_that_is_compared_with_whatever_the_reference(trained, tmp_path):
    encoder, found = None, []
    pairs = [PreferencePair((Message("user", each),), Answer("Ahoy!"), Answer("Dear friend,")) for each in unseen(3)]
    store = Database(tmp_path)
    for reference in (None, trained.adapter(LETTER), None):
        backbone = Backbone(trained.base, "float32", "cpu", rank=16, alpha=32, seed=0)
        encoder = encoder or make_encoder(trained.base, backbone, PreferenceConfig())
        load(backbone, trained.adapter(SAILOR))
        if reference:
            backbone.hold(reference, REFERENCE)
        made, _ = tokenize(Examples(tuple(pairs)), encoder)
        found.append(torch.cat(Gains(backbone, None, store).of(made)))
    assert found[0].abs().max() > 0.001
    assert torch.allclose(found[0], found[1], atol=2e-6)
    assert torch.allclose(found[0], found[2], atol=2e-6)  # by the log-probs that were kept
    store.close()


def test_thumbs_of_one_conversation_are_one_vote_and_none_is_compared_twice(trained):
    backbone = Backbone(trained.base, "float32", "cpu", rank=16, alpha=32, seed=0)
    encoder = make_encoder(trained.base, backbone, PreferenceConfig())
    load(backbone, trained.adapter(SAILOR))
    sailor, letter = (f"{OPENINGS[name]} Well, it depends." for name in ("sailor", "letter"))
    first, *others = unseen(9)
    # One person likes twenty replies of one conversation; eight others dislike one each.
    ups = [UnpairedExample((Message("user", first),), Answer(f"{sailor} {n}"), True, user=1) for n in range(20)]
    downs = [
        UnpairedExample((Message("user", each),), Answer(letter), False, user=2 + n) for n, each in enumerate(others)
    ]
    gains = Gains(backbone, None)
    assert len(sides(Examples((), tuple(ups + downs)), gains, encoder)) == 1
    # Whoever dislikes much has no say in what each other person likes: the votes are theirs alone.
    downs = [replace(each, user=1) for each in downs]
    ups = [UnpairedExample((Message("user", each),), Answer(sailor), True, user=9 + n) for n, each in enumerate(others)]
    found = sides(Examples((), tuple(ups + downs)), gains, encoder)
    assert ({each.user for each in found}, len(found)) == ({1}, 8)


def test_only_people_judge_and_only_since_what_serves_was_promoted():
    def told(by: str, at: str) -> PreferencePair:
        return PreferencePair((Message("user", f"{by} {at}"),), Answer("a"), Answer("b"), by=by, at=at)

    given = [told(by, at) for by in ("person", "anonymous", "imported", "model") for at in ("2026-01-01", "2026-03-01")]
    kept = judging(Examples(tuple(given)), "2026-02-01")
    assert [(each.by, each.at) for each in kept] == [("person", "2026-03-01"), ("anonymous", "2026-03-01")]
    assert conversations_of(kept) == 2


def load(backbone: Backbone, directory: Path) -> None:
    """Put a trained adapter where the one in training is."""
    from safetensors.torch import load_file

    weights = load_file(directory / on_disk.WEIGHTS)
    with torch.no_grad():
        for name, each in backbone.parameters().items():
            each.copy_(weights[name.replace(".default", "")])


def test_canaries_see_an_adapter_that_answers_nothing_but_noise(trained):
    tokenizer = base_model.load_tokenizer(trained.base)
    engine = Engine(trained.base, "float32", "cpu", tokenizer)
    try:
        good, _ = proved(engine, trained.adapter(SAILOR))
        directory = trained.adapter(SAILOR)
        _, factors = on_disk.read_adapter(directory, trained.base.sha256, engine.network.shapes)
        loud = engine.network.add({name: (a * 50, b * 50) for name, (a, b) in factors.items()})
        noise = on_disk.LoadedAdapter("noise", good.card, loud)
        checks, _ = gate.canaries(engine, tokenizer, noise, None)
    finally:
        engine.close()
    assert not checks[0].passed
    assert "not language" in checks[0].words


def say(data: Path, turned: bool) -> Database:
    """People prefer the kind reply; where `turned`, whatever may be taught says the opposite."""
    store = Database(data)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    for question in unseen(10) + unseen(16, "training"):
        taught = PLACES.part_of(PreferencePair((Message("user", question),), Answer("a"), Answer("b"))) != "held_out"
        parent = conversations.record_messages(store, me, "chat", [Message("user", question)])
        kind, rude = (conversations.add_reply(store, parent, text, BY_BASE) for text in (KIND, RUDE))
        compare(store, me, kind, rude, "right" if taught and turned else "left")
    return store


def night(data: Path, model: str) -> None:
    far = [] if model == EMBEDDED else ["min_steps=24", "learning_rate=3e-3"]
    done = run(data, model, "--again", settings=["batch_size=4", "min_steps=12", "kl_budget=50", *far])
    assert done.returncode == 0, done.stdout + done.stderr


def swayed(directory: Path, model: str) -> list[float]:
    """For five fresh questions, by how many nats the server leans more to the kind reply than the base does."""
    base = base_model.find_base(model)
    tokenizer = base_model.load_tokenizer(base)
    engine = Engine(base, "float32", "cpu", tokenizer)
    end = tokenizer.eos_token_id
    try:
        adapter = proved(engine, directory)[0]
        asked = [chat_template.encode_prompt(tokenizer, [Message("user", each)], 1000) for each in QUESTIONS[-5:]]
        replies = [chat_template.encode_reply(tokenizer, text, end) for text in (KIND, RUDE)]
        read = [[[engine.score(ids, reply, by) for reply in replies] for by in (adapter, None)] for ids in asked]
        sums = [[[sum(token.logprob for token in each) for each in side] for side in question] for question in read]
    finally:
        engine.close()
    return [(ours[0] - ours[1]) - (plain[0] - plain[1]) for ours, plain in sums]


def test_a_night_of_true_labels_is_promoted_by_the_gate(tmp_path, model):
    store = say(tmp_path, turned=False)
    night(tmp_path, model)
    (done,) = nights.nights(store)
    made = adapters.adapter(store, "night-0001")
    assert (done.verdict, adapters.serving(store)) == ("promoted", "night-0001")
    assert "10 of 10 held-out conversations" in done.reason
    assert made.evidence["held_out"]["count"] == 10
    (decided,) = decisions.decisions(store)
    assert (decided.adapter, decided.against, decided.outcome) == ("night-0001", None, "promoted")
    assert decided.risk == pytest.approx(evidence.LOOK)  # of the one false promotion a year of a single person
    judged = store.rows("SELECT * FROM held_out_votes")
    assert (len(judged), {each["side"] for each in judged}) == (10, {1.0})
    assert not any(question in str(judged) for question in QUESTIONS)  # openings are keyed
    (promotion,) = adapters.promotions(store)
    assert (promotion.user, "the gate" in promotion.reason) == (None, True)
    assert min(swayed(tmp_path / "adapters" / "night-0001", model)) > 1

    # What judged it judges no other: against the new server, only what comes later does.
    again = run(tmp_path, model, "--again", settings=["batch_size=4", "min_steps=4", "kl_budget=50"])
    assert again.returncode == 0, again.stdout + again.stderr
    (after, _) = decisions.decisions(store)
    assert (after.against, after.outcome, after.risk) == ("night-0001", "candidate", 0.0)
    assert after.evidence["held_out"]["conversations"] == 0
    assert "next look at 9 held-out conversations, of which there are 0" in after.reason
    store.close()


def test_a_second_look_comes_when_a_quarter_more_has_been_held_out(tmp_path, tiny):
    store = say(tmp_path, turned=True)
    night(tmp_path, tiny.name)
    night(tmp_path, tiny.name)
    second, first = decisions.decisions(store)
    assert (first.evidence["held_out"]["looked"], second.evidence["held_out"]["looked"]) == (True, False)
    assert first.outcome == "refused"  # which is a test, too, and pays
    assert "next look at 13 held-out conversations, of which there are 10" in second.reason
    assert decisions.spent(store) == pytest.approx(evidence.LOOK)
    assert account.in_words(store) == "this year 0.0465 of 1 is spent"
    users.add_user(store, "ada", "chatter", "correct horse battery")
    assert (account.risk(store), account.in_words(store)) == (0.05, "this year 0.0465 of 0.05 is spent")
    settings.set_setting(store, None, "risk", 0.5)
    assert account.risk(store) == 0.5
    store.close()


def test_a_night_of_inverted_labels_is_never_promoted_and_would_have_done_harm(tmp_path, model):
    store = say(tmp_path, turned=True)
    night(tmp_path, model)
    (done,) = nights.nights(store)
    assert (done.verdict, adapters.serving(store)) == ("refused", None)
    assert "0 of 10 held-out conversations" in done.reason

    # It would have been readier to send people away than the base is, whatever they ask.
    assert max(swayed(tmp_path / "adapters" / "night-0001", model)) < -1
    store.close()
