"""Tags are what captions agree on or labels say, and silence is not a no."""

from captioner.data.sources import Sample
from captioner.data.tags import content_words, frequent_words, label_names, tag_names, tag_targets

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


def test_targets_tell_an_absent_tag_from_one_that_nobody_judged() -> None:
    assert label_names(SAMPLES) == ["pets", "rare", "sport"]
    labels = [(set(of.present), set(of.known)) for of in tag_targets(SAMPLES, ["pets", "sport"], [])]
    assert labels == [({0, 1}, {0, 1}), (set(), set()), ({1}, {0, 1}), (set(), {0, 1})]
    words = [(set(of.present), set(of.known)) for of in tag_targets(SAMPLES, [], ["dog", "ball"])]
    assert words == [({0, 1}, {0, 1}), ({0}, {0, 1}), (set(), set()), (set(), {0, 1})]


def test_labels_and_words_share_a_name_and_each_image_is_judged_by_what_it_has() -> None:
    samples = [Sample("a", "a.jpg", ("a dog on a beach",)), Sample("b", "b.jpg", (), ("dog", "cat"))]
    assert tag_names(["cat", "dog"], ["beach", "dog"]) == ["cat", "dog", "beach"]
    targets = [(set(of.present), set(of.known)) for of in tag_targets(samples, ["cat", "dog"], ["beach", "dog"])]
    assert targets == [({1, 2}, {1, 2}), ({0, 1}, {0, 1})]
