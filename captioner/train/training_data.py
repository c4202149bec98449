"""What a recipe trains on: its samples, a data set for each phase, and the batches of each step."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from captioner.config import PhaseConfig, RunConfig, SourceConfig, Stretch
from captioner.data.batches import bucketed_batches
from captioner.data.dataset import CaptionDataset, Place, TextDataset
from captioner.data.sources import Sample, Skip, SourceError, load_samples
from captioner.data.sources.stream_cache import stored
from captioner.data.tags import frequent_words, label_names, tag_names, tag_targets
from captioner.data.text_files import load_text
from captioner.errors import CaptionerError
from captioner.model.processing_captioner import CaptionerProcessor

Step = list[list[Place]]
"""An optimizer step: this process's batches, each of places in the data set."""


class TrainingData:
    """The samples of a recipe, read once; those that are streamed are kept in `folder` until the training's end.

    Attributes:
        train, validation: the samples of all sources, one source after another. Of several sources, an image's id
            starts with its source's number, since layouts count their images from 0.
        weights: how often an epoch takes each training sample.
        optional, optional_validation: ids of images that may turn out unreadable (`on_error: skip`).

    Raises:
        CaptionerError: a source that cannot be read or has no samples; a tag head without tags to tell apart.
    """

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], None]) -> None:
        self.config = config
        data = config.data
        self.train, self.weights, self.optional = _load_sources(data.train_sources, folder, say)
        validation, _, self.optional_validation = _load_sources(data.validation_sources, folder, say)
        self.validation = validation[: config.validation.max_images]
        self.text = _load_text(data.text, say) if data.text else []
        self.labels, self.words = self._tag_vocabulary() if config.uses("tags") else ([], [])
        self.tags = tag_names(self.labels, self.words)
        self._data_sets: dict[str, CaptionDataset | TextDataset] = {}

    def captions(self) -> Iterator[str]:
        """All that a tokenizer may learn from."""
        yield from (caption for sample in self.train for caption in sample.captions)
        yield from self.text

    def thin_out(self, samples: int) -> None:
        """Keep about as many samples, of all sources, with the words and tags of all."""
        every = max(1, len(self.train) // samples)
        self.train, self.weights, self.text = self.train[::every], self.weights[::every], self.text[:samples]
        self._data_sets = {}

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
        used = [number for number, sample in enumerate(self.train) if _is_of_use(sample, phase)]
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
        """The steps of a stretch over the phase's data set, this process's share of them.

        All processes together see the same batches as one process with a batch as large as all of theirs; one that
        gets none of a batch's images takes its first along, without targets (see `Place`). A phase
        counted in steps goes on through the data where its turn before ended; `epoch` is that of one counted in epochs.
        """
        phase = stretch.phase
        if phase.steps is None:
            return self._epoch_steps(data_set, phase, epoch, process, processes)
        first, end, steps = stretch.number * phase.steps, (stretch.number + 1) * phase.steps, []
        passed, number = 0, 0
        while passed < end:
            of_epoch = self._epoch_steps(data_set, phase, number, process, processes)
            steps += of_epoch[max(0, first - passed) : end - passed]
            passed, number = passed + len(of_epoch), number + 1
        return steps

    def _epoch_steps(
        self, data_set: CaptionDataset | TextDataset, phase: PhaseConfig, epoch: int, process: int, processes: int
    ) -> list[Step]:
        settings = self.config.optimization
        lengths, places = data_set.lengths(), data_set.places(epoch)
        if not places:
            raise CaptionerError(
                f"phase {phase.name}: epoch {epoch + 1} takes none of its {len(data_set)} images: "
                "the weights of the training sources are too small (data.train, weight)"
            )
        batch_size = (phase.batch_size or settings.batch_size) * processes
        batches = bucketed_batches([lengths[index] for _, index in places], batch_size, self.config.seed, epoch)
        shares = [[places[item] for item in batch[process::processes]] for batch in batches]
        share = [
            own or [(number, ~index) for number, index in [places[batch[0]]]]
            for own, batch in zip(shares, batches, strict=True)
        ]
        accumulated = settings.gradient_accumulation_steps
        return [share[i : i + accumulated] for i in range(0, len(share), accumulated)]

    def _tag_vocabulary(self) -> tuple[list[str], list[str]]:
        assert self.config.tags is not None
        source = self.config.tags.source
        labels = [] if source == "captions" else label_names(self.train)
        captions = (sample.captions for sample in self.train)
        words = [] if source == "labels" else frequent_words(captions, self.config.tags.num_words)
        if len(tag_names(labels, words)) < 2:
            paths = ", ".join(source.path for source in self.config.data.train_sources)
            raise CaptionerError(f"{paths}: a tag head needs two tags to tell apart")
        return labels, words


def _is_of_use(sample: Sample, phase: PhaseConfig) -> bool:
    """Whether an objective of the phase learns from the sample."""
    objectives = phase.objectives.keys()
    return bool(
        "distillation" in objectives
        or (sample.labels and "tags" in objectives)
        or (sample.captions and objectives & {"captioning", "reward", "contrastive", "tags"})
    )


def _load_sources(
    sources: list[SourceConfig], folder: Path, say: Callable[[str], None]
) -> tuple[list[Sample], list[float], set[str | int]]:
    """The samples of all sources, their weights, and the ids of those that may turn out unreadable."""
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


def _load_source(source: SourceConfig, folder: Path, say: Callable[[str], None]) -> list[Sample]:
    skips: list[Skip] = []
    try:
        samples, unread = load_samples(stored(source, folder, skips.append))
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
