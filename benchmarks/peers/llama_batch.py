"""llama.cpp with the embedded file, its sequences in one batch. `python -m benchmarks.peers.llama_batch GGUF KIND`.

Prompts of all sequences are read in one call, then every step is one call over all of them; greedy, and the end of a
turn is a token like any other. KIND is `plain` or `flash` attention, with `-unified` for one cache over all sequences.
"""

import os
import sys
import time

import llama_cpp as llama
import numpy as np

from benchmarks.peers.exchange import Ready, Took, Turn, answer

MOST_STREAMS = 16
ROOM = 256  # tokens of a prompt and its reply


def main() -> None:
    """Answer turns with the file and the kind of attention named on the command line."""
    answer(lambda: load(sys.argv[1], sys.argv[2]))


def load(gguf: str, kind: str) -> Ready:
    """Load the model with room for all streams."""
    llama.llama_backend_init()
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = "unpacked" not in kind
    model = llama.llama_model_load_from_file(gguf.encode(), loading)
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = MOST_STREAMS * ROOM, MOST_STREAMS
    settings.n_batch = settings.n_ubatch = 2048
    settings.n_threads = settings.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
    settings.flash_attn_type = int("flash" in kind)
    settings.kv_unified = "unified" in kind
    context = llama.llama_init_from_model(model, settings)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(settings.n_batch, 0, 1)
    return Ready(lambda turn: take(turn, context, batch, vocabulary), {"version": llama.__version__})


def take(turn: Turn, context: int, batch: llama.llama_batch, vocabulary: int) -> Took:
    """Write all replies of a turn."""
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    started = time.perf_counter()

    # 1. all prompts at once
    rows = [
        (token, at, stream, at + 1 == len(prompt))
        for stream, prompt in enumerate(turn.prompts)
        for at, token in enumerate(prompt)
    ]
    tokens = step(context, batch, rows, vocabulary)
    first = time.perf_counter()

    # 2. then a token for each sequence in every step
    lengths = [len(prompt) for prompt in turn.prompts]
    for written in range(turn.new_tokens - 1):
        rows = [(token, lengths[stream] + written, stream, True) for stream, token in enumerate(tokens)]
        tokens = step(context, batch, rows, vocabulary)
    count = len(tokens) * turn.new_tokens
    return Took(count, time.perf_counter() - started, [first - started] * len(tokens))


def step(context: int, batch: llama.llama_batch, rows: list[tuple[int, int, int, bool]], vocabulary: int) -> list[int]:
    """Read rows of (token, position, sequence, whether its next token is wanted); return the likeliest next tokens."""
    batch.n_tokens = len(rows)
    for at, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[at] = token
        batch.pos[at] = position
        batch.n_seq_id[at] = 1
        batch.seq_id[at][0] = sequence
        batch.logits[at] = wanted
    if llama.llama_decode(context, batch) != 0:
        raise RuntimeError("llama_decode failed")
    wanted_rows = [at for at, row in enumerate(rows) if row[3]]
    pointers = [llama.llama_get_logits_ith(context, at) for at in wanted_rows]
    return [int(np.argmax(np.ctypeslib.as_array(each, (vocabulary,)))) for each in pointers]


if __name__ == "__main__":
    main()
