r"""Penn Treebank tokenisation as the official COCO caption scorer does it, without Java.

The official scorer pipes captions through Stanford's `PTBTokenizer -preserveLines -lowerCase` (CoreNLP 3.4.1) and
then drops a fixed list of punctuation tokens. That tokenizer is a longest-match lexer: at each position, of all rules,
the one that matches most characters wins, the context it asks for behind the token included; of equally long matches,
the earlier rule wins. `_RULES` has the rules by purpose; `benchmarks/ptb_parity.py` compares them with the Java tool.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens the official scorer removes. It lists -LRB- and its kin too, but in capitals, so brackets (-lrb-) stay."""


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Tokenise captions as one run of the official tokenizer does: lower-cased, punctuation dropped.

    There the captions are the lines of one text, and some abbreviations look at the word that follows: "vitamin A."
    keeps its stop unless the next caption starts with "The"; "they're" is "they re" where the last caption ends in it.
    Line breaks inside a caption count as blanks.

    One thing is left out: there, a tag's quoted attribute may begin in one caption and end in another.

    Returns one list of tokens per caption. A token may hold a no-break space ("5 1/2", phone numbers, tags).
    """
    lines = [_LINE_BREAK.sub(" ", caption) for caption in captions]
    text = "\n".join(lines)
    if has_astral := _ASTRAL.search(text) is not None:
        text = _ASTRAL.sub(_surrogates, text)
        lines = text.split("\n")
    kinds = text if text.isascii() else text.translate(_KINDS)
    tokens_of_lines, start = [], 0
    for line in lines:
        end = start + len(line)
        next_character = text[end + 1 : end + 2]  # "no." is an abbreviation before a number
        is_last = end == len(text)  # a contraction that ends the text is a quotation mark and a word
        if _PLAIN_LINE.fullmatch(line) and not next_character.isdecimal() and not is_last:
            tokens_of_lines.append([token for chunk in line.split() for token in _lex_plain(chunk)])
        else:
            tokens_of_lines.append(_lex(text, kinds, start, end))
        start = end + 1
    return [[_whole(token) for token in tokens] for tokens in tokens_of_lines] if has_astral else tokens_of_lines


_BLANKS = re.compile(r"[ \t][ \t\xa0\u2000-\u200a\u3000]*")
_LINE_BREAK = re.compile(r"[\n\r\x0b\x0c\u2028\u2029]")

# Java's text is UTF-16: a character beyond the basic plane (emoji) is two, which matters where rules count characters.
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def _surrogates(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return chr(int.from_bytes(units[:2], "big")) + chr(int.from_bytes(units[2:], "big"))


def _whole(token: str) -> str:
    return token.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")


# The quick path. In a line of letters, apostrophes, hyphens and commas, no token depends on more than the blanks around
# it; nor does a word of letters with the full stop that ends the line, unless it is a single letter.
_PLAIN_LINE = re.compile(r"(?:[A-Za-z ,'\-]* )?(?:[A-Za-z,'\-]*|[A-Za-z]{2,}\.|\.) *")


@lru_cache(maxsize=1 << 17)
def _lex_plain(chunk: str) -> list[str]:
    return _lex(chunk + "\n", chunk + "\n", 0, len(chunk))


def _lex(text: str, kinds: str, start: int, end: int) -> list[str]:
    """Tokens of the line `text[start:end]`; rules read `kinds`, and context may lie beyond the line's end."""
    tokens = []
    while start < end:
        if (quick := _QUICK_WORD.match(kinds, start)) and (word := quick[1].lower()) not in _NOT_QUICK:
            tokens.append(word)
            start = quick.end()
            continue
        if blanks := _BLANKS.match(kinds, start):
            start = blanks.end()
            continue
        longest = None
        for rule in _RULES:
            match = rule.pattern.match(kinds, start)
            if match and (longest is None or match.end() > longest.end()):
                longest, rewrite = match, rule.rewrite
        if longest is None:  # a character the tokenizer does not know
            start += 1
            continue
        token = text[start : longest.end(1)]
        start = longest.end(1)
        token = (rewrite(token) if rewrite else token).lower()
        if token:
            tokens.append(token)
    if tokens:
        tokens[-1] = tokens[-1].rstrip()  # a web address may end in a wide blank; the official scorer strips lines
    return [token for token in tokens if token not in PUNCTUATION]


# ---- kinds of characters: the rules are written in ASCII, a few named characters, and one character for each kind --

_LETTER, _CAPITAL, _MARK, _DIGIT, _SYMBOL = "\xaa", "\xc0", "\u0300", "\u0660", "\xa9"
_NUMERAL_CAPITAL, _SYMBOL_CAPITAL, _UNKNOWN = "\u2160", "\u24b6", "\x01"

_NAMED = """
0080 0085 0091-0097 00A0 00A2-00A5 00AB 00AD 00B2-00B3 00B9 00BB-00BE 0130-0131 017F 058A 060B 066B-066C 0E3F 2000-200A
2010-2011 2013-2015 2018-201F 2026 2039-203A 2044 2070 2074-207B 2080-208B 20A0 20A4 20AC 212A 2153-215E 3000-3001
FFE0-FFE1 FFE5-FFE6"""

# Letters and digits that Unicode has gained since 6.2, the version that the official tool was built with.
_AFTER_UNICODE_6_2 = """
037F 0528-052F 0560 0588 05EF 0860-088E 08A1 08AD-08C9 0978 0980 09FC 0AF9 0C34 0C5A-0C5D 0C80 0CDD 0D04 0D54-0D5F
0DE6-0DEF 0E86 0E89 0E8C 0E8E-0E93 0E98 0EA0 0EA8-0EA9 0EAC 13F5-13FD 16F1-16F8 170D 171F 1878 191D-191E 19B0-19C0
19C8-19C9 1B4C 1C80-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF A698-A69D A78F A794-A79F
A7AB-A7F7 A8FD-A8FE A9E0-A9FE AA7E-AA7F AB30-ABBF"""

# Accents and vowel signs, no letters of their own, that belong to words.
_MARKS = """
02C2-0379 0384-0385 03F6 0483-0487 055A-055F 0591-05BD 05BF 05C1-05C2 05C4-05C5 05C7 0615-061A 064B-065E 0670 06D6-06ED
06FD-06FE 070F-07B0 07EB-07F3 0900-0903 093C-094E 0951-0955 0962-0963 0981-0983 09BC-09C4 09C7-09C8 09CB-09CD 09D7
09E2-09E3 0A01-0A03 0A3C 0A3E-0A4F 0A81-0A83 0ABC-0ACF 0B82 0BBE-0BC2 0BC6-0BC8 0BCA-0BCD 0C01-0C03 0C3E-0C56 0D3E-0D44
0D46-0D48 0E31-0E3A 0E47-0E4E 0EB1-0EBC 0EC8-0ECD"""

# Signs that are tokens by themselves.
_SYMBOLS = """
00A1 00A6-00A9 00AC 00AE-00B1 00B4 00B6-00B8 00BF 00D7 00F7 037E 0387 0589 05BE 05C0 05C3 05C6 05F3-05F4 0600-0603
0606-060A 060C 0614 061B 061E-061F 066A 066D 06D4 0700-070D 07F6-07F8 0964-0965 0E4F 1FBD 2016-2017 2020-2023 2030-2038
203B 203E-2042 207C-207E 208C-208E 2100-214F 2190-2BFF 3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65"""


def _code_points(ranges: str) -> frozenset[int]:
    bounds = [[int(bound, 16) for bound in item.split("-")] for item in ranges.split()]
    return frozenset(code for item in bounds for code in range(item[0], item[-1] + 1))


class _Kinds(dict[int, str]):
    """A table for `str.translate`: code point -> the character that stands for its kind, found when first needed."""

    named, marks, symbols = _code_points(_NAMED), _code_points(_MARKS), _code_points(_SYMBOLS)
    unknown = _code_points(_AFTER_UNICODE_6_2)

    def __missing__(self, code: int) -> str:
        self[code] = kind = self._kind(code)
        return kind

    def _kind(self, code: int) -> str:
        character = chr(code)
        if code < 0x80 or code in self.named:
            return character
        if code in self.unknown:
            return _UNKNOWN
        if character.isalpha() or code in (0x1885, 0x1886):
            cased_later = 0x13A0 <= code <= 0x13F4  # Cherokee
            return _CAPITAL if character.isupper() and not cased_later else _LETTER
        if character.isdecimal():
            return _DIGIT
        if code in self.marks:
            return _MARK
        if code in self.symbols:
            return _SYMBOL_CAPITAL if character.isupper() else _SYMBOL
        return _NUMERAL_CAPITAL if character.isupper() else _UNKNOWN


_KINDS = _Kinds()

# ---- what becomes of the characters of a token ---------------------------------------------------------------------


def _soft_hyphens_removed(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _blanks_kept_together(token: str) -> str:
    return token.replace(" ", "\xa0")


def _ampersands_plain(token: str) -> str:
    return re.sub("(?i:&amp;)", "&", token)


def _brackets_named(token: str) -> str:
    return re.sub(r"[()\[\]{}]", lambda bracket: f"-{_BRACKETS[bracket[0]]}-", token)


_BRACKETS = {"(": "lrb", ")": "rrb", "[": "lsb", "]": "rsb", "{": "lcb", "}": "rcb"}


def _parentheses_named(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _fraction_in_digits(token: str) -> str:
    return {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}.get(token, token)


def _currency_of_the_treebank(token: str) -> str:
    return {"\xa2": "cents", "\xa3": "#", "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$"}.get(token, token)


def _opening_quote(token: str) -> str:
    return {"'": "`", '"': "``", "&quot;": "``"}.get(token, token)


def _quotes_plain(token: str) -> str:
    for quote, plain in _QUOTES:
        token = re.sub(quote, plain, token)
    return token


_QUOTES = [
    ("&apos;", "'"),
    ('"|&quot;', "''"),
    ("[\x91\u2018\u201b\u2039]", "`"),
    ("[\x92\u2019\u203a]", "'"),
    ("[\x93\u201c\xab]", "``"),
    ("[\x94\u201d\xbb]", "''"),
]


def _dashes(token: str) -> str:
    return "--" if len(token) in (3, 4) else token


# ---- words of the rules: plain tables, sorted ----------------------------------------------------------------------


def _words(*tables: str) -> str:
    """Any word of the tables, upper or lower case; a longer one is tried before its beginning."""
    words = sorted({word for table in tables for word in table.split()}, key=lambda word: (-len(word), word))
    return f"(?i:{'|'.join(map(re.escape, words))})"


def _capitalised(table: str) -> str:
    """Any word of the table with a capital at its start."""
    return f"(?:{'|'.join(f'{word[0].upper()}(?i:{re.escape(word[1:])})' for word in table.split())})"


# Abbreviations that may end a sentence: a capital behind their stop says that they do.
_DATES = "apr aug dec feb fri jan jul jun mar mon nov oct sep sept thu thurs tue tues wed"
_STATES = """
ala ariz calif colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo"""
_STATES_LIKE_WORDS = "ark az del ill la mass miss ore pa tex wash"  # states only with a capital
_COMPANIES = "assn bancorp bhd bros co corp cos inc intl ltd plc rt sys univ"
_PROPRIETARY = "ppte pptes ppty pptys pte ptes pty ptys"
_LAST_WORDS = "al bldg blvd ed.d esq est etc ext jr ph.d rd seq sq sr tel"

# Abbreviations that another word follows: their stop never ends a sentence.
_RANKS = "adj adm brig capt cmdr col comdr cpl ens gen lieut lt maj pfc pvt sfc sgt spc"
_TITLES = """
asst atty attys det dr drs gov govs hon insp messrs mlle mme mr mrs ms msgr pres prof profs rep reps rev sen sens supt
supts treas"""
_FIRST_NAMES = "alex jos wm"
_PLACES = "assoc ave dept ft mt natl st ste"
_LINKS = "adv cf cie elec invt mfg mtg ph vs"

_BEFORE_NUMBERS = "art bldg ca fig figs no nos op pp prop"
_SENTENCE_STARTERS = """
a about according additionally after an as at but earlier he her here however if in it last many more mr. ms. now once
one other our she since so some such that the their then there these they this we what when while yet you"""
_NATIONS = "canada-u.s eu-u.s japan-u.s korean-u.s non-u.s sino-u.s u.s.-u.k u.s.-u.s.s.r"
_SPLIT = {"me": "gim lem", "na": "gon wan", "not": "can", "ta": "got"}  # second half of a word: its first halves

_WITH_ANY_APOSTROPHE = "'cause 'em 'n 'n' 'til 'till c'est cap'n dunkin' ol' somethin'"
_WITH_A_STRAIGHT_APOSTROPHE = "c'mon cont'd cont'd. e'er ev'ry li'l nat'l nor'easter s'mores"

_PICTURES, _FILMS, _ARCHIVES = "bmp gif jpeg jpg png", "mov mp3 wav", "gz tar zip"
_DOCUMENTS = "doc docx htm html pdf ppt ps txt xml"
_PROGRAMS = "bat c cgi class cpp dll exe h jar java php pl py sql x"

# The quick path inside a line: a word before a blank, a comma and a blank, or a full stop that can only be one.
_QUICK_WORD = re.compile(r"([A-Za-z]+(?=,?[ \n])|[A-Za-z]{2,}(?=\.[ \n]))(?:,|\.(?=\n))?")
_NOT_QUICK = frozenset(
    " ".join(
        [_DATES, _STATES, _STATES_LIKE_WORDS, _COMPANIES, _PROPRIETARY, _LAST_WORDS]
        + [_RANKS, _TITLES, _FIRST_NAMES, _PLACES, _LINKS, _BEFORE_NUMBERS]
        + [first + second for second, firsts in _SPLIT.items() for first in firsts.split()]
    ).split()
)

# ---- parts of the rules --------------------------------------------------------------------------------------------

_BLANK = r"[ \t\xa0\u2000-\u200a\u3000]"
_BLANK_OR_NEWLINE = r"[ \t\xa0\u2000-\u200a\u3000\n\x85]"
_ANY_DIGIT = f"[0-9{_DIGIT}]"
_ANY_LETTER = f"[A-Za-z{_LETTER}{_CAPITAL}\u0130\u0131\u017f\u212a]"
_ANY_CAPITAL = f"[A-Z{_CAPITAL}{_NUMERAL_CAPITAL}{_SYMBOL_CAPITAL}\u0130\u212a]"
_ALPHANUMERIC = f"(?:{_ANY_LETTER}|{_ANY_DIGIT})"
_CLAUSE_MARK = r"[,;:\u3001]"
_AMPERSAND = "(?i:&amp;|&)"
_APOSTROPHE = r"(?:['\x92\u2019]|(?i:&apos;))"
_APOSTROPHE_OR_BACKQUOTE = r"(?:['\x92\u2019`\x91\u2018\u201b]|(?i:&apos;))"

# A letter of a word may carry marks, hold a soft hyphen, or be written as an entity.
_ACCENTED_VOWEL = f"&[aeiouAEIOU]{_words('acute grave uml')};"
_WORD_LETTER = rf"(?:[A-Za-z{_LETTER}{_CAPITAL}{_MARK}\xad\u0130\u0131\u017f\u212a]|{_ACCENTED_VOWEL})"
_WORD_CHARACTER = f"(?:{_WORD_LETTER}|{_ANY_DIGIT})"
_WORD_PART = f"{_WORD_LETTER}{_WORD_CHARACTER}*"
_WORD = rf"{_WORD_PART}(?:[.!?]{_WORD_PART})*"

_CONTRACTION = f"{_APOSTROPHE}(?:[dmsDMS]|{_words('ll re ve')})"
_NEGATION = f"(?i:n){_APOSTROPHE_OR_BACKQUOTE}(?i:t)"

_ACRONYM_WITH_STOPS = rf"(?:{_words(_NATIONS)}|[A-Za-z](?:\.[A-Za-z])+)"


def _tag() -> str:
    """An element of HTML: `<a href="x">`, `</a>`, `<br />`, `<!DOCTYPE html>`."""
    name = r"[A-Za-z][A-Za-z0-9.:_-]*"
    value = r"(?:\"[^\"\n]*\"|'[^'\n]*')"
    attribute = f"{name}(?: *= *{value})?"
    opening = f"{name}(?: +{attribute})* */?"
    closing = f"/{name}"
    declaration = r"[?!][A-Za-z-][^\n>]*"
    return f"<(?:{opening}|{closing}|{declaration}) *>"


_TAG = _tag()

# ---- the rules, by purpose: of equally long matches the earlier wins ------------------------------------------------


class _Rule(NamedTuple):
    pattern: re.Pattern[str]  # group 1 is the token; context behind it may follow
    rewrite: Callable[[str], str] | None


def _rule(token: str, context: str = "", rewrite: Callable[[str], str] | None = None) -> _Rule:
    return _Rule(re.compile(f"({token})(?:{context})"), rewrite)


def _split_words() -> list[_Rule]:
    """Two tokens written as one word: "can|not", "gim|me", "'t|was"."""
    return [
        *(_rule(_words(firsts), f"(?i:{second})") for second, firsts in _SPLIT.items()),
        _rule("(?i:'t)", "(?i:was|is)"),
    ]


def _simple_words() -> list[_Rule]:
    """Words without apostrophe, also before a contraction ("dog|'s") or a negation ("is|n't")."""
    return [
        _rule(_WORD, _CONTRACTION, _soft_hyphens_removed),
        _rule(_WORD, rewrite=_soft_hyphens_removed),
        _rule(r"[A-Za-z\xad]*(?![Nn])[A-Za-z]\xad*", _NEGATION, _soft_hyphens_removed),
    ]


def _words_with_apostrophes() -> list[_Rule]:
    family_name = rf"(?![IY])[A-Zn]{_APOSTROPHE_OR_BACKQUOTE}{_ANY_LETTER}{{2,}}"  # O'Brien
    ends_in_vowel = rf"{_ANY_LETTER}{{2,}}(?<=[AEIOUYaeiouy])"
    vowels_apart = rf"{ends_in_vowel}{_APOSTROPHE_OR_BACKQUOTE}(?=[A-Zaeiou]){_ANY_LETTER}+"  # Hawai'i
    both_o = f"(?i:o){_APOSTROPHE_OR_BACKQUOTE}(?i:o)"
    french_article = f"[DJLdjl]{_APOSTROPHE}"
    decade = f"{_APOSTROPHE}[2-9]0(?i:s)"
    listed = _words(_WITH_ANY_APOSTROPHE).replace("'", _APOSTROPHE)
    listed_straight = _words(_WITH_A_STRAIGHT_APOSTROPHE)
    return [
        _rule("|".join([family_name, vowels_apart, both_o, listed, listed_straight, decade, french_article])),
        _rule(f"(?i:y){_APOSTROPHE}", _ANY_LETTER),  # y'all
    ]


def _addresses() -> list[_Rule]:
    """Of the web and of mail, and the names and topics of social networks."""
    outside = r" \t\n\f\r\"|<>()"  # never inside an address
    sentence_end = r"(?<![.,!?{}-])"  # marks that an address may hold but not end in
    path = f"/[^{outside}]{{2,}}{sentence_end}"
    url = f"(?i:https?://)[^{outside}{{}}]{{2,}}{sentence_end}"
    www = rf"(?i:www\.)(?:[^{outside}{{}}.,!?]+\.)+[A-Za-z]{{2,4}}"
    bare_label = f"[^{outside}{{}}!$'`,-_]+"  # not from comma to underscore: no digit, no capital
    bare = rf"(?:{bare_label}\.)+{_words('com edu net org')}(?:{path})?"
    mailbox = rf"[A-Za-z0-9][^{outside}{{}}\xa0]*"
    mail_label = rf"[^{outside}{{}}\xa0.]+"
    mail = rf"(?:<|(?i:&lt;))?{mailbox}@{mail_label}(?:\.{mail_label})*(?:>|(?i:&gt;))?"
    return [
        _rule(url),
        _rule(www),
        _rule(www + path),  # apart: a host that ends earlier may make the longer address
        _rule(bare),
        _rule(mail),
        _rule("@[A-Za-z_][A-Za-z0-9_]*"),
        _rule(rf"\#{_WORD_LETTER}+"),
    ]


def _file_names() -> list[_Rule]:
    extension = _words(_ARCHIVES, _DOCUMENTS, _FILMS, _PICTURES, _PROGRAMS)
    return [_rule(rf"{_WORD_CHARACTER}+(?:\.{_WORD_CHARACTER}+)*\.{extension}", rf"{_BLANK_OR_NEWLINE}|[!?,.]")]


def _numbers() -> list[_Rule]:
    grouped = rf"[.,:\xad\u066b\u066c]{_ANY_DIGIT}+"
    one_or_two, few = f"{_ANY_DIGIT}{{1,2}}", f"{_ANY_DIGIT}{{1,4}}"
    whole_part, bar = rf"(?:{few}[- \xa0])?", r"(?:\u2044|\\?/)"
    superscript, subscript = r"[\xb2\xb3\xb9\u2070\u2074-\u2079]+", r"[\u2080-\u2089]+"
    return [
        _rule(rf"[+-]?(?:{_ANY_DIGIT}+|{grouped})(?:{grouped})*", rewrite=_soft_hyphens_removed),
        _rule(f"{whole_part}{few}{bar}{few}", rewrite=_blanks_kept_together),
        _rule(r"[\xbc-\xbe\u2153-\u215e]", rewrite=_fraction_in_digits),
        _rule(f"{one_or_two}[/-]{one_or_two}[/-]{_ANY_DIGIT}{{2,4}}"),  # a date
        _rule(rf"[\u207a\u207b\u208a\u208b]?(?:{superscript}|{subscript})"),
        _rule(f"{_APOSTROPHE}[0-9]{{2}}", _BLANK_OR_NEWLINE),  # a year
    ]


def _phone_numbers() -> list[_Rule]:
    country, area, exchange, line = "[0-9]{2,4}", "[0-9]{2,4}", "[0-9]{3,4}", "[0-9]{3,5}"
    plus, gap = r"\+{0,2}", r"[ \xa0-]"
    bracketed_area = r"\([0-9]{2,3}\)[ \xa0]?"
    plain_area = f"{plus}(?:{country}{gap})?{area}{gap}"
    with_gaps = f"(?:{bracketed_area}|{plain_area}){exchange}{gap}?{line}"
    with_stops = rf"(?:{plus}{country}\.)?{area}\.{exchange}\.{line}"
    return [_rule(f"{with_gaps}|{with_stops}", rewrite=lambda token: _parentheses_named(_blanks_kept_together(token)))]


def _abbreviations() -> list[_Rule]:
    proprietary = f"(?![A-Za-z]*[EY]){_words(_PROPRIETARY)}"  # its vowel is a small letter
    tables = _words(_DATES, _STATES, _COMPANIES, _LAST_WORDS)
    abbreviation = rf"(?:{tables}|{_capitalised(_STATES_LIKE_WORDS)}|{proprietary})\."
    title = _words(_RANKS, _TITLES, _FIRST_NAMES, _PLACES, _LINKS)
    acronym = f"(?:{_ACRONYM_WITH_STOPS}|[A-Za-z])"
    next_sentence = f"{_BLANK_OR_NEWLINE}+(?:{_capitalised(_SENTENCE_STARTERS)}|{_TAG}){_BLANK_OR_NEWLINE}"
    return [
        _rule(abbreviation, rf"{_BLANK_OR_NEWLINE}(?:{_BLANK_OR_NEWLINE}|{_ANY_CAPITAL}|{_TAG})"),
        _rule(abbreviation, r"[\s\S]{2}"),
        _rule(abbreviation),
        _rule(rf"(?:{title}|{acronym})\."),
        _rule(f"{title}|{acronym}", _BLANK),
        _rule(acronym, _BLANK_OR_NEWLINE),
        _rule("[A-Za-z]", rf"\.{next_sentence}"),
        _rule(rf"{_ACRONYM_WITH_STOPS}\.", next_sentence),
        _rule(rf"{_words(_BEFORE_NUMBERS)}\.", f"{_BLANK_OR_NEWLINE}?{_ANY_DIGIT}"),
        _rule(rf"{_words('co pte pty')}\.", f"{_BLANK}{_words('lim ltd')}"),
        _rule(rf"{_WORD}\.", _CLAUSE_MARK, _soft_hyphens_removed),
    ]


def _compounds() -> list[_Rule]:
    """Words joined by hyphens, slashes and ampersands, and names with signs in them."""
    hyphened = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_ACRONYM_WITH_STOPS}\.|[A-Za-z0-9\xad]+))+"
    part = f"(?:[DLOdlo]{_APOSTROPHE_OR_BACKQUOTE}{_ALPHANUMERIC})?{_ALPHANUMERIC}+"
    any_hyphen = r"[-_\u058a\u2010\u2011]"
    compound = f"{part}(?:{any_hyphen}{part})*"
    initials = rf"[A-Z]+(?:(?:\+|{_AMPERSAND})[A-Z]+)+"
    choice = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    return [
        _rule(hyphened, rewrite=_soft_hyphens_removed),
        _rule(rf"{hyphened}\.", _CLAUSE_MARK, _soft_hyphens_removed),
        _rule(compound),
        _rule(rf"{compound}\.", _CLAUSE_MARK),
        _rule(initials, rewrite=_ampersands_plain),
        _rule(rf"{initials}\.", _CLAUSE_MARK, _ampersands_plain),
        _rule(rf"{choice}(?:\\?/{choice}){{1,2}}"),
        _rule(rf"{_words('anti- c.d.s pro-')}|(?i:s){_AMPERSAND}(?i:ls|p-500)", rewrite=_ampersands_plain),
        _rule(r"[Cc](?:\+\+|\#)|[Ff]\#"),
    ]


def _faces() -> list[_Rule]:
    brow, eyes, nose = "[<>]", "[:;=]", "['*o-]"
    mouth = r"(?:[()\[\]{]|[Dd]|[Pp]|[@O]|[|\\])"  # lips, a laugh, a tongue, a shout, a straight face
    lying = f"{brow}?{eyes}{nose}?{mouth}"
    eye, open_eye = "['<=>^x~-]", "['<=>^x~]"
    upright = rf"{eye}_{eye}|\({eye}[._]?{eye}\)|\({open_eye}-(?:{open_eye}|`)\)"
    endless = r"[<=>^x~]\.\[\^[Xx]=[^<]*<>\]"  # a slip of the tool: it runs on to the next "<>]"
    return [
        _rule(lying, "[^A-Za-z0-9]", _parentheses_named),
        _rule(f"{upright}|{endless}", rewrite=_parentheses_named),
    ]


def _markup() -> list[_Rule]:
    return [
        _rule(_TAG, rewrite=_blanks_kept_together),
        _rule("<|(?i:&lt;)", rewrite=lambda _: "<"),
        _rule(">|(?i:&gt;)", rewrite=lambda _: ">"),
        _rule("<<|>>"),
        _rule("(?i:&amp;)", rewrite=_ampersands_plain),
        _rule(f"&{_words('cdq ht lr odq qc ql qr tl ur')};|&#[0-9]+;"),
        _rule(f"{_BLANK}+|(?i:&nbsp;)", rewrite=lambda _: ""),
    ]


def _marks() -> list[_Rule]:
    currency = r"[\x80\xa2-\xa5\u060b\u0e3f\u20a0\u20a4\u20ac\uffe0\uffe1\uffe5\uffe6]"
    return [
        _rule(r"[()\[\]{}]", rewrite=_brackets_named),
        _rule(f"-{_words('lcb lrb lsb rcb rrb rsb')}-"),
        _rule("-+", rewrite=_dashes),
        _rule(rf"[\x96\x97\u2013-\u2015]|&{_words('md mdash ndash')};", rewrite=lambda _: "--"),
        _rule(r"[\x85\u2026]|\.{3,5}|(?:\.[ \xa0]){2,4}\.", rewrite=lambda _: "..."),
        _rule(r"[.,:;\u3001/=]"),
        _rule(r"[!?]+|@+|\#+|\*+|_+|(?:\\\*){1,3}"),
        _rule(r"\#|[A-Z]*\$"),
        _rule(currency, rewrite=_currency_of_the_treebank),
        _rule(rf"[%&+\\^|~{_SYMBOL}{_SYMBOL_CAPITAL}\u2044\u207a\u207b\u208a\u208b]"),
    ]


def _quotes() -> list[_Rule]:
    """Quotation marks, and the contractions that look like one: "'s" behind a word, "'s" opening a quotation."""
    double_quote = r"(?:\"|(?i:&quot;))"
    return [
        _rule(double_quote, "[A-Za-z0-9$]", _opening_quote),
        _rule(double_quote, rewrite=_quotes_plain),
        _rule(f"{_CONTRACTION}|{_NEGATION}", "[^A-Za-z]", _quotes_plain),
        _rule("'", r"[A-Za-z][^ \t\n\r\xa0]", _opening_quote),
        _rule(f"{_CONTRACTION}|{_NEGATION}", rewrite=_quotes_plain),
        _rule(rf"''|[`\x91-\x94\u2018-\u201f\u2039\u203a\xab\xbb]{{1,2}}|{_APOSTROPHE}", rewrite=_quotes_plain),
    ]


_RULES = [
    *_split_words(),
    *_simple_words(),
    *_words_with_apostrophes(),
    *_addresses(),
    *_abbreviations(),
    *_compounds(),
    *_numbers(),
    *_phone_numbers(),
    *_file_names(),
    *_faces(),
    *_markup(),
    *_marks(),
    *_quotes(),
]
