"""The training loop: phases, epochs, steps; validation with captions and scores; checkpoints that resume to the bit."""

import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Set
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from captioner.config import PhaseConfig, RunConfig, Stretch
from captioner.data.batches import Batch, load_batches
from captioner.data.dataset import CaptionDataset, Place, TextDataset
from captioner.data.images import load_image
from captioner.errors import CaptionerError
from captioner.files import replaced_folder
from captioner.hub.adapters import ADAPTER
from captioner.hub.card import read_card
from captioner.hub.find import find_model
from captioner.hub.load import save_model
from captioner.metrics.score import score_captions
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.training import checkpoint, fsdp, resume_checks
from captioner.training.adapters import add_adapters, load_adapter, plain_weights, save_adapter
from captioner.training.best import push_best, write_best
from captioner.training.ema import WeightAverage
from captioner.training.feature_cache import cache_features, delete_unusable, trunk_digest
from captioner.training.html_report import THUMBNAIL, ReportPhoto, write_report
from captioner.training.initialization import build_captioner, build_task, heads_of
from captioner.training.launch import flat_keys, join_launch, obey_launcher
from captioner.training.optimizer_step import OptimizerStep, StepNumbers
from captioner.training.phases import apply_phase, build_optimizer, set_modes, set_rates
from captioner.training.run_folder import RunFolder
from captioner.training.teacher import load_classifier
from captioner.training.training_data import TrainingData
from captioner.training.validation import validate

logger = logging.getLogger(__name__)


def train(config: RunConfig, resume: bool = False) -> Path:
    """Run a recipe; return the folder of the best checkpoint.

    Raises:
        CaptionerError: the output folder already holds a training and `resume` is false, or `resume` is true and it
            holds none that the recipe can continue; data cannot be read; the folder is not writable; a loss is not
            finite.
    """
    try:
        trainer = Trainer(config, resume)
        best = trainer.run()
        trainer.say(f"{best}: the best checkpoint; {trainer.folder.report}: photos, captions and curves")
        trainer.accelerator.end_training()
    except BrokenPipeError:
        raise
    except (OSError, SafetensorError) as error:  # usually a full disk
        where = getattr(error, "filename", None) or config.output_dir
        raise CaptionerError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    return best


class Trainer:
    """One training: everything that is built once, and the loop over phases, epochs and steps."""

    def __init__(self, config: RunConfig, resume: bool) -> None:
        self.config = config = obey_launcher(config)
        self.folder = RunFolder(Path(config.output_dir))
        self.accelerator = join_launch(config)
        self.folder.prepare(resume, self.accelerator)
        self.progress, before = checkpoint.load_progress(self.folder.last) if resume else (checkpoint.Progress(), {})
        resume_checks.refuse_another_origin(self.folder.last, before, config)
        resume_checks.refuse_other_phases(self.folder.last, self.progress, config)
        set_seed(config.seed)
        with self.accelerator.main_process_first():  # the others read what the main process has streamed
            self.data = TrainingData(config, self.folder.streamed, self.say)
        teacher = load_classifier(config.teacher) if config.teacher and config.uses("distillation") else None
        self.processor, self.model = build_captioner(
            config,
            self.data.captions(),
            heads_of(config, self.data.tags, teacher),
            self.accelerator,
            self.say,
            self.folder.last if resume else None,
        )
        self.validation_set = self.data.validation_set(self.processor)
        start = config.pretrained.captioner
        self.card_of_start = read_card(*find_model(start)) if start else None
        if resume:
            resume_checks.load_weights(self.folder.last, self.model, self.processor.tokenizer)
        self.adapters = add_adapters(self.model, config.adapters, self.say) if config.adapters else None
        if resume and self.adapters is not None:
            load_adapter(self.model, self.folder.last / ADAPTER)
        self.model.to(self.accelerator.device)
        if config.optimization.compile and self.accelerator.is_fsdp2:
            raise CaptionerError("optimization.compile is not supported with FSDP")
        if config.adapters and self.accelerator.is_fsdp2:
            raise CaptionerError("adapters are not supported with FSDP")
        if self.accelerator.device.type == "cuda":  # beside bf16 or fp16, what is left in fp32 may use TF32
            exact = self.accelerator.mixed_precision == "no"
            torch.set_float32_matmul_precision("highest" if exact else "high")
        self.whole = fsdp.WholeModel(self.accelerator, self.model)
        self.task = build_task(config, self.data, self.processor, self.whole, teacher)
        self.optimizer = fsdp.prepare_optimizer(
            self.accelerator, self.task, build_optimizer(self.model, config.optimization)
        )
        decay = config.optimization.ema_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        self.step = OptimizerStep(
            self.accelerator, self.task, self.optimizer, self.average, config.optimization.max_grad_norm
        )
        if resume:
            self._resume()
        if self.accelerator.is_main_process:
            self.folder.truncate_log(self.progress.global_step)
            self.folder.write_recipe(config)
        self.accelerator.init_trackers("captioner", flat_keys(config.model_dump(mode="json")))

    def run(self) -> Path:
        remaining = self.config.schedule()[self.progress.epoch :]
        if not remaining:
            self.say(f"{self.folder.last}: the recipe has been trained to its end")
        with open(self.folder.log if self.accelerator.is_main_process else os.devnull, "a", buffering=1) as self.log:
            current = None
            for stretch in remaining:
                if self._plateaued(stretch.phase):
                    self._end_stretch()
                    continue
                if stretch.phase is not current:
                    current = stretch.phase
                    model, train_set, validation_set = self.enter(current)
                self._run_stretch(model, train_set, validation_set, stretch)
        return self.folder.best

    def enter(self, phase: PhaseConfig) -> tuple[nn.Module, CaptionDataset | TextDataset, CaptionDataset]:
        """Begin a phase; return the model as accelerate wraps it, and the phase's training and validation images."""
        self.accelerator.unwrap_model(self.task, keep_fp32_wrapper=False)
        apply_phase(self.model, phase)
        if self.average is not None:
            self.average.settle()  # so that cached features are also those of the averaged weights
        model = self.accelerator.prepare_model(self.task)
        train_set, validation_set = self._datasets(phase)
        self._fit_micro_batch(model, train_set, phase)
        return model, train_set, validation_set

    def _run_stretch(
        self,
        model: nn.Module,
        train_set: CaptionDataset | TextDataset,
        validation_set: CaptionDataset,
        stretch: Stretch,
    ) -> None:
        phase = stretch.phase
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        steps = self.data.steps(train_set, stretch, self.progress.epoch, process, processes)
        self._keep_course(train_set, stretch)
        remaining = steps[self.progress.step :]
        unread: deque[tuple[StepNumbers, dict[str, float]]] = deque()
        loader = self._loader(train_set, [places for step in remaining for places in step])
        bar = tqdm(total=len(steps), initial=self.progress.step, desc=str(stretch), disable=self._quiet, leave=False)
        set_modes(self.model, phase)
        self.read_at = time.perf_counter()
        for step in remaining:
            done = stretch.number * len(steps) + self.progress.step
            rates = set_rates(self.optimizer, phase, done, stretch.total * len(steps))
            batches = [next(loader).to(self.accelerator.device) for _ in step]
            for batch in batches:
                self._check_errors(self.data.optional, batch)
            unread.append((self.step.take(model, batches, phase, self.progress.global_step), rates))
            self.progress.step += 1
            self.progress.global_step += 1
            bar.update()
            is_last = self.progress.step == len(steps)
            validates = self._due(self.config.validation.every_steps)
            saves = validates or self._due(self.config.checkpoint_every_steps)
            while len(unread) > (1 if self.step.reads_late and not is_last and not saves else 0):
                self._log_step(*unread.popleft(), phase, bar)
            if saves and not is_last:
                if validates:
                    self._validate(validation_set, stretch)
                self._save_last()
                if validates and self._plateaued(phase):
                    break
                set_modes(self.model, phase)
                self.read_at = time.perf_counter()
        bar.close()
        self._end_stretch()
        every, last = self.config.validation.every_steps, self.progress.epoch == len(self.config.schedule())
        if (every is None or self._due(every) or last) and not self._validated:
            self._validate(validation_set, stretch)
        self._save_last()

    def _keep_course(self, train_set: CaptionDataset | TextDataset, stretch: Stretch) -> None:
        """Record what determines the phase's batches; a phase that continues must have the batches it began with."""
        phase = stretch.phase
        batch_size = (phase.batch_size or self.config.optimization.batch_size) * self.accelerator.num_processes
        course = resume_checks.course(self.config, batch_size, train_set)
        if self.progress.step > 0 or (phase.steps is not None and stretch.number > 0):
            before = self.progress.courses.get(phase.name, {})
            resume_checks.refuse_another_course(self.folder.last, before, course)
        self.progress.courses[phase.name] = course

    def _end_stretch(self) -> None:
        self.progress.epoch += 1
        self.progress.step = 0

    @property
    def _validated(self) -> bool:
        """Have the current weights been validated?"""
        history = self.progress.history
        return bool(history) and history[-1]["step"] == self.progress.global_step

    def _due(self, every_steps: int | None) -> bool:
        return every_steps is not None and self.progress.global_step % every_steps == 0

    def _plateaued(self, phase: PhaseConfig) -> bool:
        """Have the phase's last `patience` validations all failed to improve on its best score?"""
        settings = self.config.validation
        scores = [entry[settings.metric] for entry in self.progress.history if entry["phase"] == phase.name]
        since_best = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        return settings.patience is not None and since_best >= settings.patience

    def _log_step(self, numbers: StepNumbers, rates: dict[str, float], phase: PhaseConfig, bar: tqdm) -> None:
        """Log a step; `seconds` is the time since the previous step was logged."""
        values, before, self.read_at = numbers.read(), self.read_at, time.perf_counter()
        shown = {f"rate/{part}": rate for part, rate in rates.items()}
        self._log({"phase": phase.name, **values, **shown, "seconds": self.read_at - before}, numbers.step)
        bar.set_postfix(loss=f"{values['loss']:.3f}", rate=f"{max(rates.values()):.1e}", refresh=False)

    def _validate(self, dataset: CaptionDataset, stretch: Stretch) -> None:
        """Caption and score the validation images; keep the weights if they are the best so far."""
        averaged = nullcontext() if self.average is None else self.average.in_place()
        with averaged, self.whole.gathered() as model:
            on_errors = partial(self._check_errors, self.data.optional_validation)
            captions, loss = validate(model, self.processor, dataset, self.config, self.accelerator, on_errors)
            measured = score_captions(captions, {row: dataset.samples[row].captions for row in captions})
            scores = measured.corpus
            value = scores[self.config.validation.metric]
            summary = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
            if self.progress.best is None or value >= self.progress.best:
                self.progress.best = value
                if self.accelerator.is_main_process:
                    photos = [(dataset.samples[row].image, captions[row]) for row in self._shown(captions)]
                    with replaced_folder(self.folder.best) as folder:
                        self._save_best(model, folder)
                        write_best(folder, self.config, measured, len(self.data.train), photos, self.card_of_start)
                    if self.config.push_to_hub:
                        self.say(push_best(self.folder.best, self.config.push_to_hub))
        self.progress.history.append({"phase": stretch.phase.name, "step": self.progress.global_step, **scores})
        named = {f"validation/{name}": value for name, value in scores.items()}
        self._log({"phase": stretch.phase.name, "validation_loss": loss, **named}, self.progress.global_step)
        self._show(dataset, captions)
        self.say(f"{stretch}: loss {loss:.4f}, {summary} (best {self.progress.best:.4f})")

    def _show(self, dataset: CaptionDataset, captions: dict[int, str]) -> None:
        """Print the captions of the first photos, and write the report."""
        shown = {row: captions[row] for row in self._shown(captions)}
        if self.accelerator.is_main_process:
            photos = []
            for row, caption in shown.items():
                sample = dataset.samples[row]
                self.say(f"  {sample.id}: {caption!r} (reference: {sample.captions[0]!r})")
                image, before = load_image(sample.image, min_size=THUMBNAIL), self.progress.captions.get(str(row))
                photos.append(ReportPhoto(image, str(sample.id), sample.captions[0], before, caption))
            write_report(self.folder.report, str(self.folder.path), self.folder.log, photos)
        self.progress.captions = {str(row): caption for row, caption in shown.items()}

    def _shown(self, captions: Mapping[int, str]) -> list[int]:
        """The validation images that the report and the card show."""
        return [row for row in captions if row < self.config.validation.samples]

    def _save_best(self, model: CaptionerForConditionalGeneration, folder: Path) -> None:
        """Write the model, adapters merged, and the adapter by itself if nothing else has been trained."""
        if self.adapters is None:
            save_model(model, self.processor, folder)
            return
        save_model(model, self.processor, folder, plain_weights(model, merged=True))
        trained = {part for stretch in self.config.schedule() for part in stretch.phase.learning_rates}
        if trained == {"adapters"}:
            save_adapter(model, self.adapters, self.config.pretrained.captioner or "", folder / ADAPTER)

    def _datasets(self, phase: PhaseConfig) -> tuple[CaptionDataset | TextDataset, CaptionDataset]:
        """Training and validation images; with cached features if the trunk is frozen and images are not augmented."""
        train_set, validation_set = self.data.train_set(phase, self.processor), self.validation_set
        train_set.features = validation_set.features = None  # the trunk may have changed since
        is_frozen = not any(parameter.requires_grad for parameter in self.model.encoder.trunk.parameters())
        self._delete_unusable_features(is_frozen)
        if is_frozen and isinstance(train_set, CaptionDataset):
            self._cache_features(validation_set, self.data.optional_validation)
            if not phase.augmentation.active and "distillation" not in phase.objectives:  # a teacher needs pixels
                self._cache_features(train_set, self.data.optional)
        return train_set, validation_set

    def _delete_unusable_features(self, trunk_is_frozen: bool) -> None:
        trunk = None
        if trunk_is_frozen:
            with self.whole.gathered() as model:
                trunk = trunk_digest(model, self.accelerator)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            delete_unusable(self.folder.features, trunk)

    def _cache_features(self, dataset: CaptionDataset, optional: Set[str | int]) -> None:
        with self.whole.gathered() as model:
            dataset.features = cache_features(
                model,
                dataset,
                self.folder.features,
                self.accelerator,
                self.config.validation.batch_size,
                self.config.data.num_workers,
                partial(self._check_errors, optional),
            )

    def _fit_micro_batch(self, model: nn.Module, train_set: CaptionDataset | TextDataset, phase: PhaseConfig) -> None:
        """Choose how many images a forward pass takes: the whole batch, or as much of it as fits the memory."""
        size = phase.batch_size or self.config.optimization.batch_size
        if self.accelerator.device.type == "cpu" or self.accelerator.is_fsdp2:
            # A CPU raises no error that could be caught; under FSDP the other processes would wait for this one's part.
            self.step.micro_batch = size
            return
        lengths = train_set.lengths()
        longest = sorted(range(len(lengths)), key=lambda index: lengths[index])[-size:]
        batch = next(self._loader(train_set, [[(0, index) for index in longest]])).to(self.accelerator.device)
        self.step.fit_micro_batch(model, batch, phase, size)
        if self.step.micro_batch < size:
            self.say(
                f"{phase.name}: a batch of {size} images exceeds the memory: "
                f"split into parts of {self.step.micro_batch}, gradients accumulated"
            )

    def _loader(self, dataset: CaptionDataset | TextDataset, batches: list[list[Place]]) -> Iterator[Batch]:
        on_gpu = self.accelerator.device.type == "cuda"
        return iter(load_batches(dataset, batches, self.config.data.num_workers, pin_memory=on_gpu))

    def _save_last(self) -> None:
        device, main = self.accelerator.device, self.accelerator.is_main_process
        random_states = self.accelerator.gather(checkpoint.random_state(device)[None].to(device)).cpu()
        tensors = checkpoint.training_tensors(self.optimizer.optimizer, self.average)
        tensors = fsdp.whole_on_cpu(tensors, keep=main) | {"random_states": random_states}
        with self.whole.gathered() as model:
            if main:
                with replaced_folder(self.folder.last) as folder:
                    self._write_last(model, tensors, folder)
        self.accelerator.wait_for_everyone()

    def _write_last(self, model: CaptionerForConditionalGeneration, tensors: dict[str, Tensor], folder: Path) -> None:
        if self.adapters is None:
            save_model(model, self.processor, folder)
        else:  # apart, so that not one bit of the weights changes
            save_model(model, self.processor, folder, plain_weights(model, merged=False))
            save_adapter(model, self.adapters, self.config.pretrained.captioner or "", folder / ADAPTER)
        begun = self.progress.epoch + (self.progress.step > 0)
        self.progress.phases = [stretch.phase.name for stretch in self.config.schedule()[:begun]]
        origin = resume_checks.origin(self.config)
        checkpoint.save_training_state(folder, self.progress, origin, tensors, self.accelerator.scaler)

    def _resume(self) -> None:
        """Restore everything but the weights, which the model already has."""
        random_states = checkpoint.load_training_state(
            self.folder.last, self.optimizer.optimizer, self.average, self.accelerator.scaler
        )
        if self.accelerator.process_index < len(random_states):
            checkpoint.restore_random_state(random_states[self.accelerator.process_index], self.accelerator.device)
        self.say(f"resumed from {self.folder.last}: epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _check_errors(self, optional: Set[str | int], batch: Batch) -> None:
        """Raise the error of an unreadable photo, unless its source may skip photos."""
        unread = {row: message for row, message in batch.errors.items() if message}
        for row, message in unread.items():
            if batch.ids[row] not in optional:
                raise CaptionerError(message)
            logger.warning("skipped: %s", message)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """Append a line to log.jsonl, and pass its numbers to the trackers."""
        self.log.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=step)

    @property
    def _quiet(self) -> bool | None:
        """tqdm's `disable`; None shows a bar on terminals only."""
        return None if self.accelerator.is_main_process else True

    def say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(message, file=sys.stderr)
