"""The training loop: resumable bit for bit, on one device, several GPUs, or several CPU processes.

It runs on accelerate and not on Ray Train: a stage is one lock-step data-parallel program, which needs no scheduler;
accelerate brings mixed precision, gradient reduction and sharded optimizers for the full-size model, is what users of
transformers know (`accelerate launch`), and keeps this package free of Ray. Every sample and every random point is a
function of seed, stage, step and place in the batch, whatever the number of processes and workers. Only negatives that
samples lend each other (phrases, visual prompts) stay within a process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.conversion.new_output import whole_folder
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.runtime.host_memory import keep_freed_memory
from xsam_model.training.loop.checkpointing import Checkpoints, MovingAverage
from xsam_model.training.loop.config import TrainingConfig
from xsam_model.training.loop.metrics import Metrics, progress_line
from xsam_model.training.loop.network import CLOSED_KINDS, XSamTraining
from xsam_model.training.loop.processes import Stop, agree, mean_over, open_accelerator
from xsam_model.training.loop.stages import build_optimizer, select_parameters
from xsam_model.training.loop.start import copy_notice, start_model
from xsam_model.training.samples.batches import BatchBuilder, TrainingBatch
from xsam_model.training.samples.loading import Share, StageBatches
from xsam_model.training.samples.sources import BatchPlan, SampleSource
from xsam_model.training.tiny import SIZES

_HEADS_FILE = "training_heads.safetensors"


def train(config: TrainingConfig, say: Callable[[str], None] = print) -> Path | None:
    """Run all stages, or resume where an earlier call stopped.

    Args:
        config: the run.
        say: receives lines of progress, in the main process only.

    Returns:
        Folder of the trained model, or None if the run stopped early.
    """
    deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else None
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = open_accelerator(config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    say = say if accelerator.is_main_process else lambda _line: None
    folder, sources = Path(config.output), [source.open() for source in config.sources]
    model_folder = folder / "start" if config.model in SIZES else Path(config.model)
    if config.model in SIZES and accelerator.is_main_process and not model_folder.is_dir():
        start_model(model_folder, sources, config.seed, config.model)
    # The other processes read what the main process has just written.
    accelerator.wait_for_everyone()
    for number, stage in enumerate(config.stages):
        stage_folder = config.stage_folder(number)
        if not (stage_folder / "model").is_dir():
            with Stop(accelerator, deadline) as stop:
                run = StageRun(config, number, sources, accelerator, model_folder, stage_folder)
                if not run.run(say, stop):
                    say(f"stopped at step {run.step} of {stage.steps}; the same command goes on")
                    return None
        model_folder = stage_folder / "model"
    say(f"trained: {model_folder}")
    return model_folder


class StageRun:
    """One stage, from its latest checkpoint to its end or until it is told to stop.

    Args:
        config: the run.
        number: number of the stage, from 0.
        sources: all sources of the run.
        accelerator: shared by all stages.
        model_folder: folder of the model to start from.
        folder: folder of the stage.

    Attributes:
        step: number of updates so far.
        network: the network being trained, not wrapped by the accelerator.
    """

    def __init__(
        self,
        config: TrainingConfig,
        number: int,
        sources: Sequence[SampleSource],
        accelerator: Accelerator,
        model_folder: Path,
        folder: Path,
    ) -> None:
        self._config, self._stage, self._folder, self._start = config, config.stages[number], folder, model_folder
        self._accelerator, stage = accelerator, config.stages[number]
        # The heads that only training has are initialized at random.
        torch.manual_seed(config.seed + 1000 * number)
        chosen = [source for source in sources if not stage.sources or source.name in stage.sources]
        classes = tuple(dict.fromkeys(name for source in chosen for name in source.categories))
        self._processor = XSamProcessor.from_pretrained(str(model_folder))
        model = XSamForSegmentation.from_pretrained(str(model_folder), dtype=torch.float32)
        # Fitted to the scores of other weights than these will be.
        model.config.score_calibration = None
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.network = XSamTraining(
            model,
            stage.kind,
            len(classes),
            weights=stage.weights,
            sampling=stage.points,
            average=mean_over(accelerator),
        )
        _load_heads(self.network, model_folder.parent / _HEADS_FILE)
        select_parameters(self.network, stage.learning_rate_factors)
        optimizer = build_optimizer(self.network, stage)
        if accelerator.ddp_handler is not None:
            # A batch has one task, and does not use the parameters of other tasks.
            accelerator.ddp_handler.find_unused_parameters = stage.kind == "mixed"
        self._wrapped, self._optimizer = accelerator.prepare(self.network.train(), optimizer)
        self._average = MovingAverage(self.network, stage.average_decay) if stage.average_decay else None
        if self._average is not None:
            accelerator.register_for_checkpointing(self._average)
        self._batches = self._open_batches(number, chosen, classes, model.config)
        # Everything that a resumed run must have in common with the one before to reach the same weights.
        settings = json.loads(json.dumps({**asdict(stage), "seed": config.seed, "data": [s.name for s in chosen]}))
        self._checkpoints = Checkpoints(folder / "checkpoints", accelerator, settings, config.keep_checkpoints)
        self.step, self._seconds = self._checkpoints.restore()
        self._window: list[dict[str, Tensor]] = []

    def _open_batches(
        self, number: int, sources: Sequence[SampleSource], classes: tuple[str, ...], network: XSamConfig
    ) -> StageBatches:
        config, stage = self._config, self._stage
        if missing := sorted(set(stage.sources) - {source.name for source in sources}):
            raise ValueError(f"stage {number + 1} asks for sources that are not there: {', '.join(missing)}")
        builder = BatchBuilder(
            processor=self._processor,
            variation=stage.variation,
            classes=classes,
            closed=stage.kind in CLOSED_KINDS,
            zoom=network.interactive_zoom if stage.kind == "refiner" else None,
            num_region_points=network.region_num_points,
        )
        seed = [config.seed, number]
        plan = BatchPlan(
            [len(source) for source in sources], stage.batch_size, config.resampling_threshold, seed=sum(seed)
        )
        share = Share(
            batch_size=stage.batch_size,
            accumulation=stage.accumulation,
            num_processes=self._accelerator.num_processes,
            process=self._accelerator.process_index,
        )
        return StageBatches(sources, builder, plan, share, seed)

    def run(self, say: Callable[[str], None], stop: Stop) -> bool:
        """Train to the end or until `stop` says so; either way a checkpoint is written.

        Returns:
            Whether the stage is complete; if so, its model is saved.
        """
        config, stage, name = self._config, self._stage, self._folder.name
        metrics = Metrics(self._folder, name, self.step) if self._accelerator.is_main_process else None
        saved = started = time.monotonic()
        before, parts = self._seconds, []
        reported, since = self.step, started
        for batch in self._batches.iterate(self.step, stage.steps, config.workers):
            parts.append(batch)
            if len(parts) < stage.accumulation:
                continue
            self.update(parts)
            parts, now = [], time.monotonic()
            self._seconds = before + now - started
            if self.step % config.log_every_steps == 0 or self.step == stage.steps:
                values = self._summary((self.step - reported) * stage.batch_size / (now - since))
                reported, since = self.step, now
                if metrics is not None:
                    metrics.write(self.step, values)
                say(progress_line(name, self.step, stage.steps, values))
            if self.step < stage.steps and stop():
                self._checkpoints.save(self.step, self._seconds)
                return False
            if self._is_due(now - saved):
                self._checkpoints.save(self.step, self._seconds)
                saved = time.monotonic()
        self._checkpoints.save(self.step, self._seconds)
        self._save_model()
        return True

    def update(self, parts: Sequence[TrainingBatch]) -> None:
        """Update the weights once, with the gradients of `accumulation` batches."""
        stage, accelerator = self._stage, self._accelerator
        for group in self._optimizer.param_groups:
            group["lr"] = stage.learning_rate * stage.learning_rate_at(self.step) * group["factor"]
        kept: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            # Processes exchange gradients only with the last pass, once for the whole update.
            with nullcontext() if number == len(parts) else accelerator.no_sync(self._wrapped):
                losses = self._wrapped(part.to(accelerator.device))
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
                accelerator.backward(total / len(parts))
            for name, value in {**losses, "total": total}.items():
                kept[name] = kept.get(name, 0) + value.detach().float() / len(parts)
        # Called without a limit too, because it returns the norm that is reported.
        limit = stage.clip_norm if stage.clip_norm else float("inf")
        norm = accelerator.clip_grad_norm_(self._wrapped.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None:
            self._average.update()
        self.step += 1
        self._window.append({**kept, "gradient_norm": torch.as_tensor(norm).detach().float()})

    def _summary(self, rate: float) -> dict[str, float]:
        """Return the means over all processes and the steps since the last call."""
        names = list(dict.fromkeys(name for row in self._window for name in row))
        means = torch.stack([torch.stack([row[name] for row in self._window if name in row]).mean() for name in names])
        means = mean_over(self._accelerator)(means)
        self._window.clear()
        stage = self._stage
        return {
            **dict(zip(names, means.tolist(), strict=True)),
            "samples": self.step * stage.batch_size,
            "seconds": self._seconds,
            "samples_per_second": rate,
            "learning_rate": stage.learning_rate * stage.learning_rate_at(self.step - 1),
        }

    def _is_due(self, seconds: float) -> bool:
        """Return whether a checkpoint is due, the same on all processes."""
        # Steps are the same everywhere, but clocks are not: processes must agree, since all of them have to save.
        config = self._config
        due = config.checkpoint_every_steps > 0 and self.step % config.checkpoint_every_steps == 0
        late = config.checkpoint_every_minutes > 0 and seconds > 60 * config.checkpoint_every_minutes
        return due or agree(self._accelerator, late)

    def _save_model(self) -> None:
        """Write the trained model for `from_pretrained`, and the training-only heads to a file beside it."""
        if self._average is not None:
            self._average.swap()
        state = self._accelerator.get_state_dict(self._wrapped)
        if self._accelerator.is_main_process:
            model = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
            heads = {name: value for name, value in state.items() if not name.startswith("model.")}
            with whole_folder(self._folder / "model") as beside:
                self.network.model.save_pretrained(str(beside), state_dict=model)
                self._processor.save_pretrained(str(beside))
                copy_notice(self._start, beside)
                # Before the model has its name: who finds a finished model finds its heads too.
                if heads:
                    save_file(heads, self._folder / _HEADS_FILE)
        if self._average is not None:
            self._average.swap()
        self._accelerator.wait_for_everyone()
        # The accelerator serves all stages: without this the next one's checkpoints would hold this one's objects too.
        self._accelerator.free_memory()
        self._accelerator._custom_objects.clear()


def _load_heads(network: XSamTraining, file: Path) -> None:
    """Load the training-only heads of the previous stage, as far as they have as many classes."""
    if file.is_file():
        own = network.state_dict()
        fitting = {
            name: value for name, value in load_file(file).items() if name in own and own[name].shape == value.shape
        }
        network.load_state_dict(fitting, strict=False)
