"""The three-stage night: reward models from what people preferred, then a policy that learns by them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from feedback.example_types import Examples
from training.algorithms import dpo_kto, ppo, reward_model, rloo
from training.data.tokenize import TokenizedExample, tokenize
from training.loop.early_stopping import Progress, Watch
from training.loop.optim import Report, Run, count_steps
from training.model.reference import References
from training.model.reward_heads import RewardModels
from training.night import planner, reward_night, run_dir
from training.night.reward_night import NothingFits, TrainingContext
from training.rollouts.sampler import Rollout, Score

RUN = "policy"  # the name of its checkpoint


def train(context: TrainingContext, examples: Examples, settings: Any) -> Progress:
    """Reward models, then the policy; where it ended.

    Raises `NothingFits`, `NotFinite`, `SignFlipped`, `Refused` or `Cancelled`.
    """
    # 1. reward models of this night
    asked = reward_model.Settings(
        ensemble_size=settings.ensemble_size, max_length=settings.max_length, seed=settings.seed
    )
    ensemble = reward_night.make_models(context, examples, asked, more_steps=settings.steps)

    # 2. prompts: what people said, but for what judges
    tokenized, _ = tokenize(planner.parts(context.store, context.plan, examples).training, context.encoder)
    prompts = [list(each) for each in dict.fromkeys(tuple(each.prompt_ids) for each in tokenized)]
    if not prompts:
        raise NothingFits("there is no prompt to write to yet")

    # 3. the policy, step by step
    run, reports = _begin(context, prompts, ensemble, tokenized, settings)
    before = count_steps(len(reward_model.group_by_prompt(tokenized)), asked) * asked.ensemble_size
    where = run_dir.folder(context.store.data, context.night)
    for report in reports:
        context.write_down(report, before, before + settings.steps)
        if report.step % settings.checkpoint_every == 0 or run.ended:
            run_dir.save_run(where, run, RUN)

    # 4. how far from the base it ended; too far, and it goes back
    watch = Watch(context.backbone, tokenized, [], dpo_kto.Settings(), References(context.backbone))
    kl = watch.kl(context.backbone)
    if kl > settings.kl_budget and run.kept is not None and not run.ended:
        run.go_back()
        run.ended = f"went back a step, having been {kl:.3f} nats per token from the base"
        kl = watch.kl(context.backbone)
    return Progress(run.optimizer, step=before + run.step, kl=kl, ended=run.ended)


def _begin(
    context: TrainingContext,
    prompts: Sequence[list[int]],
    ensemble: RewardModels,
    tokenized: Sequence[TokenizedExample],
    settings: Any,
) -> tuple[Run, Iterator[Report]]:
    """The method's loop, going on from the night's checkpoint where there is one."""
    backbone, sampler, score = (
        context.backbone,
        context.sampler,
        by_reward_models(ensemble, settings.uncertainty_penalty),
    )
    if isinstance(settings, ppo.Settings):
        head, run = ppo.begin(backbone, settings)
        if settings.value_from_reward:
            ppo.begin_as_reward_model(backbone, head, ensemble)
        shown = [each.row(0) for each in tokenized if each.kind == "demonstration"]
        _go_on(context, run)
        return run, ppo.train(backbone, head, sampler, prompts, score, settings, run, shown)
    run = rloo.begin(backbone, settings)
    _go_on(context, run)
    return run, rloo.train(backbone, sampler, prompts, score, settings, run, context.plan.method)


def _go_on(context: TrainingContext, run: Run) -> None:
    try:
        run_dir.load_run(run_dir.folder(context.store.data, context.night), run, RUN)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        print(f"the checkpoint cannot be used, so the policy begins anew: {error}", flush=True)
    if run.step:
        print(f"going on after step {run.step} of the policy", flush=True)


def by_reward_models(ensemble: RewardModels, uncertainty_penalty: float) -> Score:
    """Replies are worth the ensemble's mean score less `uncertainty_penalty` times its disagreement."""

    def score(rollouts: Sequence[Rollout]) -> list[Tensor]:
        with torch.no_grad():
            return ensemble.pessimistic([each.row for each in rollouts], uncertainty_penalty)

    return score
