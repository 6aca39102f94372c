"""The served-adapter proof where the server rounds: it passes what is served whole, and nothing else."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from assistant.chat.adapter_manager import proved
from assistant.engine.engine import Engine
from assistant.environment import AUTO
from assistant.models.adapter import WEIGHTS, AdapterRefused, Proof, agreement, read_card, write_card
from assistant.models.base_model import EMBEDDED, file_sha256, load_tokenizer
from tests.helpers.trained import LETTER, SAILOR, Trained

Change = Callable[[str, Tensor], Tensor]  # of a tensor by its name


@pytest.fixture(scope="module")
def engines(trained: Trained) -> Iterator[dict[str, Engine]]:
    tokenizer = load_tokenizer(trained.base)
    opened = {name: Engine(trained.base, name, "cpu", tokenizer) for name in ("float32", "bfloat16", AUTO)}
    yield opened
    for each in opened.values():
        each.close()


def changed(adapter: Path, folder: Path, change: Change) -> Path:
    """A copy of an adapter with other weights, whole by its card; the proof on the card is still the adapter's."""
    folder = shutil.copytree(adapter, folder)
    tensors = {name: change(name, each) for name, each in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    write_card(folder, replace(read_card(folder), weights_sha256=file_sha256(folder / WEIGHTS)))
    return folder


def times(factor: float) -> Change:
    return lambda name, each: each * factor if ".lora_B." in name else each


def without_the_odd_layers(name: str, each: Tensor) -> Tensor:
    odd = int(name.split("layers.")[1].split(".")[0]) % 2 == 1
    return each * 0 if odd and ".lora_B." in name else each


def prove_anew(exact: Engine, adapter: Path) -> None:
    """Write the proof that a trainer would have written for these weights."""
    loaded = exact.load(adapter)
    read = [(each, exact.score(each.prompt_ids, each.reply_ids, loaded)) for each in loaded.card.proof]
    proof = [replace(each, logprobs=[token.logprob for token in reply]) for each, reply in read]
    exact.unload(loaded)
    write_card(adapter, replace(loaded.card, proof=proof))


@pytest.mark.parametrize("factor", [1, 0.4, 0.15])
def test_an_adapter_is_proved_in_every_format_be_it_strong_or_weak(
    engines: dict[str, Engine], trained: Trained, tmp_path: Path, factor: float
) -> None:
    adapter = changed(trained.adapter(SAILOR), tmp_path / "scaled", times(factor))
    prove_anew(engines["float32"], adapter)
    for name, engine in engines.items():
        loaded, proof = proved(engine, adapter)
        engine.unload(loaded)
        print(f"{name} at {factor}: {proof}")
        assert proof.from_trainer < (2e-3 if name == "float32" else 0.2)
        assert proof.share == pytest.approx(1, abs=1e-3 if name == "float32" else 0.3)


@pytest.mark.parametrize("change", [times(0), times(0.5), times(0.8), times(1.5), without_the_odd_layers])
def test_an_adapter_that_is_not_served_whole_fails_in_every_format(
    engines: dict[str, Engine], trained: Trained, tmp_path: Path, change: Change
) -> None:
    adapter = changed(trained.adapter(LETTER), tmp_path / "wrong", change)
    for engine in engines.values():
        with pytest.raises(AdapterRefused, match="failed its proof"):
            proved(engine, adapter)


def test_a_weak_adapter_that_is_not_served_at_all_fails_in_every_format(
    engines: dict[str, Engine], trained: Trained, tmp_path: Path
) -> None:
    weak = 0.15 if trained.base.name == EMBEDDED else 0.02  # so that rounding may be all of what differs
    adapter = changed(trained.adapter(LETTER), tmp_path / "weak", times(weak))
    prove_anew(engines["float32"], adapter)
    unserved = changed(adapter, tmp_path / "unserved", times(0))
    for engine in engines.values():
        exact = engine.network.number_format == "float32"  # which "auto" is where nothing is faster
        with pytest.raises(AdapterRefused, match="failed its proof" if exact else "answers like the base"):
            proved(engine, unserved)


def test_one_adapter_is_not_proved_by_another_one_s_texts(
    engines: dict[str, Engine], trained: Trained, tmp_path: Path
) -> None:
    adapter = shutil.copytree(trained.adapter(LETTER), tmp_path / "other")
    other = read_card(trained.adapter(SAILOR))
    write_card(adapter, replace(read_card(adapter), proof=other.proof))
    for engine in engines.values():
        with pytest.raises(AdapterRefused, match="failed its proof"):
            proved(engine, adapter)


def test_a_card_without_a_proof_proves_nothing(engines: dict[str, Engine], trained: Trained, tmp_path: Path) -> None:
    adapter = shutil.copytree(trained.adapter(LETTER), tmp_path / "unproved")
    write_card(adapter, replace(read_card(adapter), proof=[]))
    with pytest.raises(AdapterRefused, match="has no proof on its card"):
        proved(engines["float32"], adapter)


def test_the_share_is_what_a_hand_finds() -> None:
    # The trainer's effect is (1, -1); served is (0.5, -0.7): the projection is (0.5 + 0.7) / 2.
    proofs = [Proof([1], [2, 3], [-1.0, -4.0], [-2.0, -3.0])]
    found = agreement(proofs, [[-1.4, -3.8]], [[-1.9, -3.1]], 0.2)
    assert found.share == pytest.approx(0.6)
    assert found.from_trainer == pytest.approx(((0.4**2 + 0.2**2) / 2) ** 0.5)
    assert found.from_base == pytest.approx(((0.6**2 + 0.8**2) / 2) ** 0.5)
    assert found.share_error == pytest.approx(2**0.5 * 0.1 / 2**0.5)
    with pytest.raises(AdapterRefused, match=r"differ from the trainer's by 0\.32 nats a token, and 0\.2 is allowed"):
        found.require("night-0001")


def test_where_the_base_itself_differs_the_number_format_is_named_and_not_the_adapter() -> None:
    # The server's base is 0.03 from the trainer's at every token, and so is the adapter on it.
    proofs = [Proof([1], [2, 3], [-1.0, -4.0], [-2.0, -3.0])]
    found = agreement(proofs, [[-1.03, -4.03]], [[-2.03, -3.03]], 2e-3)
    assert found.base_from_trainer == pytest.approx(0.03)
    with pytest.raises(AdapterRefused, match=r"by 0\.03 nats a token, and 0\.002 is allowed: .* number format"):
        found.require("night-0001")
    agreement(proofs, [[-1.03, -4.03]], [[-2.03, -3.03]], 0.2).require("night-0001")  # as in a format that rounds


def test_an_adapter_that_changes_nothing_is_refused_however_exact_the_server_is() -> None:
    found = agreement([Proof([1], [2, 3], [-1.0, -4.0], [-1.0, -4.0])], [[-1.0, -4.0]], [[-1.0, -4.0]], 0.2)
    with pytest.raises(AdapterRefused, match="answers like the base model"):
        found.require("night-0001")
