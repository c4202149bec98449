"""The training loop: phases, epochs, steps; validation with captions and scores; checkpoints that resume to the bit."""

import json
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from captioner.config import PhaseConfig, RunConfig, ScheduledEpoch, SourceConfig
from captioner.data.dataset import Batch, CaptionDataset, bucketed_batches, load_batches
from captioner.data.sources import Sample, load_samples
from captioner.data.tokenizer import train_tokenizer
from captioner.errors import CaptionerError
from captioner.hub import find_model, load_model
from captioner.infer.generation import GenerationOptions, generate
from captioner.metrics.score import score_captions
from captioner.model.build import build_image_processor, build_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor
from captioner.model.tokenization_captioner import CaptionerTokenizer
from captioner.train import checkpoint
from captioner.train.features import cache_features
from captioner.train.objectives import item_counts, summed_losses
from captioner.train.phases import apply_phase, build_optimizer, set_modes, set_rates
from captioner.train.rewards import SelfCritic

logger = logging.getLogger(__name__)


def train(config: RunConfig, resume: bool = False) -> Path:
    """Run a recipe; gives the folder of the best checkpoint.

    Raises:
        CaptionerError: the output folder holds a training already and `resume` is off; data that cannot be read;
            a loss that is not finite.
    """
    return Trainer(config, resume).run()


class Trainer:
    """One training: what is built once, and the loop over it.

    Its folder holds `config.yaml` (the recipe as run), `best/` (a model folder: the weights with the best validation
    score), `last/` (all that resuming needs) and `log.jsonl`.
    """

    def __init__(self, config: RunConfig, resume: bool) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.last, self.best = self.output_dir / "last", self.output_dir / "best"
        self.accelerator = Accelerator(
            mixed_precision=config.optimization.mixed_precision,
            log_with=list(config.log_with) or None,
            project_dir=str(self.output_dir),
        )
        found = self._find_checkpoint()
        if found and not resume:
            raise CaptionerError(f"{self.output_dir} holds a training: pass --resume, or set another output_dir")
        set_seed(config.seed)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.train_samples = self._load_source(config.data.train)
        self.validation_samples = self._load_source(config.data.validation)[: config.validation.max_images]
        self.processor, self.model = self._build()
        self.critic = self._build_critic()
        self.model.to(self.accelerator.device)
        self.optimizer = self.accelerator.prepare_optimizer(build_optimizer(self.model, config.optimization))
        decay = config.optimization.ema_decay
        self.averaged = AveragedModel(self.model, multi_avg_fn=_warmed_up_average(decay)) if decay else None
        self.progress = checkpoint.Progress()
        if found:
            self._load(self.last)
        self._truncate_log()
        recipe = config.model_dump(mode="json", exclude_unset=True)
        if self.accelerator.is_main_process:
            (self.output_dir / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        self.accelerator.init_trackers("captioner")

    def _find_checkpoint(self) -> bool:
        with self.accelerator.main_process_first():
            if self.accelerator.is_main_process:
                checkpoint.recover_folder(self.best)
                checkpoint.recover_folder(self.last)
        return self.last.exists()

    def run(self) -> Path:
        current = None
        for epoch in self.config.schedule()[self.progress.epoch :]:
            phase = epoch.phase
            if phase is not current:
                current = phase
                self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
                apply_phase(self.model, phase)
                self._rest_at_averages()
                model = self.accelerator.prepare_model(self.model)
                train_set, validation_set = self._datasets(phase)
            train_set.epoch = self.progress.epoch
            self._run_epoch(model, train_set, epoch)
            self._finish_epoch(epoch, validation_set)
        self.accelerator.end_training()
        return self.best

    @torch.no_grad()
    def _rest_at_averages(self) -> None:
        """Resting parts take their averaged weights, so that the average and the model agree on cached features."""
        if self.averaged is not None:
            for parameter, average in zip(self.model.parameters(), self.averaged.module.parameters(), strict=True):
                if not parameter.requires_grad:
                    parameter.copy_(average)

    def _run_epoch(self, model: nn.Module, train_set: CaptionDataset, epoch: ScheduledEpoch) -> None:
        phase = epoch.phase
        steps = self._steps(train_set)
        remaining = steps[self.progress.step :]
        loader = self._loader(train_set, [indices for step in remaining for indices in step])
        bar = self._bar(f"{phase.name} {epoch.number + 1}/{epoch.total}", len(steps))
        set_modes(self.model, phase)
        for step in remaining:
            done = epoch.number * len(steps) + self.progress.step
            rates = set_rates(self.optimizer, phase, done, epoch.total * len(steps))
            losses = self._step(model, [next(loader).to(self.accelerator.device) for _ in step], phase)
            self.progress.step += 1
            self.progress.global_step += 1
            self._log({"phase": phase.name, **losses, **{f"rate/{part}": rate for part, rate in rates.items()}})
            bar.set_postfix(loss=f"{losses['loss']:.3f}", rate=f"{max(rates.values()):.1e}", refresh=False)
            bar.update()
            if self.progress.global_step % self.config.checkpoint_every_steps == 0 and self.progress.step < len(steps):
                self._save_last()
        bar.close()

    def _step(self, model: nn.Module, batches: Sequence[Batch], phase: PhaseConfig) -> dict[str, float]:
        """One optimizer step over this process's micro-batches; gives the losses, each a mean over all processes."""
        names = list(phase.objectives)
        items = self._sum_over_processes([sum(item_counts(batch, phase)[name] for batch in batches) for name in names])
        counts: dict[str, float] = {name: max(count, 1) for name, count in zip(names, items, strict=True)}
        sums: defaultdict[str, float] = defaultdict(float)
        step = self.progress.global_step
        for number, batch in enumerate(batches):
            self._check_errors(self.config.data.train, batch)
            with self._gradients_synchronised(model, number == len(batches) - 1):
                with self.accelerator.autocast():
                    losses, logged = summed_losses(self.model, model, batch, phase, self.critic, step)
                loss = sum(phase.objectives[name] / counts[name] * losses[name] for name in names)
                # Gradients are averaged over processes; times their number that is the mean over all items.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            for name in names:
                sums[f"loss/{name}"] += losses[name].item() / counts[name]
            for name, total in logged.items():
                sums[name] += total.item() / counts[name]
        means = dict(zip(sums, self._sum_over_processes(list(sums.values())), strict=True))
        loss_value = sum(weight * means[f"loss/{name}"] for name, weight in phase.objectives.items())
        if not math.isfinite(loss_value):
            ids = ", ".join(str(identifier) for batch in batches for identifier in batch.ids)
            raise CaptionerError(f"step {step + 1}: the loss is {loss_value}; images: {ids}")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimization.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return {"loss": loss_value, **means, "grad_norm": float(norm)}

    def _finish_epoch(self, epoch: ScheduledEpoch, validation_set: CaptionDataset) -> None:
        scores = self.validate(validation_set)
        self.progress.epoch += 1
        self.progress.step = 0
        self.progress.history.append({"phase": epoch.phase.name, "epoch": epoch.number + 1, **scores})
        self._log({"phase": epoch.phase.name, **{f"validation/{name}": value for name, value in scores.items()}})
        value = scores[self.config.validation.metric]
        if self.progress.best is None or value > self.progress.best:
            self.progress.best = value
            if self.accelerator.is_main_process:
                checkpoint.replace_folder(self.best, self._write_best)
        self._save_last()
        summary = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        self._say(f"{epoch.phase.name} {epoch.number + 1}/{epoch.total}: {summary} (best {self.progress.best:.4f})")

    @torch.inference_mode()
    def validate(self, dataset: CaptionDataset) -> dict[str, float]:
        """Caption the validation images, each process its share, and score them on every process alike."""
        settings = self.config.validation
        model = self._best_weights().eval()
        options = GenerationOptions(num_beams=settings.num_beams, max_new_tokens=self.config.data.max_caption_tokens)
        indices = list(range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes))
        batches = [indices[i : i + settings.batch_size] for i in range(0, len(indices), settings.batch_size)]
        loader = load_batches(dataset, batches, self.config.data.num_workers)
        captions = []
        for rows, batch in zip(batches, tqdm(loader, "validation", disable=self._quiet, leave=False), strict=True):
            self._check_errors(self.config.data.validation, batch)
            with self.accelerator.autocast():
                encoded = model.encoder(**batch.to(self.accelerator.device).encoder_inputs)
                hypotheses = generate(model, {"encoder_outputs": encoded}, options)
            texts = self.processor.tokenizer.batch_decode([best.token_ids for best, *_ in hypotheses])
            captions += [
                (row, text)
                for number, (row, text) in enumerate(zip(rows, texts, strict=True))
                if number not in batch.errors
            ]
        found = dict(sorted(gather_object(captions)))
        for row in list(found)[: settings.samples]:
            self._say(f"  {dataset.samples[row].id}: {found[row]!r} (reference: {dataset.samples[row].captions[0]!r})")
        references = {row: dataset.samples[row].captions for row in found}
        return score_captions(found, references).corpus

    def _steps(self, train_set: CaptionDataset) -> list[list[list[int]]]:
        """The epoch's steps, each this process's micro-batches of image indices.

        All processes together see the same batches as one process with a batch as large as all of theirs.
        """
        settings, processes = self.config.optimization, self.accelerator.num_processes
        batches = bucketed_batches(
            train_set.lengths(), settings.batch_size * processes, self.config.seed, train_set.epoch
        )
        share = [batch[self.accelerator.process_index :: processes] for batch in batches if len(batch) >= processes]
        accumulated = settings.gradient_accumulation_steps
        return [share[i : i + accumulated] for i in range(0, len(share), accumulated)]

    def _datasets(self, phase: PhaseConfig) -> tuple[CaptionDataset, CaptionDataset]:
        """Training and validation images, as cached trunk features where the trunk rests and nothing augments."""
        config = self.config
        train_set = CaptionDataset(
            self.train_samples, self.processor, config.data, phase.augmentation, seed=config.seed
        )
        validation_set = CaptionDataset(self.validation_samples, self.processor, config.data)
        if "trunk" not in phase.learning_rates:
            self._cache_features(validation_set, config.data.validation)
            if not phase.augmentation.active:
                self._cache_features(train_set, config.data.train)
        return train_set, validation_set

    def _cache_features(self, dataset: CaptionDataset, source: SourceConfig) -> None:
        dataset.features = cache_features(
            self.model,
            dataset,
            self.output_dir / "features",
            self.accelerator,
            self.config.validation.batch_size,
            self.config.data.num_workers,
            partial(self._check_errors, source),
        )

    def _loader(self, dataset: CaptionDataset, batches: list[list[int]]) -> Iterator[Batch]:
        on_gpu = self.accelerator.device.type == "cuda"
        return iter(load_batches(dataset, batches, self.config.data.num_workers, pin_memory=on_gpu))

    def _load_source(self, source: SourceConfig) -> list[Sample]:
        samples, skips = load_samples(source)
        for skip in skips[:20]:
            self._say(f"skipped {skip.where}: {skip.reason}")
        if skips:
            self._say(f"{source.path}: {len(skips)} skipped, {len(samples)} kept")
        if not samples:
            raise CaptionerError(f"{source.path}: no samples")
        return samples

    def _build(self) -> tuple[CaptionerProcessor, CaptionerForConditionalGeneration]:
        processor, model = (
            self._load_pretrained(self.config.pretrained) if self.config.pretrained else self._build_new()
        )
        if self.config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        return processor, model

    def _load_pretrained(self, name: str) -> tuple[CaptionerProcessor, CaptionerForConditionalGeneration]:
        changes = self.config.model.model_dump(include=self.config.model.model_fields_set & {"dropout"})
        with self.accelerator.main_process_first():  # the others find what it downloaded
            model, processor = load_model(*find_model(None if name == "bundled" else name), **changes)
        longest, positions = self.config.data.max_caption_tokens, model.config.max_position_embeddings
        if longest > positions:
            raise CaptionerError(f"data.max_caption_tokens {longest} is above the {positions} positions of {name}")
        return processor, model

    def _build_new(self) -> tuple[CaptionerProcessor, CaptionerForConditionalGeneration]:
        settings = self.config.model
        tokenizer = self._tokenizer()
        fields = settings.model_dump(exclude={"encoder_weights", "gradient_checkpointing", "resize_mode", "crop_pct"})
        try:
            model = build_model(CaptionerConfig(**fields, vocab_size=len(tokenizer)), settings.encoder_weights)
        except (ValueError, RuntimeError) as error:
            raise CaptionerError(f"model: {error}") from error
        image_processor = build_image_processor(model, settings.resize_mode, settings.crop_pct)
        return CaptionerProcessor(image_processor, tokenizer), model

    def _build_critic(self) -> SelfCritic | None:
        if not any("reward" in epoch.phase.objectives for epoch in self.config.schedule()):
            return None
        captions = {sample.id: sample.captions for sample in self.train_samples}
        return SelfCritic(captions, self.processor.tokenizer, self.config.data.max_caption_tokens, self.config.seed)

    def _tokenizer(self) -> CaptionerTokenizer:
        """The recipe's tokenizer, or one trained on the training captions and kept in the output folder."""
        if self.config.tokenizer.path:
            folder = Path(self.config.tokenizer.path)
            if not (folder / "tokenizer.model").is_file():
                raise CaptionerError(f"tokenizer.path: {folder} holds no tokenizer.model")
            return CaptionerTokenizer(str(folder / "tokenizer.model"))
        path = self.output_dir / "tokenizer.model"
        with self.accelerator.main_process_first():
            if self.accelerator.is_main_process and not path.exists():
                captions = (caption for sample in self.train_samples for caption in sample.captions)
                train_tokenizer(captions, self.config.tokenizer, path)
        return CaptionerTokenizer(str(path))

    def _best_weights(self) -> CaptionerForConditionalGeneration:
        return self.model if self.averaged is None else cast(CaptionerForConditionalGeneration, self.averaged.module)

    def _write_best(self, folder: Path) -> None:
        self._best_weights().save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _save_last(self) -> None:
        device = self.accelerator.device
        random_states = self.accelerator.gather(checkpoint.random_state(device)[None].to(device)).cpu()
        if self.accelerator.is_main_process:
            checkpoint.replace_folder(self.last, lambda folder: self._write_last(folder, random_states))
        self.accelerator.wait_for_everyone()

    def _write_last(self, folder: Path, random_states: Tensor) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        checkpoint.save_training_state(
            folder, self.progress, self.optimizer.optimizer, self.averaged, random_states, self.accelerator.scaler
        )

    def _load(self, folder: Path) -> None:
        self.model.load_state_dict(type(self.model).from_pretrained(folder).state_dict())
        self.progress, random_states = checkpoint.load_training_state(
            folder, self.optimizer.optimizer, self.averaged, self.accelerator.scaler
        )
        if self.accelerator.process_index < len(random_states):
            checkpoint.restore_random_state(random_states[self.accelerator.process_index], self.accelerator.device)
        self._say(f"resumed from {folder}: epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _sum_over_processes(self, values: Sequence[float]) -> list[float]:
        if self.accelerator.num_processes == 1:
            return list(values)
        on_device = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(on_device, "sum").tolist()

    def _gradients_synchronised(self, model: nn.Module, synchronise: bool) -> AbstractContextManager:
        return nullcontext() if synchronise else self.accelerator.no_sync(model)

    def _check_errors(self, source: SourceConfig, batch: Batch) -> None:
        """A photo that cannot be read costs what the recipe says of its source."""
        for message in batch.errors.values():
            if source.on_error == "raise":
                raise CaptionerError(message)
            logger.warning("left out: %s", message)

    def _log(self, values: dict[str, Any]) -> None:
        """One line in log.jsonl a step and a validation; numbers go to the trackers too."""
        if self.accelerator.is_main_process:
            with (self.output_dir / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": self.progress.global_step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.progress.global_step)

    def _truncate_log(self) -> None:
        """Drop what was logged after the checkpoint that the training resumes from."""
        path = self.output_dir / "log.jsonl"
        if self.accelerator.is_main_process and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.progress.global_step))

    def _bar(self, description: str, total: int) -> tqdm:
        return tqdm(total=total, initial=self.progress.step, desc=description, disable=self._quiet, leave=False)

    @property
    def _quiet(self) -> bool | None:
        """tqdm's `disable`: None shows a bar on a terminal only."""
        return None if self.accelerator.is_main_process else True

    def _say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(message, file=sys.stderr)


def _warmed_up_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average whose decay rises from 0.1 to `decay`, so that early weights are soon forgotten."""

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        count = float(num_averaged)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(list(averages), list(weights), weight)

    return update
