"""Small models of every family that is served, random adapters for them, and what transformers and PEFT compute.

Every number is random and large enough to matter, norms and biases too: a weight in a wrong place changes the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant.models import adapter, base_model, turns
from assistant.models.adapter import PROOF_TEXTS, AdapterCard
from assistant.models.base_model import Base

NEAR_TIE = 1e-4  # between the two best logits: here another order of sums may choose the other
MOST_DEPARTURES = 0.01  # of all replies


def few_words() -> Any:
    """A tokenizer of the proof's words, single bytes and ChatML's marks: quick to load, for any text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([f"user\n{question}\nassistant\n{reply}" for question, reply in PROOF_TEXTS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokenizer.add_tokens([AddedToken(each, special=True) for each in (turns.START, turns.END)], special_tokens=True)
    tokenizer.eos_token, tokenizer.chat_template = turns.END, turns.CHATML
    return tokenizer


def save_small(folder: Path, config: Any, seed: int = 0, tokenizer: Any = None) -> Base:
    """A model of this config with random weights in float32, beside a tokenizer (the embedded model's)."""
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer or base_model.load_tokenizer(base_model.find_base(base_model.EMBEDDED))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config).float()
        for name, each in model.named_parameters():
            if each.dim() == 1:  # new norms are all ones, and biases all zero: they would hide a mistake
                each.data += 0.2 * torch.randn_like(each)
            elif "embed" not in name:
                each.data = torch.randn_like(each) / each.shape[-1] ** 0.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return base_model.find_base(str(folder))


def save_adapter(folder: Path, base: Base, seed: int, **options: Any) -> Path:
    """An adapter as PEFT writes it, with these options of its `LoraConfig`, both factors random, and its card."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    network: Any = base_model.load_model(base, torch.float32, "cpu", "eager")
    model: Any = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, each in model.named_parameters():
        if "lora_" in name:
            each.data = torch.randn_like(each) / each.shape[-1] ** 0.5
    model.save_pretrained(folder)
    sign(folder, base)
    return folder


def sign(folder: Path, base: Base) -> None:
    """Write the card that an adapter's weights ask for."""
    sha256 = base_model.file_sha256(folder / adapter.WEIGHTS)
    adapter.write_card(folder, AdapterCard(folder.name, base.name, base.sha256, None, "dpo", sha256, "", {}, {}, 0, {}))


@dataclass(frozen=True)
class Expected:
    """A greedy reply, and how far each of its tokens' logits was above the next best."""

    token_ids: list[int]
    margins: list[float]
    logprobs: tuple[float, ...] = ()  # of its tokens, in nats, where a plain forward has read it


class Reference:
    """A base and its adapters as transformers and PEFT compute them: float32, one text at a time."""

    def __init__(self, base: Base, directories: Mapping[str, Path], attention: str = "sdpa") -> None:
        from peft import PeftModel

        self.model: Any = base_model.load_model(base, torch.float32, "cpu", attention)
        self._adapted = bool(directories)
        for name, directory in directories.items():
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(directory, adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.model, directory, adapter_name=name)

    @torch.inference_mode()
    def write(self, prompt_ids: Sequence[int], adapter: str | None, max_tokens: int, **options: Any) -> Expected:
        """What `generate` writes without drawing; `options` are its own."""
        inputs = torch.tensor([prompt_ids])
        asked = {"do_sample": False, "max_new_tokens": max_tokens, "return_dict_in_generate": True} | options
        with self._as(adapter):
            out = self.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), output_logits=True, **asked
            )
        best = torch.cat(out.logits).topk(2).values
        return Expected(out.sequences[0, len(prompt_ids) :].tolist(), (best[:, 0] - best[:, 1]).tolist())

    @torch.inference_mode()
    def write_each(self, prompts: Sequence[Sequence[int]], adapter: str | None, max_tokens: int) -> list[Expected]:
        """As `write`, of prompts that `generate` is given together: quicker.

        A plain forward then reads each reply alone, and one of which it would have chosen another token is written
        alone: who was beside it has changed nothing.
        """
        width = max(map(len, prompts))
        inputs = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        with self._as(adapter):
            out = self.model.generate(input_ids=inputs, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens)
        return [
            self._read(ids, reply, adapter) or self.write(ids, adapter, max_tokens)
            for ids, reply in zip(prompts, out[:, width:].tolist(), strict=True)
        ]

    def _read(self, prompt_ids: Sequence[int], reply_ids: list[int], adapter: str | None) -> Expected | None:
        """A reply up to its end, as a plain forward sees it; None if that prefers another token somewhere."""
        named = self.model.generation_config.eos_token_id
        ends = named if isinstance(named, list) else [named]
        end = next((at for at, each in enumerate(reply_ids, 1) if each in ends), len(reply_ids))
        token_ids = reply_ids[:end]  # what follows is padding
        logits = self.logits(prompt_ids, token_ids, adapter)
        best = logits.topk(2)
        if best.indices[:, 0].tolist() != token_ids:
            return None
        margins = best.values[:, 0] - best.values[:, 1]
        return Expected(token_ids, margins.tolist(), tuple(logits.log_softmax(-1).amax(-1).tolist()))

    @torch.inference_mode()
    def logits(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: str | None) -> Tensor:
        """A plain forward's logits (reply tokens, V), that each token of a reply was chosen by."""
        inputs = torch.tensor([[*prompt_ids, *reply_ids]])
        with self._as(adapter):
            out = self.model(input_ids=inputs, use_cache=False)
        return out.logits[0, len(prompt_ids) - 1 : -1].float()

    def logprobs(self, prompt_ids: Sequence[int], reply_ids: Sequence[int], adapter: str | None) -> list[float]:
        """What a plain forward gives each token of a reply, in nats."""
        logprobs = self.logits(prompt_ids, reply_ids, adapter).log_softmax(-1)
        chosen: list[float] = logprobs.gather(1, torch.tensor(reply_ids)[:, None])[:, 0].tolist()
        return chosen

    def _as(self, adapter: str | None) -> Any:
        import contextlib

        if not self._adapted:
            return contextlib.nullcontext()
        if adapter is None:
            return self.model.disable_adapter()
        self.model.set_adapter(adapter)
        return contextlib.nullcontext()


def require_equal(written: Sequence[Sequence[int]], expected: Sequence[Expected]) -> None:
    """Fails unless each reply is the expected one; behind a near tie of the reference it may be another.

    Those that are another are printed, and at most 1 % of all.
    """
    departed = [pair for pair in zip(written, expected, strict=True) if list(pair[0]) != pair[1].token_ids]
    for ids, wanted in departed:
        at = next((at for at, pair in enumerate(zip(ids, wanted.token_ids, strict=False)) if len(set(pair)) > 1), -1)
        assert at >= 0, f"a reply has {len(ids)} tokens where {len(wanted.token_ids)} are expected"
        assert wanted.margins[at] < NEAR_TIE, f"token {at} is another, {wanted.margins[at]:.1e} above the next best"
    ties = sum(margin < NEAR_TIE for each in expected for margin in each.margins)
    print(f"{len(departed)} of {len(expected)} replies are others after a near tie; there were {ties} near ties")
    assert len(departed) <= MOST_DEPARTURES * len(expected)
