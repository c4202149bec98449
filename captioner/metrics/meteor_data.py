"""What METEOR 1.5 knows about English, read from the files that the optional package `pycocoevalcap` carries.

The jar holds WordNet's synonym sets, the irregular word forms, the function words and the abbreviations that end in a
dot; the paraphrase table lies beside it. They are read as plain data: no Java runs.
"""

import gzip
import io
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from captioner.errors import CaptionerError

LONGEST_PHRASE = 7  # words, in the English paraphrase table

# WordNet's rules for regular endings, in the order in which they are tried; the first base that WordNet knows wins.
ENDING_RULES = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""), ("er", ""), ("est", ""), ("er", "e"),
    ("est", "e"),
)  # fmt: skip


@dataclass(frozen=True)
class MeteorData:
    """The language data, except for the paraphrase table, of which `read_paraphrases` reads what a text needs."""

    function_words: frozenset[str]
    synsets: dict[str, str]  # word -> numbers of its synonym sets, separated by spaces
    irregular: dict[str, list[str]]  # inflected form -> base forms
    abbreviations: dict[str, bool]  # word before the dot -> whether it is one only in front of a number
    paraphrase_table: Path

    @classmethod
    def load(cls) -> "MeteorData":
        """Read the data; raises CaptionerError when the optional package is not installed."""
        package = find_spec("pycocoevalcap")
        if package is None or not package.submodule_search_locations:
            raise CaptionerError("METEOR needs the data of pycocoevalcap: pip install 'captioner[metrics]'")
        folder = Path(package.submodule_search_locations[0]) / "meteor"
        table = folder / "data" / "paraphrase-en.gz"
        try:
            with zipfile.ZipFile(folder / "meteor-1.5.jar") as jar:
                function_words = _lines(jar, "function/english.words")
                synsets = _lines(jar, "synonym/english.synsets")
                exceptions = _lines(jar, "synonym/english.exceptions")
                prefixes = _lines(jar, "nonbreaking/english.prefixes")
            table.stat()
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise CaptionerError(
                f"METEOR cannot read its data in {folder} ({error}): pip install --force-reinstall 'captioner[metrics]'"
            ) from error
        irregular: dict[str, list[str]] = {}
        for base, forms in zip(exceptions[::2], exceptions[1::2], strict=True):
            for form in forms.split():
                irregular.setdefault(form, []).append(base)
        return cls(
            function_words=frozenset(function_words),
            synsets=dict(zip(synsets[::2], synsets[1::2], strict=True)),
            irregular=irregular,
            abbreviations={
                line.split()[0]: "#NUMERIC_ONLY#" in line for line in prefixes if line.strip() and line[0] != "#"
            },
            paraphrase_table=table,
        )

    def synonym_sets(self, word: str) -> frozenset[str]:
        """The numbers of WordNet's synonym sets that hold `word` or its base form."""
        bases = self.irregular[word] if word in self.irregular else [self._regular_base(word)]
        return frozenset(number for form in (word, *bases) for number in self.synsets.get(form, "").split())

    def _regular_base(self, word: str) -> str:
        if not word.endswith("ss") and len(word) > 2:
            for ending, replacement in ENDING_RULES:
                base = word.removesuffix(ending) + replacement
                if word.endswith(ending) and base in self.synsets:
                    return base
        return word

    def read_paraphrases(self, phrases: Iterable[str]) -> dict[str, list[str]]:
        """phrase -> its paraphrases in the table's order, where the phrase and the paraphrase are both in `phrases`.

        The table has five million entries; only those that a text can use are kept.
        """
        wanted = {f"{phrase}\n".encode() for phrase in phrases}
        paraphrases: dict[str, list[str]] = {}
        with gzip.open(self.paraphrase_table) as file:
            lines = io.BufferedReader(file, 1 << 20)
            for _probability, phrase, paraphrase in zip(lines, lines, lines, strict=True):
                if phrase in wanted and paraphrase in wanted:
                    paraphrases.setdefault(phrase.decode().strip(), []).append(paraphrase.decode().strip())
        return paraphrases


def _lines(jar: zipfile.ZipFile, name: str) -> list[str]:
    return jar.read(name).decode("utf-8").splitlines()


# METEOR's normalisation of one line, step by step. A "letter" is what METEOR counts as one: Latin and Cyrillic.
LETTER = "A-Za-zŠŽšžŸÀ-ÖØ-öø-ž\u0400-\u04ff\u0500-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
WORD = re.compile(r"[^ \t\n\r\f]+")
OTHER_SIGN = re.compile(rf"([^0-9{LETTER} \t\n\x0b\f\r.'`,\-‘’])")
DOTS = re.compile(r"\.(\.+)")
LAST_DOT = re.compile(r"DOTMULTI\.([^.])")
COMMAS = (re.compile(r"([^0-9]),([^0-9])"), re.compile(r"([0-9]),([^0-9])"), re.compile(r"([^0-9]),([0-9])"))
SINGLE_QUOTE = re.compile(r"[`‘’]")
DOUBLE_QUOTE = re.compile(r"[“”]|''")
HYPHEN = re.compile(rf"([0-9{LETTER}.])-([0-9{LETTER}])")
QUOTES = (
    re.compile(rf"([^{LETTER}])'([^{LETTER}])"),
    re.compile(rf"([^{LETTER}0-9])'([{LETTER}])"),
    re.compile(rf"([{LETTER}])'([^{LETTER}])"),
)
APOSTROPHES = (re.compile(rf"([{LETTER}])'([{LETTER}])"), re.compile(r"([0-9])'(s)"))
WIDE_SPACE = re.compile("[\u2000-\u200a\u202f\u205f\u3000\u00a0]")


def normalized_words(line: str, abbreviations: dict[str, bool]) -> list[str]:
    """The lower-case words that METEOR's `-norm` makes of a line: punctuation and hyphenated parts on their own."""
    line = OTHER_SIGN.sub(r" \1 ", f" {line} ")
    line = DOTS.sub(r" DOTMULTI\1", line)
    while "DOTMULTI." in line:
        line = LAST_DOT.sub(r"DOTDOTMULTI \1", line).replace("DOTMULTI.", "DOTDOTMULTI")
    for pattern in COMMAS:
        line = pattern.sub(r"\1 , \2", line)
    line = DOUBLE_QUOTE.sub(' " ', SINGLE_QUOTE.sub("'", line))
    line = HYPHEN.sub(r"\1 \2", line.replace("–", "-").replace("--", "-"))
    for pattern in QUOTES:
        line = pattern.sub(r"\1 ' \2", line)
    for pattern in APOSTROPHES:
        line = pattern.sub(r"\1 '\2", line)
    line = " ".join(_split_final_dots(WORD.findall(line), abbreviations))
    while "DOTDOTMULTI" in line:
        line = line.replace("DOTDOTMULTI", "DOTMULTI.")
    return WORD.findall(WIDE_SPACE.sub(" ", line.replace("DOTMULTI", ".")).lower())


def _split_final_dots(words: list[str], abbreviations: dict[str, bool]) -> Iterable[str]:
    """Part the full stop from the last word of a sentence, not from an abbreviation."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        stem = word[:-1]
        if not word.endswith(".") or not stem:
            yield word
        elif "." in stem and re.search(f"[{LETTER}]", stem):
            yield word.replace(".", "")
        else:
            goes_on = re.match("[a-z0-9]" if stem in abbreviations else "[a-z]", following)
            yield word if goes_on or abbreviations.get(stem) is False else f"{stem} ."
