"""The training loop: phases, epochs, steps; validation with captions and scores; checkpoints that resume to the bit."""

import json
import logging
import math
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from captioner.config import Objective, PhaseConfig, RunConfig, Stretch
from captioner.data.batches import Batch, load_batches, send
from captioner.data.dataset import CaptionDataset, Place, TextDataset
from captioner.data.images import load_image
from captioner.errors import CaptionerError
from captioner.files import check_file, recover_folder, replaced_folder, reporting, whole_file
from captioner.hub.card import read_card, usage, write_card
from captioner.hub.find import find_model
from captioner.hub.load import save_model
from captioner.metrics.score import score_captions
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.train import checkpoint, fsdp, resume_checks
from captioner.train.ema import WeightAverage
from captioner.train.feature_cache import cache_features, delete_unusable, trunk_digest
from captioner.train.html_report import ReportPhoto, write_report
from captioner.train.initialization import build_captioner
from captioner.train.launch import flat_keys, join_launch, obey_launcher
from captioner.train.phases import apply_phase, build_optimizer, set_modes, set_rates
from captioner.train.rewards import SelfCritic
from captioner.train.task import CaptioningTask, Losses
from captioner.train.teacher import Teacher, load_classifier
from captioner.train.training_data import TrainingData
from captioner.train.validation import validate

logger = logging.getLogger(__name__)


def train(config: RunConfig, resume: bool = False) -> Path:
    """Run a recipe; gives the folder of the best checkpoint.

    Raises:
        CaptionerError: the output folder holds a training already and `resume` is off, or holds none that the recipe
            could go on from and it is on; data that cannot be read; a folder that cannot be written to; a loss that is
            not finite.
    """
    try:
        trainer = Trainer(config, resume)
        best = trainer.run()
        trainer.say(f"{best}: the best checkpoint; {trainer.report}: what it learnt, and how")
        trainer.accelerator.end_training()
    except BrokenPipeError:
        raise
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        where = getattr(error, "filename", None) or config.output_dir
        raise CaptionerError(f"{where}: {getattr(error, 'strerror', None) or error}") from error
    return best


class Trainer:
    """One training: what is built once, and the loop over it.

    Its folder holds `config.yaml` (the recipe as run), `best/` (a model folder: the weights with the best validation
    score), `last/` (all that resuming needs), `log.jsonl` and `report.html` (a page to watch it by).
    """

    def __init__(self, config: RunConfig, resume: bool) -> None:
        self.config = config = obey_launcher(config)
        self.output_dir = Path(config.output_dir)
        self.last, self.best = self.output_dir / "last", self.output_dir / "best"
        self.log_path, self.report = self.output_dir / "log.jsonl", self.output_dir / "report.html"
        self.accelerator = join_launch(config)
        found = self._prepare_folder(resume)
        self.progress, before = checkpoint.load_progress(self.last) if found else (checkpoint.Progress(), {})
        resume_checks.refuse_another_origin(self.last, before, config)
        resume_checks.refuse_other_phases(self.last, self.progress, config)
        set_seed(config.seed)
        with self.accelerator.main_process_first():  # which stores what is streamed
            self.data = TrainingData(config, self.output_dir / "streamed", self.say)
        teacher = load_classifier(config.teacher) if config.teacher and config.uses("distillation") else None
        self.processor, self.model = build_captioner(
            config, self.data.captions(), self._heads(teacher), self.accelerator, self.say, found
        )
        self.validation_set = self.data.validation_set(self.processor)
        start = config.pretrained.captioner
        self.card_of_start = read_card(*find_model(start)) if start else None
        if found:
            resume_checks.load_weights(self.last, self.model, self.processor.tokenizer)
        self.model.to(self.accelerator.device)
        if config.optimization.compile and self.accelerator.is_fsdp2:
            raise CaptionerError("optimization.compile does not go with a model in parts (FSDP)")
        if self.accelerator.device.type == "cuda":  # beside bf16 or fp16 the rest need not be more exact than TF32
            exact = self.accelerator.mixed_precision == "no"
            torch.set_float32_matmul_precision("highest" if exact else "high")
        self.whole = fsdp.WholeModel(self.accelerator, self.model)
        self.task = CaptioningTask(
            self.whole, config.tags, self._build_critic(), self._build_teacher(teacher), config.optimization.compile
        )
        optimizer = build_optimizer(self.model, config.optimization)
        self.optimizer = fsdp.prepare_optimizer(self.accelerator, self.task, optimizer)
        decay = config.optimization.ema_decay
        self.average = WeightAverage(self.model, decay) if decay else None
        self.exact = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        self.reads_late = False
        if self.accelerator.device.type == "cuda" and not self.accelerator.scaler and not self.accelerator.is_fsdp2:
            self._read_late()
        self.micro_batch = config.optimization.batch_size
        if found:
            self._resume()
        self._truncate_log()
        recipe = config.model_dump(mode="json", exclude_unset=True)
        if self.accelerator.is_main_process:
            with whole_file(self.output_dir / "config.yaml") as file:
                file.write(yaml.safe_dump(recipe, sort_keys=False))
        self.accelerator.init_trackers("captioner", flat_keys(config.model_dump(mode="json")))

    def _prepare_folder(self, resume: bool) -> Path | None:
        """The checkpoint to resume; to begin, an empty place.

        Raises:
            CaptionerError: nothing to resume, or something there that would be written over; a folder that cannot be
                written to.
        """
        folder, main = self.output_dir, self.accelerator.is_main_process
        with self.accelerator.main_process_first():
            if main:
                recover_folder(self.best)
                recover_folder(self.last)
        if resume and not self.last.exists():
            raise CaptionerError(f"{folder}: nothing to resume, there is no {self.last}: to begin, leave out --resume")
        if self.last.exists() and not resume:
            raise CaptionerError(f"{folder} holds a training: pass --resume, or set another output_dir")
        if self.best.exists() and not resume:
            raise CaptionerError(f"{folder} holds a model, {self.best}: move it away, or set another output_dir")
        with self.accelerator.main_process_first(), reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if main:
                check_file(folder / "config.yaml")
            if main and not resume:
                resume_checks.clear(folder)
        return self.last if resume else None

    def _read_late(self) -> None:
        """Let the device look at the losses, as `_step` says. A scaler of fp16 decides itself which updates count, and
        parts of a model have no one device: there the host waits for the losses before each update."""
        self.reads_late = True
        self.is_broken = torch.zeros((), device=self.accelerator.device)
        self.optimizer.optimizer.found_inf = self.is_broken  # where it is 1, fused AdamW changes nothing

    def run(self) -> Path:
        remaining = self.config.schedule()[self.progress.epoch :]
        if not remaining:
            self.say(f"{self.last}: all that the recipe asks for has been trained")
        with open(self.log_path if self.accelerator.is_main_process else os.devnull, "a", buffering=1) as self.log:
            current = None
            for stretch in remaining:
                if self._plateaued(stretch.phase):
                    self._end_stretch()
                    continue
                if stretch.phase is not current:
                    current = stretch.phase
                    model, train_set, validation_set = self.enter(current)
                self._run_stretch(model, train_set, validation_set, stretch)
        return self.best

    def enter(self, phase: PhaseConfig) -> tuple[nn.Module, CaptionDataset | TextDataset, CaptionDataset]:
        """Begin a phase: the model as prepared for it, the images it learns from, and those it is validated on."""
        self.accelerator.unwrap_model(self.task, keep_fp32_wrapper=False)
        apply_phase(self.model, phase)
        if self.average is not None:
            self.average.settle()  # so that cached features are those of the averaged weights too
        model = self.accelerator.prepare_model(self.task)
        train_set, validation_set = self._datasets(phase)
        self.micro_batch = self._fit_micro_batch(model, train_set, phase)
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
            unread.append((self._step(model, batches, phase), rates))
            self.progress.step += 1
            self.progress.global_step += 1
            bar.update()
            is_last = self.progress.step == len(steps)
            validates = self._due(self.config.validation.every_steps)
            saves = validates or self._due(self.config.checkpoint_every_steps)
            while len(unread) > (1 if self.reads_late and not is_last and not saves else 0):
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
        """Note what decides the phase's steps; its photos left over from a checkpoint are those it had in mind."""
        phase = stretch.phase
        batch_size = (phase.batch_size or self.config.optimization.batch_size) * self.accelerator.num_processes
        course = resume_checks.course(self.config, batch_size, train_set)
        if self.progress.step > 0 or (phase.steps is not None and stretch.number > 0):
            resume_checks.refuse_another_course(self.last, self.progress.courses.get(phase.name, {}), course)
        self.progress.courses[phase.name] = course

    def _end_stretch(self) -> None:
        self.progress.epoch += 1
        self.progress.step = 0

    @property
    def _validated(self) -> bool:
        """Whether the weights as they are have been validated."""
        history = self.progress.history
        return bool(history) and history[-1]["step"] == self.progress.global_step

    def _due(self, every_steps: int | None) -> bool:
        return every_steps is not None and self.progress.global_step % every_steps == 0

    def _plateaued(self, phase: PhaseConfig) -> bool:
        """Whether the phase has been validated `patience` times without a better score than before."""
        settings = self.config.validation
        scores = [entry[settings.metric] for entry in self.progress.history if entry["phase"] == phase.name]
        since_best = len(scores) - 1 - scores.index(max(scores)) if scores else 0
        return settings.patience is not None and since_best >= settings.patience

    def _step(self, model: nn.Module, batches: Sequence[Batch], phase: PhaseConfig) -> "StepNumbers":
        """One optimizer step over this process's batches; gives the losses, each a mean over all processes.

        A loss that is not finite is followed by no update. Where `reads_late` the device itself skips that update and
        all that follow, and the host learns of it a step later, so that it never waits with nothing queued.

        Raises:
            CaptionerError: a loss is not finite, and not `reads_late`.
        """
        names, step = list(phase.objectives), self.progress.global_step
        batches = [part for batch in batches for part in self._passes(batch, phase)]
        counted = [self.task.item_counts(batch, phase) for batch in batches]
        items = [sum(counts[name] for counts in counted) for name in [*names, "captioning"]]
        *totals, tokens = self._sum_over_processes(self._numbers(items)).unbind()
        counts = {name: count.clamp(min=1) for name, count in zip(names, totals, strict=True)}
        weights = {name: (weight / counts[name]).float() for name, weight in phase.objectives.items()}
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros_like(tokens))
        for number, batch in enumerate(batches):
            self._check_errors(self.data.optional, batch)
            with self._gradients_synchronised(model, number == len(batches) - 1):
                losses, logged = self._forward_backward(model, batch, phase, weights, step)
            for name in names:
                sums[f"loss/{name}"] += losses[name].detach() / counts[name]
            for name, total in logged.items():
                sums[name] += total / counts[name]
        means = dict(zip(sums, self._sum_over_processes(torch.stack(list(sums.values()))).unbind(), strict=True))
        loss = sum((weight * means[f"loss/{name}"] for name, weight in phase.objectives.items()), 0 * tokens)
        norms = self._clip_gradients()
        ids = [identifier for batch in batches for identifier in batch.ids]
        numbers = StepNumbers(step + 1, {"loss": loss, **means, **norms, "tokens": tokens}, ids)
        if self.reads_late:
            self.is_broken.copy_(self.is_broken.maximum((~loss.isfinite()).float()))
        else:
            numbers.read()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return numbers

    def _log_step(self, numbers: "StepNumbers", rates: dict[str, float], phase: PhaseConfig, bar: tqdm) -> None:
        """`seconds` is the time since the step before was read: what a step takes, wherever it is waited for."""
        values, before, self.read_at = numbers.read(), self.read_at, time.perf_counter()
        shown = {f"rate/{part}": rate for part, rate in rates.items()}
        self._log({"phase": phase.name, **values, **shown, "seconds": self.read_at - before}, numbers.step)
        bar.set_postfix(loss=f"{values['loss']:.3f}", rate=f"{max(rates.values()):.1e}", refresh=False)

    def _passes(self, batch: Batch, phase: PhaseConfig) -> list[Batch]:
        """The batch in parts that fit the memory; as many on every process where a loss compares across them."""
        parts = batch.split(self.micro_batch)
        if "contrastive" in phase.objectives and self.accelerator.num_processes > 1:
            counts = self.accelerator.gather(torch.tensor([len(parts)], device=self.accelerator.device))
            parts += [batch.without_targets()] * (int(counts.max()) - len(parts))
        return parts

    def _forward_backward(
        self,
        model: nn.Module,
        batch: Batch,
        phase: PhaseConfig,
        weights: Mapping[Objective, Any],
        step: int,
        gather: bool = True,
    ) -> tuple[Losses, Losses]:
        with self.accelerator.autocast():
            losses, logged = model(batch, phase, step, gather)
        loss = sum(weights[name] * losses[name] for name in phase.objectives)
        # Gradients are averaged over processes; times their number that is the mean over all items.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        return losses, logged

    def _clip_gradients(self) -> dict[str, Tensor]:
        """Clip the gradient; gives its norm before, and that of each part."""
        limit = self.config.optimization.max_grad_norm
        total = fsdp.whole(self.accelerator.clip_grad_norm_(self.task.parameters(), limit)).to(self.exact)
        gradients: defaultdict[str, list[Tensor]] = defaultdict(list)
        for group in self.optimizer.param_groups:
            gradients[group["place"].part] += [p.grad for p in group["params"] if p.grad is not None]
        clipped = {
            part: fsdp.whole(nn.utils.get_total_norm(own)).to(self.exact) for part, own in gradients.items() if own
        }
        norm = torch.stack(list(clipped.values())).norm()
        unclipped = torch.where(norm > 0, total / norm, 0.0)
        return {"grad_norm": total, **{f"grad_norm/{part}": own * unclipped for part, own in clipped.items()}}

    def _validate(self, dataset: CaptionDataset, stretch: Stretch) -> None:
        """Caption and score the validation images; keep the weights if they are the best so far."""
        averaged = nullcontext() if self.average is None else self.average.in_place()
        with averaged, self.whole.gathered() as model:
            on_errors = partial(self._check_errors, self.data.optional_validation)
            captions, loss = validate(model, self.processor, dataset, self.config, self.accelerator, on_errors)
            scores = score_captions(captions, {row: dataset.samples[row].captions for row in captions}).corpus
            value = scores[self.config.validation.metric]
            summary = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
            if self.progress.best is None or value >= self.progress.best:
                self.progress.best = value
                if self.accelerator.is_main_process:
                    with replaced_folder(self.best) as folder:
                        self._write_best(model, summary, folder)
        self.progress.history.append({"phase": stretch.phase.name, "step": self.progress.global_step, **scores})
        named = {f"validation/{name}": value for name, value in scores.items()}
        self._log({"phase": stretch.phase.name, "validation_loss": loss, **named}, self.progress.global_step)
        self._show(dataset, captions)
        self.say(f"{stretch}: loss {loss:.4f}, {summary} (best {self.progress.best:.4f})")

    def _datasets(self, phase: PhaseConfig) -> tuple[CaptionDataset | TextDataset, CaptionDataset]:
        """Training and validation images, as cached trunk features where the trunk rests and nothing augments."""
        train_set, validation_set = self.data.train_set(phase, self.processor), self.validation_set
        train_set.features = validation_set.features = None  # of the trunk as it was
        self._delete_unusable_features(phase)
        if "trunk" not in phase.learning_rates and isinstance(train_set, CaptionDataset):
            self._cache_features(validation_set, self.data.optional_validation)
            if not phase.augmentation.active and "distillation" not in phase.objectives:  # a teacher wants pixels
                self._cache_features(train_set, self.data.optional)
        return train_set, validation_set

    def _delete_unusable_features(self, phase: PhaseConfig) -> None:
        trunk = None
        if "trunk" not in phase.learning_rates:
            with self.whole.gathered() as model:
                trunk = trunk_digest(model, self.accelerator)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            delete_unusable(self.output_dir / "features", trunk)

    def _show(self, dataset: CaptionDataset, captions: dict[int, str]) -> None:
        """Say what the first photos show, and put them with their captions and the curves on the run's page."""
        shown = {row: captions[row] for row in captions if row < self.config.validation.samples}
        photos = []
        for row, caption in shown.items():
            sample = dataset.samples[row]
            self.say(f"  {sample.id}: {caption!r} (reference: {sample.captions[0]!r})")
            before = self.progress.captions.get(str(row))
            photos.append(ReportPhoto(load_image(sample.image), str(sample.id), sample.captions[0], before, caption))
        if self.accelerator.is_main_process:
            write_report(self.report, str(self.output_dir), self.log_path, photos)
        self.progress.captions = {str(row): caption for row, caption in shown.items()}

    def _cache_features(self, dataset: CaptionDataset, optional: Set[str | int]) -> None:
        with self.whole.gathered() as model:
            dataset.features = cache_features(
                model,
                dataset,
                self.output_dir / "features",
                self.accelerator,
                self.config.validation.batch_size,
                self.config.data.num_workers,
                partial(self._check_errors, optional),
            )

    def _fit_micro_batch(self, model: nn.Module, train_set: CaptionDataset | TextDataset, phase: PhaseConfig) -> int:
        """Images that a pass takes at once: all of a batch's, or half of them, or a quarter, as memory allows."""
        size = phase.batch_size or self.config.optimization.batch_size
        if self.accelerator.device.type == "cpu" or self.accelerator.is_fsdp2:
            return size  # memory runs out without an error that could be caught; or leaves the others waiting for parts
        lengths = train_set.lengths()
        longest = sorted(range(len(lengths)), key=lambda index: lengths[index])[-size:]
        batch = next(self._loader(train_set, [[(0, index) for index in longest]])).to(self.accelerator.device)
        fitting = largest_that_fits(size, lambda size: self._fits(model, batch.split(size)[0], phase))
        if fitting < size:
            self.say(f"{phase.name}: {size} images at once exceed the memory; {fitting} at once, accumulated")
        return fitting

    def _fits(self, model: nn.Module, batch: Batch, phase: PhaseConfig) -> bool:
        """Whether a pass over the batch succeeds, on every process; it leaves nothing behind.

        None of them waits within its pass for another, whose memory may have run out by then.
        """
        random_state, fits = checkpoint.random_state(self.accelerator.device), 1.0
        try:
            with self._gradients_synchronised(model, False):
                self._forward_backward(model, batch, phase, phase.objectives, 0, gather=False)
        except torch.OutOfMemoryError:
            fits = 0.0
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        checkpoint.restore_random_state(random_state, self.accelerator.device)
        return float(self._sum_over_processes(self._numbers([fits]))) == self.accelerator.num_processes

    def _loader(self, dataset: CaptionDataset | TextDataset, batches: list[list[Place]]) -> Iterator[Batch]:
        on_gpu = self.accelerator.device.type == "cuda"
        return iter(load_batches(dataset, batches, self.config.data.num_workers, pin_memory=on_gpu))

    def _heads(self, teacher: nn.Module | None) -> dict[str, Any]:
        """Fields of the model's configuration for the heads that the recipe's objectives need."""
        heads: dict[str, Any] = {}
        if self.data.tags and self.config.tags:
            heads |= {"tags": self.data.tags, "problem_type": self.config.tags.problem_type}
        if teacher is not None:
            heads["teacher_classes"] = teacher.num_classes
        if self.config.uses("contrastive"):
            heads["contrastive_size"] = self.config.model.contrastive_size
        return heads

    def _build_critic(self) -> SelfCritic | None:
        if not self.config.uses("reward"):
            return None
        captions = {sample.id: sample.captions for sample in self.data.train if sample.captions}
        return SelfCritic(captions, self.processor.tokenizer, self.config.data.max_caption_tokens, self.config.seed)

    def _build_teacher(self, classifier: nn.Module | None) -> Teacher | None:
        if classifier is None or self.config.teacher is None:
            return None
        preprocessing = self.processor.image_processor.preprocessing
        return Teacher(classifier, self.config.teacher.temperature, preprocessing, self.accelerator.device)

    def _save_last(self) -> None:
        device, main = self.accelerator.device, self.accelerator.is_main_process
        random_states = self.accelerator.gather(checkpoint.random_state(device)[None].to(device)).cpu()
        tensors = checkpoint.training_tensors(self.optimizer.optimizer, self.average)
        tensors = fsdp.whole_on_cpu(tensors, keep=main) | {"random_states": random_states}
        with self.whole.gathered() as model:
            if main:
                with replaced_folder(self.last) as folder:
                    self._write_last(model, tensors, folder)
        self.accelerator.wait_for_everyone()

    def _write_last(self, model: CaptionerForConditionalGeneration, tensors: dict[str, Tensor], folder: Path) -> None:
        save_model(model, self.processor, folder)
        begun = self.progress.epoch + (self.progress.step > 0)
        self.progress.phases = [stretch.phase.name for stretch in self.config.schedule()[:begun]]
        origin = resume_checks.origin(self.config)
        checkpoint.save_training_state(folder, self.progress, origin, tensors, self.accelerator.scaler)

    def _write_best(self, model: CaptionerForConditionalGeneration, scores: str, folder: Path) -> None:
        """A model folder and its card."""
        save_model(model, self.processor, folder)
        size, images, others = model.num_parameters() / 1e6, len(self.data.train), len(self.validation_set)
        text = f"""# {self.output_dir.name}

An image captioner with {size:.1f} million parameters, which learnt from {images:,} images with `captioner train`. On
{others:,} others it scores, with {self.config.validation.num_beams} beams: {scores}.

{usage(self.best)}"""
        write_card(folder, text, self.card_of_start, self.config.pretrained.captioner or "")

    def _resume(self) -> None:
        """All but the weights, which the model has already."""
        random_states = checkpoint.load_training_state(
            self.last, self.optimizer.optimizer, self.average, self.accelerator.scaler
        )
        if self.accelerator.process_index < len(random_states):
            checkpoint.restore_random_state(random_states[self.accelerator.process_index], self.accelerator.device)
        self.say(f"resumed from {self.last}: epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return send(torch.tensor(values, dtype=self.exact), self.accelerator.device)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values, "sum")
        return summed

    def _gradients_synchronised(self, model: nn.Module, synchronise: bool) -> AbstractContextManager:
        return nullcontext() if synchronise else self.accelerator.no_sync(model)

    def _check_errors(self, optional: Set[str | int], batch: Batch) -> None:
        """An unreadable photo ends the training, unless it is among those that its source may leave out."""
        unread = {row: message for row, message in batch.errors.items() if message}
        for row, message in unread.items():
            if batch.ids[row] not in optional:
                raise CaptionerError(message)
            logger.warning("left out: %s", message)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """One line in log.jsonl a step and a validation; numbers go to the trackers too."""
        self.log.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=step)

    def _truncate_log(self) -> None:
        """Drop what was logged after the checkpoint that the training resumes from, and lines that a kill cut short."""
        path = self.log_path
        if self.accelerator.is_main_process and path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            with whole_file(path) as file:
                file.writelines(line + "\n" for line in lines if _step_of(line) <= self.progress.global_step)

    @property
    def _quiet(self) -> bool | None:
        """tqdm's `disable`: None shows a bar on a terminal only."""
        return None if self.accelerator.is_main_process else True

    def say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(message, file=sys.stderr)


def _step_of(line: str) -> float:
    """The step that a line of the log is about; infinity where it is not whole."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return math.inf


class StepNumbers:
    """What a step has to log, on its way from the device: only who reads it waits for it."""

    def __init__(self, step: int, values: Mapping[str, Tensor], ids: Sequence[str | int]) -> None:
        """`step`, counted from 1, over the images `ids`; `values` are numbers on one device, "loss" among them."""
        self.step, self.names, self.ids = step, list(values), ids
        stacked = torch.stack(list(values.values()))
        self.values = stacked.to("cpu", non_blocking=stacked.is_cuda)
        self.arrived = torch.cuda.Event() if stacked.is_cuda else None
        if self.arrived is not None:
            self.arrived.record()

    def read(self) -> dict[str, float]:
        """The numbers by name.

        Raises:
            CaptionerError: the loss is not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        values: dict[str, float] = dict(zip(self.names, self.values.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            images = ", ".join(map(str, self.ids))
            raise CaptionerError(f"step {self.step}: the loss is {values['loss']}; images: {images}")
        return values


def largest_that_fits(size: int, fits: Callable[[int], bool]) -> int:
    """`size`, or the largest of its halvings that fits.

    Raises:
        CaptionerError: not even one does.
    """
    while not fits(size):
        if size == 1:
            raise CaptionerError("out of memory with a single image: a smaller model or image_size is needed")
        size //= 2
    return size
