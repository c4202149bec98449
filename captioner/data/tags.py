"""Tags of images for training: the data set's labels, or frequent words of its captions."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from captioner.data.sources import Sample

# English function words: they name nothing in the image.
FUNCTION_WORDS = frozenset(
    # articles, demonstratives, quantifiers, numerals
    """a an the this that these those all another any both each either every few half less lots many more most much
    neither no none other others several some such one two three four five six seven eight nine ten first second"""
    # pronouns
    """ i me my mine myself we us our ours you your yours he him his himself she her hers herself it its itself they
    them their theirs themselves who whom whose which what someone something anyone anything everyone everything"""
    # auxiliaries
    """ am is are was were be been being do does did doing done have has had having can could may might must shall
    should will would isn't aren't wasn't weren't don't doesn't didn't can't cannot"""
    # prepositions and particles
    """ about above across after against along alongside amid among amongst around as at atop away back before behind
    below beneath beside besides between beyond by down during for from in inside into like near nearby next of off on
    onto out outside over past per through throughout to together toward towards under underneath until up upon via
    while with within without"""
    # conjunctions and adverbs of degree, time and manner
    """ and but or nor so if then than because although though when where how why not very too also just only still
    here there now again almost already as well""".split()
)


class _Letters(dict[int, str]):
    """A table for `str.translate` that maps everything but word characters to spaces."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = unicodedata.category(character)[0] in "LM" or character in "'-"  # M: vowel signs are marks in Indic
        self[code] = "'" if character == "’" else character if kept else " "
        return self[code]


_LETTERS = _Letters()


def frequent_words(captions_per_image: Iterable[Sequence[str]], size: int) -> list[str]:
    """Return the `size` content words that occur in the most images, most frequent first, then alphabetically.

    Works for languages with spaces between words; only English function words are excluded.
    """
    counts = Counter(word for captions in captions_per_image for word in content_words(captions))
    return sorted(counts, key=lambda word: (-counts[word], word))[:size]


def content_words(captions: Sequence[str]) -> set[str]:
    """Return the words of an image's captions, lower case, without possessive 's and without function words."""
    words = unicodedata.normalize("NFC", " ".join(captions)).lower().translate(_LETTERS).split()
    return {word.strip("'-").removesuffix("'s") for word in words} - FUNCTION_WORDS - {""}


def label_names(samples: Iterable[Sample]) -> list[str]:
    """Return every label of a data set, alphabetically."""
    return sorted({label for sample in samples for label in sample.labels})


class TagTargets(NamedTuple):
    """An image's tags as indices into `tag_names`: the tags it has, among those for which that is known."""

    present: frozenset[int]
    known: frozenset[int]


UNTAGGED = TagTargets(frozenset(), frozenset())


def tag_names(labels: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the classes of a tag head: labels, then caption words that are not also labels."""
    return [*labels, *(word for word in words if word not in set(labels))]


def tag_targets(samples: Iterable[Sample], labels: Sequence[str], words: Sequence[str]) -> list[TagTargets]:
    """Return each sample's targets over `tag_names(labels, words)`.

    A labelled image has its labels and none of the other `labels`; a captioned image has the words in its captions and
    none of the other `words`. Everything else is unknown.
    """
    index = {name: number for number, name in enumerate(tag_names(labels, words))}
    judged = {
        (labelled, captioned): frozenset(
            index[name] for names, given in ((labels, labelled), (words, captioned)) if given for name in names
        )
        for labelled in (False, True)
        for captioned in (False, True)
    }
    targets = []
    for sample in samples:
        found = {*sample.labels, *(content_words(sample.captions) if words else ())}
        known = judged[bool(sample.labels), bool(sample.captions)]
        targets.append(TagTargets(frozenset(index[name] for name in found if name in index) & known, known))
    return targets
