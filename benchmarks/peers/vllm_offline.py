"""vLLM's offline engine on the processor. `python -m benchmarks.peers.vllm_offline MODEL DTYPE`.

It has its own defaults except for two: its cache has a fixed size, and it computes on every core, where it would leave
one to its own other processes. Greedy, always of full length.
"""

import os
import sys
import time
from typing import Any

from benchmarks.peers.exchange import Ready, Took, Turn, answer

MOST_TOKENS = 2048  # of a prompt and its reply
CACHE_GB = "2"


def main() -> None:
    """Answer turns with the model directory and the number format named on the command line."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GB)
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    answer(lambda: load(sys.argv[1], sys.argv[2]))


def load(path: str, dtype: str) -> Ready:
    """Load the engine, which starts a process of its own."""
    from vllm import LLM, __version__

    engine = LLM(path, dtype=dtype, max_model_len=MOST_TOKENS, disable_log_stats=False)
    return Ready(lambda turn: take(turn, engine), {"version": __version__})


def take(turn: Turn, engine: Any) -> Took:
    """Write all replies of a turn."""
    from vllm import SamplingParams

    started = time.perf_counter()
    asked = SamplingParams(temperature=0, max_tokens=turn.new_tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": each} for each in turn.prompts]
    written = engine.generate(prompts, asked, use_tqdm=False)
    seconds = time.perf_counter() - started
    count = sum(len(each.outputs[0].token_ids) for each in written)
    return Took(count, seconds, [each.metrics.first_token_latency for each in written])


if __name__ == "__main__":
    main()
