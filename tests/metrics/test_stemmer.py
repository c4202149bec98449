"""The Snowball stemmer against words stemmed by the Java class inside METEOR 1.5."""

import pytest

from captioner.metrics.stemmer import stem

STEMS = """
caresses caress, ponies poni, ties tie, gas gas, gaps gap, kiwis kiwi, this this, agreed agre, hoping hope,
hopping hop, falling fall, filing file, controlling control, bled bled, luxuriated luxuri, troubles troubl,
happy happi, say say, by by, cry cri, relational relat, conditional condit, valenci valenc, digitizer digit,
operator oper, feudalism feudal, decisiveness decis, hopefulness hope, triplicate triplic, formative format,
electrical electr, goodness good, revival reviv, allowance allow, adjustment adjust, dependent depend,
adoption adopt, communism communism, effective effect, rate rate, cease ceas, controller control, roll roll,
generate generat, communication communic, arsenal arsenal, skies sky, dying die, early earli, news news,
inning inning, proceeds proceed, succeed succeed, dog's dog, 'cause caus, youth youth, boyish boyish, yelling yell,
riding ride, skateboarding skateboard, motorcycles motorcycl, quickly quick, geology geolog, knightly knight,
isn't isn't, a a, is is, 1990s 1990s, café café
"""


@pytest.mark.parametrize(("word", "expected"), [tuple(entry.split()) for entry in STEMS.split(",")])
def test_stem_equals_the_java_stemmer(word: str, expected: str) -> None:
    assert stem(word) == expected
