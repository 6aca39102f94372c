"""transformers' `generate`, its prompts in one batch. `python -m benchmarks.peers.transformers_generate MODEL DTYPE`.

Greedy, always of full length; all prompts are equally long, so nothing is padded.
"""

import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LogitsProcessorList

from benchmarks.peers.exchange import Ready, Took, Turn, answer


def main() -> None:
    """Answer turns with the model directory and the number format named on the command line."""
    answer(lambda: load(sys.argv[1], getattr(torch, sys.argv[2])))


def load(path: str, dtype: torch.dtype) -> Ready:
    """Load the model as anyone would."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return Ready(lambda turn: take(turn, model.eval()), {"version": transformers.__version__})


@torch.inference_mode()
def take(turn: Turn, model: Any) -> Took:
    """Write all replies of a turn."""
    firsts: list[float] = []

    def note(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if not firsts:
            firsts.append(time.perf_counter())
        return logits

    started = time.perf_counter()
    inputs = torch.tensor(turn.prompts)
    length = {"min_new_tokens": turn.new_tokens, "max_new_tokens": turn.new_tokens}
    written = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([note]),
        **length,
    )
    seconds = time.perf_counter() - started
    return Took(written[:, inputs.shape[1] :].numel(), seconds, [firsts[0] - started] * len(turn.prompts))


if __name__ == "__main__":
    main()
