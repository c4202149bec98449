"""The data of a recipe: its samples, a data set for each phase, and the batches of each step."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from captioner.config import PhaseConfig, RunConfig, SourceConfig, Stretch
from captioner.data.batches import bucketed_batches
from captioner.data.dataset import CaptionDataset, Place, TextDataset
from captioner.data.sources import Sample, Skip, SourceError, load_samples
from captioner.data.sources.stream_cache import cache_stream
from captioner.data.tags import frequent_words, label_names, tag_names, tag_targets
from captioner.data.text_files import load_text
from captioner.errors import CaptionerError
from captioner.model.processing_captioner import CaptionerProcessor

Step = list[list[Place]]
"""The batches of an optimizer step on this process; each batch is a list of places in the data set."""


class TrainingData:
    """The samples of a recipe, read once; streamed data sets are cached in `folder` until the training ends.

    Attributes:
        train, validation: the samples of all sources, one source after another. If there are several sources, each id
            starts with the source's number, because layouts count their images from 0.
        weights: how often an epoch uses each training sample.
        optional, optional_validation: ids of images that may turn out to be unreadable (`on_error: skip`).

    Raises:
        CaptionerError: a source cannot be read or has no samples; a tag head has fewer than two tags.
    """

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.config = config
        data = config.data
        self.train, self.weights, self.optional = _load_sources(data.train_sources, folder, say)
        self.train = _with_mean_weight_1(self.train)
        validation, _, self.optional_validation = _load_sources(data.validation_sources, folder, say)
        self.validation = validation[: config.validation.max_images]
        self.text = _load_text(data.text, say) if data.text else []
        self.labels, self.words = self._tag_vocabulary() if config.uses("tags") else ([], [])
        self.tags = tag_names(self.labels, self.words)
        self._data_sets: dict[str, CaptionDataset | TextDataset] = {}
        self._epoch_starts: dict[str, list[int]] = {}

    def captions(self) -> Iterator[str]:
        """Yield every caption a tokenizer may be trained on."""
        yield from (caption for sample in self.train for caption in sample.captions)
        yield from self.text

    def thin_out(self, samples: int) -> None:
        """Keep about `samples` samples, spread over all sources; the vocabulary and the tags stay."""
        every = max(1, len(self.train) // samples)
        self.train, self.weights, self.text = self.train[::every], self.weights[::every], self.text[:samples]
        self._data_sets, self._epoch_starts = {}, {}

    def train_set(self, phase: PhaseConfig, processor: CaptionerProcessor) -> CaptionDataset | TextDataset:
        """Return a phase's data set. It is kept: alternation returns to a phase many times."""
        if phase.name not in self._data_sets:
            self._data_sets[phase.name] = self._build(phase, processor)
        return self._data_sets[phase.name]

    def validation_set(self, processor: CaptionerProcessor) -> CaptionDataset:
        return CaptionDataset(self.validation, processor, self.config.data)

    def _build(self, phase: PhaseConfig, processor: CaptionerProcessor) -> CaptionDataset | TextDataset:
        data = self.config.data
        if "language_modeling" in phase.objectives:
            return TextDataset(self.text, processor.tokenizer, data.max_caption_tokens)
        used = [number for number, sample in enumerate(self.train) if _is_useful(sample, phase)]
        if not used:
            raise CaptionerError(f"phase {phase.name}: no training image has what {', '.join(phase.objectives)} needs")
        samples = [self.train[number] for number in used]
        return CaptionDataset(
            samples,
            processor,
            data,
            phase.augmentation,
            seed=self.config.seed,
            tags=tag_targets(samples, self.labels, self.words) if "tags" in phase.objectives else None,
            num_tags=len(self.tags),
            weights=[self.weights[number] for number in used],
        )

    def steps(
        self, data_set: CaptionDataset | TextDataset, stretch: Stretch, epoch: int, process: int, processes: int
    ) -> list[Step]:
        """Return this process's share of the steps of a stretch.

        All processes together see the batches that a single process with their total batch size would see. A process
        that gets none of a batch's images runs the first one without targets (see `Place`).

        Args:
            epoch: the epoch, if the phase is counted in epochs. A phase counted in steps continues through the data
                where its previous turn ended.
        """
        phase = stretch.phase
        if phase.steps is None:
            return self._steps_of_epoch(data_set, phase, epoch, process, processes)
        first, end = stretch.number * phase.steps, (stretch.number + 1) * phase.steps
        starts = self._starts_of_epochs(data_set, phase, end, processes)
        steps: list[Step] = []
        for number in range(bisect_right(starts, first) - 1, bisect_left(starts, end)):
            of_epoch = self._steps_of_epoch(data_set, phase, number, process, processes)
            steps += of_epoch[max(0, first - starts[number]) : end - starts[number]]
        return steps

    def _starts_of_epochs(
        self, data_set: CaptionDataset | TextDataset, phase: PhaseConfig, end: int, processes: int
    ) -> list[int]:
        """Return the first step of every epoch up to step `end`. Epochs of weighted sources differ in length."""
        starts = self._epoch_starts.setdefault(phase.name, [0])
        while starts[-1] < end:
            epoch = len(starts) - 1
            size = data_set.epoch_size(epoch)
            self._refuse_empty_epoch(size, phase, epoch, data_set)
            batches = math.ceil(size / self._batch_size(phase, processes))
            starts.append(starts[-1] + math.ceil(batches / self.config.optimization.gradient_accumulation_steps))
        return starts

    def _batch_size(self, phase: PhaseConfig, processes: int) -> int:
        return (phase.batch_size or self.config.optimization.batch_size) * processes

    @staticmethod
    def _refuse_empty_epoch(size: int, phase: PhaseConfig, epoch: int, data_set: CaptionDataset | TextDataset) -> None:
        if not size:
            raise CaptionerError(
                f"phase {phase.name}: epoch {epoch + 1} takes none of its {len(data_set)} images: "
                "the weights of the training sources are too small (data.train, weight)"
            )

    def _steps_of_epoch(
        self, data_set: CaptionDataset | TextDataset, phase: PhaseConfig, epoch: int, process: int, processes: int
    ) -> list[Step]:
        lengths, places = data_set.lengths(), data_set.places(epoch)
        self._refuse_empty_epoch(len(places), phase, epoch, data_set)
        batch_size = self._batch_size(phase, processes)
        batches = bucketed_batches([lengths[index] for _, index in places], batch_size, self.config.seed, epoch)
        shares = [[places[item] for item in batch[process::processes]] for batch in batches]
        share = [
            own or [(number, ~index) for number, index in [places[batch[0]]]]
            for own, batch in zip(shares, batches, strict=True)
        ]
        accumulated = self.config.optimization.gradient_accumulation_steps
        return [share[i : i + accumulated] for i in range(0, len(share), accumulated)]

    def _tag_vocabulary(self) -> tuple[list[str], list[str]]:
        assert self.config.tags is not None
        source = self.config.tags.source
        labels = [] if source == "captions" else label_names(self.train)
        captions = (sample.captions for sample in self.train)
        words = [] if source == "labels" else frequent_words(captions, self.config.tags.num_words)
        if len(tag_names(labels, words)) < 2:
            paths = ", ".join(source.path for source in self.config.data.train_sources)
            raise CaptionerError(f"{paths}: a tag head needs at least two tags")
        return labels, words


def _is_useful(sample: Sample, phase: PhaseConfig) -> bool:
    """Does an objective of the phase have anything to learn from the sample?"""
    objectives = phase.objectives.keys()
    return bool(
        "distillation" in objectives
        or (sample.labels and "tags" in objectives)
        or (sample.captions and objectives & {"captioning", "reward", "contrastive", "tags"})
    )


def _load_sources(
    sources: list[SourceConfig], folder: Path, say: Callable[[str], None]
) -> tuple[list[Sample], list[float], set[str | int]]:
    """Return the samples of all sources, their weights, and the ids of images that may turn out to be unreadable."""
    samples: list[Sample] = []
    weights: list[float] = []
    optional: set[str | int] = set()
    for number, source in enumerate(sources):
        loaded = _load_source(source, folder, say)
        if len(sources) > 1:
            loaded = [replace(sample, id=f"{number}:{sample.id}") for sample in loaded]
        samples += loaded
        weights += [source.weight] * len(loaded)
        if source.on_error == "skip":
            optional.update(sample.id for sample in loaded)
    return samples, weights, optional


def _with_mean_weight_1(samples: list[Sample]) -> list[Sample]:
    """Scale the samples' weights so that a caption's is 1 on average, and the loss keeps its scale."""
    captions = sum(len(sample.captions) for sample in samples)
    weights = sum(sample.weight * len(sample.captions) for sample in samples)
    if not captions or weights == captions:
        return samples
    return [replace(sample, weight=sample.weight * captions / weights) for sample in samples]


def _load_source(source: SourceConfig, folder: Path, say: Callable[[str], None]) -> list[Sample]:
    skips: list[Skip] = []
    try:
        samples, unread = load_samples(cache_stream(source, folder, skips.append))
    except SourceError as error:
        raise CaptionerError(f"{error} ({error.remedy})") from error
    _say_skips(source.path, skips + unread, len(samples), say)
    if not samples:
        raise CaptionerError(f"{source.path}: no samples")
    return samples


def _load_text(path: str, say: Callable[[str], None]) -> list[str]:
    skips: list[Skip] = []
    captions = load_text(path, lambda where, reason: skips.append(Skip(where, reason)))
    _say_skips(path, skips, len(captions), say)
    return captions


def _say_skips(path: str, skips: list[Skip], kept: int, say: Callable[[str], None]) -> None:
    for skip in skips[:20]:
        say(f"skipped {skip.where}: {skip.reason}")
    if skips:
        say(f"{path}: {len(skips)} skipped, {kept} kept")
