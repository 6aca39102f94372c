"""Files as other programs and people write them: what is kept of each, or the reason why it is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from feedback.annotations import Record
from feedback.errors import Refused
from feedback.formats import preview
from feedback.formats.registry import format_of_file

U = {"role": "user", "content": "Name a bird"}
GOOD = {"role": "assistant", "content": "A wren."}
BAD = {"role": "assistant", "content": "A dog."}
SYSTEM = {"role": "system", "content": "Be kind."}
BEFORE = [U, {"role": "assistant", "content": "Where?"}, {"role": "user", "content": "Europe"}]
HUMAN = {"from": "human", "value": "Name a bird"}
GPT = {"from": "gpt", "value": "A wren."}
PAIR = {"prompt": "Name a bird", "chosen": "A wren.", "rejected": "A dog."}
BETTER = "u: Name a bird => A wren. > A dog."
KIND = f"s: Be kind. {BETTER}"
LONGER = "u: Name a bird a: Where? u: Europe => A wren. > A dog."
DIFFER = "the two conversations differ before their last turn"
MARKED = "a text with a chat template's marks that cannot be told apart"


def in_short(row: Record) -> str:
    """A record in one line: turns => replies, and what was said of them."""
    turns = " ".join(f"{turn.role[0]}: {turn.content}" for turn in row.messages)
    texts = [reply.text for reply in row.replies]
    said = row.said[0]
    if said.kind == "comparison":
        mark = {"left": ">", "right": "<", "tie": "=", "both_bad": "both bad"}[said.choice]
        return f"{turns} => {f' {mark} '.join(texts)}"
    if said.kind == "ranking":
        return f"{turns} => " + ", ".join(f"{rank}. {text}" for text, rank in zip(texts, said.ranks, strict=True))
    mark = {"thumb": "+" if said.value == 1 else "-", "label": said.label}[said.kind]
    return f"{turns} => {texts[0]} {mark}"


def look(path: Path, name: str = "", columns: str = "") -> preview.Preview:
    return preview.look(path, format_of_file(path, name, columns))


def of_rows(folder: Path, *rows: Any, name: str = "", columns: str = "") -> tuple[str, list[str], dict[str, int]]:
    """The format of some rows, each in short, and the reasons for those left out."""
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    found = look(folder / "rows.jsonl", name, columns)
    return found.format, [in_short(row) for row in found.rows], found.left_out


PAIRS: dict[str, tuple[dict[str, Any], str]] = {  # a row as its program writes it, and what is kept
    "ultrafeedback_binarized": (
        {
            "prompt": "Name a bird",
            "chosen": [U, GOOD],
            "rejected": [U, BAD],
            "messages": [U, GOOD],
            "score_chosen": 8.5,
        },
        BETTER,
    ),
    "tulu 3": (
        {"id": "x", "prompt": "Europe", "chosen": [*BEFORE, GOOD], "rejected": [*BEFORE, BAD], "source": "y"},
        LONGER,
    ),
    "whole, with a system turn": (
        {"prompt": "Name a bird", "chosen": [SYSTEM, U, GOOD], "rejected": [SYSTEM, U, BAD]},
        KIND,
    ),
    "whole, the system turn in the prompt": ({"prompt": [SYSTEM, U], "chosen": [U, GOOD], "rejected": [U, BAD]}, KIND),
    "whole, without a prompt": ({"chosen": [*BEFORE, GOOD], "rejected": [*BEFORE, BAD], "prompt": None}, LONGER),
    "trl with a system column": ({**PAIR, "system": "Be kind."}, KIND),
    "trl with a system prompt": ({**PAIR, "system_prompt": "Be kind."}, KIND),
    "the same system message twice": ({**PAIR, "prompt": [SYSTEM, U], "system": "Be kind."}, KIND),
    "no system message": ({**PAIR, "system": "", "system_prompt": None}, BETTER),
    "implicit with a system column": ({"chosen": [U, GOOD], "rejected": [U, BAD], "system": "Be kind."}, KIND),
    "orca_dpo_pairs": (
        {"system": "Be kind.", "question": "Name a bird", "chosen": "A wren.", "rejected": "A dog."},
        KIND,
    ),
    "orca_dpo_pairs, no system": (
        {"system": "", "question": "Name a bird", "chosen": "A wren.", "rejected": "A dog."},
        BETTER,
    ),
    "distilabel's orca pairs": (
        {"system": "Be kind.", "input": "Name a bird", "chosen": "A wren.", "rejected": "A dog.", "generations": ["a"]},
        KIND,
    ),
    "openrlhf": ({"input": "Name a bird", "chosen": "A wren.", "rejected": "A dog."}, BETTER),
    "openrlhf with a template": ({"input": [SYSTEM, U], "chosen": "A wren.", "rejected": "A dog."}, KIND),
    "llama-factory, sharegpt ranking": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "A dog."}, "system": "Be kind."},
        KIND,
    ),
    "llama-factory, alpaca ranking": (
        {"instruction": "Name", "input": "a bird", "chosen": "A wren.", "rejected": "A dog.", "system": "Be kind."},
        "s: Be kind. u: Name\na bird => A wren. > A dog.",
    ),
    "llama-factory, alpaca ranking with a history": (
        {
            "instruction": "Europe",
            "input": "",
            "chosen": "A wren.",
            "rejected": "A dog.",
            "history": [["Name a bird", "Where?"]],
        },
        LONGER,
    ),
    "axolotl chat_template": ({"messages": BEFORE, "chosen": GOOD, "rejected": BAD}, LONGER),
    "axolotl chat_template, lists": ({"messages": [SYSTEM, U], "chosen": [GOOD], "rejected": [BAD]}, KIND),
    "ms-swift": ({"messages": [SYSTEM, U, GOOD], "rejected_response": "A dog."}, KIND),
    "ms-swift, messages": ({"messages": [U, GOOD], "rejected_messages": [U, BAD]}, BETTER),
    "parts of text": (
        {
            "prompt": [
                {"role": "user", "content": [{"type": "text", "text": "Name "}, {"type": "text", "text": "a bird"}]}
            ],
            "chosen": [{"type": "text", "text": "A wren."}],
            "rejected": [{"role": "assistant", "content": [{"type": "output_text", "text": "A dog."}]}],
        },
        BETTER,
    ),
    "a completion of several turns": (
        {"prompt": [U], "chosen": [*BEFORE[1:], GOOD], "rejected": [*BEFORE[1:], BAD]},
        LONGER,
    ),
    "a completion of several messages": (
        {"prompt": "Name a bird", "chosen": [{"role": "assistant", "content": "Well."}, GOOD], "rejected": [BAD]},
        "u: Name a bird => Well.\n\nA wren. > A dog.",
    ),
    "rm-static": (
        {
            "prompt": "\n\nHuman: Name a bird\n\nAssistant: Where?\n\nHuman: Europe\n\nAssistant:",
            "response": " A wren.",
            "chosen": " A wren.",
            "rejected": " A dog.",
        },
        LONGER,
    ),
    "a transcript of single lines": (
        {**PAIR, "prompt": "Human: Name a bird\nAssistant: Where?\nHuman: Europe\nAssistant: "},
        LONGER,
    ),
    "a transcript of vicuna's": ({**PAIR, "prompt": "### Human: Name a bird\n### Assistant:"}, BETTER),
    "a transcript of vicuna's with its system text": (
        {**PAIR, "prompt": "Be kind.\n### Human: Name a bird\n### Assistant:"},
        KIND,
    ),
    "a transcript of vicuna 1.1": ({**PAIR, "prompt": "Be kind. USER: Name a bird ASSISTANT:"}, KIND),
    "a longer one": (
        {**PAIR, "prompt": "USER: Name a bird ASSISTANT: Where?</s>USER: Europe ASSISTANT: "},
        LONGER,
    ),
    "one of lines in capitals": ({**PAIR, "prompt": "USER: Name a bird\nASSISTANT:"}, BETTER),
    "a transcript of orca's": (
        {**PAIR, "prompt": "### System:\nBe kind.\n\n### User:\nName a bird\n\n### Assistant:\n"},
        KIND,
    ),
    "a transcript of langchain's": ({**PAIR, "prompt": "System: Be kind.\nHuman: Name a bird\nAI:"}, KIND),
    "transcripts beside their prompt": (
        {
            "prompt": "\n\nHuman: Name a bird\n\nAssistant:",
            "chosen": "\n\nHuman: Name a bird\n\nAssistant: A wren.",
            "rejected": "\n\nHuman: Name a bird\n\nAssistant: A dog.",
        },
        BETTER,
    ),
    "alpaca's template": (
        {
            **PAIR,
            "prompt": "Below is an instruction that describes a task. Write a response.\n\n"
            "### Instruction:\nName a bird\n\n### Response:\n",
        },
        BETTER,
    ),
    "chatml": (
        {
            "prompt": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nName a bird<|im_end|>\n"
            "<|im_start|>assistant\n",
            "chosen": "A wren.<|im_end|>",
            "rejected": "A dog.<|im_end|>\n",
        },
        KIND,
    ),
    "chatml, whole sides": (
        {
            "prompt": "Name a bird",
            "chosen": "<|im_start|>user\nName a bird<|im_end|>\n<|im_start|>assistant\nA wren.<|im_end|>\n",
            "rejected": "<|im_start|>user\nName a bird<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n",
        },
        BETTER,
    ),
    "llama 3": (
        {
            "prompt": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nName a bird<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "chosen": "A wren.<|eot_id|>",
            "rejected": "A dog.<|eot_id|>",
        },
        KIND,
    ),
    "llama 2": (
        {
            "prompt": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nName a bird [/INST]",
            "chosen": " A wren. </s>",
            "rejected": " A dog. </s>",
        },
        KIND,
    ),
    "mistral": ({**PAIR, "prompt": "<s>[INST] Name a bird [/INST] Where?</s>[INST] Europe [/INST]"}, LONGER),
    "gemma": (
        {
            "prompt": "<bos><start_of_turn>user\nName a bird<end_of_turn>\n<start_of_turn>model\n",
            "chosen": "A wren.<end_of_turn>\n",
            "rejected": "A dog.<end_of_turn>\n<eos>",
        },
        BETTER,
    ),
    "zephyr": (
        {
            **PAIR,
            "prompt": "<|system|>\nBe kind.</s>\n<|user|>\nName a bird</s>\n<|assistant|>\n",
            "chosen": "A wren.</s>",
        },
        KIND,
    ),
    "phi 3": ({**PAIR, "prompt": "<|user|>\nName a bird<|end|>\n<|assistant|>\n", "chosen": "A wren.<|end|>"}, BETTER),
}


@pytest.mark.parametrize(("row", "kept"), PAIRS.values(), ids=PAIRS)
def test_a_pair_is_two_replies_to_what_was_asked(tmp_path: Path, row: dict[str, Any], kept: str) -> None:
    name, found, left_out = of_rows(tmp_path, row)
    assert (found, left_out) == ([kept], {})
    assert name in ("trl", "trl-implicit")


THUMBS: dict[str, tuple[dict[str, Any], str]] = {
    "llama-factory, kto": ({"messages": [U, BAD], "label": False}, "u: Name a bird => A dog. -"),
    "llama-factory, kto, system": (
        {"messages": [U, GOOD], "label": True, "system": "Be kind."},
        "s: Be kind. u: Name a bird => A wren. +",
    ),
    "llama-factory, kto, sharegpt": ({"conversations": [HUMAN, GPT], "kto_tag": True}, "u: Name a bird => A wren. +"),
    "llama-factory, kto, sharegpt, label": (
        {"conversations": [HUMAN, GPT], "label": "false"},
        "u: Name a bird => A wren. -",
    ),
    "llama-factory, kto, alpaca": (
        {"instruction": "Name", "input": "a bird", "output": "A dog.", "kto_tag": False},
        "u: Name\na bird => A dog. -",
    ),
    "a label of text": (
        {"prompt": "Name a bird", "completion": "A wren.", "label": "True"},
        "u: Name a bird => A wren. +",
    ),
    "a label of 0": ({"prompt": "Name a bird", "completion": "A dog.", "label": 0}, "u: Name a bird => A dog. -"),
    "a label of a German table": (
        {"prompt": "Name a bird", "completion": "A dog.", "label": "FALSCH"},
        "u: Name a bird => A dog. -",
    ),
    "a label of 1.0": ({"prompt": "Name a bird", "completion": "A wren.", "label": 1.0}, "u: Name a bird => A wren. +"),
    "a completion of turns": ({"prompt": [U], "completion": [GOOD], "label": True}, "u: Name a bird => A wren. +"),
    "a whole conversation as completion": (
        {"prompt": "Europe", "completion": [*BEFORE, GOOD], "label": True},
        "u: Name a bird a: Where? u: Europe => A wren. +",
    ),
    "templated": (
        {
            "prompt": "<|im_start|>user\nName a bird<|im_end|>\n<|im_start|>assistant\n",
            "completion": "A dog.<|im_end|>",
            "label": False,
        },
        "u: Name a bird => A dog. -",
    ),
}


@pytest.mark.parametrize(("row", "kept"), THUMBS.values(), ids=THUMBS)
def test_a_labelled_reply_is_a_thumb_and_no_demonstration(tmp_path: Path, row: dict[str, Any], kept: str) -> None:
    assert of_rows(tmp_path, row) == ("trl-unpaired", [kept], {})


def test_a_reply_labelled_bad_is_no_demonstration_whatever_the_format(tmp_path: Path) -> None:
    rows = [{"messages": [U, GOOD], "label": True}, {"messages": [U, BAD], "label": False}]
    bad = {"a reply that is labelled bad is no demonstration": 1}
    assert of_rows(tmp_path, *rows, name="sft") == ("sft", ["u: Name a bird => A wren. demonstration"], bad)
    with pytest.raises(Refused, match="--columns messages=messages,label=feedback"):
        of_rows(tmp_path, {"messages": [U, BAD], "feedback": "bad"})


def test_demonstrations_come_with_their_system_message_and_in_any_template(tmp_path: Path) -> None:
    rows = [
        {"messages": [U, GOOD], "system": "Be kind."},
        {"prompt": "Name a bird", "completion": [GOOD], "system": "Be kind."},
        {"conversations": [HUMAN, GPT], "system": "Be kind."},
        {"text": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nName a bird [/INST] A wren. </s>"},
    ]
    kept = "s: Be kind. u: Name a bird => A wren. demonstration"
    assert [of_rows(tmp_path, row)[1:] for row in rows] == [([kept], {})] * len(rows)


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "an image": (
        {**PAIR, "prompt": [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "what?"}]}]},
        "a message with an image",
    ),
    "an image beside": ({**PAIR, "images": ["x.png"]}, "a message with an image"),
    "marks inside of a turn": (
        {**PAIR, "prompt": "<|im_start|>user\n[INST]<|im_end|>\n<|im_start|>assistant\n"},
        MARKED,
    ),
    "text before the marks": ({**PAIR, "prompt": "Answer: <|im_start|>user\nhi<|im_end|>\n"}, MARKED),
    "marks of an unknown template": ({**PAIR, "prompt": "<|im_sep|>hi"}, MARKED),
    "marks inside of a reply": (
        {**PAIR, "chosen": "hi<|im_end|>\n<|im_start|>user\nyou"},
        "a reply with a chat template's marks",
    ),
    "marks and nothing else": (
        {**PAIR, "prompt": "<|im_start|>system\n<|im_end|>\n<|im_start|>assistant\n"},
        "the conversation does not end with a user's turn",
    ),
    "the end of a transcript": (
        {**PAIR, "prompt": "Talk.\n\nHuman: hi\n\nAssistant:"},
        "a prompt that ends like a transcript and does not begin like one",
    ),
    "the end of a transcript of single lines": (
        {**PAIR, "prompt": "Talk.\nUser: hi\nBot:"},
        "a prompt that ends like a transcript and does not begin like one",
    ),
    "the end of a transcript in capitals": (
        {**PAIR, "prompt": "ASSISTANT: hello USER: hi ASSISTANT:"},
        "a prompt that ends like a transcript and does not begin like one",
    ),
    "a cut list of turns": (
        {**PAIR, "prompt": '[{"role": "user", "content": "hi'},
        "a list of turns that is neither JSON nor Python",
    ),
    "two system messages": ({**PAIR, "prompt": [SYSTEM, U], "system": "Be rude."}, "two system messages that differ"),
    "conversations that differ": ({"chosen": [U, GOOD, U, GOOD], "rejected": [U, BAD, U, GOOD]}, DIFFER),
    "a label of no kind": (
        {"prompt": "hi", "completion": "ho", "label": "math"},
        "a label that is neither true nor false",
    ),
    "a prompt of two fields": (
        {"question": "hi", "input": "ho", "chosen": "a", "rejected": "b"},
        "question and input may each be the prompt",
    ),
}


@pytest.mark.parametrize(("row", "reason"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_cannot_be_taught_as_it_is_meant_is_left_out_with_its_reason(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    assert of_rows(tmp_path, row)[1:] == ([], {reason: 1})


def test_what_only_looks_like_a_template_or_a_list_is_kept_as_it_was_said(tmp_path: Path) -> None:
    texts = [
        "What does Assistant: mean?",
        '{"a": 1}',
        '[{"a": 1}]',
        "<s>old</s> new",
        "Human: you",
        "a </s> b",
        "[1, 2",
    ]
    rows = [{"prompt": text, "chosen": text, "rejected": "no"} for text in texts]
    turns = [
        {"prompt": [{**U, "content": "<|im_start|>"}], "chosen": [{**GOOD, "content": "[INST] is"}], "rejected": [BAD]}
    ]
    _, kept, left_out = of_rows(tmp_path, *rows, *turns)
    assert left_out == {}
    assert kept == [*(f"u: {text} => {text} > no" for text in texts), "u: <|im_start|> => [INST] is > A dog."]


def test_the_first_rows_together_tell_the_format(tmp_path: Path) -> None:
    name, kept, left_out = of_rows(tmp_path, {**PAIR, "prompt": None}, PAIR, PAIR)
    assert (name, kept) == ("trl", [BETTER, BETTER])
    assert sum(left_out.values()) == 1
    transcript = {
        "prompt": None,
        "chosen": "\n\nHuman: hi\n\nAssistant: a",
        "rejected": "\n\nHuman: hi\n\nAssistant: b",
    }
    assert of_rows(tmp_path, transcript)[0] == "hh"


@pytest.mark.parametrize(
    "row",
    [
        {"message_id": "t", "parent_id": None, "text": "Name a bird", "role": "prompter", "rank": None},
        {
            "prompt": "\n\nHuman: hi",
            "answers": [{"answer": "a", "model": "m", "rank": 1.0}],
            "turns": 1,
            "num_responses": 7,
        },
        {"text": "a review", "label": 1},
    ],
)
def test_a_row_of_no_known_format_is_not_mistaken_and_shows_how_to_declare_it(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match=r"no format known here has rows with .* for example: --columns \S+=\S+"):
        of_rows(tmp_path, row)


ASKED = {"id": "m1", "parentId": None, "role": "user", "content": "Name a bird"}
WREN = {"id": "m2", "parentId": "m1", "role": "assistant", "content": "A wren.", "model": "a"}
DOG = {"id": "m3", "parentId": "m1", "role": "assistant", "content": "A dog.", "model": "b"}


def open_webui(rating: Any, *nodes: dict[str, Any], params: Any = None, **data: Any) -> dict[str, Any]:
    chat = {"params": params or {}, "history": {"messages": {each["id"]: each for each in nodes or (ASKED, WREN)}}}
    return {
        "id": "1",
        "user_id": "u",
        "type": "rating",
        "data": {"rating": rating, "model_id": "a", **data},
        "meta": {"message_id": "m2"},
        "snapshot": {"chat": {"chat": chat}},
    }


def thought(text: str, kind: str = "reasoning") -> dict[str, Any]:
    return {**WREN, "content": f'<details type="{kind}" done="true">\n<summary>Thought</summary>\n> hm\n{text}'}


OPEN_WEBUI: dict[str, tuple[dict[str, Any], str]] = {
    "a rating of text": (open_webui("-1"), "u: Name a bird => A wren. -"),
    "a rating of a float": (open_webui(1.0), "u: Name a bird => A wren. +"),
    "params.system": (open_webui(1, params={"system": "Be kind."}), "s: Be kind. u: Name a bird => A wren. +"),
    "won": (open_webui(1, ASKED, WREN, DOG, sibling_model_ids=["b"]), "u: Name a bird => A wren. > A dog."),
    "lost": (open_webui("-1", ASKED, WREN, DOG, sibling_model_ids=["b"]), "u: Name a bird => A wren. < A dog."),
    "an older try beside": (open_webui(1, ASKED, WREN, {**DOG, "model": "a"}), "u: Name a bird => A wren. +"),
    "a sibling that is not there": (open_webui(1, sibling_model_ids=["b"]), "u: Name a bird => A wren. +"),
    "reasoning": (open_webui(1, ASKED, thought("</details>\nA wren.")), "u: Name a bird => A wren. +"),
    "reasoning about details": (
        open_webui(1, ASKED, thought("<details>x</details></details>\n\nA wren.")),
        "u: Name a bird => A wren. +",
    ),
    "parts": (
        open_webui(1, {**ASKED, "content": [{"type": "text", "text": "Name a bird"}]}, WREN),
        "u: Name a bird => A wren. +",
    ),
}


@pytest.mark.parametrize(("row", "kept"), OPEN_WEBUI.values(), ids=OPEN_WEBUI)
def test_open_webui_old_and_new(tmp_path: Path, row: dict[str, Any], kept: str) -> None:
    assert of_rows(tmp_path, row) == ("open-webui", [kept], {})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**open_webui(1), "snapshot": None}, "no snapshot of the conversation"),
        ({key: each for key, each in open_webui(1).items() if key != "snapshot"}, "no snapshot of the conversation"),
        (open_webui(0), "a rating that is neither up nor down"),
        (open_webui(1, ASKED, thought("A wren.")), "a reply whose reasoning does not end"),
        (open_webui(1, ASKED, thought("</details>\nA wren.", "tool_calls")), "a reply that called tools"),
        (open_webui(1, ASKED, thought("</details>\n")), "an empty reply"),
        (open_webui(1, {**ASKED, "files": [{"type": "image", "url": "x"}]}, WREN), "a message with an image"),
        (
            {
                "id": "1",
                "title": "Birds",
                "chat": {"history": {"messages": {"m2": {**WREN, "annotation": {"rating": 1}}}}},
            },
            "a whole chat; export the ratings instead (Admin Panel, Evaluations, Feedback)",
        ),
    ],
)
def test_what_open_webui_leaves_out_has_its_reason(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    assert of_rows(tmp_path, row) == ("open-webui", [], {reason: 1})


TWO = {"instruction": "Name a bird", "generation_0": "A dog.", "generation_1": "A wren."}
THREE = {"prompt": "Name a bird", "response_a": "A dog.", "response_b": "A wren.", "response_c": "An owl."}


def v1(*answers: tuple[Any, str], question: str = "preference") -> list[dict[str, Any]]:
    return [
        {"user_id": f"u{number}", "status": status, "values": {question: {"value": value}}}
        for number, (value, status) in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("fields", "responses", "kept"),
    [
        (TWO, v1(("generation_1", "submitted"), ("generation_0", "draft")), "u: Name a bird => A dog. < A wren."),
        (TWO, {"better": [{"value": "Generation 1", "user_id": "u"}]}, "u: Name a bird => A dog. < A wren."),
        (TWO, {"preference": [{"value": "tie", "user_id": "u"}]}, "u: Name a bird => A dog. = A wren."),
        (
            TWO,
            {"q": [{"value": "generation_0", "status": "discarded"}, {"value": "generation_1", "status": "submitted"}]},
            "u: Name a bird => A dog. < A wren.",
        ),
        (
            TWO,
            v1(
                ([{"value": "generation_1", "rank": 1}, {"value": "generation_0", "rank": 2}], "submitted"),
                question="r",
            ),
            "u: Name a bird => A dog. < A wren.",
        ),
        (THREE, {"best": [{"value": "response_b"}]}, "u: Name a bird => 2. A dog., 1. A wren., 2. An owl."),
        (
            THREE | {"system": "Be kind."},
            {"best": [{"value": "b"}], "why": [{"value": "It is one."}]},
            "s: Be kind. u: Name a bird => 2. A dog., 1. A wren., 2. An owl.",
        ),
    ],
)
def test_argilla_with_any_fields_and_only_what_was_submitted(
    tmp_path: Path, fields: Any, responses: Any, kept: str
) -> None:
    assert of_rows(tmp_path, {"id": "1", "fields": fields, "responses": responses}) == ("argilla", [kept], {})


@pytest.mark.parametrize(
    ("fields", "responses", "reason"),
    [
        (TWO, v1(("generation_1", "draft"), ("generation_0", "discarded")), "nobody has submitted an answer"),
        (TWO, {"quality": [{"value": 4}]}, "no answer names one of the replies"),
        (
            TWO,
            {"a": [{"value": "generation_1"}], "b": [{"value": "generation_0"}]},
            "several questions ask which reply is better",
        ),
        ({"text": "Name a bird", "response": "A wren."}, {"a": [{"value": "yes"}]}, "fields other than a prompt"),
        (
            TWO | {"context": "x", "instruction": None, "topic": "y"},
            v1(("generation_1", "submitted")),
            "fields other than",
        ),
    ],
)
def test_argilla_left_out(tmp_path: Path, fields: Any, responses: Any, reason: str) -> None:
    _, kept, left_out = of_rows(tmp_path, {"fields": fields, "responses": responses})
    assert kept == []
    assert [why.startswith(reason) for why in left_out] == [True]


@pytest.mark.parametrize(
    ("winner", "mark"),
    [("model_a", ">"), ("model_b", "<"), ("tie", "="), ("tie (bothbad)", "both bad"), ("both_bad", "both bad")],
)
def test_chatbot_arena_with_whole_conversations(tmp_path: Path, winner: str, mark: str) -> None:
    sides = {
        "conversation_a": [U, GOOD],
        "conversation_b": [U, {**BAD, "content": [{"type": "text", "text": "A dog."}]}],
    }
    row = {"model_a": "a", "model_b": "b", "winner": winner, "judge": "j", **sides, "turn": 1}
    assert of_rows(tmp_path, row) == ("arena", [f"u: Name a bird => A wren. {mark} A dog."], {})
    more = {name: [*turns, U, GOOD] for name, turns in sides.items()}
    assert of_rows(tmp_path, row | more)[1] == [f"u: Name a bird => A wren. {mark} A dog."]  # the first turn was judged
    assert of_rows(tmp_path, row | more | {"turn": 2})[2] == {DIFFER: 1}


def test_a_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    row = {"instruction": "hi", "completions": [{"response": text, "overall_score": 4.0} for text in "ab"]}
    row["completions"][1]["overall_score"] = float("nan")
    assert of_rows(tmp_path, row) == ("ultrafeedback", [], {"a reply without a score": 1})


# Columns that somebody declares.

STRANGE = {
    "ask": "Name a bird",
    "best": "A wren.",
    "worst": "A dog.",
    "who": "ada",
    "seen": 3,
    "in": {"said": ["A wren."]},
}


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ("prompt=ask,chosen=best,rejected=worst", BETTER),
        ("prompt=ask, completion=worst, label=good", "u: Name a bird => A dog. -"),
        ("prompt=ask,completion=in.said.0", "u: Name a bird => A wren. demonstration"),
        ("messages=talk", "u: Name a bird => A wren. demonstration"),
        ("messages=talk,label=good", "u: Name a bird => A wren. -"),
        ("prompt=ask,system=sys,chosen=best,rejected=worst", KIND),
    ],
)
def test_a_file_of_any_columns_comes_in_once_they_are_declared(tmp_path: Path, columns: str, kept: str) -> None:
    row = STRANGE | {"good": "down", "talk": [U, GOOD], "sys": "Be kind.", "messages": "no conversation"}
    assert of_rows(tmp_path, row, columns=columns) == ("columns", [kept], {})


def test_a_declared_rater_and_comment_are_kept_and_so_are_the_other_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("ask,best,worst,who,why,seen\nName a bird,A wren.,A dog.,ada,a dog is none,3\n")
    (row,) = look(tmp_path / "rows.csv", columns="prompt=ask,chosen=best,rejected=worst,rater=who,comment=why").rows
    assert (row.said[0].rater, row.said[0].words, row.extra) == ("ada", "a dog is none", {"seen": "3"})


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            "prompt=asked,chosen=best,rejected=worst",
            "no row has 'asked', declared as prompt; the columns are ask, best",
        ),
        ("colour=ask", "a NAME is one of prompt, messages"),
        ("prompt", "a NAME is one of prompt, messages"),
        ("prompt=ask,prompt=best", "names prompt twice"),
        ("prompt=ask,chosen=best", "needs chosen and rejected, or completion"),
        ("prompt=ask", "needs chosen and rejected, or completion"),
        ("chosen=best,rejected=worst,label=seen", "or completion and label, not both"),
    ],
)
def test_columns_that_say_nothing_are_refused(tmp_path: Path, columns: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        of_rows(tmp_path, STRANGE, columns=columns)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (
            {"question": "q", "response_j": "a long reply", "response_k": "another reply", "qid": 1, "on": "2020"},
            "prompt=question,chosen=response_j,rejected=response_k; "
            "only if response_j is the better reply in every row",
        ),
        (
            {"prompt": "q", "response_0": "short", "response_1": "longer", "better_response_id": 1},
            "prompt=prompt,chosen=response_0,rejected=response_1; only if response_0 is the better reply in every row",
        ),
        (
            {"prompt": "q", "chosen_response": "a", "rejected_response": "b", "chosen_reward": 1},
            "prompt=prompt,chosen=chosen_response,rejected=rejected_response",
        ),
        (
            {"input": "q", "preferred_output": "a", "non_preferred_output": "b"},
            "prompt=input,chosen=preferred_output,rejected=non_preferred_output",
        ),
        (
            {"Question": "q", "Best": "a", "Worst": "b", "annotator": "x"},
            "prompt=Question,chosen=Best,rejected=Worst,rater=annotator",
        ),
        ({"prompt": "q", "response": "a", "helpfulness": 3}, "prompt=prompt,completion=response"),
        ({"a b": "q", "c": "a"}, "'prompt=a b,completion=c'"),
    ],
)
def test_a_file_that_is_refused_shows_a_line_that_works(tmp_path: Path, row: dict[str, Any], shown: str) -> None:
    with pytest.raises(Refused) as told:
        of_rows(tmp_path, row)
    assert str(told.value).endswith(f"--columns {shown}")
    assert len(of_rows(tmp_path, row, columns=shown.partition(";")[0].strip("'"))[1]) == 1
