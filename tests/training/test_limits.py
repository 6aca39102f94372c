"""Every setting of every method at its extremes: it runs, or is refused in one sentence before anything begins."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.models.base_model import Base
from feedback.errors import Refused
from feedback.records import nights
from tests.helpers.nights import run
from tests.training.test_night import last, one_sentence, say
from training.algorithms import registry
from training.algorithms.dpo_kto import PreferenceConfig
from training.algorithms.reward_model import RewardConfig
from training.algorithms.rloo import RlooConfig
from training.loop import limits
from training.loop.config import BOUNDS, Config
from training.night.plan import planner
from training.night.plan.stages import Wishes

ABSURD = ("99999999999999999999", "9" * 5000, "-1", "-99999999999999999999", "1e300", "-1e300", "nan", "inf", "-inf")
ABSURD += ("", " ", "seven", "1" * 100, "0x10", "1e-300", "[]", "\u2603")
SMALL = {  # what makes a night of that method as small as one can be
    "auto": ["min_steps=1", "epochs=1", "batch_size=4", "evals_per_epoch=1", "rank=2"],
    "reward": ["min_steps=1", "batch_size=4", "samples=2", "sample_tokens=2", "ensemble_size=1", "rank=2"],
    "rloo": ["steps=1", "prompts=1", "replies=2", "max_completion_length=2", "ensemble_size=1", "rank=2"],
}
SMALL |= dict.fromkeys(("dpo", "kto"), SMALL["auto"]) | {"sft": [*SMALL["auto"][:4], "rank=2"]}
SMALL |= {
    "reinforce": SMALL["rloo"],
    "online-dpo": SMALL["rloo"],
    "ppo": [*SMALL["rloo"], "epochs=1", "num_minibatches=1"],
}
LONG = ("min_steps", "steps", "epochs")  # at their highest value a night would take days
SAID_BY_PYTHON = r"^\w*(Error|Exception|Overflow)\b"


def fields() -> Iterator[tuple[str, str]]:
    """Every setting of every method that is a number or one of several words."""
    for name, method in registry.every().items():
        told = method.config.model_json_schema()["properties"]
        yield from ((name, field) for field, each in told.items() if each["type"] != "string" or "enum" in each)


def ends(config: type[Config], field: str) -> list[str]:
    """The lowest and the highest value of a setting that are allowed, or as good as these; all words of a choice."""
    told = config.model_json_schema()["properties"][field]
    if "enum" in told:
        return list(told["enum"])
    whole = told["type"] == "integer"
    low = told.get("minimum", told.get("exclusiveMinimum", 0) + (1 if whole else 1e-300))
    high = told.get("maximum", told.get("exclusiveMaximum", 0) - (1 if whole else 1e-6))
    return [str(low), str(high)]


def refusal(act: Callable[[], object]) -> str:
    """What an act is refused with; empty if it is not. Any other exception is a fault."""
    try:
        act()
    except Refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("method", "field"), fields())
def test_a_number_has_a_lowest_and_a_highest_value(method: str, field: str) -> None:
    told = registry.find(method).config.model_json_schema()["properties"][field]
    if told.get("type") in ("integer", "number"):
        assert len(told.keys() & BOUNDS.keys()) == 2, told
        for value in ends(registry.find(method).config, field):
            registry.parse_settings(method, [f"{field}={value}"])


@pytest.mark.parametrize(("method", "field"), fields())
def test_an_absurd_value_is_refused_in_one_short_sentence(method: str, field: str) -> None:
    said = [refusal(lambda each=each: registry.parse_settings(method, [f"{field}={each}"])) for each in ABSURD]
    for sentence in filter(None, said):
        assert one_sentence(sentence)
        assert len(sentence) < 1000
        assert field in sentence
    assert said.count("") <= 2  # what is in range is no fault


@given(method=st.sampled_from(sorted(registry.every())), name=st.text(), value=st.text())
def test_whatever_is_typed_is_taken_or_refused(method: str, name: str, value: str) -> None:
    fields = list(registry.find(method).config.model_fields)
    for each in (name, *fields[:3], fields[-1]):
        said = refusal(lambda each=each: registry.parse_settings(method, [f"{each}={value}"]))
        assert "Error:" not in said or "Error:" in name + value


@given(value=st.integers() | st.floats() | st.text() | st.none() | st.lists(st.integers()) | st.booleans())
def test_whatever_a_program_gives_is_taken_or_refused(value: object) -> None:
    for config in (PreferenceConfig, RewardConfig, RlooConfig):
        for field in config.model_fields:
            said = refusal(lambda config=config, field=field: config(**{field: value}))
            assert "\n" not in said


def test_a_number_that_python_cannot_write_is_refused_too() -> None:
    with pytest.raises(Refused, match="seed must be below 4,294,967,296, not a number of 16,610 bits"):
        PreferenceConfig(seed=10**5000)


@pytest.mark.parametrize("absurd", [each for each in ABSURD if each.strip()])
@pytest.mark.parametrize(
    ("field", "words"), [("start_from", "no adapter"), ("reference", "no adapter"), ("rewards", "")]
)
def test_a_name_of_nothing_is_refused_before_a_night_begins(tmp_path, tiny, field, words, absurd) -> None:
    store = say(tmp_path)
    said = refusal(
        lambda: planner.make_plan(
            store, tiny, Wishes("rloo", registry.parse_settings("rloo", [f"{field}={absurd}"]), fresh=False)
        )
    )
    assert one_sentence(said)
    assert words in said or f"{field} is a word" in said
    assert len(said) < 1000


def test_more_than_a_step_or_a_lifetime_can_sample_is_refused() -> None:
    with pytest.raises(Refused, match="a step, prompts x replies x max_completion_length, may take 1,000,000"):
        registry.parse_settings("rloo", ["prompts=512", "replies=256"])
    with pytest.raises(Refused, match="all steps may take 100,000,000 sampled tokens at most, and these settings make"):
        registry.parse_settings("ppo", ["steps=10000", "max_completion_length=1024"])


# What depends on the base, on the machine and on how much was said


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=99999999999999999999", "seed must be below 4,294,967,296, not 99999999999999999999"),
        ("learning_rate=1e300", "learning_rate must be at most 1, not 1e+300"),
        ("rank=65", "rank is at most 64, the width of the model"),
        ("max_length=2049", "max_length is at most 2,048, the window of the model"),
        ("max_length=3", "which the shortest prompt and reply of the model"),
        ("epochs=9999999", "epochs must be at most 1,000, not 9999999"),
    ],
)
def test_what_the_base_has_no_room_for_is_refused_before_a_night_begins(tmp_path, tiny, setting, words) -> None:
    store = say(tmp_path)
    done = run(tmp_path, tiny.name, settings=[setting])
    assert done.returncode == 2
    assert one_sentence(done.stderr)
    assert words in done.stderr
    assert nights.nights(store) == []
    store.close()


def test_what_a_base_just_has_room_for_is_planned(tmp_path, tiny) -> None:
    say(tmp_path).close()
    for settings in (["rank=64"], ["max_length=2048"], ["seed=4294967295"]):
        assert "would train on" in run(tmp_path, tiny.name, "--dry-run", settings=settings).stdout


def test_the_default_length_adapts_to_a_short_window(tmp_path: Path, tiny: Base) -> None:
    short = base_with(tmp_path, tiny, max_position_embeddings=64)
    limits.require_possible(short, PreferenceConfig(), asked=())
    with pytest.raises(Refused, match="max_length is at most 64"):
        limits.require_possible(short, PreferenceConfig(), asked=("max_length",))


def test_adapters_that_no_memory_holds_are_refused(tmp_path: Path, tiny: Base) -> None:
    huge = base_with(tmp_path, tiny, hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126)
    limits.require_possible(huge, PreferenceConfig(rank=1), asked=())
    with pytest.raises(Refused, match=r"adapters of rank 1,024 take about [\d,.]+ GiB to train .*; lower rank or"):
        limits.require_possible(huge, RewardConfig(rank=1024, ensemble_size=64), asked=())


def test_the_memory_of_adapters_is_counted_as_by_hand(tmp_path: Path, tiny: Base) -> None:
    about = limits.config_of(base_with(tmp_path, tiny, hidden_size=8, intermediate_size=16, num_hidden_layers=2))
    # a layer: 4 matrices of 8 + 8 and 3 of 8 + 16 are 136 numbers a rank; 2 layers, rank 3, 16 bytes each
    assert limits.adapter_bytes(about, PreferenceConfig(rank=3)) == 136 * 2 * 3 * 16
    assert limits.adapter_bytes(about, RewardConfig(rank=3, ensemble_size=4)) == 5 * 136 * 2 * 3 * 16


def test_more_steps_than_a_night_can_take_are_refused() -> None:
    limits.require_steps(PreferenceConfig(), 500_000)
    with pytest.raises(Refused, match="these settings make 2,000,000 steps of 2,000 examples"):
        limits.require_steps(PreferenceConfig(epochs=1000, batch_size=1), 2000)


def base_with(folder: Path, tiny: Base, **changes: int) -> Base:
    """A base of the tiny one's tokenizer and another configuration."""
    for each in tiny.path.iterdir():
        if each.suffix != ".safetensors":
            (folder / each.name).write_bytes(each.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return Base("another", folder, "")


# Whole nights


def runs(tmp_path: Path, tiny: Base, method: str, *settings: str) -> None:
    """A night of the smallest size runs with these settings, or says in our words why it made nothing."""
    store = say(tmp_path)
    settings = (*SMALL[method], *settings)
    done = run(tmp_path, tiny.name, "--method", method, "--gate", "off", settings=settings)
    if done.returncode != 2:
        assert last(store).state in ("done", "failed"), last(store)
        assert not re.search(SAID_BY_PYTHON, last(store).reason), last(store).reason
    else:
        assert one_sentence(done.stderr)
        assert nights.nights(store) == []
    store.close()


def test_a_night_at_the_edge_of_its_settings(tmp_path, tiny) -> None:
    runs(tmp_path, tiny, "auto", "loss=ipo", "per_token=1", "beta=0.0001", "learning_rate=1", "rank=1", "alpha=4096")


def at_both_ends() -> Iterator[tuple[str, str]]:
    """Every setting at its ends, with the first method that has it with these ends."""
    seen = set()
    for method, field in fields():
        for value in ends(registry.find(method).config, field):
            if (field, value) not in seen and (field not in LONG or float(value) < 2):
                seen.add((field, value))
                yield method, f"{field}={value}"


@pytest.mark.soak
@pytest.mark.parametrize(("method", "setting"), at_both_ends())
def test_every_setting_at_both_ends(tmp_path, tiny, method, setting) -> None:
    runs(tmp_path, tiny, method, setting)
