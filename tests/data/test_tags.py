"""Tags are what captions agree on or labels say, and silence is not a no."""

from captioner.data.sources import Sample
from captioner.data.tags import content_words, frequent_words, label_names, label_targets

SAMPLES = [
    Sample("a", "a.jpg", ("A dog's ball, and two dogs!", "the DOG on the beach"), ("pets", "sport")),
    Sample("b", "b.jpg", ("a dog dog dog",), ()),
    Sample("c", "c.jpg", (), ("sport",)),
    Sample("d", "d.jpg", ("it is on the beach",), ("rare",)),
]


def test_words_count_once_an_image_and_ties_follow_the_alphabet() -> None:
    captions = [sample.captions for sample in SAMPLES]
    assert frequent_words(captions, 10) == ["beach", "dog", "ball", "dogs"]
    assert frequent_words(reversed(captions), 3) == ["beach", "dog", "ball"]


def test_words_of_any_script_are_whole() -> None:
    text = "Der Hund läuft - कुत्ता घास पर दौड़ता, t-shirt don’t 'quoted' 3 собаки"
    expected = "der hund läuft कुत्ता घास पर दौड़ता t-shirt quoted собаки"
    assert content_words([text]) == set(expected.split())


def test_targets_tell_an_image_without_a_tag_from_one_that_nobody_tagged() -> None:
    assert label_names(SAMPLES) == ["pets", "rare", "sport"]
    assert label_targets(SAMPLES, ["pets", "sport"], from_captions=False) == [{0, 1}, None, {1}, set()]
    assert label_targets(SAMPLES, ["dog", "ball"], from_captions=True) == [{0, 1}, {0}, None, set()]
