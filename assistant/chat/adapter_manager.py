"""The adapters a server holds in memory: loading, proving, swapping and dropping them.

The database says which adapter should serve; the manager looks when it is next asked, and from then on hands out that
one. An adapter is handed out only once this server's own log-probs of the proof texts, computed by the code that writes
replies, match the trainer's and differ from the base's. One that fails never serves, and the previous one goes on
serving.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from assistant.engine.engine import Engine
from assistant.engine.request import EngineError, EngineProtocol
from assistant.models.adapter import AdapterRefused, Agreement, LoadedAdapter, Proof, agreement
from assistant.models.base_model import exact_format, find_base, load_tokenizer, one_line, pick_device
from feedback.database.database import Database
from feedback.errors import Conflict, Refused
from feedback.records import adapters

MOST_KEPT = 6  # adapters in memory before the least recently used one is dropped
BESIDE_PEOPLE = 2  # proof texts scored at once while replies are being written; more would delay those

log = logging.getLogger(__name__)


class AdapterManager:
    """The adapters in memory, and the one that is serving. Safe to share between threads."""

    def __init__(self, store: Database, engine: EngineProtocol) -> None:
        self.store = store
        self.engine = engine
        self._lock = threading.RLock()
        self._loaded: OrderedDict[str, LoadedAdapter] = OrderedDict()
        self._serving: LoadedAdapter | None = None
        self._begun = False  # whether the serving adapter was ever looked up
        self._starting = threading.Lock()
        self._loading = threading.Thread()  # loads an adapter that another process promoted

    def serving(self) -> str | None:
        """The id of the adapter that answers from now on (None: the base); loads it if it was just promoted.

        If it cannot be loaded or fails its proof, the previous one is promoted again in the database, with the reason.
        """
        loaded = self._current()
        return loaded.id if loaded else None

    def loaded(self) -> list[str]:
        """The ids of the adapters in memory."""
        with self._lock:
            return list(self._loaded)

    def get(self, name: str | None) -> LoadedAdapter | None:
        """Return a proved adapter by id (None: the base). Raises `NotFound`, or `AdapterRefused` with the reason."""
        if name is None:
            return None
        with self._lock:
            if name not in self._loaded:
                self._loaded[name], _ = self._load(name)
            self._loaded.move_to_end(name)
            self._forget_oldest()
            return self._loaded[name]

    def current(self) -> LoadedAdapter | None:
        """The adapter that answers now (None: the base), ready to use.

        Nobody waits for one that another process promoted: until it is loaded and proved, the previous one answers.
        """
        wanted, serving = adapters.serving(self.store), self._serving
        if wanted == (serving.id if serving else None):
            return serving
        if not self._begun or wanted is None:
            return self._current()
        with self._starting:
            if not self._loading.is_alive():
                self._loading = threading.Thread(target=self._load_promoted, name="loading", daemon=True)
                self._loading.start()
        return serving

    def challenger(self) -> str | None:
        """The newest candidate that can serve and never has, to compare with what serves; None if there is none."""
        served = {each.adapter for each in adapters.promotions(self.store, limit=1000)}
        current = adapters.serving(self.store)
        for each in adapters.adapters(self.store):
            if each.id == current:
                return None  # anything older than the serving adapter is decided already
            if each.verdict == "candidate" and each.id not in served and self._can_serve(each.id):
                return each.id
        return None

    def _can_serve(self, name: str) -> bool:
        try:
            self.get(name)
            return True
        except AdapterRefused as error:
            log.warning("not comparing with a candidate: %s", error)
            return False

    def promote(
        self, user: int | None, name: str | None, reason: str, instead_of: str | None = adapters.ANYTHING
    ) -> Agreement | None:
        """Prove an adapter from its files on disk and promote it (None: the base); return how the proof went.

        Raises `Refused` on an empty reason, `NotFound`, `Conflict` (also if something other than `instead_of` serves),
        or `AdapterRefused`; nothing is changed then.
        """
        require_reason(reason)
        proof = None
        with self._lock:
            adapters.require_promotable(self.store, name, instead_of)
            if name is not None:
                before = self._loaded.get(name)
                fresh, proof = self._load(name)
                if before and before.card == fresh.card:  # identical, and a reply may be about to begin with it
                    self.engine.unload(fresh)
                else:
                    self._loaded[name] = fresh
                    self._let_go(before)
            adapters.promote(self.store, name, user, reason.strip(), asdict(proof) if proof else {}, instead_of)
            self._current()
        return proof

    def _load_promoted(self) -> None:
        try:
            self._current()
        except Exception:  # the next call tries again
            log.exception("could not see which adapter serves")

    def _current(self) -> LoadedAdapter | None:
        self._begun = True
        wanted = adapters.serving(self.store)
        if wanted == (self._serving.id if self._serving else None):
            return self._serving
        with self._lock:
            before = self._serving
            try:
                wanted = adapters.serving(self.store)
                self._serving = self.get(wanted)
            except Refused as error:
                log.error("keeping %s: %s", before.id if before else "the base", error)
                reason = f"{adapters.KEPT}{error}"
                with suppress(Conflict):  # another was promoted meanwhile; the next call loads it
                    adapters.promote(self.store, before.id if before else None, None, reason, {}, instead_of=wanted)
            self._let_go(before)
            return self._serving

    def _load(self, name: str) -> tuple[LoadedAdapter, Agreement]:
        """Read an adapter from disk and prove it. Raises `NotFound` or `AdapterRefused`."""
        adapters.adapter(self.store, name)
        return proved(self.engine, adapters.directory(self.store, name))

    def _forget_oldest(self) -> None:
        """Drop the least recently used adapters. Replies in flight hold on to theirs themselves."""
        kept = {self._serving.id} if self._serving else set()
        for name in [each for each in self._loaded if each not in kept][: max(0, len(self._loaded) - MOST_KEPT)]:
            self._let_go(self._loaded.pop(name))

    def _let_go(self, adapter: LoadedAdapter | None) -> None:
        """Free an adapter's memory, unless it is kept or serving."""
        if adapter and adapter is not self._serving and self._loaded.get(adapter.id) is not adapter:
            self.engine.unload(adapter)


def proved(engine: EngineProtocol, directory: Path) -> tuple[LoadedAdapter, Agreement]:
    """Load an adapter from a directory and prove it in this engine. Raises `AdapterRefused`."""
    loaded = engine.load(directory)
    proofs = loaded.card.proof
    try:
        at_once = BESIDE_PEOPLE if engine.active else max(1, len(proofs))
        parts = [proofs[at : at + at_once] for at in range(0, len(proofs), at_once)]
        read = [pair for part in parts for pair in _read_aloud(engine, part, loaded)]
        proof = agreement(proofs, [with_it for with_it, _ in read], [base for _, base in read], engine.tolerance)
        proof.require(loaded.card.id)
    except (Refused, EngineError):
        engine.unload(loaded)
        raise
    except (IndexError, ValueError, TypeError, RuntimeError) as error:  # from token ids that this base does not have
        engine.unload(loaded)
        raise AdapterRefused(f"adapter {loaded.card.id} has a proof that cannot be read: {one_line(error)}") from error
    return loaded, proof


def _read_aloud(engine: EngineProtocol, proofs: Sequence[Proof], adapter: LoadedAdapter) -> list[list[list[float]]]:
    """The log-probs of each proof's reply, with the adapter and without."""
    read = [[engine.score(each.prompt_ids, each.reply_ids, by) for by in (adapter, None)] for each in proofs]
    return [[[token.logprob for token in each] for each in pair] for pair in read]


def prove_and_promote(
    store: Database,
    model: str,
    name: str | None,
    user: int | None,
    reason: str,
    instead_of: str | None = adapters.ANYTHING,
) -> Agreement | None:
    """Promote an adapter (None: the base) from outside a server, proving it in an engine of this process.

    Raises as `AdapterManager.promote` does, and `Refused` on an unusable model. A running server notices the promotion
    by itself, and proves the adapter again before it answers with it.
    """
    require_reason(reason)
    adapters.require_promotable(store, name, instead_of)
    if name is None:
        adapters.promote(store, None, user, reason.strip(), {}, instead_of)
        return None
    base, device = find_base(model), pick_device()
    engine = Engine(base, exact_format(device), device, load_tokenizer(base))
    try:
        return AdapterManager(store, engine).promote(user, name, reason, instead_of)
    finally:
        engine.close()


def require_reason(reason: str) -> None:
    """Raise `Refused` on an empty reason."""
    if not reason.strip():
        raise Refused("say why, in a few words: a promotion needs a reason")
