"""Requests to a model server and its answers: the wire format of `/v1/completions`, as vLLM speaks it.

Prompts travel as token ids and tokens come back as ids, so nothing is tokenised twice.
"""

import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from assistant.engine.request import Busy, EngineError
from assistant.engine.sampling.params import Sampling, Token
from feedback.errors import Refused

LIKELIEST = 20  # log-probs requested with each token; the most that vLLM gives unless told otherwise
SCORED_AT_ONCE = 100  # tokens of a given reply; vLLM reports on at most 128 different ones in an answer
TOKEN = "token_id:"  # how a token is spelt where ids are asked for
BUSY = (429, 503)
FINISHES = ("stop", "length")
EVENT = "data: "

Known = Sequence[tuple[int, float]]  # token ids with their log-probs, likeliest first


def writing(model: str, prompt_ids: Sequence[int], sampling: Sampling, end_ids: frozenset[int]) -> dict[str, Any]:
    """The request for a reply. Every setting that shapes a draw is sent, as the server has defaults of its own.

    Stop strings are not sent: `chat.reply` watches for them, and cancels.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_ids),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop_token_ids": sorted(end_ids),
        "logprobs": LIKELIEST,
        "return_tokens_as_token_ids": True,
        "stream": sampling.beams == 1,
    }
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.json_schema is not None:
        schema = {"name": "reply", "schema": json.loads(sampling.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if sampling.beams > 1:  # by the server's own search; the best reply comes first
        body |= {"use_beam_search": True, "n": sampling.beams, "temperature": 0.0, "top_p": 1.0}
    return body


def scoring(model: str, prompt_ids: Sequence[int], reply_ids: Sequence[int]) -> dict[str, Any]:
    """The request for the log-probs of a given reply: one token after each prefix of it.

    So they are computed as those of a reply being written. vLLM's `prompt_logprobs` take another path, on which its CPU
    build crashes when two requests with adapters meet in a batch (0.32).
    """
    return {
        "model": model,
        "prompt": [[*prompt_ids, *reply_ids[:length]] for length in range(len(reply_ids))],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 1,
        "logprob_token_ids": sorted(set(reply_ids)),
        "return_tokens_as_token_ids": True,
        "stream": False,
    }


async def parts(answer: httpx.Response, streamed: bool) -> AsyncIterator[dict[str, Any]]:
    """The parts of a reply as they come; one that comes whole is one part. Raises `EngineError` if the reply failed."""
    if not streamed:
        yield json.loads(await answer.aread())["choices"][0]
        return
    async for line in answer.aiter_lines():
        if not line.startswith(EVENT + "{"):
            continue
        event = json.loads(line.removeprefix(EVENT))
        if "error" in event:
            raise EngineError(f"the model server refused this reply: {message_of(event)}")
        for choice in event["choices"]:  # an event that only counts tokens has none
            yield choice


def written(part: dict[str, Any], sampling: Sampling) -> list[Token]:
    """The tokens in one part of a reply."""
    said = part["logprobs"]
    if not said:
        return []
    tokens = []
    for name, logprob, top in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True):
        known = sorted(((token_id(each), value) for each, value in top.items()), key=lambda pair: -pair[1])[:LIKELIEST]
        drawn = drawn_logprob(logprob, known, sampling)
        tokens.append(Token(token_id(name), logprob, drawn, tuple(known[: sampling.top_logprobs])))
    return tokens


def token_id(name: str) -> int:
    """The id in a token's name. Raises `ValueError` if the server gave text instead."""
    if not name.startswith(TOKEN):
        raise ValueError(f"a token without its id: {name!r}")
    return int(name.removeprefix(TOKEN))


def scored(answer: dict[str, Any], reply_ids: Sequence[int]) -> list[Token]:
    """A given reply's tokens, with their log-probs under the model."""
    after = sorted(answer["choices"], key=lambda each: each["index"])
    values = [
        float(each["logprobs"]["top_logprobs"][0][f"{TOKEN}{token}"])
        for token, each in zip(reply_ids, after, strict=True)
    ]
    return [Token(token, value, value) for token, value in zip(reply_ids, values, strict=True)]


def drawn_logprob(logprob: float, known: Known, sampling: Sampling) -> float:
    """A token's log-prob in nats under the distribution it was drawn from, derived from what the server reports.

    It reports log-probs under the model (`logprob`, and the likeliest 20 as `known`). The result is exact for greedy
    (0), and for temperature 1 with nothing cut off. Otherwise temperature and cuts are redone on the 20, and each token
    of the tail is taken to be as likely as the last of them; the error is small if the 20 hold nearly all probability.
    The effect of penalties, biases or a schema is not reported, and not in this number.
    """
    if sampling.temperature == 0 or sampling.beams > 1:
        return 0.0
    # 1. weights at this temperature, relative to the likeliest; the tail counts as so many of the last
    best, last = known[0][1], known[-1][1]
    weights = [math.exp((value - best) / sampling.temperature) for _, value in known]
    missing = max(0.0, 1.0 - sum(math.exp(value) for _, value in known))
    unknown = missing / max(math.exp(last), 1e-30)

    # 2. what the cuts leave of these: min-p, then top-k, then top-p, in vLLM's order
    if weights[-1] < sampling.min_p:
        weights, unknown = [each for each in weights if each >= sampling.min_p], 0.0
    if sampling.top_k:
        unknown = min(unknown, max(0, sampling.top_k - len(weights)))
        weights = weights[: sampling.top_k]
    total, kept = sum(weights) + unknown * weights[-1], 0.0
    for weight in weights:
        if kept >= sampling.top_p * total:
            break
        kept += weight
    kept = max(kept, sampling.top_p * total)  # more where the cut lies in the tail
    return min(0.0, (logprob - best) / sampling.temperature - math.log(kept))


def refusal(answer: httpx.Response) -> Exception:
    """The exception for an answer that is not 200, once it is read."""
    message = message_in(answer)
    if answer.status_code in BUSY:
        return Busy(f"the assistant is busy: {message}")
    if answer.status_code in (401, 403):
        return EngineError("the model server wants a key: set VLLM_API_KEY to the one it was started with")
    if answer.status_code == 400:
        return Refused(f"the model server refused this: {message}")
    return EngineError(f"the model server failed: {message}")


def message_in(answer: httpx.Response) -> str:
    """The message in an error response."""
    try:
        return message_of(answer.json())
    except ValueError:
        return f"HTTP {answer.status_code}"


def message_of(said: Any) -> str:
    """The message in an error object."""
    error = said.get("error", said) if isinstance(said, dict) else said
    return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
