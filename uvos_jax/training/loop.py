"""The training loop: from a configuration to weights, whatever interrupts it.

Every batch is a function of the seed and the step, so a run that starts again from a checkpoint makes the steps that
it would have made. The device is kept one step ahead of the host, which reads the metrics of a step while the next one
runs.
"""

import contextlib
import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uvos_jax.atomic_io import atomic_write, exclusive_lock, make_folder
from uvos_jax.errors import UserError
from uvos_jax.inference import Segmenter
from uvos_jax.inference.flow.estimators import cached_estimator, dis_estimator
from uvos_jax.interrupts import Interrupted, graceful_stop
from uvos_jax.models import build
from uvos_jax.progress import progress
from uvos_jax.training import distributed, flow_validation
from uvos_jax.training.config import changed_keys, check, config_hash
from uvos_jax.training.launchers import Launcher
from uvos_jax.training.logs import RunLog, line
from uvos_jax.training.phases import Phase, phase_at, phases
from uvos_jax.training.setup import (
    Setup,
    check_transfer,
    compile_step,
    first_state,
    inference_variables,
    next_state,
    setup,
)
from uvos_jax.training.validation import choose, validate
from uvos_jax.weights import checkpoints
from uvos_jax.weights.training_checkpoints import RunCheckpoints, publish, withdraw

_PROFILE_AFTER = 3  # steps, of which the first compiles

Batches = Callable[[int, int], Iterator[Mapping[str, np.ndarray]]]


def train(config: Mapping[str, Any], workdir: str | Path, data_dir: str | Path | None = None, *, profile: int = 0,
          batches: Batches | None = None, held_back: Any = None) -> dict[str, Any]:
    """Trains a model, or goes on with what an earlier call left in ``workdir``.

    Args:
      config: see ``docs/training.md``.
      workdir: of this run alone: ``config.json``, ``log.jsonl``, ``tensorboard/``, ``checkpoints/``, and the weights
        ``best`` and ``last`` for inference.
      data_dir: where converted datasets lie; the configuration's if not given.
      profile: number of steps to trace into ``workdir/profile``, 0 for none.
      batches: ``(phase index, first step) -> iterator`` of this process's NumPy clip batches, to train on something
        other than the configuration's data.
      held_back: store to validate on instead of the configuration's.

    Returns:
      The metrics of the last step and ``"validation"``, if there was any; only the step if nothing was left to do.

    Raises:
      UserError: if the configuration, the data or a checkpoint cannot be used, or the loss is no longer finite.
      Interrupted: after SIGTERM or SIGINT.
    """
    for what, path in (("workdir", workdir), ("data-dir", data_dir)):
        if re.match(r"\w{2,}:/", str(path)):
            raise UserError(f"--{what} '{path}' is an address, not a folder; mount the bucket and give the folder.")
    distributed.initialize()
    config = check(config)
    run = _Run(config, Path(workdir).absolute(), data_dir or config["data_dir"], profile, batches, held_back)
    with contextlib.ExitStack() as stack:
        return run.go(stack)


class _Run:
    """One call of ``train``: what does not change while it runs, and the few things that do."""

    def __init__(self, config, workdir, data_dir, profile, batches, held_back):
        self.config, self.workdir, self.profile = config, workdir, profile
        self.recipe = phases(config)
        self.total = self.recipe[-1].stop
        # All phases: a mistake in the last one shows now, not when it begins.
        self.setups = [setup(config, phase) for phase in self.recipe]
        for before, parts, phase in zip(self.setups, self.setups[1:], self.recipe[1:], strict=False):
            check_transfer(before, parts, phase)
        self.is_main = jax.process_index() == 0
        self.launcher = Launcher(config["launcher"])
        if config["batch_size"] % self.launcher.size:
            raise UserError(f"batch_size is {config['batch_size']}, which {self.launcher.size} devices cannot share"
                            " equally.")
        self.batches, self.describe = (batches, None) if batches else _from_data(config, self.recipe, self.setups,
                                                                                 data_dir)
        self.every = (config["validate"] or {}).get("every", 0)
        if self.every:
            self.store = held_back if held_back is not None else _held_back(config["validate"], data_dir)
            finds_masks = self.setups[-1].model.task != "flow"
            chooser = choose if finds_masks else flow_validation.choose
            self.videos = chooser(self.store, config["validate"].get("only"))
        self.checkpoints = RunCheckpoints(workdir / "checkpoints", config["keep"], config_hash(config))
        # Before anything is written: pretrained weights may be missing or not fit.
        self.begin = None if self.checkpoints.steps() else first_state(config, self.setups[0])
        make_folder(workdir)
        self.segmenter = None
        self.metrics: dict[str, Any] = {}

    def go(self, stack):
        if self.is_main:
            stack.enter_context(exclusive_lock(self.workdir / ".lock", f"Another run is at work in '{self.workdir}'; choose"
                                                              " another --workdir, or wait."))
        step, state = self._resume()
        self.first = step
        self.best = self.checkpoints.best()
        self.log = RunLog(self.workdir, step) if self.is_main else None
        if self.log:
            stack.callback(self.log.close)
        stack.callback(self.checkpoints.close)
        if step < self.total:
            remaining = progress(f"training {self.config['model']['name']}", self.total - step, "steps")
            self.advance = stack.enter_context(remaining) if self.is_main else lambda: None
        # With several processes JAX listens for SIGTERM and stops all of them after the same step.
        single = jax.process_count() == 1
        self.stop_signal = stack.enter_context(graceful_stop("after this step, once its state is saved") if single
                                               else contextlib.nullcontext(lambda: None))
        self.started = self.window_start = time.monotonic()
        self.window_examples, self.window_waited, self.profiling = 0, 0.0, None
        stack.callback(self._stop_profile)
        for phase, parts in zip(self.recipe, self.setups, strict=True):
            if state is None or phase.start <= step < phase.stop:
                if state is None:
                    state, self.begin = self.begin, None
                elif step == phase.start and phase.index:
                    self._say(f"Phase '{phase.name}' begins after step {step}: a new optimizer, parameters go on.")
                    state = next_state(self.config, parts, phase, state)
                state = self._run_phase(phase, parts, step, state)
                step = phase.stop
        self.checkpoints.wait()
        self._publish("last", self.total, self.recipe[-1], inference_variables(state))
        self._say(f"Finished after step {self.total}: weights in '{self.workdir / 'last'}'"
                  + (f", best of step {self.best[0]} in '{self.workdir / 'best'}'." if self.best else "."))
        return {"step": self.total} | self.metrics

    def _resume(self):
        """Step and NumPy state of the last good checkpoint; ``(0, None)`` for a new run."""
        stored = self.workdir / "config.json"
        if self.checkpoints.steps() and stored.exists():
            try:
                before = dict(json.loads(stored.read_text()))
            except (OSError, TypeError, ValueError, RecursionError):
                raise UserError(f"'{stored}' is damaged; choose another --workdir.") from None
            if changed := changed_keys(before, self.config):
                raise UserError(f"The run in '{self.workdir}' was begun with another {', '.join(changed)}; go on with"
                                " what it was, or choose another --workdir.")
        shapes = {phase.index: parts.state for phase, parts in zip(self.recipe, self.setups, strict=True)}
        found = self.checkpoints.restore(lambda step: shapes[phase_at(self.recipe, step).index], self._say)
        step, state = found or (0, None)
        _agree(step)
        self.checkpoints.clean(step)
        if self.is_main:
            if found is None:
                for name in ("best", "last"):  # of a run whose checkpoints are gone
                    withdraw(self.workdir / name)
            else:
                self._say(f"Goes on after step {step} of {self.total}.")
            atomic_write(stored, (json.dumps(self.config, indent=2) + "\n").encode())
        return step, state

    def _run_phase(self, phase, parts, step, host):
        """Makes the steps of a phase from ``step`` on; returns the NumPy state at its end."""
        compiled = compile_step(self.config, phase, parts, self.launcher)
        state = self.launcher.place_state(host)
        source, pending = iter(self.batches(phase.index, step)), None
        try:
            while step < phase.stop:
                self._profile(step, state)
                asked_at = time.monotonic()
                batch = dict(next(source, None) or {})
                self.window_waited += time.monotonic() - asked_at
                if not batch:
                    raise UserError(f"The data of phase '{phase.name}' ended at step {step} of {phase.stop}.")
                examples = batch.pop("example", None)
                state, metrics = compiled(state, self.launcher.place_batch(batch))
                if pending:
                    self._settle(*pending)
                step += 1
                pending = (phase, step, metrics, examples)
                stop = self._stop_asked(step)
                ends = step == self.total
                validates = self._is_validated(phase) and (step % self.every == 0 or ends)
                saves = step % self.config["checkpoint_every"] == 0 or step == phase.stop or bool(stop)
                if saves or validates:
                    self._settle(*pending)  # raises before a broken state is saved
                    paused_at = time.monotonic()
                    pending, host = None, self.launcher.to_host(state)
                    score = self._validate(phase, parts, step, host) if validates else None
                    if saves or (self.best and self.best[0] == step):
                        self.checkpoints.save(step, host, score)
                    self.window_start += time.monotonic() - paused_at  # the log's rate is that of training
                if stop:
                    self.checkpoints.wait()
                    name = signal.Signals(stop).name
                    raise Interrupted(stop, f"Stopped by {name} after step {step}. Its state is saved; the same command"
                                            " continues from there.")
        finally:
            if hasattr(source, "close"):
                source.close()
        return host

    def _settle(self, phase, step, metrics, examples):
        """Reads the metrics of a finished step: checks them, and logs them if it is time."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise UserError(f"The {name} of step {step} is {metrics[name]}. Its batch held"
                                f" {self._examples(phase, step, examples)}. Nothing of this step is saved; look at"
                                " these, or begin anew, in another --workdir, with a lower schedule.lr or with"
                                " optimizer.clip_norm.")
        self.metrics |= metrics
        self.window_examples += self.config["batch_size"]
        if self.is_main:
            self.advance()
        if step % self.config["log_every"] == 0 or step == self.total:
            now = time.monotonic()
            seconds = max(now - self.window_start, 1e-9)
            memory = jax.local_devices()[0].memory_stats() or {}
            values = metrics | {
                "phase": phase.name, "examples_per_second": self.window_examples / seconds,
                "input_wait": min(self.window_waited / seconds, 1.0), "device_memory": memory.get("bytes_in_use"),
                "seconds": now - self.started}
            if self.log:
                self.log.write(step, values)
            left = (now - self.started) / (step - self.first) * (self.total - step)
            self._say(line(step, self.total, values, left))
            self.window_start, self.window_examples, self.window_waited = now, 0, 0.0

    def _examples(self, phase, step, examples):
        places = range(self.config["batch_size"])
        if self.describe:
            return "; ".join(self.describe(phase.index, step - 1, place) for place in places)
        if examples is None:
            return f"examples {(step - 1) * len(places)} to {step * len(places) - 1}"
        return f"examples {', '.join(str(int(number)) for number in examples)}"

    def _is_validated(self, phase):
        return bool(self.every) and phase.name in (self.config["validate"].get("phases") or (phase.name,))

    def _validate(self, phase, parts, step, host):
        """Scores the held-back sequences; the best weights so far are published."""
        variables = inference_variables(host)
        scores, panel = self._scores(phase, parts, variables)
        score = scores["J&F"] if "J&F" in scores else -scores["epe"]  # what is best is largest
        better = self.best is None or score > self.best[1]
        if better:
            self._publish("best", step, phase, variables)
            self.best = (step, score)
        self.metrics["validation"] = scores
        if self.log:
            self.log.write(step, {"validation": scores})
            if panel is not None:
                self.log.image(step, "validation", panel)
        said = "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name != "sequences")
        self._say(f"validation after step {step}: {said}"
                  + ("  (best so far)" if better else f"  (best {abs(self.best[1]):.4f}, step {self.best[0]})"))
        return score

    def _scores(self, phase, parts, variables):
        """Means and a picture of the held-back sequences, by masks or by flow, whichever the model finds."""
        processes = jax.process_index(), jax.process_count()
        if parts.model.task == "flow":
            return flow_validation.validate(flow_validation.estimator(parts.model, variables), self.store, self.videos,
                                            *processes)
        if self.segmenter is None or self.segmenter[0] != phase.index:
            size = self.config["validate"].get("size")
            model = parts.model.clone(**({"short_side": size} if size else {}))
            # Flow depends on the videos alone, so a later validation finds it in the files.
            flow = cached_estimator(dis_estimator, self.workdir / "flow") if "flow" in model.inputs else None
            # One segmenter: it compiles once.
            self.segmenter = phase.index, Segmenter(phase.model["name"], model, variables, flow=flow)
        segmenter = self.segmenter[1]
        segmenter.variables = jax.device_put(variables)
        return validate(segmenter, self.store, self.videos, *processes)

    def _publish(self, name, step, phase, variables):
        if not self.is_main:
            return
        # As a user builds it: neither precision nor what saves memory in training belongs to the weights.
        fields = {k: v for k, v in phase.model.items() if k not in ("name", "dtype", "axis_name", "remat")}
        model = build(phase.model["name"], **fields)
        origin = f"trained by uvos_jax, step {step} of {self.total}"
        publish(self.workdir / name, step,
                lambda path: checkpoints.save(path, phase.model["name"], model, variables, origin))

    def _stop_asked(self, step):
        """Number of the signal that asks to stop after this step; the same answer in every process."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self.stop_signal()

    def _profile(self, step, state):
        """Begins or ends the trace, between two steps."""
        if not self.profile or not self.is_main:
            return
        done = step - self.first
        if done == _PROFILE_AFTER:
            jax.block_until_ready(state)
            self.profiling = self.workdir / "profile"
            jax.profiler.start_trace(self.profiling)
        elif self.profiling and done == _PROFILE_AFTER + self.profile:
            jax.block_until_ready(state)
            self._stop_profile()

    def _stop_profile(self):
        if self.profiling:
            jax.profiler.stop_trace()
            self._say(f"Trace of {self.profile} steps in '{self.profiling}'; open it with TensorBoard or xprof.")
            self.profiling = None

    def _say(self, sentence):
        if self.is_main:
            print(sentence, flush=True)


def _from_data(config, recipe: tuple[Phase, ...], setups: list[Setup], data_dir):
    """``(batches, describe)`` of the configuration's data, which the models of all phases can take."""
    from uvos_jax.data.examples import pipeline

    clips = [pipeline.from_config(phase.data | {"batch_size": config["batch_size"], "seed": config["seed"]},
                                  data_dir or None)
             for phase in recipe]
    for parts, clip in zip(setups, clips, strict=True):
        kinds = parts.model.categories
        if kinds > 1 and len(clip.categories) != kinds:
            raise UserError(f"The model tells {kinds} categories apart (model.categories), and data.categories names"
                            f" {len(clip.categories) or 'none'}.")
        for size in clip.sizes:
            axes = config["batch_size"], clip.length, *size
            shapes = {"frames": jax.ShapeDtypeStruct((*axes, 3), np.uint8),
                      "labels": jax.ShapeDtypeStruct(axes, np.uint8),
                      "still": jax.ShapeDtypeStruct(axes[:1], np.bool_)}
            if clip.flow:
                shapes["flow"] = jax.ShapeDtypeStruct((*axes, 2), np.float32)
            if clip.categories:
                shapes["categories"] = jax.ShapeDtypeStruct((*axes[:1], clip.objects), np.uint8)
            jax.eval_shape(parts.model.training_batch, shapes)  # a mistake of a later phase shows now

    def batches(index, start_step):
        return pipeline.batches(clips[index], start_step, jax.process_index(), jax.process_count())

    return batches, lambda index, step, place: clips[index].describe(step, place)


def _held_back(entry, data_dir):
    from uvos_jax.data.storage.store import SyntheticStore, open_store

    if entry.get("synthetic"):
        return SyntheticStore(**entry["synthetic"])
    for key in ("name", "split"):
        if not entry.get(key):
            raise UserError(f"The configuration's validate needs a {key}.")
    if not data_dir:
        raise UserError(f"'{entry['name']}' is read from a folder of converted datasets; give it by --data-dir.")
    return open_store(data_dir, entry["name"], entry["split"])


def _agree(step):
    """Fails unless every process goes on from the same step; none changes the folder before all have read it."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.assert_equal(np.int32(step), "The processes read different checkpoints; is workdir shared?")
