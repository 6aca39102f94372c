"""Nights on bases as they come: their templates, their tokenizers, and architectures that cannot be trained."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from assistant.models.base_model import Base, find_base
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.kinds.comparison import compare
from feedback.messages import Message
from feedback.records import nights
from tests.assistant.test_architectures import SIZES
from tests.helpers.nights import run
from tests.helpers.small_models import save_small
from tests.helpers.templates import GEMMA_2, with_template
from tests.training.test_night import SMALL, last, one_sentence, say
from training.model.policy import Backbone
from training.night.plan import planner
from training.night.plan.stages import Wishes

OTHERS = (  # conversations beside the usual ones, and a word of the last
    ("system user", "told what to be"),
    ("user user", "asked twice"),
    ("user assistant assistant user", "answered twice"),
    ("assistant user", "greeted first"),
)


def prefer(store: Database, roles: str, words: str) -> None:
    """A comparison in a conversation of these roles."""
    me = users.local_owner(store)
    by = Provenance(adapter=None, base_sha256=None, template_sha256=None, sampling={})
    said = [Message(role, f"{words} {at}") for at, role in enumerate(roles.split())]
    parent = conversations.record_messages(store, me, "api", said)
    left, right = (conversations.add_reply(store, parent, f"{each} {words}", by) for each in ("good", "bad"))
    compare(store, me, left, right, "left")


def test_a_row_that_the_template_cannot_take_is_left_out_and_counted(tiny: Base, tmp_path: Path) -> None:
    base = with_template(tiny, tmp_path / "base", GEMMA_2)
    store = say(tmp_path / "data")
    for roles, words in OTHERS:
        prefer(store, roles, words)
    done = run(tmp_path / "data", str(base.path), settings=SMALL)
    night = last(store)
    assert done.returncode == 0, done.stderr
    assert (night.state, night.adapter) == ("done", "night-0001")
    assert night.counts["left_out"] == {"not taken by the model's chat template": 1}
    assert night.counts["comparison"] == 8
    assert "takes no system turn" in done.stdout
    assert "failed its proof" not in night.reason


def test_a_night_on_a_tokenizer_that_is_too_large_says_so(tiny: Base, tmp_path: Path) -> None:
    base = with_template(tiny, tmp_path / "base", GEMMA_2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.path)
    tokenizer.add_tokens(["wren"])
    tokenizer.save_pretrained(base.path)
    store = say(tmp_path / "data")
    done = run(tmp_path / "data", str(base.path), settings=SMALL)
    assert done.returncode == 1
    assert one_sentence(done.stderr)
    assert "'wren' is number 49,152" in last(store).reason


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_arithmetic_of_a_night_can_be_chosen(tiny: Base, store: Database, precision: str) -> None:
    plan, _ = planner.make_plan(store, tiny, Wishes("sft", {"precision": precision}, fresh=False))
    assert (plan.precision, plan.settings["precision"]) == (precision, precision)


def test_what_was_trained_before_a_setting_existed_is_still_known(tiny: Base, tmp_path: Path) -> None:
    store = say(tmp_path / "data")
    assert run(tmp_path / "data", tiny.name, settings=SMALL).returncode == 0
    settings = {name: value for name, value in last(store).settings.items() if name != "precision"}
    with store.transaction() as db:
        db.conn.execute("UPDATE nights SET settings = ?", (json.dumps(settings),))
    run(tmp_path / "data", tiny.name, settings=SMALL)
    assert nights.nights(store)[0].state == "nothing"


def test_an_unknown_number_format_is_refused(tiny: Base, tmp_path: Path) -> None:
    done = run(tmp_path / "data", tiny.name, settings=["precision=float16"])
    assert done.returncode == 2
    assert "precision is one of auto, bfloat16, float32, not 'float16'" in done.stderr


def test_an_architecture_that_cannot_be_trained_is_refused_in_words_before_training(tmp_path: Path) -> None:
    base = save_small(tmp_path / "falcon", transformers.AutoConfig.for_model("falcon", **SIZES))
    with pytest.raises(Refused, match="cannot be trained here yet") as told:
        Backbone(find_base(base.name), torch.float32, "cpu", rank=2, alpha=4, seed=0)
    assert "\n" not in str(told.value)
