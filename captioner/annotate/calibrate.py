"""Confidence against references: fitting a calibration, and measuring what confidences are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from captioner.annotate.evaluate import caption_samples
from captioner.annotate.pipeline import Failure
from captioner.data.sources import Sample
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.infer.calibration import (
    Calibration,
    History,
    Logistic,
    WordRecord,
    Words,
    other_features,
    own_features,
    plain,
)
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner
from captioner.infer.words import tokens_of_words
from captioner.metrics.score import score_captions, tokenizer
from captioner.metrics.trust import Trust, human_median

FEWEST = 50
"""Images to fit on: seven weights from fewer would be noise."""

References = Mapping[Any, Sequence[str]]
Captions = Mapping[Any, Caption]


def calibrate(
    captioner: Captioner,
    samples: Sequence[Sample],
    options: GenerationOptions,
    *,
    tokenization: str,
    batch_size: int,
    num_workers: int,
) -> tuple[Calibration, Trust, list[Failure]]:
    """Fit a calibration on the first, third, fifth ... of the images, and measure it on the others.

    Returns:
        The calibration; what its confidences are worth on the images that it was not fitted on; the images that cannot
        be read.

    Raises:
        CaptionerError: too few images, or none with two references; no beam search; scikit-learn is missing.
    """
    if options.do_sample or options.num_captions < 2:
        raise CaptionerError("calibration compares the captions of a beam search; num_beams must be at least 2")
    wanted = replace(options, num_return_sequences=options.num_captions)
    captions, failures = caption_samples(captioner, samples, wanted, batch_size=batch_size, num_workers=num_workers)
    readable = [sample for sample in samples if sample.id in captions]
    if len(readable) < 2 * FEWEST:
        raise CaptionerError(f"calibration needs {2 * FEWEST} images with captions or more; there are {len(readable)}")
    references = {sample.id: sample.captions for sample in readable}
    trust = trust_of(captions, references, tokenization)
    outcomes = dict(zip(references, trust.acceptable.tolist(), strict=True))
    fitted_on, measured_on = list(references)[::2], list(references)[1::2]
    calibration = fit(captions, references, {image: outcomes[image] for image in fitted_on}, tokenization)
    confidence = np.array([_confidence(captions[image], calibration) for image in measured_on])
    return calibration, Trust(confidence, trust.cider[1::2], trust.threshold), failures


def trust_of(captions: Captions, references: References, tokenization: str) -> Trust:
    """What the confidences of one caption an image are worth.

    Raises:
        CaptionerError: no image has two references.
    """
    texts = {image: captions[image].text for image in references}
    scores = score_captions(texts, references, metrics="CIDEr", tokenization=tokenization)
    confidence = np.array([captions[image].confidence for image in references])
    return Trust(confidence, scores.per_image["CIDEr"], human_median(list(references.values()), tokenization))


def fit(
    captions: Captions, references: References, is_acceptable: Mapping[Any, bool], tokenization: str
) -> Calibration:
    """Fit to captions that have the other beams as their alternatives: those of the images in `is_acceptable`.

    What the history says of a caption or a word is without that caption or word itself, as for a new image.

    Raises:
        CaptionerError: as `calibrate`.
    """
    outcomes = list(is_acceptable.values())
    own = [references[image] for image in is_acceptable]
    hypotheses = [_hypotheses(captions[image]) for image in is_acceptable]
    words = [_words(captions[image]) for image in is_acceptable]
    is_used = [_used(each, texts, tokenization) for each, texts in zip(words, own, strict=True)]
    history = _history(words, outcomes, is_used)
    alone = [
        own_features(best) | history.caption_features(each, left_out=outcome)
        for (best, *_), each, outcome in zip(hypotheses, words, outcomes, strict=True)
    ]
    searched = [
        (features | other_features(best, others), outcome)
        for features, (best, *others), outcome in zip(alone, hypotheses, outcomes, strict=True)
        if others
    ]
    uses = [
        (history.word_features(word, [best.log_probs[place] for place in places], left_out=used), used)
        for (best, *_), each, all_used in zip(hypotheses, words, is_used, strict=True)
        for (word, places), used in zip(each, all_used, strict=True)
    ]
    return Calibration(
        searched=Logistic.fit(*zip(*searched, strict=True)),
        alone=Logistic.fit(alone, outcomes),
        word=Logistic.fit(*zip(*uses, strict=True)),
        history=history,
        fitted_on={"images": len(own)},
    )


def _used(words: Words, references: Sequence[str], tokenization: str) -> list[bool]:
    """Whether a reference has each word of a caption."""
    tokenize = tokenizer(tokenization)
    known = {token for tokens in tokenize(list(references)) for token in tokens}
    return [known.issuperset(tokens) for tokens in tokenize([word for word, _ in words])]


def _history(words: Sequence[Words], outcomes: Sequence[bool], is_used: Sequence[Sequence[bool]]) -> History:
    counts: dict[str, list[int]] = {}
    for each, outcome, all_used in zip(words, outcomes, is_used, strict=True):
        for word, used in zip((plain(word) for word, _ in each), all_used, strict=True):
            counts.setdefault(word, [0, 0, 0, 0])[2] += 1
            counts[word][3] += used
        for word in {plain(word) for word, _ in each}:
            counts[word][0] += 1
            counts[word][1] += outcome
    flat = [used for all_used in is_used for used in all_used]
    records = {word: WordRecord(*counts[word]) for word in sorted(counts)}
    return History(records, sum(outcomes) / len(outcomes), sum(flat) / max(len(flat), 1))


def _words(caption: Caption) -> Words:
    return tokens_of_words(caption.text, [token.text for token in caption.tokens])


def _hypotheses(caption: Caption) -> list[Hypothesis]:
    """As the search gave them; tokens are numbered as they come, since features only compare them."""
    numbers: dict[str, int] = {}
    return [
        Hypothesis(
            tuple(numbers.setdefault(token.text, len(numbers)) for token in each.tokens),
            tuple(token.log_prob for token in each.tokens),
            each.end_log_prob,
        )
        for each in (caption, *caption.alternatives)
    ]


def _confidence(caption: Caption, calibration: Calibration) -> float:
    best, *others = _hypotheses(caption)
    return calibration.confidence(_words(caption), best, others)
