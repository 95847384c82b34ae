"""The training loop: from a configuration to weights, resumable at any step.

Every batch is a function of the seed and the step, so a run that resumes from a checkpoint repeats the steps it would
have made. The host reads the metrics of a step while the device computes the next one.
"""

import contextlib
import json
import math
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax.atomic_io import atomic_write, exclusive_lock, make_folder
from uvos_jax.errors import UserError, pluralize
from uvos_jax.interrupts import Interrupted, graceful_stop
from uvos_jax.models import build
from uvos_jax.progress import no_progress
from uvos_jax.progress import progress as show_progress
from uvos_jax.training import distributed
from uvos_jax.training.config import changed_keys, check, config_hash
from uvos_jax.training.inputs import Batches, configured_batches, validation_store
from uvos_jax.training.launchers import Launcher
from uvos_jax.training.logs import RunLog, Throughput, format_metrics
from uvos_jax.training.phases import phase_at, phases
from uvos_jax.training.setup import (
    check_transfer,
    compile_step,
    first_state,
    inference_variables,
    next_state,
    setup,
)
from uvos_jax.training.validation import Validator
from uvos_jax.weights import checkpoints
from uvos_jax.weights.training_checkpoints import RunCheckpoints, publish, withdraw

_PROFILE_AFTER = 3  # steps; the first one compiles


def _print(message: str) -> None:
    print(message, flush=True)


def train(config: Mapping[str, Any], workdir: str | Path, data_dir: str | Path | None = None, *, profile: int = 0,
          batches: Batches | None = None, held_back: Any = None, say: Callable[[str], None] = _print,
          progress: Callable = show_progress) -> dict[str, Any]:
    """Trains a model, or resumes the run in ``workdir``.

    Args:
        config: See ``docs/training.md``.
        workdir: Folder of this run alone: ``config.json``, ``log.jsonl``, ``tensorboard/``, ``checkpoints/``, and the
            weights ``best`` and ``last`` for inference.
        data_dir: Folder of converted datasets; by default the configuration's.
        profile: Number of steps to trace into ``workdir/profile``; 0 for none.
        batches: ``(phase index, first step) -> iterator`` of this process's NumPy clip batches, instead of the
            configuration's data.
        held_back: Store to validate on, instead of the configuration's.
        say: Called with each message, in the main process.
        progress: Shows progress as ``uvos_jax.progress.progress`` does, in the main process.

    Returns:
        The metrics of the last step, with ``"validation"`` if there was one; only ``"step"`` if the run was finished
        already.

    Raises:
        UserError: The configuration, the data or a checkpoint cannot be used, or the loss is not finite.
        Interrupted: After SIGTERM or SIGINT; the state is saved.
    """
    for what, path in (("workdir", workdir), ("data-dir", data_dir)):
        if re.match(r"\w{2,}:/", str(path)):
            raise UserError(f"--{what} '{path}' is an address, not a folder. Mount the bucket and give the folder.")
    distributed.initialize()
    config = check(config)
    run = _Run(config, Path(workdir).absolute(), data_dir or config["data_dir"], profile, batches, held_back, say,
               progress)
    with contextlib.ExitStack() as stack:
        step, state = run.open(stack)
        state = run.train_phases(step, state)
        return run.finish(state)


class _Run:
    """One call of ``train``."""

    def __init__(self, config, workdir, data_dir, profile, batches, held_back, say, progress):
        self.config, self.workdir, self.say, self.progress = config, workdir, say, progress
        self.recipe = phases(config)
        self.total = self.recipe[-1].stop
        # All phases are set up now, so that a mistake in the last one is reported before training.
        self.setups = [setup(config, phase) for phase in self.recipe]
        for before, parts, phase in zip(self.setups, self.setups[1:], self.recipe[1:], strict=False):
            check_transfer(before, parts, phase)
        self.is_main = jax.process_index() == 0
        self.launcher = Launcher(config["launcher"])
        if config["batch_size"] % self.launcher.size:
            raise UserError(f"batch_size is {config['batch_size']}, which is not divisible by the"
                            f" {self.launcher.size} devices; change batch_size.")
        self.batches, self.describe = (batches, None) if batches else configured_batches(config, self.recipe,
                                                                                         self.setups, data_dir)
        self.validate_every = (config["validate"] or {}).get("every", 0)
        if self.validate_every:
            store = held_back if held_back is not None else validation_store(config["validate"], data_dir)
            self.validator = Validator(store, config["validate"], self.setups[-1].model, workdir / "flow")
        self.checkpoints = RunCheckpoints(workdir / "checkpoints", config["keep"], config_hash(config))
        # Pretrained weights are read before anything is written: they may be missing or not fit.
        self.initial = None if self.checkpoints.steps() else first_state(config, self.setups[0])
        make_folder(workdir)
        self.profiler = _Profiler(workdir / "profile", profile if self.is_main else 0, self._say)
        self.metrics: dict[str, Any] = {}

    def open(self, stack):
        """Locks the folder, reads the last checkpoint, and opens the log; returns the step and the state."""
        if self.is_main:
            stack.enter_context(exclusive_lock(
                self.workdir / ".lock", f"Another run is using '{self.workdir}'. Choose another --workdir, or wait."))
        step, state = self._resume()
        self.first, self.best = step, self.checkpoints.best()
        self.log = RunLog(self.workdir, step) if self.is_main else None
        if self.log:
            stack.callback(self.log.close)
        stack.callback(self.checkpoints.close)
        if step < self.total:
            show = self.progress if self.is_main else no_progress
            self.advance = stack.enter_context(show(f"training {self.config['model']['name']}", self.total, "steps",
                                                    initial=step))
        # With several processes JAX listens for SIGTERM and stops all of them after the same step.
        single = jax.process_count() == 1
        self.stop_signal = stack.enter_context(graceful_stop("after this step, once its state is saved") if single
                                               else contextlib.nullcontext(lambda: None))
        stack.callback(self.profiler.stop)
        self.throughput = Throughput()
        return step, state

    def train_phases(self, step, state):
        """Runs the remaining phases; returns the final NumPy state."""
        for phase, parts in zip(self.recipe, self.setups, strict=True):
            if state is None:
                state, self.initial = self.initial, None
            elif not phase.start <= step < phase.stop:
                continue
            elif step == phase.start and phase.index:
                self._say(f"Phase '{phase.name}' begins after step {step}, with a new optimizer and the current"
                          " parameters.")
                state = next_state(self.config, parts, phase, state)
            state = self._run_phase(phase, parts, step, state)
            step = phase.stop
        return state

    def finish(self, state):
        """Publishes the last weights; returns the metrics."""
        self.checkpoints.wait()
        self._publish("last", self.total, self.recipe[-1], inference_variables(state))
        self._say(f"Finished after step {self.total}: weights in '{self.workdir / 'last'}'"
                  + (f", best of step {self.best[0]} in '{self.workdir / 'best'}'." if self.best else "."))
        return {"step": self.total} | self.metrics

    def _resume(self):
        """Returns step and NumPy state of the last intact checkpoint; ``(0, None)`` for a new run."""
        stored = self.workdir / "config.json"
        if self.checkpoints.steps() and stored.exists():
            try:
                before = dict(json.loads(stored.read_text()))
            except (OSError, TypeError, ValueError, RecursionError):
                raise UserError(f"'{stored}' is damaged. Choose another --workdir.") from None
            if changed := changed_keys(before, self.config):
                raise UserError(f"The run in '{self.workdir}' was started with a different {', '.join(changed)}."
                                " Restore the old values, or choose another --workdir.")
        shapes = {phase.index: parts.state for phase, parts in zip(self.recipe, self.setups, strict=True)}
        found = self.checkpoints.restore(lambda step: shapes[phase_at(self.recipe, step).index], self._say)
        step, state = found or (0, None)
        _check_same_step(step)
        self.checkpoints.clean(step)
        if self.is_main:
            if found is None:
                for name in ("best", "last"):  # of a run whose checkpoints are gone
                    withdraw(self.workdir / name)
            else:
                self._say(f"Resuming after step {step} of {self.total}.")
            atomic_write(stored, (json.dumps(self.config, indent=2) + "\n").encode())
        return step, state

    def _run_phase(self, phase, parts, step, host):
        """Makes the steps of a phase from ``step`` on; returns the NumPy state at its end."""
        compiled = compile_step(self.config, phase, parts, self.launcher)
        state = self.launcher.place_state(host)
        source, pending = iter(self.batches(phase.index, step)), None
        try:
            while step < phase.stop:
                self.profiler.step(step - self.first, state)
                batch, examples = self._next_batch(source, phase, step)
                state, metrics = compiled(state, self.launcher.place_batch(batch))
                if pending:
                    self._read_metrics(*pending)
                step += 1
                pending = (phase, step, metrics, examples)
                stop = self._requested_stop(step)
                validates = self._is_validated(phase) and (step % self.validate_every == 0 or step == self.total)
                saves = step % self.config["checkpoint_every"] == 0 or step == phase.stop or bool(stop)
                if saves or validates:
                    self._read_metrics(*pending)  # raises before a broken state is saved
                    pending, host = None, self.launcher.to_host(state)
                    self._save_and_validate(phase, parts, step, host, saves, validates)
                if stop:
                    self.checkpoints.wait()
                    name = signal.Signals(stop).name
                    raise Interrupted(stop, f"Stopped by {name} after step {step}. Its state is saved; the same command"
                                            " continues from there.")
        finally:
            if hasattr(source, "close"):
                source.close()
        return host

    def _next_batch(self, source, phase, step):
        """Waits for a batch; returns it and the numbers of its examples, if it has them."""
        asked_at = time.monotonic()
        batch = dict(next(source, None) or {})
        self.throughput.add_wait(time.monotonic() - asked_at)
        if not batch:
            raise UserError(f"The data of phase '{phase.name}' ended at step {step} of {phase.stop}.")
        return batch, batch.pop("example", None)

    def _read_metrics(self, phase, step, metrics, examples):
        """Reads and checks the metrics of a finished step, and logs them every ``log_every`` steps."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise UserError(f"The {name} of step {step} is {metrics[name]}. Its batch contained"
                                f" {self._describe_batch(phase, step, examples)}. This step is not saved. Check these"
                                " examples, or start again in another --workdir with a lower schedule.lr or with"
                                " optimizer.clip_norm.")
        self.metrics |= metrics
        self.throughput.add_examples(self.config["batch_size"])
        self.advance()
        if step % self.config["log_every"] == 0 or step == self.total:
            values = metrics | {"phase": phase.name} | self.throughput.read()
            if self.log:
                self.log.write(step, values)
            self._say(format_metrics(step, self.total, values, self.advance.meter.remaining))

    def _describe_batch(self, phase, step, examples):
        positions = range(self.config["batch_size"])
        if self.describe:
            return "; ".join(self.describe(phase.index, step - 1, position) for position in positions)
        if examples is None:
            return f"examples {(step - 1) * len(positions)} to {step * len(positions) - 1}"
        return f"examples {', '.join(str(int(number)) for number in examples)}"

    def _is_validated(self, phase):
        return bool(self.validate_every) and phase.name in (self.config["validate"].get("phases") or (phase.name,))

    def _save_and_validate(self, phase, parts, step, host, saves, validates):
        paused_at = time.monotonic()
        score = self._validate(phase, parts, step, host) if validates else None
        if saves or (self.best and self.best[0] == step):
            self.checkpoints.save(step, host, score)
        self.throughput.exclude(time.monotonic() - paused_at)

    def _validate(self, phase, parts, step, host):
        """Scores the held-back sequences and publishes the best weights so far; returns the score."""
        variables = inference_variables(host)
        scores, panel = self.validator.score(phase, parts.model, variables)
        score = scores["J&F"] if "J&F" in scores else -scores["epe"]  # higher is better
        better = self.best is None or score > self.best[1]
        if better:
            self._publish("best", step, phase, variables)
            self.best = (step, score)
        self.metrics["validation"] = scores
        if self.log:
            self.log.write(step, {"validation": scores})
            if panel is not None:
                self.log.image(step, "validation", panel)
        means = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "sequences")
        self._say(f"validation after step {step}: {means}"
                  + ("  (best so far)" if better else f"  (best {abs(self.best[1]):.4f}, step {self.best[0]})"))
        return score

    def _publish(self, name, step, phase, variables):
        if not self.is_main:
            return
        # As users build it: precision and rematerialization of the training do not belong to the weights.
        fields = {k: v for k, v in phase.model.items() if k not in ("name", "dtype", "axis_name", "remat")}
        model = build(phase.model["name"], **fields)
        origin = f"trained by uvos_jax, step {step} of {self.total}"
        publish(self.workdir / name, step,
                lambda path: checkpoints.save(path, phase.model["name"], model, variables, origin))

    def _requested_stop(self, step):
        """Returns the number of a signal that asks to stop after this step, the same in every process, or None."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self.stop_signal()

    def _say(self, message):
        if self.is_main:
            self.say(message)


class _Profiler:
    """Traces some steps for TensorBoard or xprof."""

    def __init__(self, folder, steps, say):
        self.folder, self.steps, self.say = folder, steps, say
        self.running = False

    def step(self, done, state):
        """Starts or stops the trace before a step, with ``done`` steps of this call finished."""
        if self.steps and done == _PROFILE_AFTER:
            jax.block_until_ready(state)
            self.running = True
            jax.profiler.start_trace(self.folder)
        elif self.running and done == _PROFILE_AFTER + self.steps:
            jax.block_until_ready(state)
            self.stop()

    def stop(self):
        """Writes the trace, if one is running."""
        if self.running:
            jax.profiler.stop_trace()
            self.say(f"Trace of {pluralize(self.steps, 'step')} in '{self.folder}'; open it with TensorBoard or xprof.")
            self.running = False


def _check_same_step(step):
    """Fails unless every process resumes from the same step; waits until all have read the folder."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.assert_equal(np.int32(step), "The processes read different checkpoints. Put --workdir on shared"
                                     " storage.")
