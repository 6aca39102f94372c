"""The first contact with a model server: the checks that it is there, speaks our protocol and has our model.

What would go wrong in the middle of a chat is refused here, in one sentence that says what to do. That the server's
weights are the base's own is proved with each adapter, whose log-probs hold for one base only (`chat.adapter_manager`).
"""

import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx

from assistant.engine.request import EngineError
from assistant.engine.sampling.params import Sampling
from assistant.engine.vllm import protocol
from assistant.models.base_model import Base, one_line
from assistant.models.chat_template import end_ids
from feedback.errors import Refused

KEY = "VLLM_API_KEY"  # vLLM's own name for it
CONNECT_S = 5.0
ANSWER_S = 300.0  # without a byte; a long queue is not a failure, a lost machine is
COMPILED_WITHIN_S = 180.0  # a server's first replies may wait for its kernels to be compiled
PROBE = "A probe: é, 日本, 🙂 and\n\tthree   spaces, 1234567."
NOWHERE = "/nowhere/nightschool-asks-whether-adapters-can-be-loaded"
RUNTIME_LORA = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


@dataclass(frozen=True)
class ModelServer:
    """A server that may answer for a base: its address, its name for the base, and its window."""

    url: str
    model: str
    window: int | None  # tokens of prompt and reply together; None: it does not say


def address(url: str) -> str:
    """A server's address without a final slash or /v1. Raises `Refused` if it is not a web address."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Refused(f"--engine-url is a web address such as http://127.0.0.1:8000, not {url!r}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Refused(f"--engine-url is a web address such as http://127.0.0.1:8000, not {url!r}")
    return str(parsed).rstrip("/").removesuffix("/v1")


def headers() -> dict[str, str]:
    """The headers that authenticate us to the server, if there is a key."""
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def meet(url: str, base: Base, tokenizer: Any) -> ModelServer:
    """The server at an address, after checking that it can answer for a base. Raises `Refused` if it cannot."""
    url = address(url)
    patience = httpx.Timeout(COMPILED_WITHIN_S, connect=CONNECT_S)
    with httpx.Client(base_url=url, headers=headers(), timeout=patience) as client:
        try:
            card = served_base(client, url, base)
            server = ModelServer(url, card["id"], card.get("max_model_len"))
            require_same_tokens(client, server, tokenizer)
            require_adapters(client, server)
            require_log_probs(client, server, tokenizer)
        except httpx.HTTPError as error:
            raise Refused(
                f"no model server answers at {url} ({one_line(error)}); start one, or mend --engine-url"
            ) from error
    return server


def served_base(client: httpx.Client, url: str, base: Base) -> dict[str, Any]:
    """The server's entry for a base. Raises `Refused` if it serves another, or is no server that we know."""
    answer = client.get("/v1/models", timeout=CONNECT_S)
    if answer.status_code in (401, 403):
        raise Refused(f"the model server at {url} wants a key: set {KEY} to the one it was started with")
    try:
        cards = [each for each in answer.raise_for_status().json()["data"] if not each.get("parent")]
        names = [each["id"] for each in cards]
    except (httpx.HTTPStatusError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(
            f"what answers at {url} is no OpenAI-compatible server: GET /v1/models gave HTTP {answer.status_code}"
        ) from error
    ours = {base.name, str(base.path), base.path.name}
    for card in cards:
        if {card["id"], card.get("root")} & ours:
            return dict(card)
    raise Refused(
        f"the model server at {url} serves {', '.join(map(repr, names)) or 'nothing'} and not {base.name!r}: start it "
        f"on {base.path}, or, where it knows that directory by another name, with --served-model-name {base.path.name}"
    )


def require_same_tokens(client: httpx.Client, server: ModelServer, tokenizer: Any) -> None:
    """Raise `Refused` if the server tokenizes text differently from the base's tokenizer."""
    asked = {"model": server.model, "prompt": PROBE, "add_special_tokens": False}
    answer = client.post("/tokenize", json=asked)
    if answer.status_code != 200:  # not every server tells; an adapter's log-probs will
        return
    ours = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if answer.json().get("tokens") != ours:
        raise Refused(f"the model server at {server.url} has another tokenizer than --model; start it on that model")


def require_adapters(client: httpx.Client, server: ModelServer) -> None:
    """Raise `Refused` if adapters cannot be loaded while the server runs, by asking for one that does not exist."""
    answer = client.post("/v1/load_lora_adapter", json={"lora_name": "nightschool-asks", "lora_path": NOWHERE})
    if answer.status_code == 404 and NOWHERE in answer.text:
        return  # it looked for the adapter
    raise Refused(f"the model server at {server.url} cannot load adapters while it runs; {RUNTIME_LORA}")


def require_log_probs(client: httpx.Client, server: ModelServer, tokenizer: Any) -> None:
    """Raise `Refused` if log-probs do not come with token ids, or are not those under the model.

    At a high temperature, a token's log-prob is far from the model's if the server reports that of the distribution it
    was drawn from.
    """
    prompt_ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    sampling = Sampling(temperature=2, top_p=1, max_tokens=4, seed=1)
    way_out = "Nightschool needs vLLM with --logprobs-mode raw_logprobs and --max-logprobs 20, which are its defaults"
    try:
        asked = protocol.writing(server.model, prompt_ids, sampling, frozenset())
        tokens = protocol.written(ask(client, asked | {"stream": False})["choices"][0], sampling)
        reply_ids = [each.id for each in tokens]
        again = protocol.scored(ask(client, protocol.scoring(server.model, prompt_ids, reply_ids)), reply_ids)
    except (ValueError, TypeError, KeyError, AttributeError, EngineError, Refused) as error:
        raise Refused(
            f"the model server at {server.url} does not tell log-probs ({one_line(error)}); {way_out}"
        ) from error
    if max(abs(one.logprob - other.logprob) for one, other in zip(tokens, again, strict=True)) > 0.5:
        raise Refused(f"the model server at {server.url} tells log-probs that are not the model's; {way_out}")


def ask(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Request a completion that comes whole."""
    answer = client.post("/v1/completions", json=body)
    if answer.status_code != 200:
        raise protocol.refusal(answer)
    completion: dict[str, Any] = answer.json()
    return completion


def read_settings(base: Base, tokenizer: Any) -> tuple[frozenset[int], int]:
    """The token ids that end a turn, and the model's window, from the base's files without its weights."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config: Any = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
        if (base.path / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(base.path, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(config)
    except Exception as error:  # a damaged file fails in many ways
        raise Refused(f"cannot read the settings of the model {base.name!r}: {one_line(error)}") from error
    window: int = config.get_text_config().max_position_embeddings
    return end_ids(tokenizer, SimpleNamespace(generation_config=generation)), window
