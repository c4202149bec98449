"""What a recipe trains on: its samples, a data set for each phase, and the batches of each step."""

from collections.abc import Callable, Iterator
from pathlib import Path

from captioner.config import PhaseConfig, RunConfig, SourceConfig, Stretch
from captioner.data.dataset import CaptionDataset, Place, TextDataset, bucketed_batches
from captioner.data.sources import Sample, Skip, load_samples
from captioner.data.streamed import stored
from captioner.data.tags import frequent_words, label_names, label_targets
from captioner.data.text import load_text
from captioner.errors import CaptionerError
from captioner.model.processing_captioner import CaptionerProcessor

Step = list[list[Place]]
"""An optimizer step: this process's batches, each of places in the data set."""


class TrainingData:
    """The samples of a recipe, read once; those that are streamed are kept in `folder` until the training's end.

    Raises:
        CaptionerError: a source that cannot be read or has no samples; a tag head without tags to tell apart.
    """

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.config = config
        data = config.data
        self.train = _load_source(data.train, folder, say)
        self.validation = _load_source(data.validation, folder, say)[: config.validation.max_images]
        self.unlabelled = _load_source(data.unlabelled, folder, say) if data.unlabelled else []
        self.text = load_text(data.text) if data.text else []
        self.tags = self._tag_names() if config.uses("tags") else []
        self._data_sets: dict[str, CaptionDataset | TextDataset] = {}

    def captions(self) -> Iterator[str]:
        """All that a tokenizer may learn from."""
        yield from (caption for sample in self.train for caption in sample.captions)
        yield from self.text

    def train_set(self, phase: PhaseConfig, processor: CaptionerProcessor) -> CaptionDataset | TextDataset:
        """A phase's data set, its captions encoded once: in alternation phases come back again and again."""
        if phase.name not in self._data_sets:
            self._data_sets[phase.name] = self._build(phase, processor)
        return self._data_sets[phase.name]

    def validation_set(self, processor: CaptionerProcessor) -> CaptionDataset:
        return CaptionDataset(self.validation, processor, self.config.data)

    def _build(self, phase: PhaseConfig, processor: CaptionerProcessor) -> CaptionDataset | TextDataset:
        data = self.config.data
        if "language_modeling" in phase.objectives:
            return TextDataset(self.text, processor.tokenizer, data.max_caption_tokens)
        samples = self.samples(phase)
        targets = label_targets(samples, self.tags, self._tags_from_captions) if "tags" in phase.objectives else None
        return CaptionDataset(
            samples, processor, data, phase.augmentation, seed=self.config.seed, tags=targets, num_tags=len(self.tags)
        )

    def samples(self, phase: PhaseConfig) -> list[Sample]:
        return [*self.train, *self.unlabelled] if "distillation" in phase.objectives else self.train

    def steps(self, lengths: list[int], stretch: Stretch, epoch: int, process: int, processes: int) -> list[Step]:
        """The steps of a stretch, this process's share of them, for a data set with captions of these lengths.

        All processes together see the same batches as one process with a batch as large as all of theirs. A phase
        counted in steps goes on through the data where its turn before ended; `epoch` is that of one counted in epochs.
        """
        if stretch.phase.steps is None:
            return self._epoch_steps(lengths, epoch, process, processes)
        length = len(self._epoch_steps(lengths, 0, process, processes))
        first = stretch.number * stretch.phase.steps
        places = [divmod(number, length) for number in range(first, first + stretch.phase.steps)]
        epochs = {epoch: self._epoch_steps(lengths, epoch, process, processes) for epoch in {e for e, _ in places}}
        return [epochs[epoch][number] for epoch, number in places]

    def _epoch_steps(self, lengths: list[int], epoch: int, process: int, processes: int) -> list[Step]:
        settings = self.config.optimization
        batches = bucketed_batches(lengths, settings.batch_size * processes, self.config.seed, epoch)
        share = [
            [(epoch, index) for index in batch[process::processes]] for batch in batches if len(batch) >= processes
        ]
        accumulated = settings.gradient_accumulation_steps
        return [share[i : i + accumulated] for i in range(0, len(share), accumulated)]

    @property
    def _tags_from_captions(self) -> bool:
        return self.config.tags is not None and self.config.tags.source == "captions"

    def _tag_names(self) -> list[str]:
        if self.config.tags is not None and self._tags_from_captions:
            names = frequent_words((sample.captions for sample in self.train), self.config.tags.num_words)
        else:
            names = label_names(self.train)
        if len(names) < 2:
            raise CaptionerError(f"{self.config.data.train.path}: a tag head needs two tags to tell apart")
        return names


def _load_source(source: SourceConfig, folder: Path, say: Callable[[str], None]) -> list[Sample]:
    skips: list[Skip] = []
    samples, unread = load_samples(stored(source, folder, skips.append))
    skips += unread
    for skip in skips[:20]:
        say(f"skipped {skip.where}: {skip.reason}")
    if skips:
        say(f"{source.path}: {len(skips)} skipped, {len(samples)} kept")
    if not samples:
        raise CaptionerError(f"{source.path}: no samples")
    return samples
