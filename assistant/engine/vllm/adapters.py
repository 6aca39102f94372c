"""Adapters in a model server, each under a name made from its content, so that a name always means the same.

That holds after a restart of either side, and lets two Nightschools share a server.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import httpx

from assistant.engine.request import EngineError
from assistant.engine.vllm import protocol
from assistant.models.adapter import CONFIG, AdapterCard, AdapterRefused

FORGET_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """An adapter's name in the server, and its directory, which the server sees under the same path."""

    model: str
    directory: Path


def place_for(directory: Path, card: AdapterCard) -> Place:
    """An adapter's place, named after everything that the server reads: weights and settings."""
    content = hashlib.sha256(card.weights_sha256.encode() + (directory / CONFIG).read_bytes()).hexdigest()
    return Place(f"{directory.name}-{content[:12]}", directory)


async def lend(client: httpx.AsyncClient, place: Place, card: AdapterCard) -> None:
    """Have the server load an adapter unless it has it.

    Raises `AdapterRefused` with the server's reason, and `EngineError` if the server is too busy.
    """
    if await has(client, place):
        return
    if place_for(place.directory, card) != place:
        raise AdapterRefused(f"adapter {card.id} was changed on disk since it was proved")
    asked = {"lora_name": place.model, "lora_path": str(place.directory)}
    answer = await client.post("/v1/load_lora_adapter", json=asked)
    if answer.status_code in protocol.BUSY:
        raise EngineError(f"the model server is too busy to load adapter {card.id}; try again in a moment")
    if answer.status_code != 200 and not await has(client, place):  # another Nightschool may have loaded it meanwhile
        said = protocol.message_in(answer)
        raise AdapterRefused(
            f"adapter {card.id} cannot be loaded by the model server: {said} (it must see {place.directory}, too)"
        )


async def has(client: httpx.AsyncClient, place: Place) -> bool:
    """Whether the server has an adapter loaded."""
    answer = await client.get("/v1/models")
    return answer.status_code == 200 and place.model in {each["id"] for each in answer.json()["data"]}


async def take_back(client: httpx.AsyncClient, model: str) -> None:
    """Have the server unload an adapter; one that it does not have counts as unloaded."""
    try:
        answer = await client.post("/v1/unload_lora_adapter", json={"lora_name": model}, timeout=FORGET_S)
        forgotten = answer.status_code in (200, 404)
    except httpx.HTTPError:  # a server that is gone holds nothing
        forgotten = True
    if not forgotten:
        log.warning("the model server did not unload %s", model)
