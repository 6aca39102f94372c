"""This project's own engine, called as the chat calls it. `python -m benchmarks.peers.nightschool_engine MODEL FORMAT`.

Greedy, and the end of a turn is a token like any other. For swapping it keeps a crowd of chats busy, each asking again
as soon as it is answered, while another thread loads an adapter, gives it to the next requests and unloads the previous
one.
"""

import itertools
import sys
import threading
import time
from pathlib import Path
from typing import Any

from assistant.engine.engine import Engine
from assistant.engine.request import EngineError, Generation
from assistant.engine.sampling.params import Sampling
from assistant.models import base_model
from assistant.models.adapter import LoadedAdapter
from benchmarks.peers.exchange import Ready, Took, Turn, answer

ASKED_EACH = 2  # replies that each chat of a crowd asks for, one after the other
SWAP_EVERY_S = 1.0


def main() -> None:
    """Answer turns with the model and the number format named on the command line."""
    answer(lambda: load(sys.argv[1], sys.argv[2]))


def load(model: str, number_format: str) -> Ready:
    """Load the engine in the named number format; "auto" is the one measured to be fastest."""
    engine = open_engine(base_model.find_base(model), number_format)
    network: Any = engine.network
    facts: dict[str, str | int] = {"number_format": engine.number_format, "weight_bytes": network.weight_bytes(rows=1)}
    adapters: dict[str, LoadedAdapter] = {}

    def take(turn: Turn) -> Took:
        if turn.task != "write":
            return crowd(engine, turn)
        for each in set(turn.adapters) - set(adapters):
            adapters[each] = engine.load(Path(each))
        return write(engine, turn, [adapters[each] for each in turn.adapters])

    return Ready(take, facts)


def open_engine(base: base_model.Base, number_format: str) -> Engine:
    """An engine on the processor."""
    return Engine(base, number_format, "cpu", base_model.load_tokenizer(base))


def greedy(tokens: int) -> Sampling:
    """The sampling of a greedy reply of exactly this many tokens."""
    return Sampling(temperature=0, max_tokens=tokens, ignore_end=True)


def write(engine: Engine, turn: Turn, adapters: list[LoadedAdapter]) -> Took:
    """Submit all requests of a turn, and read the replies to their ends."""
    dealt = itertools.cycle(adapters or [None])
    asked = greedy(turn.new_tokens)
    started = time.perf_counter()
    replies = [engine.submit(each, asked, next(dealt)) for each in turn.prompts]
    tokens, firsts = 0, []
    for reply in replies:  # prompts are read in this order
        tokens += len(reply.take() or [])
        firsts.append(time.perf_counter() - started)
    for reply in replies:
        tokens += sum(1 for _ in reply)
    return Took(tokens, time.perf_counter() - started, firsts, dropped=sum(each.finish is None for each in replies))


class Crowd:
    """Chats that ask, read and ask again, each in a thread, and what they measured."""

    def __init__(self, engine: Engine, new_tokens: int, adapter: LoadedAdapter) -> None:
        self.engine, self.new_tokens = engine, new_tokens
        self.adapter = adapter  # of the next request
        self.asking = threading.Lock()  # no adapter is unloaded between its choice and the request
        self.written: list[list[float]] = []  # when each token of a reply came
        self.firsts: list[float] = []
        self.dropped = 0

    def chat(self, prompts: list[list[int]]) -> None:
        """Run one chat of the crowd."""
        for prompt in prompts:
            with self.asking:
                reply = self.engine.submit(prompt, greedy(self.new_tokens), self.adapter)
            self.read(reply)

    def read(self, reply: Generation) -> None:
        """Record when each token comes, and whether the reply is complete."""
        came: list[float] = []
        try:
            while (tokens := reply.take(timeout_s=60)) is not None:
                if not tokens:
                    raise EngineError("no token came for a minute")
                came += [time.perf_counter()] * len(tokens)
        except EngineError:
            self.dropped += 1
            return
        self.dropped += not (reply.finish == "length" and len(came) == self.new_tokens)
        self.written.append(came)
        self.firsts.append(came[0] - reply.submitted_at)

    def swap(self, directories: list[str], over: threading.Event) -> int:
        """Until over, load an adapter, give it to the next requests, unload the previous one; return the swaps."""
        swaps = 0
        for directory in itertools.cycle(directories):
            if over.wait(SWAP_EVERY_S):
                return swaps
            new, old = self.engine.load(Path(directory)), self.adapter
            with self.asking:
                self.adapter = new
            self.engine.unload(old)
            swaps += 1
        return swaps


def crowd(engine: Engine, turn: Turn) -> Took:
    """Take a turn of a crowd, with adapters coming and going or with one that stays."""
    chats = len(turn.prompts) // ASKED_EACH
    people = Crowd(engine, turn.new_tokens, engine.load(Path(turn.adapters[-1])))
    started = time.perf_counter()
    threads = [threading.Thread(target=people.chat, args=[turn.prompts[at::chats]]) for at in range(chats)]
    for each in threads:
        each.start()
    over, swaps = threading.Event(), [0]
    if turn.task == "swap":
        swapper = threading.Thread(target=lambda: swaps.append(people.swap(turn.adapters, over)))
        swapper.start()
    for each in threads:
        each.join()
    seconds = time.perf_counter() - started
    over.set()
    if turn.task == "swap":
        swapper.join()
    engine.unload(people.adapter)
    intervals = [later - sooner for came in people.written for sooner, later in itertools.pairwise(came)]
    tokens = sum(map(len, people.written))
    missing = len(turn.prompts) - len(people.written) - people.dropped
    return Took(tokens, seconds, people.firsts, intervals, people.dropped + missing, swaps[-1])


if __name__ == "__main__":
    main()
