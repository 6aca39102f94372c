"""Sources of reward: what each says of a reply, how several are mixed, and a night that learns by them."""

import json
import math
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.kinds.vote import UP, vote
from feedback.messages import Message
from feedback.records import nights
from tests.conftest import two_replies
from tests.helpers.nights import run
from tests.training.test_night import last, say
from training.algorithms import registry as methods
from training.data.tokenize import NothingFits
from training.model.packing import Row
from training.model.reward_heads import RewardModels
from training.rewards import mixing, registry
from training.rewards.base import RewardContext, Sampled, Source
from training.rewards.models import require_knowing

POLICY = ["checkpoint_every=1", "steps=2", "prompts=2", "replies=4", "max_completion_length=8", "truncated=keep"]
POLICY += ["learning_rate=1e-3", "kl_budget=50", "precision=float32", "least_reward_accuracy=0"]


def no_models(night: int = 0) -> RewardModels:
    raise AssertionError("nobody asked for reward models")


def sampled(*texts: str, asked: str = "Name a bird.") -> Sampled:
    replies = [[at + 1] for at in range(len(texts))]
    return Sampled((Message("user", asked),), Row([0], replies), texts, (True,) * len(texts))


def scores(said: str, *texts: str, folder: Path = Path(), asked: str = "Name a bird.") -> list[float]:
    """What sources say of replies to one prompt."""
    reward = mixing.built(registry.asked(said), RewardContext(no_models, no_models, folder))
    return [round(each, 4) for each in reward([sampled(*texts, asked=asked)])[0].tolist()]


def test_valid_json_scores_one_and_a_schema_may_be_asked_for(tmp_path: Path) -> None:
    texts = ('{"bird": "wren"}', '```json\n{"bird": 1}\n```', "[1]", "wren", '"wren"', '{"bird"', "[" * 10_000)
    assert scores("json", *texts) == [1, 1, 1, 0, 0, 0, 0]
    schema = {"type": "object", "properties": {"bird": {"type": "string"}}, "required": ["bird"]}
    (tmp_path / "bird.json").write_text(json.dumps(schema))
    assert scores("json:bird.json", *texts, folder=tmp_path) == [1, 0, 0, 0, 0, 0, 0]
    (tmp_path / "odd.json").write_text('{"type": "birds"}')
    with pytest.raises(Refused, match=r"odd\.json is no JSON schema"):
        scores("json:odd.json", "a", folder=tmp_path)
    with pytest.raises(Refused, match=r"there is no file none\.json in"):
        scores("json:none.json", "a", folder=tmp_path)


def test_a_reply_in_the_asked_language_scores_higher() -> None:
    german, english = "Der Zaunkönig ist ein kleiner Vogel in Europa.", "The wren is a small bird that lives in Europe."
    asked = "Welcher kleine Vogel lebt in fast ganz Europa, auch im Winter?"
    first, second = scores("language", german, english, asked=asked)
    assert first > 0.99
    assert second < 0.01
    assert scores("language:en", german, english, asked=asked)[1] > 0.99
    assert scores("language", german, english, asked="Ok?") == [0, 0]  # unsure of what was asked, it says nothing
    with pytest.raises(Refused, match="language:CODE is a code such as en"):
        registry.asked("language:english")


def test_a_length_outside_the_band_scores_by_how_far_it_is() -> None:
    texts = ("one two", "one two three four", "", "one " * 16, "鸟是什么呢", "don't stop me-now")
    assert scores("length:2-4", *texts) == [1, 1, 0, 0.25, 0.8, 1]
    for wrong in ("5-2", "0-3", "a-b", "3", "1-9999999"):
        with pytest.raises(Refused, match="length:LOW-HIGH names two numbers of words"):
            registry.asked(f"length:{wrong}")


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("list", "Here:\n- a wren\n- a robin", "A wren, and a robin."),
        ("list", "1. wren\n2) robin", "1. wren"),
        ("plain", "A wren.", "A **wren**."),
        ("plain", "3 * 4 = 12", "# Birds"),
        ("one-sentence", "A wren is 9.5 cm long!", "A wren"),
        ("one-sentence", "什么是鸟？", "A wren. A robin."),
        ("one-line", "A wren.\n", "A wren.\nA robin."),
        ("question", "A wren? ", "A wren."),
    ],
)
def test_rules_of_form(rule: str, good: str, bad: str) -> None:
    assert scores(f"form:{rule}", good, bad) == [1, 0]


def test_several_are_normalised_within_a_prompt_weighted_and_normalised_over_the_batch() -> None:
    # Each source's scores become +-1 within its prompt, whatever their scale: 2 x (1, -1) + 1 x (-1, 1) = (1, -1); the
    # second prompt has no spread in the first source: 1 x (-1, 1). Over the batch the mean is 0, the deviation 1.
    loud = [torch.tensor([100.0, 0.0]), torch.tensor([7.0, 7.0])]
    quiet = [torch.tensor([0.0, 0.01]), torch.tensor([0.0, 0.01])]
    mixed = mixing.mixed([loud, quiet], [2.0, 1.0])
    expected = [torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])]
    assert all(torch.allclose(one, other, atol=0.05) for one, other in zip(mixed, expected, strict=True))
    # What says nothing of a reply changes nothing: the other source decides.
    nothing = [torch.tensor([math.nan, math.nan]), torch.tensor([math.nan, 1.0])]
    alone = mixing.mixed([nothing, quiet], [1.0, 1.0])
    assert all(torch.allclose(one, torch.tensor([-1.0, 1.0]), atol=0.05) for one in alone)
    assert not any(each.isnan().any() for each in alone)


def test_a_rare_rule_counts_as_much_as_a_common_one() -> None:
    # arXiv 2601.05242, section 3: of a raw sum the loud source decides, here by 0.9 for the first three replies. Each
    # normalised, one source is the other's opposite.
    easy, hard = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 0.1])
    sums = mixing.normalised(easy) + mixing.normalised(hard)
    assert torch.allclose(sums, torch.zeros(4), atol=5e-3)


def test_one_source_keeps_its_scale() -> None:
    register = Source("of tests", "for tests", lambda argument, context: lambda every: [torch.tensor([3.0, math.nan])])
    registry.register(register)
    try:
        assert scores("of tests", "a", "b") == [3, 3]
    finally:
        del registry._SOURCES["of tests"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "there is no source of reward ''; there are models, form, json, language, length, python, reward"),
        ("modles", "there is no source of reward 'modles'"),
        ("models=x", "the weight of a source of reward is a number from 0 to 1000, not in 'models=x'"),
        ("models=-1", "a number from 0 to 1000"),
        ("models=nan", "a number from 0 to 1000"),
        ("models=0,json=0", "every source of reward has the weight 0"),
        ("models:3", "a source of reward is models alone, not 'models:3'"),
        ("reward", "a source of reward is reward:NIGHT, not 'reward'"),
        ("reward:last", "reward:NIGHT names a night by its number, not 'last'"),
        ("form:poem", "form:RULE is one of list, plain"),
        ("python:score.py", "python:FILE.py#FUNCTION names a function, not 'score.py'"),
        ("python:../score.py#f", "without a folder, not '../score.py'"),
        ("python:/etc/score.py#f", "without a folder"),
        ("json:../a.json", "without a folder"),
    ],
)
def test_what_names_no_source_is_refused_before_a_night(said: str, why: str) -> None:
    with pytest.raises(Refused) as told:
        methods.parse_settings("rloo", [f"rewards={said}"])
    assert why in str(told.value)


def test_a_function_has_trls_form_and_its_faults_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def seen(prompts, completions, completion_ids, **more):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'Name a bird.'}]\n"
        "    texts = [said['content'] for (said,) in completions if said['role'] == 'assistant']\n"
        "    return [None if len(text) > 9 else len(text) + ids[0] for text, ids in zip(texts, completion_ids)]\n"
        "def few(prompts, completions, **more): return [1]\n"
        "def odd(prompts, completions, **more): return ['x' for _ in prompts]\n"
        "def endless(prompts, completions, **more): return [float('inf') for _ in prompts]\n"
        "def broken(prompts, completions, **more): raise KeyError('wren')\n"
        "nothing = 3\n"
    )
    (tmp_path / "ill.py").write_text("def")
    assert scores("python:mine.py#seen", "wren", "a", "very long indeed", folder=tmp_path) == [5, 3, 4]
    for said, why in (
        ("mine.py#few", "mine.py#few returned 1 numbers for 2 replies"),
        ("mine.py#odd", "mine.py#odd must return a list of numbers, one for each reply"),
        ("mine.py#endless", "returned a number that is not finite"),
        ("mine.py#broken", "mine.py#broken failed: KeyError: 'wren'"),
        ("mine.py#nothing", "there is no function 'nothing' in mine.py"),
        ("ill.py#f", "ill.py cannot be run: SyntaxError"),
    ):
        with pytest.raises(Refused) as told:
            scores(f"python:{said}", "a", "b", folder=tmp_path)
        assert why in str(told.value)
    folder = tmp_path / "rewards"
    folder.mkdir()
    (folder / "link.py").symlink_to(tmp_path / "mine.py")
    with pytest.raises(Refused, match=r"link\.py leads out of"):
        scores("python:link.py#seen", "a", folder=folder)


def steps_of(store: Database) -> list[dict[str, float]]:
    return nights.night_steps(store, last(store).id)


def test_a_night_learns_by_rules_alone_from_thumbs_alone(tmp_path: Path, tiny: Base) -> None:
    store = Database(tmp_path)
    me = users.local_owner(store)
    users.set_consent(store, me, True)
    for number in range(6):
        _, left, _ = two_replies(store, me, f"Name a bird, number {number}.")
        vote(store, me, left, UP)
    refused = run(tmp_path, tiny.name, "--method", "rloo", "--gate", "off", settings=POLICY)
    assert "all 6 thumbs are up, and rloo learns from preferences and thumbs of both kinds" in refused.stdout
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "short.py").write_text(
        "def score(prompts, completions, **more): return [-len(said['content']) for (said,) in completions]"
    )
    rules = "rewards=length:1-3=2,form:plain,python:short.py#score=0.5"
    done = run(tmp_path, tiny.name, "--method", "rloo", "--gate", "off", settings=[*POLICY, rules])
    assert done.returncode == 0, done.stderr
    assert (last(store).state, last(store).adapter) == ("done", f"night-{last(store).id:04d}")
    assert len(steps_of(store)) == 2
    assert not nights.reward_models_of(store, last(store).id).exists()
    absent = run(tmp_path, tiny.name, "--method", "rloo", "--again", settings=[*POLICY, "rewards=python:none.py#f"])
    assert (absent.returncode, "there is no file none.py in" in absent.stderr) == (2, True)
    store.close()


def test_a_night_learns_by_the_reward_models_of_an_earlier_one(tmp_path: Path, tiny: Base) -> None:
    store = say(tmp_path)
    few = ["ensemble_size=1", "checkpoint_every=1", "min_steps=2", "samples=4", "sample_tokens=4"]
    assert run(tmp_path, tiny.name, "--method", "reward", settings=few).returncode == 0
    made = last(store).id
    done = run(tmp_path, tiny.name, "--method", "rloo", "--gate", "off", settings=[*POLICY, f"rewards=reward:{made}"])
    assert done.returncode == 0, done.stderr
    assert last(store).state == "done"
    assert "reward_loss" not in steps_of(store)[0]
    assert not nights.reward_models_of(store, last(store).id).exists()
    none = run(tmp_path, tiny.name, "--method", "rloo", "--again", settings=[*POLICY, "rewards=reward:999"])
    assert (none.returncode, "night 999 has left no reward models" in none.stderr) == (1, True)
    store.close()


@pytest.mark.parametrize(
    ("metrics", "least", "why"),
    [
        ({}, 0.5, "nothing was held out to judge its reward models by"),
        (
            {"accuracy": 0.56, "pairs": 90, "low": 0.45, "high": 0.67},
            0.5,
            "are right on 56% of 90 held-out pairs (45% to 67%), and the lower bound must be above 50%; compare more",
        ),
        ({"accuracy": 0.57, "pairs": 1200, "low": 0.5, "high": 0.6}, 0.5, "right on 57% of 1,200 held-out pairs"),
        ({"accuracy": 0.6, "pairs": 200, "low": 0.53, "high": 0.67}, 0.5, ""),
        ({"accuracy": 0.6, "pairs": 200, "low": 0.53, "high": 0.67}, 0.55, "the lower bound must be above 55%"),
        ({"accuracy": 0.4, "pairs": 20, "low": 0.2, "high": 0.6}, 0, ""),
        ({}, 0, ""),
    ],
)
def test_a_policy_waits_for_reward_models_that_know_something(
    metrics: dict[str, float], least: float, why: str
) -> None:
    models = RewardModels(None, {})  # type: ignore[arg-type]
    models.metrics = metrics
    with pytest.raises(NothingFits, match=re.escape(why)) if why else nullcontext():
        require_knowing(models, least)


def test_a_night_whose_reward_models_may_know_nothing_keeps_them_and_says_so(tmp_path: Path, tiny: Base) -> None:
    store = say(tmp_path)
    done = run(tmp_path, tiny.name, "--method", "rloo", settings=[*POLICY[:-1], "ensemble_size=1"])
    assert done.returncode == 0, done.stderr
    assert (last(store).state, last(store).adapter) == ("nothing", None)
    assert last(store).reason.startswith(
        "the policy waits: nothing was held out to judge its reward models by; compare"
    )
    assert (nights.reward_models_of(store, last(store).id) / "card.json").is_file()
    store.close()


def test_nan_is_no_score() -> None:
    assert mixing.filled(torch.tensor([math.nan, 2.0, 4.0])).tolist() == [3, 2, 4]
    assert mixing.filled(torch.full((2,), math.nan)).tolist() == [0, 0]
    assert isinstance(mixing.normalised(torch.ones(3)), Tensor)
    assert mixing.normalised(torch.ones(3)).tolist() == [0, 0, 0]
