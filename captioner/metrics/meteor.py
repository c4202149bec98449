"""METEOR 1.5 for English, equal to the official Java program as COCO captions are scored with it (`-l en -norm`).

Source: M. Denkowski and A. Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target
Language", WMT 2014. A hypothesis is aligned to each reference by equal words, equal stems, WordNet synonyms and
paraphrases; a weighted harmonic mean of precision and recall is lowered by how scattered the alignment is.

One defect of the Java program is not reproduced: it takes words for equal whose 32-bit hashes are ("c9" and "aw").
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from captioner.metrics.meteor_data import LONGEST_PHRASE, MeteorData, normalized_words
from captioner.metrics.stemmer import stem

# The official program's parameters for English (its task "rank").
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)  # the matchers, in the order in which they propose matches
MATCHER_WEIGHTS = (1.0, 0.6, 0.8, 0.6)

# The alignment search keeps this many partial alignments. It ranks them by covered words (most), then chunks (fewest),
# then distance (least), packed into one integer cost, the least of which wins.
BEAM_SIZE = 40
CHUNK_COST = 1 << 40
COVER_GAIN = 1 << 60


class Meteor:
    """Scores captions; build one with `Meteor.load()`."""

    def __init__(self, data: MeteorData) -> None:
        self.data = data
        self.synonym_sets = lru_cache(maxsize=1 << 16)(data.synonym_sets)

    @classmethod
    def load(cls) -> "Meteor":
        """Read the language data; raises CaptionerError when the optional package is not installed."""
        return cls(MeteorData.load())

    def score(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        """The score of the corpus, computed from the summed statistics of its images, and the score of each image."""
        best = self.statistics(hypotheses, references)
        return Statistics.total(best).score(), [statistics.score() for statistics in best]

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> "list[Statistics]":
        """Compare each hypothesis with the references of its image; both sequences are in the order of the images.

        Captions are PTB-tokenised and joined by spaces. Returns the counts for each image's best reference. An empty
        caption scores 0, and so does one without references.
        """
        words = {
            caption: normalized_words(caption, self.data.abbreviations)
            for caption in {"", *hypotheses, *chain.from_iterable(references)}
        }
        paraphrases = self.data.read_paraphrases(phrase for w in words.values() for _, _, phrase in _phrases(w))
        best = []
        for caption, image_references in zip(hypotheses, references, strict=True):
            hypothesis = self._sentence(words[caption], paraphrases)
            compared = (
                _compare(hypothesis, self._sentence(words[reference], paraphrases))
                for reference in image_references or [""]
            )
            best.append(max(compared, key=Statistics.score))
        return best

    def _sentence(self, words: list[str], paraphrases: dict[str, list[str]]) -> "Sentence":
        phrases: dict[str, list[int]] = {}
        rewordings = []
        for start, length, phrase in _phrases(words):
            phrases.setdefault(phrase, []).append(start)
            rewordings += [(start, length, paraphrase) for paraphrase in paraphrases.get(phrase, ())]
        return Sentence(
            words=words,
            is_function_word=[word in self.data.function_words for word in words],
            stems=[stem(word) for word in words],
            synonym_sets=[self.synonym_sets(word) for word in words],
            phrases=phrases,
            rewordings=rewordings,
        )


def _phrases(words: list[str]) -> Iterator[tuple[int, int, str]]:
    """Each start, length and text of a run of words that is short enough for the paraphrase table."""
    for start in range(len(words)):
        for end in range(start + 1, min(start + LONGEST_PHRASE, len(words)) + 1):
            yield start, end - start, " ".join(words[start:end])


class Sentence(NamedTuple):
    """A caption with all that the matchers ask about it; lists are by word unless said otherwise."""

    words: list[str]
    is_function_word: list[bool]
    stems: list[str]
    synonym_sets: list[frozenset[str]]
    phrases: dict[str, list[int]]  # phrase -> where it starts
    rewordings: list[tuple[int, int, str]]  # start and length of a phrase, and one of its paraphrases


class Match(NamedTuple):
    """Words of the reference that stand for words of the hypothesis."""

    matcher: int
    start: int  # in the reference
    length: int
    hypothesis_start: int
    hypothesis_length: int


class Side(NamedTuple):
    """What is counted in the hypotheses, or in the references, of one image or of many."""

    length: int
    function_words: int
    content_matches: tuple[int, ...]  # matched content words, by matcher
    function_matches: tuple[int, ...]  # matched function words, by matcher

    @property
    def matches(self) -> int:
        return sum(self.content_matches) + sum(self.function_matches)

    def matched_share(self) -> float:
        """Precision of hypotheses, recall of references: content words count DELTA, function words 1 - DELTA."""
        matched = 0.0
        for count, weight in zip(self.content_matches, MATCHER_WEIGHTS, strict=True):
            matched += count * weight * DELTA
        for count, weight in zip(self.function_matches, MATCHER_WEIGHTS, strict=True):
            matched += count * weight * (1 - DELTA)
        return matched / (DELTA * (self.length - self.function_words) + (1 - DELTA) * self.function_words)

    @classmethod
    def total(cls, sides: Sequence["Side"]) -> "Side":
        zero = (0,) * len(MATCHER_WEIGHTS)
        return cls(
            length=sum(side.length for side in sides),
            function_words=sum(side.function_words for side in sides),
            content_matches=tuple(map(sum, zip(zero, *(side.content_matches for side in sides), strict=True))),
            function_matches=tuple(map(sum, zip(zero, *(side.function_matches for side in sides), strict=True))),
        )


class Statistics(NamedTuple):
    """The counts from which a score is computed."""

    hypothesis: Side
    reference: Side
    chunks: int  # runs of matches that are contiguous, in the same order, in both

    @property
    def is_unbroken(self) -> bool:
        """Whether all words match in one chunk, which costs no penalty."""
        hypothesis, reference = self.hypothesis, self.reference
        return hypothesis.matches == hypothesis.length and reference.matches == reference.length and self.chunks == 1

    def score(self) -> float:
        """The weighted harmonic mean of precision and recall, less the penalty; 0 where nothing matches."""
        matches = (self.hypothesis.matches + self.reference.matches) / 2
        if matches == 0:
            return 0.0
        f_mean = 1 / ((1 - ALPHA) / self.hypothesis.matched_share() + ALPHA / self.reference.matched_share())
        fragmentation = 0.0 if self.is_unbroken else self.chunks / matches
        return f_mean * (1 - GAMMA * fragmentation**BETA)

    @classmethod
    def total(cls, statistics: Sequence["Statistics"]) -> "Statistics":
        """Sums over images; like the penalty, the one chunk of an unbroken image is left out."""
        return cls(
            hypothesis=Side.total([image.hypothesis for image in statistics]),
            reference=Side.total([image.reference for image in statistics]),
            chunks=sum(image.chunks for image in statistics if not image.is_unbroken),
        )


def _compare(hypothesis: Sentence, reference: Sentence) -> Statistics:
    alignment = _align(_candidates(hypothesis, reference))
    chunks = 0
    end = hypothesis_end = -1
    for match in alignment:
        chunks += (match.start, match.hypothesis_start) != (end, hypothesis_end)
        end, hypothesis_end = match.start + match.length, match.hypothesis_start + match.hypothesis_length
    return Statistics(
        _count(hypothesis, [(m.matcher, m.hypothesis_start, m.hypothesis_length) for m in alignment]),
        _count(reference, [(m.matcher, m.start, m.length) for m in alignment]),
        chunks,
    )


def _count(sentence: Sentence, matches: list[tuple[int, int, int]]) -> Side:
    """The counts of a sentence in which runs of words match, given as (matcher, start, length)."""
    content, function = [0] * len(MATCHER_WEIGHTS), [0] * len(MATCHER_WEIGHTS)
    for matcher, start, length in matches:
        functions = sum(sentence.is_function_word[start : start + length])
        function[matcher] += functions
        content[matcher] += length - functions
    return Side(len(sentence.words), sum(sentence.is_function_word), tuple(content), tuple(function))


def _candidates(hypothesis: Sentence, reference: Sentence) -> list[list[Match]]:
    """All matches by where they start in the reference, in the order in which the official program finds them.

    The order decides between alignments of equal rank. A paraphrase is found once for each direction that the table
    lists; the search below counts how often a word is claimed, so these doubles matter.
    """
    found: list[list[Match]] = [[] for _ in reference.words]
    for start, word in enumerate(reference.words):
        found[start] += [Match(EXACT, start, 1, position, 1) for position in hypothesis.phrases.get(word, ())]
    if hypothesis.words == reference.words:
        return found
    for start, (word, word_stem, synonym_sets) in enumerate(
        zip(reference.words, reference.stems, reference.synonym_sets, strict=True)
    ):
        found[start] += [
            Match(STEM, start, 1, position, 1)
            for position, other in enumerate(hypothesis.stems)
            if other == word_stem and hypothesis.words[position] != word
        ]
        found[start] += [
            Match(SYNONYM, start, 1, position, 1)
            for position, others in enumerate(hypothesis.synonym_sets)
            if not others.isdisjoint(synonym_sets) and hypothesis.words[position] != word
        ]
    for start, length, paraphrase in reference.rewordings:
        for position in hypothesis.phrases.get(paraphrase, ()):
            found[start].append(Match(PARAPHRASE, start, length, position, paraphrase.count(" ") + 1))
    for position, length, paraphrase in hypothesis.rewordings:
        for start in reference.phrases.get(paraphrase, ()):
            found[start].append(Match(PARAPHRASE, start, paraphrase.count(" ") + 1, position, length))
    return found


class Option(NamedTuple):
    """A match with what the search asks about it."""

    match: Match
    words: int  # bit mask of the hypothesis words that it takes
    gain: int
    distance: int

    @classmethod
    def of(cls, match: Match) -> "Option":
        words = ((1 << match.hypothesis_length) - 1) << match.hypothesis_start
        covered = _covered(match.matcher, match.length) + _covered(match.matcher, match.hypothesis_length)
        return cls(match, words, COVER_GAIN * covered, abs(match.start - match.hypothesis_start))


def _covered(matcher: int, length: int) -> int:
    """The words that count as covered: half of them, rounded down, unless they are equal; so a synonym counts none."""
    return length if matcher == EXACT else length // 2


class Partial(NamedTuple):
    """An alignment of the reference up to some word."""

    cost: int
    words: int  # bit mask of the hypothesis words in use
    end: int  # the hypothesis word after the last match, or -1 where the last reference word is unmatched
    next_start: int  # the first reference word that is still free
    matches: tuple[Any, ...]  # (last match, (the one before, ...)), or ()

    @property
    def closed_cost(self) -> int:
        """The cost when no match follows, which completes the last chunk."""
        return self.cost if self.end == -1 else self.cost + CHUNK_COST

    def extended(self, start: int, options: list[Option], forced: bool) -> Iterator["Partial"]:
        """The alignments that take one of `options` for the reference word at `start`, then the one that takes none.

        As in the official program, the distance of an option is charged to those after it, not to itself, unless it
        is forced: then it is the only one, and taking none is no choice.
        """
        cost = self.cost
        for option in options:
            if self.words & option.words:
                continue
            match = option.match
            breaks = self.end not in (-1, match.hypothesis_start)
            yield Partial(
                cost - option.gain + CHUNK_COST * breaks + option.distance * forced,
                self.words | option.words,
                match.hypothesis_start + match.hypothesis_length,
                start + match.length,
                (match, self.matches),
            )
            cost += option.distance
        if not forced:
            yield Partial(self.closed_cost - self.cost + cost, self.words, -1, start + 1, self.matches)


def _align(candidates: list[list[Match]]) -> list[Match]:
    """The best alignment that a beam search over the reference's words finds, in the reference's order."""
    unrivalled = _unrivalled(candidates)
    beam = [Partial(0, 0, -1, 0, ())]
    for start, matches in enumerate(candidates):
        options = [Option.of(match) for match in matches]
        grown = []
        for partial in beam:
            if start < partial.next_start:
                grown.append(partial)
            else:
                grown += partial.extended(start, options, forced=start in unrivalled)
        grown.sort(key=itemgetter(0))  # by cost; the order of equals is kept, and decides
        beam = grown[:BEAM_SIZE]
    chosen = min(beam, key=lambda partial: partial.closed_cost).matches
    alignment = []
    while chosen:
        match, chosen = chosen
        alignment.append(match)
    return alignment[::-1]


def _unrivalled(candidates: list[list[Match]]) -> set[int]:
    """The reference positions whose only match shares no word with any other match; they are always taken."""
    claims = Counter(chain.from_iterable(_words_of(match) for matches in candidates for match in matches))
    return {
        start
        for start, matches in enumerate(candidates)
        if len(matches) == 1 and all(claims[word] == 1 for word in _words_of(matches[0]))
    }


def _words_of(match: Match) -> Iterator[tuple[str, int]]:
    """The words of the reference and of the hypothesis that a match takes."""
    yield from (("reference", word) for word in range(match.start, match.start + match.length))
    first = match.hypothesis_start
    yield from (("hypothesis", word) for word in range(first, first + match.hypothesis_length))
