"""The one KL of budgets, gate, cards, rehearsals and plots: exact, with an honest error, the same everywhere."""

import math
from collections.abc import Sequence

import pytest
import torch

from assistant.models.base_model import Base
from benchmarks import policies
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database, now
from feedback.examples.sampled import sampled
from feedback.examples.split import places
from feedback.messages import Message
from feedback.records import nights
from feedback.records.adapters import Adapter
from tests.feedback.test_split import QUESTIONS
from tests.helpers.trained import SAILOR
from tests.training.test_gate import SOUND, load
from training.algorithms.dpo_kto import PreferenceConfig
from training.data.kl import AT_LOOKS, AT_THE_END, STAGE, Kl, KlFromBase
from training.data.tokenize import TokenizedExample
from training.evaluation.gate import judge
from training.evaluation.held_out import HeldOut
from training.loop.early_stopping import Watch
from training.loop.state import TrainState
from training.model.packing import Row
from training.model.policy import Backbone
from training.night.learning import Trained, make_encoder
from training.night.pipeline import closing_metrics
from training.rehearsal import measure as rehearsal
from training.rollouts.own_samples import own_samples
from training.rollouts.sampler import Rollout, Sampler
from ui.operate import lists


def texts(count: int, seed: int) -> list[Row]:
    """Rows of one reply each, of 1 to 12 tokens."""
    chance = torch.Generator().manual_seed(seed)
    ids = [torch.randint(100, 40_000, (15,), generator=chance).tolist() for _ in range(count)]
    return [Row(each[:3], [each[3 : 4 + at % 12]]) for at, each in enumerate(ids)]


def as_examples(rows: Sequence[Row]) -> list[TokenizedExample]:
    return [TokenizedExample("comparison", list(row.prompt_ids), (list(row.replies[0]),), 1.0) for row in rows]


def moved(base: Base, by: float = 0.05) -> Backbone:
    """A policy some way from the base."""
    made = Backbone(base, torch.float32, "cpu", rank=4, alpha=8, seed=0)
    with torch.no_grad():
        for name, each in made.parameters().items():
            if "lora_B" in name:
                each.copy_(by * torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))))
    return made


@torch.no_grad()
def by_force(backbone: Backbone, row: Row) -> torch.Tensor:
    """KL(policy || base) at each reply token, from whole distributions in float64, one text at a time: (N,)."""
    ids = torch.tensor([[*row.prompt_ids, *row.replies[0]]])
    first = len(row.prompt_ids) - 1
    ours = backbone.causal(input_ids=ids).logits[0, first:-1].double().log_softmax(-1)
    with backbone.as_reference():
        theirs = backbone.causal(input_ids=ids).logits[0, first:-1].double().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def test_it_is_the_kl_by_brute_force_per_token_with_its_error_over_prompts(tiny):
    backbone, own, judged = moved(tiny), texts(5, seed=1), texts(4, seed=2)
    judged.append(Row(own[0].prompt_ids, [[7, 8, 9]]))  # two of the ten replies are to one prompt

    found = KlFromBase(backbone, own, as_examples(judged)).measure()

    backbone.to_plain()
    each = [by_force(backbone, row) for row in (*own, *judged)]
    each[0] = torch.cat([each[0], each.pop()])
    mean = torch.cat(each).mean()
    # A mean over tokens is a ratio of sums over prompts: sqrt(P / (P - 1) sum_p (s_p - mean n_p)^2) / sum_p n_p, where
    # the tokens of prompts weigh in by Kish's number instead of P.
    tokens = torch.tensor([float(len(kls)) for kls in each]).double()
    alike = (tokens / tokens.sum()).square().sum()
    apart = torch.stack([(kls - mean).sum() for kls in each])
    error = (apart.square().sum() / (1 - alike)).sqrt() / tokens.sum()
    assert mean > 0.05
    assert found.mean == pytest.approx(float(mean), rel=1e-5)
    assert found.error == pytest.approx(float(error), rel=1e-4)
    assert (found.replies, found.own) == (10, 5)


def test_its_error_is_the_spread_of_repeated_draws(tiny):
    backbone = moved(tiny)
    draws = [KlFromBase(backbone, [], as_examples(texts(24, seed))).measure() for seed in range(40)]
    spread = torch.tensor([each.mean for each in draws]).std()
    errors = torch.tensor([each.error for each in draws])
    # The standard deviation of 40 draws is itself good to 1 / sqrt(2 * 39) = 11 %: three of these.
    assert float(errors.mean()) == pytest.approx(float(spread), rel=0.34)


def test_half_are_own_samples_and_half_people_s_as_many_as_there_are():
    class Unread(Backbone):
        def __init__(self) -> None:
            pass

    def taken(own: int, judged: int) -> tuple[int, int]:
        made = KlFromBase(Unread(), texts(own, 1), as_examples(texts(judged, 2)))
        return sum(len(each.rows) for each in made._stages), sum(each.own for each in made._stages)

    assert taken(100, 100) == (AT_THE_END, AT_THE_END // 2) == (128, 64)
    assert taken(8, 100) == (16, 8)
    assert taken(0, 20) == (20, 0)
    assert taken(1, 1) == (2, 1)


def test_replies_to_one_prompt_are_read_in_one_go(tiny, monkeypatch):
    backbone, read = moved(tiny), []
    prompts = [row.prompt_ids for row in texts(20, 1)]
    own = [Row(prompt, [[at, at + 1]]) for prompt in prompts[:12] for at in (5, 9)]
    judged = [Row(prompt, [[at, at + 1, at + 2]]) for prompt in prompts[4:] for at in (30, 40)]
    kl = KlFromBase(backbone, own, as_examples(judged))
    hidden = backbone.hidden
    monkeypatch.setattr(backbone, "hidden", lambda rows: read.append(rows) or hidden(rows))

    found = kl.measure()

    assert (found.replies, found.own) == (48, 24)
    assert all(len(rows) == STAGE for rows in read)
    # Eight prompts have replies of both halves: those come first, all four replies of a prompt at once.
    of_each = [{tuple(row.prompt_ids) for row in rows} for rows in read]
    assert [len(each) for each in of_each] == [1] * 16 + [2] * 8  # as the base and as the policy
    assert set().union(*of_each[:16]) == {tuple(each) for each in prompts[4:12]}


def test_a_look_reads_no_more_replies_than_tell_the_side_of_the_budget(tiny):
    backbone = moved(tiny)
    kl = KlFromBase(backbone, texts(30, 1), as_examples(texts(30, 2)))
    near = kl.measure().mean
    assert (kl.look(near).replies, kl.look(near).own) == (AT_LOOKS, AT_LOOKS // 2) == (32, 16)
    assert kl.look(100.0).replies == STAGE
    with backbone.as_reference():
        assert kl.look(0.3) == Kl(0.0, 0.0, STAGE, STAGE // 2)


def test_the_same_adapter_and_replies_give_the_same_number_wherever_it_stands(trained, tmp_path):
    own, judged = texts(9, seed=3), texts(9, seed=4)
    backbone = Backbone(trained.base, torch.float32, "cpu", rank=16, alpha=32, seed=0)
    load(backbone, trained.adapter(SAILOR))
    kl = KlFromBase(backbone, own, as_examples(judged))

    # 1. a look while it trains; 2. the gate and the card; 3. a rehearsal; 4. the benchmark of policies
    state = TrainState.over(backbone.parameters(), 1e-4)
    looked = Watch(backbone, kl, kl.measure().mean, every=1).look(
        state
    )  # at its budget, which all replies are read for
    store = Database(tmp_path)
    night = nights.start_night(store, "dpo", {}, 1)
    nights.add_step(store, night, 1, {"loss": 0.5}, steps=1, eta_s=0.0, phase="training")
    card = closing_metrics(store, night, Trained(kl.measure(), 1.0, 1, ""))
    store.close()
    judgement = judge(HeldOut(0, 9), kl.measure(), 1.0, SOUND, 1.0)
    plain = Backbone(trained.base, torch.float32, "cpu", rank=1, alpha=1, seed=0)
    rehearsed = rehearsal.distance(plain, trained.adapter(SAILOR), own, judged)
    written, base = ([Rollout(row, (True,)) for row in rows] for rows in (own, judged))
    measured = policies.distance(backbone, written, base)

    assert (whole := kl.measure()).mean > 0.05
    found = [state.kl, card["kl"], judgement.evidence["kl_per_token"], rehearsed.mean, measured.mean]
    assert found[1:] == pytest.approx([whole.mean] * 4, abs=1e-6)
    assert looked.mean == state.kl
    assert (card["kl_error"], card["kl_replies"], card["kl_own"]) == (pytest.approx(whole.error, abs=1e-6), 18, 9)
    assert rehearsed.words == measured.words == whole.words == judgement.evidence["kl_words"]
    assert whole.words in judgement.evidence["checks"][0]["words"]


def test_an_operator_reads_what_it_is_and_of_an_older_adapter_the_number():
    def shown(**evidence: object) -> str:
        return lists.evidence(Adapter("a", None, 1, "dpo", "", "", "candidate", "", now(), dict(evidence)))

    found = judge(HeldOut(0, 9), Kl(0.21, 0.02, 128, 64), 1.0, SOUND, 1.0).evidence
    assert "<dd>0.210 ± 0.020 nats per token, exact, T=1, 128 replies, half of them its own</dd>" in shown(**found)
    assert "<dd>0.217 nats per token</dd>" in shown(kl_per_token=0.217)


def test_what_it_is_in_words():
    assert (
        Kl(0.21, 0.02, 128, 64).words == "0.210 ± 0.020 nats per token, exact, T=1, 128 replies, half of them its own"
    )
    assert Kl(0.21, math.nan, 1, 0).words == "0.210 nats per token, exact, T=1, 1 reply, none of them its own"


def test_a_trained_adapter_may_be_beyond_its_budget_by_chance_alone():
    assert Kl(0.33, 0.02, 128, 64).within(0.3)
    assert not Kl(0.35, 0.02, 128, 64).within(0.3)
    assert not Kl(0.31, math.nan, 1, 0).within(0.3)


# The models' own samples


def chats(data, base: Base, count: int, consent: bool = True, **by: object) -> Database:
    """Replies of a base that nobody has judged."""
    store = Database(data)
    me = users.local_owner(store)
    users.set_consent(store, me, consent)
    backbone = Backbone(base, torch.float32, "cpu", rank=1, alpha=1, seed=0)
    template = make_encoder(base, backbone, PreferenceConfig()).template_sha256
    told = {"adapter": None, "base_sha256": base.sha256, "template_sha256": template, "sampling": {}} | by
    for number in range(count):
        parent = conversations.record_messages(store, me, "chat", [Message("user", QUESTIONS[number])])
        author = Provenance(**told, token_ids=(300 + number, 400), logprobs=(-1.0, -1.0), sampled_logprobs=(-1.0, -1.0))
        conversations.add_reply(store, parent, "A reply.", author)
    return store


def recorded(store: Database, base: Base, before: str = ""):
    encoder = make_encoder(base, Backbone(base, torch.float32, "cpu", rank=1, alpha=1, seed=0), PreferenceConfig())
    return encoder, sampled(store, base.sha256, encoder.template_sha256, before or now(), places(store), 100)


def test_recorded_replies_of_consented_conversations_that_are_not_held_out_are_own_samples(tiny, tmp_path):
    store = chats(tmp_path / "a", tiny, 30)
    held_out = sum(places(store).part_of(each) == "held_out" for each in recorded(store, tiny)[1].demonstrations)
    _, found = recorded(store, tiny)
    assert held_out == 0
    assert 15 <= len(found) < 30
    assert len(recorded(store, tiny, before="2000-01-01T00:00:00+00:00")[1]) == 0  # none is of before then
    store.close()

    for name, store in (
        ("unwilling", chats(tmp_path / "b", tiny, 5, consent=False)),
        ("of another base", chats(tmp_path / "c", tiny, 5, base_sha256="other")),
        ("of another template", chats(tmp_path / "d", tiny, 5, template_sha256="other")),
    ):
        assert len(recorded(store, tiny)[1]) == 0, name
        store.close()


def test_what_is_trained_on_is_no_own_sample_and_the_base_draws_what_is_missing(tiny, tmp_path):
    store = chats(tmp_path, tiny, 20)
    encoder, found = recorded(store, tiny)
    opened = []

    def sampler() -> Sampler:
        opened.append(Sampler(tiny, "float32", "cpu", encoder.tokenizer))
        return opened[-1]

    class Closing:
        def __enter__(self) -> Sampler:
            return sampler()

        def __exit__(self, *error: object) -> None:
            opened[-1].close()

    lessons = [TokenizedExample("comparison", [1, 2, at], ([5, 6], [7]), 1.0) for at in range(10)]
    free = own_samples(found, lessons, encoder, Closing)
    assert len(free) == len(found)
    assert not opened

    taught = [TokenizedExample("demonstration", list(row.prompt_ids), (list(row.replies[0]),), 1.0) for row in free]
    drawn = own_samples(found, taught, encoder, Closing)
    assert len(opened) == 1
    assert len(drawn) == -(-len(taught) // 2)
    assert {tuple(row.prompt_ids) for row in drawn} <= {tuple(row.prompt_ids) for row in free}
    assert all(len(row.replies) == 1 for row in drawn)
    assert drawn == own_samples(found, taught, encoder, Closing)  # as a night that resumes draws them again
    store.close()
