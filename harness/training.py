"""The one training loop: addressed batches and draws, schedules, finite check, log, periodic checkpoints, exact resume.

A run lives in a folder. While it trains, everything it needs to go on is in `<folder>/resume/`; its result, log and
summary are written once, at the end. A run that is killed at any moment goes on from its last checkpoint when the same
command is given again, and ends in the same bytes as one that was not interrupted.
"""

import fcntl
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.backends.base import Backend, Learner, Update
from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.conditions import each
from harness.datasets import unit_range
from harness.errors import UserError
from harness.files import write_atomic
from harness.method import Batch
from harness.noise import Noise

SECOND_MOMENTS = "second_moments.safetensors"
SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a run learns; an update is one optimiser step, of whichever turn."""

    updates: int
    batch: int
    learning_rate: float
    warmup_updates: int
    checkpoint_every: int
    log_every: int
    snapshot_every: int | None = None

    @property
    def snapshots(self) -> list[int]:
        """How many updates each kept state of the result has had; the last one is the result itself, and not kept."""
        return list(range(self.snapshot_every, self.updates, self.snapshot_every)) if self.snapshot_every else []

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then linear decay that would reach zero at `updates`; `step` counts from 0."""
        if step < self.warmup_updates:
            return self.learning_rate * (step + 1) / self.warmup_updates
        return self.learning_rate * (self.updates - step) / max(1, self.updates - self.warmup_updates)


class BatchStream:
    """Shuffled passes over one source; position n is a function of (seed, n) alone, so a resume needs no state.

    `arrays`: by name, equally long arrays, or others whose rows can be taken, such as a split's captions; for "data"
    `images` and `condition`. uint8 ones are images (`unit_range`).
    """

    def __init__(self, source: str, arrays: Mapping[str, Any], noise: Noise) -> None:
        self.source, self.arrays, self.noise = source, arrays, noise
        self.size = len(next(iter(arrays.values())))
        self.epoch, self.order = -1, np.arange(0)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.noise.permutation(f"{self.source}/order", epoch, self.size)
        return self.order

    def take(self, start: int, count: int) -> dict[str, Any]:
        """Examples start .. start + count - 1 of the endless stream, each array (count, ...)."""
        index, size = np.empty(count, np.int64), self.size
        done = 0
        while done < count:
            epoch, offset = divmod(start + done, size)
            part = self._epoch_order(epoch)[offset : offset + count - done]
            index[done : done + len(part)] = part
            done += len(part)
        return {name: each(unit_range, array[index]) for name, array in self.arrays.items()}


def grouped(value: Any, batch: int, n: int) -> Any:
    """Examples (batch * n, ...) as (batch, n, ...), or as they are for n = 1."""
    return value if n == 1 else each(lambda array: array.reshape(batch, n, *array.shape[1:]), value)


def snapshot(folder: Path, update: int) -> Path:
    """Where a run's result as it was after so many updates lies."""
    return folder / SNAPSHOTS / f"update{update}.safetensors"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system lets go when the process ends, however it ends."""
    if not folder.parent.is_dir():
        raise UserError(f"{folder.parent}: the output folder does not exist; create it, or choose another")
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder.parent}: another process is training here; wait for it or stop it") from None
        yield


def check_finite(update: Update, step: int, turn: str) -> None:
    """Raise UserError naming the step and the quantity that is not finite."""
    quantities = {"loss": update.loss, **{f"gradient norm of the {n}": v for n, v in update.gradient_norm.items()}}
    quantities |= update.logs
    for name, value in quantities.items():
        if not math.isfinite(value):
            raise UserError(
                f"update {step}, {turn} turn: the {name} is {value}; lower the learning rate or the clip, "
                "or check the data (nothing was written after the last checkpoint)"
            )


class Run:
    """One training run in its folder: `train` trains, or goes on training, and writes the results."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        learner: Learner,
        schedule: Schedule,
        seed: int,
        data: Mapping[str, BatchStream],
    ) -> None:
        self.folder, self.resume, self.backend = folder, folder / "resume", backend
        self.learner, self.schedule, self.data = learner, schedule, data
        self.method, self.noise = learner.method, Noise(seed)
        self.elapsed = 0.0
        self.unlogged: dict[str, list[float]] = {turn: [] for turn in self.method.turns}
        self.ahead: dict[int, tuple[Batch, Batch]] = {}

    def train(self, manifest: Mapping[str, Any], resume_key: str, summary: Mapping[str, Any], title: str) -> None:
        """Train to the end and write `<result>.safetensors`, `train.jsonl` and `train.json` into the folder.

        Where the method asks for it, Adam's second moments are written beside them (`second_moments.safetensors`), and
        where the schedule does, earlier states of the result (`snapshots/update<n>.safetensors`).

        `manifest` goes into the checkpoint. `resume_key` names what the run depends on (configuration, code, parent
        weights): a resume state of another key is discarded. Raises UserError where a quantity is not finite.
        """
        with locked(self.resume):
            first = self._restore(resume_key)
            self._optimise(first, manifest, resume_key, title)
            result = self.method.result
            write_atomic(self.folder / "train.json", json.dumps({**summary, **self._measurements()}, indent=1) + "\n")
            write_atomic(self.folder / "train.jsonl", (self.resume / "train.jsonl").read_bytes())
            if self.method.second_moments_of is not None:
                self._save_second_moments(self.method.second_moments_of, manifest)
            self._copy_snapshots()
            save_checkpoint(self.folder / f"{result}.safetensors", self.learner.weights(result), manifest)
            (self.resume / "state.safetensors").unlink(missing_ok=True)  # first: a state without its log is no state
            shutil.rmtree(self.resume)

    def _save_second_moments(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Adam's v of one network's gradients (clipped, at its live weights), the bias at zero corrected."""
        adam, moments = self.learner.adam, self.learner.second_moments(name)
        about = {"second_moments_of": name, "weights": "live", "beta2": adam.beta2, "eps": adam.eps, "clip": adam.clip}
        save_checkpoint(self.folder / SECOND_MOMENTS, moments, {**manifest, **about})

    def _copy_snapshots(self) -> None:
        """Copied, not moved, because a run that dies before its end needs them again."""
        for update in self.schedule.snapshots:
            target = snapshot(self.folder, update)
            target.parent.mkdir(exist_ok=True)
            write_atomic(target, snapshot(self.resume, update).read_bytes())

    def _optimise(self, first: int, manifest: Mapping[str, Any], resume_key: str, title: str) -> None:
        schedule, method, kept = self.schedule, self.method, set(self.schedule.snapshots)
        began = time.monotonic() - self.elapsed
        mark, marked = time.monotonic(), first
        interval = range(first - first % schedule.log_every, first)  # of a resumed run: its lines are in the log
        unseen = set(method.turns) - {method.turn(step) for step in interval}
        with (
            open(self.resume / "train.jsonl", "a") as log,
            tqdm(total=schedule.updates, initial=first, desc=title, unit="update", mininterval=1) as bar,
        ):
            for step in range(first, schedule.updates):
                update, turn, rate = self.update(step, step + 1 if step + 1 < schedule.updates else None)
                self.unlogged[turn].append(update.loss)
                bar.update()
                done = step + 1
                if step % schedule.log_every == 0:
                    unseen = set(method.turns)  # one line for each turn in every interval, whatever their order
                if turn in unseen or done == schedule.updates:
                    unseen.discard(turn)
                    speed = (done - marked) * schedule.batch / max(time.monotonic() - mark, 1e-9)
                    mark, marked = time.monotonic(), done
                    log.write(self._log_line(step, turn, update, rate, speed))
                    log.flush()
                    bar.set_postfix(loss=f"{update.loss:.3g}", refresh=False)
                if done in kept:
                    weights = self.learner.weights(method.result)
                    save_checkpoint(snapshot(self.resume, done), weights, {**manifest, "update": done})
                if done % schedule.checkpoint_every == 0 and done < schedule.updates:
                    self.elapsed = time.monotonic() - began
                    state = {"step": done, "elapsed": self.elapsed, "key": resume_key, "unlogged": self.unlogged}
                    save_checkpoint(self.resume / "state.safetensors", self.learner.state(), state)
        self.elapsed = time.monotonic() - began

    def update(self, step: int, following: int | None = None) -> tuple[Update, str, float]:
        """Do update number `step`; returns what it measured, its turn and its learning rate.

        The inputs of `following`, where given, are prepared while the device works.
        """
        turn, rate = self.method.turn(step), self.schedule.learning_rate_at(step)
        examples, draws = self.ahead.pop(step) if step in self.ahead else self._inputs(step)
        decays = {name: average.decay(step) for name, average in self.learner.averages.items()}
        measured = self.learner.launch(turn, examples, draws, rate, decays)
        if following is not None:
            self.ahead[following] = self._inputs(following)
        update = measured()
        check_finite(update, step, turn)
        return update, turn, rate

    def _inputs(self, step: int) -> tuple[Batch, Batch]:
        """The examples and the draws of update number `step`."""
        batch = self.schedule.batch
        examples: dict[str, Any] = {}
        for source in self.method.turns[self.method.turn(step)].sources or self.method.sources:
            n = self.method.sources[source]
            found = self.data[source].take(step * batch * n, batch * n)
            prefix = "" if source == "data" else f"{source}/"
            examples |= {f"{prefix}{key}": grouped(value, batch, n) for key, value in found.items()}
        return examples, self.method.draw(self.noise, step, 0, batch)

    def _log_line(self, step: int, turn: str, update: Update, rate: float, speed: float) -> str:
        record = {
            "update": step,
            "turn": turn,
            "loss": update.loss,
            "mean_loss": sum(self.unlogged[turn]) / len(self.unlogged[turn]),  # since this turn's previous line
            "learning_rate": rate,
            "images_per_second": round(speed, 1),
            "gradient_norm": update.gradient_norm,
            "logs": update.logs,
        }
        self.unlogged[turn].clear()
        return json.dumps(record) + "\n"

    def _restore(self, resume_key: str) -> int:
        """Take up an earlier state of the same run, and drop what was logged after it. Returns the first step to do."""
        state_file, log_file = self.resume / "state.safetensors", self.resume / "train.jsonl"
        step, kept = 0, []
        if state_file.exists() and log_file.exists():
            state, manifest = load_checkpoint(state_file)
            if manifest["key"] == resume_key:
                self.learner.restore(state)
                step, self.elapsed, self.unlogged = (manifest[key] for key in ("step", "elapsed", "unlogged"))
                lines = log_file.read_text().splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] < step]
            else:
                tqdm.write(f"{self.folder}: starting anew, because configuration, code or teacher changed since")
        write_atomic(log_file, "".join(kept))
        if step == 0:  # those of another run; a resumed one has its own up to here, and writes later ones again
            shutil.rmtree(self.resume / SNAPSHOTS, ignore_errors=True)
        if self.schedule.snapshots:
            (self.resume / SNAPSHOTS).mkdir(exist_ok=True)
        return step

    def _measurements(self) -> dict[str, Any]:
        turns = [self.method.passes(self.method.turn(step)) for step in range(self.schedule.updates)]
        return {
            "updates": self.schedule.updates,
            "train_passes": sum(turns) * self.schedule.batch,
            "train_seconds": round(self.elapsed, 2),
            "peak_memory_mb": round(self.backend.peak_memory_mb(), 1),
        }
