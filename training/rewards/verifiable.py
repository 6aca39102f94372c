"""Rewards that a program can verify: valid JSON, the asked language, a band of lengths, rules of form.

Reinforcement learning with verifiable rewards: Tulu 3 (arXiv 2411.15124, section 6). Each score is from 0 to 1.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedback.errors import Refused
from training.rewards.base import Reward, RewardContext, Sampled, Source
from training.rewards.files import of_folder, require_name
from training.rewards.registry import register

Judge = Callable[[str], float]  # the score of a reply's text; NaN: it says nothing
MOST_WORDS = 100_000
SURE = 0.9  # the least probability of the language of what was asked
FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n```\s*", re.DOTALL | re.IGNORECASE)
ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
MARKUP = re.compile(r"^#{1,6} |\*\*|__|```|^\s*[-*•]\s+\S", re.MULTILINE)
ENDINGS = re.compile(r"[.!?。！？]+(?=\s|$|[”\"')])")


def of_text(judge: Judge) -> Reward:
    """The reward of a judge who looks at a reply's text alone."""

    def reward(sampled: Sequence[Sampled]) -> list[Tensor]:
        return [torch.tensor([judge(text) for text in each.texts]) for each in sampled]

    return reward


def parsed(text: str) -> Any:
    """The JSON value that a text is, bare or in a fence. Raises `ValueError` if it is none."""
    fenced = FENCE.fullmatch(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _json(argument: str, context: RewardContext) -> Reward:
    validator = _validator(of_folder(context.folder, argument)) if argument else None

    def judge(text: str) -> float:
        try:
            value = parsed(text)
        except ValueError:
            return 0.0
        return float(validator.is_valid(value) if validator else isinstance(value, dict | list))

    return of_text(judge)


def _validator(path: Path) -> Any:
    from jsonschema import exceptions, validators

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        found = validators.validator_for(schema)
        found.check_schema(schema)
    except (OSError, ValueError, exceptions.SchemaError) as error:
        raise Refused(f"{path.name} is no JSON schema: {str(error).splitlines()[0][:200]}") from error
    return found(schema)


def words(text: str) -> int:
    """The number of words; each character of a script without spaces is one."""
    return len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+(?:['’-][^\W_]+)*", text))


def band(argument: str) -> tuple[int, int]:
    """The bounds of "20-120", in words. Raises `Refused` if there are none."""
    said = re.fullmatch(r"(\d{1,6})-(\d{1,6})", argument, re.ASCII)
    if not said or not 0 < int(said[1]) <= int(said[2]) <= MOST_WORDS:
        raise Refused(f"length:LOW-HIGH names two numbers of words such as 20-120, not {argument[:40]!r}")
    return int(said[1]), int(said[2])


def _length(argument: str, context: RewardContext) -> Reward:
    low, high = band(argument)

    def judge(text: str) -> float:
        """1 inside the band; outside, the ratio to its nearer end."""
        count = words(text)
        return 1.0 if low <= count <= high else min(count / low, high / max(count, 1))

    return of_text(judge)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """The language of a text by its ISO 639 code; empty if it is not sure."""
    language, probability = _identifier().classify(text)
    return str(language) if probability >= SURE else ""


def likely_in(text: str, language: str) -> float:
    """The probability that a text is in a language."""
    return float(dict(_identifier().rank(text)).get(language, 0.0))


def _language(argument: str, context: RewardContext) -> Reward:
    def reward(sampled: Sequence[Sampled]) -> list[Tensor]:
        found = []
        for each in sampled:
            language = argument or language_of(each.messages[-1].content if each.messages else "")
            judged = [likely_in(text, language) if language and words(text) else math.nan for text in each.texts]
            found.append(torch.tensor(judged))
        return found

    return reward


def _require_language(argument: str) -> None:
    if argument and argument not in {language for language, _ in _identifier().rank("a")}:
        raise Refused(f"language:CODE is a code such as en, de or zh, not {argument[:40]!r}")


RULES: dict[str, tuple[str, Judge]] = {
    "list": ("it is a list of two items or more", lambda text: float(len(ITEM.findall(text)) > 1)),
    "plain": ("it has no markup", lambda text: float(not MARKUP.search(text))),
    "one-sentence": (
        "it is one whole sentence",
        lambda text: float(len(ENDINGS.findall(text.strip())) == 1 and bool(ENDINGS.match(text.strip()[-1:]))),
    ),
    "one-line": ("it has one line", lambda text: float(len(text.strip().splitlines()) == 1)),
    "question": ("it ends with a question", lambda text: float(text.rstrip()[-1:] in ("?", "？"))),
}


def _require_rule(argument: str) -> None:
    if argument not in RULES:
        raise Refused(f"form:RULE is one of {', '.join(RULES)}, not {argument[:40]!r}")


def _form(argument: str, context: RewardContext) -> Reward:
    return of_text(RULES[argument][1])


def _require_schema(argument: str) -> None:
    if argument:
        require_name(argument, ".json")


register(
    Source(
        "json",
        "1 if a reply is JSON that keeps to a schema in the data folder's rewards/, or any object or list",
        _json,
        "SCHEMA.json",
        True,
        _require_schema,
    )
)
register(
    Source(
        "language",
        "the probability that a reply is in the language of what was asked, or in one that is named",
        _language,
        "CODE",
        True,
        _require_language,
    )
)
register(
    Source(
        "length", "1 if a reply has so many words, less the further it is from that", _length, "LOW-HIGH", check=band
    )
)
register(
    Source(
        "form",
        f"1 if a reply has a form: {'; '.join(f'{name}: {told}' for name, (told, _) in RULES.items())}",
        _form,
        "RULE",
        check=_require_rule,
    )
)
