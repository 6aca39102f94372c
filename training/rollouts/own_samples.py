"""The models' own samples that the KL from the base is measured on (`training.data.kl`).

Recorded replies cost nothing; those that a training learns from are left out, as they are what it moves most. Where the
ledger has too few others, the base writes some: that is the policy before its first step, and what it writes stays
comparable from step to step.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from assistant.engine.sampling.params import Sampling
from feedback.example_types import Examples
from training.data.kl import AT_THE_END, TO_A_PROMPT, judged_rows, spread
from training.data.tokenize import Encoder, TokenizedExample, tokenize
from training.model.packing import Row
from training.rollouts.on_policy import usual_length
from training.rollouts.sampler import Sampler

WANTED = AT_THE_END // 2
# So that a small night takes hardly longer, half as many replies are drawn as there are prompts, of at most as many
# tokens as there are prompts, within these bounds.
PROMPTS_EACH, FEWEST_TOKENS, MOST_TOKENS = 2, 32, 64
Open = Callable[[], AbstractContextManager[Sampler]]


def own_samples(recorded: Examples, examples: Sequence[TokenizedExample], encoder: Encoder, open_: Open) -> list[Row]:
    """Rows of one reply each: recorded ones, and where these are few, ones that the base draws at examples' prompts."""
    taught = {(tuple(row.prompt_ids), tuple(reply)) for row in judged_rows(examples) for reply in row.replies}
    others = judged_rows(tokenize(recorded, encoder)[0])
    kept = [row for row in others if (tuple(row.prompt_ids), tuple(row.replies[0])) not in taught]
    prompts = list(dict.fromkeys(tuple(each.prompt_ids) for each in examples))
    wanted = min(WANTED, -(-len(prompts) // PROMPTS_EACH))
    if len(kept) >= wanted:
        return kept[:WANTED]
    with open_() as sampler:
        sampler.forget()
        tokens = min(MOST_TOKENS, max(FEWEST_TOKENS, len(prompts)), usual_length(examples))
        sampling = Sampling(max_tokens=tokens)  # as chats sample
        chosen = spread(prompts, -(-(wanted - len(kept)) // TO_A_PROMPT))
        drawn = sampler.write(chosen, TO_A_PROMPT, sampling, seed=0)
    return kept + [Row(each.row.prompt_ids, [reply]) for each in drawn for reply in each.row.replies]
