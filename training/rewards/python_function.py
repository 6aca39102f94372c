"""A function of the operator's own as a source of reward, in TRL's form.

`fn(prompts, completions, **more) -> list[float | None]`: prompts as messages, completions as messages of the assistant,
and more as TRL passes it (`completion_ids`). None says nothing of a reply. The file must be in the data folder's
`rewards/`, where only whoever owns the machine can put it: the HTTP API can name a function there, and bring none.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedback.errors import Refused
from training.rewards.base import Reward, RewardContext, Sampled, Source
from training.rewards.files import of_folder, require_name
from training.rewards.registry import register


def function_of(argument: str, folder: Path) -> Callable[..., Any]:
    """The function that FILE#FUNCTION names. Raises `Refused` if there is none, or its file cannot be run."""
    name, _, wanted = argument.partition("#")
    path = of_folder(folder, name)
    spec = importlib.util.spec_from_file_location(f"nightschool_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refused(f"{name} cannot be run: {type(error).__name__}: {str(error)[:200]}") from error
    found = getattr(module, wanted, None)
    if not callable(found):
        raise Refused(f"there is no function {wanted!r} in {name}")
    return found


def _build(argument: str, context: RewardContext) -> Reward:
    function = function_of(argument, context.folder)

    def reward(sampled: Sequence[Sampled]) -> list[Tensor]:
        prompts, completions, ids = [], [], []
        for each in sampled:
            asked = [{"role": message.role, "content": message.content} for message in each.messages]
            for text, reply in zip(each.texts, each.row.replies, strict=True):
                prompts.append([dict(message) for message in asked])
                completions.append([{"role": "assistant", "content": text}])
                ids.append(list(reply))
        try:
            found = function(prompts=prompts, completions=completions, completion_ids=ids)
        except Exception as error:
            raise Refused(f"{argument} failed: {type(error).__name__}: {str(error)[:200]}") from error
        return list(_numbers(argument, found, len(ids)).split([len(each.texts) for each in sampled]))

    return reward


def _numbers(argument: str, found: Any, count: int) -> Tensor:
    """What a function returned as (count,) numbers. Raises `Refused` if it is anything else."""
    try:
        values = [math.nan if each is None else float(each) for each in found]
    except (TypeError, ValueError):
        raise Refused(f"{argument} must return a list of numbers, one for each reply") from None
    if len(values) != count:
        raise Refused(f"{argument} returned {len(values):,} numbers for {count:,} replies")
    if any(math.isinf(each) for each in values):
        raise Refused(f"{argument} returned a number that is not finite")
    return torch.tensor(values, dtype=torch.float32)


def _check(argument: str) -> None:
    name, hash, function = argument.partition("#")
    if not hash or not function.isidentifier():
        raise Refused(f"python:FILE.py#FUNCTION names a function, not {argument[:60]!r}")
    require_name(name, ".py")


register(
    Source("python", "a function in a file of the data folder's rewards/", _build, "FILE.py#FUNCTION", check=_check)
)
