"""The recording of a training: each step becomes a row, and a killed night resumes from its checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from feedback.database.database import Database
from feedback.records import nights
from training.loop import checkpoint
from training.loop.config import Config
from training.loop.loop import Report, Trainer, train
from training.loop.optim import memory_gib
from training.loop.state import TrainState
from training.model.reference import References
from training.night import run_dir
from training.night.signals import Cancellation
from training.night.tracking import Log

SHOWN = {
    "loss": ".4f",
    "accuracy": ".2f",
    "reward": "+.4f",
    "score": "+.4f",
    "rewards/margins": "+.4f",
    "rewards/accuracies": ".2f",
    "kl": ".4f",
    "tokens_per_s": ".0f",
}


@dataclass(frozen=True)
class Stage:
    """One of a night's consecutive trainings."""

    what: str  # in words
    file: str  # its checkpoint
    prefix: str = ""  # of its metrics
    before: int = 0  # steps of the stages before it
    after: int = 0  # steps of the stages after it


@dataclass(frozen=True)
class Recorder:
    """Records a night's progress in the ledger, the log and the terminal."""

    store: Database
    night: int
    cancellation: Cancellation
    log: Log

    def follow(
        self, trainer: Trainer, config: Config, stage: Stage, references: References | None = None
    ) -> TrainState:
        """Train to the end, from the night's checkpoint if there is one, and return the final state.

        Newly computed `references` are kept for later nights. Raises what `Trainer.step` raises, and `Cancelled`.
        """
        path = run_dir.folder(self.store.data, self.night) / stage.file
        state = resumed(trainer, path, stage.what)
        steps = stage.before + trainer.steps + stage.after
        if trainer.warning:
            print(f"night {self.night}: {trainer.warning}", flush=True)
        with self.cancellation.held():
            warning = {"reason": trainer.warning} if trainer.warning else {}
            nights.update_night(self.store, self.night, phase="training", steps=steps, **warning)
        for report in train(trainer, state):
            if references is not None:
                with self.cancellation.held():
                    references.keep(self.store)
            self._write_down(report, stage)
            if report.step % config.checkpoint_every == 0 or report.step == report.steps or state.ended:
                checkpoint.save(path, state)
        return state

    def _write_down(self, report: Report, stage: Stage) -> None:
        step, steps = stage.before + report.step, stage.before + report.steps + stage.after
        metrics = {stage.prefix + name: value for name, value in report.metrics.items()} | {"memory_gib": memory_gib()}
        with self.cancellation.held():
            nights.add_step(self.store, self.night, step, metrics, steps=steps, eta_s=report.eta_s, phase="training")
        self.log(step, metrics)
        print(line(report, step, steps, stage.prefix), flush=True)


def resumed(trainer: Trainer, path: Path, what: str) -> TrainState:
    """The state that training begins from: the checkpoint's, or the initial one if no checkpoint can be used."""
    state = trainer.begin()
    try:
        checkpoint.load(path, state)
    except checkpoint.UNUSABLE as error:
        print(f"the checkpoint cannot be used, so {what} begins anew: {error}", flush=True)
    if state.step:
        print(f"going on after step {state.step} of {what}", flush=True)
    return state


def line(report: Report, step: int, steps: int, prefix: str = "") -> str:
    """A step as one line for the terminal."""
    seen = report.metrics
    said = "  ".join(f"{prefix}{name} {seen[name]:{how}}" for name, how in SHOWN.items() if name in seen)
    minutes, seconds = divmod(round(report.eta_s), 60)
    return f"step {step}/{steps}  {said}  ETA {minutes}:{seconds:02d}"
