"""The Snowball stemmer for English ("Porter2"), as METEOR 1.5 uses it.

Source: M. Porter, "The English (Porter2) stemming algorithm", https://snowballstem.org/algorithms/english/stemmer.html,
as of 2006: its rules have changed upstream since, and METEOR kept the old ones. The library
snowballstemmer agrees in release 2.2; release 3.1 has other stems for "university", "evening" and "organized".
"""

from collections.abc import Callable
from functools import lru_cache

VOWELS = frozenset("aeiouy")  # a consonant y is written Y while a word is worked on
DOUBLES = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")
R1_PREFIXES = ("gener", "commun", "arsen")

IRREGULAR = {
    "skis": "ski",
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "idly": "idl",
    "gently": "gentl",
    "ugly": "ugli",
    "early": "earli",
    "only": "onli",
    "singly": "singl",
} | {word: word for word in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")}
WHOLE_AFTER_STEP_1A = frozenset(("inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"))

STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize", "ization": "ize",
    "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble", "fulli": "ful",
    "lessli": "less", "ogi": "og", "li": "",
}  # fmt: skip
STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "",
    "ness": "", "ative": "",
}  # fmt: skip
STEP_4 = dict.fromkeys(
    ("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ism", "ate", "iti", "ous",
     "ive", "ize", "ion"), "",
)  # fmt: skip


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of one lower-case word; words of one or two letters are their own."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) < 3:
        return word
    word = _mark_consonant_y(word.removeprefix("'"))
    r1, r2 = _regions(word)
    word = _step_1a(word)
    if word not in WHOLE_AFTER_STEP_1A:
        word = _step_1c(_step_1b(word, r1))
        word = _replace_suffix(word, STEP_2, lambda stem, suffix: len(stem) >= r1 and _step_2_allows(stem, suffix))
        word = _replace_suffix(
            word, STEP_3, lambda stem, suffix: len(stem) >= r1 and (suffix != "ative" or len(stem) >= r2)
        )
        word = _replace_suffix(
            word, STEP_4, lambda stem, suffix: len(stem) >= r2 and (suffix != "ion" or stem.endswith(("s", "t")))
        )
        word = _step_5(word, r1, r2)
    return word.replace("Y", "y")


def _mark_consonant_y(word: str) -> str:
    letters: list[str] = []
    for letter in word:
        consonant_y = letter == "y" and (not letters or letters[-1] in VOWELS)
        letters.append("Y" if consonant_y else letter)
    return "".join(letters)


def _regions(word: str) -> tuple[int, int]:
    """Where R1 and R2 begin: after the first consonant that follows a vowel, and again from there."""
    r1 = next((len(prefix) for prefix in R1_PREFIXES if word.startswith(prefix)), None)
    if r1 is None:
        r1 = _after_vowel_consonant(word, 0)
    return r1, _after_vowel_consonant(word, r1)


def _after_vowel_consonant(word: str, start: int) -> int:
    for i in range(start + 1, len(word)):
        if word[i] not in VOWELS and word[i - 1] in VOWELS:
            return i + 1
    return len(word)


def _has_vowel(text: str) -> bool:
    return not VOWELS.isdisjoint(text)


def _ends_in_short_syllable(word: str) -> bool:
    if len(word) < 2 or word[-2] not in VOWELS or word[-1] in VOWELS:
        return False
    return len(word) == 2 or (word[-3] not in VOWELS and word[-1] not in "wxY")


def _replace_suffix(word: str, endings: dict[str, str], allowed: Callable[[str, str], bool]) -> str:
    """Replace the longest of `endings` that `word` has, if `allowed(what is before it, the ending)`."""
    for length in range(min(7, len(word)), 1, -1):
        suffix = word[-length:]
        if suffix in endings:
            before = word[:-length]
            return before + endings[suffix] if allowed(before, suffix) else word
    return word


def _step_1a(word: str) -> str:
    for possessive in ("'s'", "'s", "'"):
        if word.endswith(possessive):
            word = word.removesuffix(possessive)
            break
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and _has_vowel(word[:-2]):
        return word[:-1]
    return word


def _step_1b(word: str, r1: int) -> str:
    suffix = next((s for s in ("eedly", "ingly", "edly", "eed", "ing", "ed") if word.endswith(s)), "")
    before = word[: len(word) - len(suffix)]
    if suffix in ("eedly", "eed"):
        return before + "ee" if len(before) >= r1 else word
    if not suffix or not _has_vowel(before):
        return word
    if before.endswith(("at", "bl", "iz")):
        return before + "e"
    if before.endswith(DOUBLES):
        return before[:-1]
    return before + "e" if len(before) == r1 and _ends_in_short_syllable(before) else before


def _step_1c(word: str) -> str:
    ends_in_y_after_consonant = len(word) > 2 and word[-1] in "yY" and word[-2] not in VOWELS
    return word[:-1] + "i" if ends_in_y_after_consonant else word


def _step_2_allows(before: str, suffix: str) -> bool:
    if suffix == "li":
        return before.endswith(tuple("cdeghkmnrt"))
    return suffix != "ogi" or before.endswith("l")


def _step_5(word: str, r1: int, r2: int) -> str:
    before = word[:-1]
    if word.endswith("e"):
        drop = len(before) >= r2 or (len(before) >= r1 and not _ends_in_short_syllable(before))
    else:
        drop = word.endswith("l") and len(before) >= r2 and before.endswith("l")
    return before if drop else word
