"""What rounding a base's weights to bfloat16 costs: log-probs of real replies before and after, in nats a token.

`python -m benchmarks.rounding`: the embedded model with every weight moved by at most 0.4 %, as a fine-tune would leave
it in float32 or float16, against the same weights rounded. The last line is JSON.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from assistant.models import base_model, chat_template
from assistant.models.base_model import Base
from benchmarks.material import DATA, ROOT
from feedback.errors import Refused
from feedback.messages import Message

MOST = 0.004  # of a weight: how far it is moved
FILES = ("pairs_helpful_test.jsonl", "pairs_harmless_test.jsonl", "instructions.jsonl")
LONGEST = 512  # tokens of a conversation
STORED = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Cost:
    """Of rounding from one stored format, over all reply tokens, in nats a token."""

    stored: str
    tokens: int
    before: float  # mean log-prob with the weights as stored
    after: float  # and rounded
    difference: float  # of one token's log-prob, root mean square
    kl: float  # mean KL of the rounded model's distributions from the stored one's


def moved(base: Base, folder: Path, stored: torch.dtype, seed: int = 0) -> Base:
    """A copy of a base with every weight moved a little, stored in another number format."""
    copytree(base.path, folder)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, each in tensors.items():
            push = 1 + MOST * (2 * torch.rand(each.shape, generator=generator) - 1)
            tensors[name] = (each.float() * push).to(stored)
        save_file(tensors, path, {"format": "pt"})
    return base_model.find_base(str(folder))


def conversations(tokenizer: Any, each: int) -> Iterator[tuple[list[int], int]]:
    """Real conversations as token ids, `each` of a file, and how many of them are the prompt."""
    for file in FILES:
        for line in (DATA / file).read_text().splitlines()[:each]:
            row = json.loads(line)
            turns = row.get("messages") or [*row["prompt"], {"role": "assistant", "content": row["chosen"]}]
            told = [Message(turn["role"], turn["content"]) for turn in turns]
            prompt_ids = chat_template.encode_prompt(tokenizer, told[:-1], LONGEST)
            reply_ids = chat_template.encode_reply(tokenizer, told[-1].content, tokenizer.eos_token_id)
            ids = (prompt_ids + reply_ids)[:LONGEST]
            if len(prompt_ids) < len(ids):
                yield ids, len(prompt_ids)


@torch.inference_mode()
def distributions(model: Any, ids: list[int], start: int) -> Tensor:
    """Log-probs (reply tokens, V) under a model."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
    found: Tensor = logits.float().log_softmax(-1)
    return found


def cost(base: Base, stored: str, each: int) -> Cost:
    """Measure one base, whose weights are stored in this format."""
    from transformers import AutoModelForCausalLM

    tokenizer = base_model.load_tokenizer(base)
    source = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": False}
    exact = AutoModelForCausalLM.from_pretrained(base.path, **source).eval()
    rounded = base_model.load_model(base, torch.float32, "cpu")
    before, after, kl = [], [], []
    for ids, start in conversations(tokenizer, each):
        p, q = (distributions(model, ids, start) for model in (exact, rounded))
        reply = torch.tensor(ids[start:])[:, None]
        before.append(p.gather(1, reply)[:, 0])
        after.append(q.gather(1, reply)[:, 0])
        kl.append((p.exp() * (p - q)).sum(1))
    ours, theirs = torch.cat(after), torch.cat(before)
    off = float((ours - theirs).square().mean().sqrt())
    return Cost(stored, len(ours), float(theirs.mean()), float(ours.mean()), off, float(torch.cat(kl).mean()))


@click.command(help=__doc__)
@click.option("--conversations", "each", default=100, show_default=True, help="Conversations of each file.")
def main(each: int) -> None:
    """Measure and print."""
    if not DATA.is_dir():
        raise Refused(f"the texts are the shared preference data, and there is no {DATA.relative_to(ROOT.parent)}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for stored, dtype in STORED.items():
            base = moved(base_model.find_base(base_model.EMBEDDED), Path(folder) / stored, dtype)
            found.append(asdict(cost(base, stored, each)))
            print(found[-1], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
