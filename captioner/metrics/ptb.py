r"""Penn Treebank tokenisation as the official COCO caption scorer does it, without Java.

The official scorer pipes captions through Stanford's `PTBTokenizer -preserveLines -lowerCase` (CoreNLP 3.4.1) and
then drops a fixed list of punctuation tokens. That tokenizer is a longest-match lexer: at each position, of all rules,
the one that matches most characters wins, the context it asks for behind the token included; of equally long matches,
the earlier rule wins. `_RULES` has its language and order of precedence, as measured against the Java tool.
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
    keeps its stop unless the next caption starts with "The". Line breaks inside a caption count as blanks.

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
        next_starts_with_digit = text[end + 1 : end + 2].isdecimal()  # "no." is an abbreviation before a number
        if _PLAIN_LINE.fullmatch(line) and not next_starts_with_digit:
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
        if quick := _QUICK_WORD.match(kinds, start):
            tokens.append(quick[1].lower())
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
        if token and token not in PUNCTUATION:
            tokens.append(token)
    if tokens:
        tokens[-1] = tokens[-1].rstrip()  # a web address may end in a wide blank; the official scorer strips lines
    return tokens


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


# ---- the rules -----------------------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    pattern: re.Pattern[str]  # group 1 is the token; context behind it may follow
    rewrite: Callable[[str], str] | None


def _rule(token: str, context: str = "", rewrite: Callable[[str], str] | None = None) -> _Rule:
    return _Rule(re.compile(f"({token})(?:{context})"), rewrite)


def _words(*alternatives: str) -> str:
    """Any of the words, upper or lower case."""
    return f"(?i:{'|'.join(word for words in alternatives for word in words.split())})"


_ABBREVIATIONS = """
jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri
ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo
(?-i:[A])rk (?-i:[A])z (?-i:[D])el (?-i:[I])ll (?-i:[L])a (?-i:[M])ass (?-i:[M])iss (?-i:[O])re (?-i:[P])a (?-i:[T])ex
(?-i:[W])ash assn bancorp bhd bros cos? corp inc intl ltd plc pp?t(?-i:[ye])s? rt sys univ
al bldg blvd (?:ed|ph)\\.d esq est etc ext jr rd seq sq sr tel"""
_TITLES = """
adj adm adv alex assoc asst attys? ave brig capt cf cie co?mdr col cpl dept det drs? elec ens ft gen govs? hon insp invt
jos lieut lt maj messrs m[ft]g mlle mme mrs? ms msgr mt natl pfc ph pres profs? pvt reps? rev sens? sfc sgt spc ste?
supts? treas vs wm"""
_BEFORE_NUMBERS = "art bldg ca figs? nos? op pp prop"
_SPLIT = "cannot gonna gotta lemme gimme wanna"

# The quick path inside a line: a word before a blank, a comma and a blank, or a full stop that can only be one.
_QUICK_WORD = re.compile(
    rf"(?!{_words(_SPLIT)}[., \n])(?!(?:[A-Za-z]|{_words(_ABBREVIATIONS, _TITLES, _BEFORE_NUMBERS, 'pt[ey]')})\.)"
    r"([A-Za-z]+)(?:,?(?=[ \n])|\.(?=\n)|(?=\. ))"
)


def _build_rules() -> list[_Rule]:
    blank = r"[ \t\xa0\u2000-\u200a\u3000]"
    blank_or_newline = r"[ \t\xa0\u2000-\u200a\u3000\n\x85]"
    digit = f"[0-9{_DIGIT}]"
    plain_letter = f"[A-Za-z{_LETTER}{_CAPITAL}\u0130\u0131\u017f\u212a]"
    capital = f"[A-Z{_CAPITAL}{_NUMERAL_CAPITAL}{_SYMBOL_CAPITAL}\u0130\u212a]"
    letter = (
        rf"(?:[A-Za-z{_LETTER}{_CAPITAL}{_MARK}\xad\u0130\u0131\u017f\u212a]|&[aeiouAEIOU]{_words('acute grave uml')};)"
    )
    letter_or_digit = f"(?:{letter}|{digit})"
    plain_letters = f"(?:{plain_letter}|{digit})"
    clause_mark = r"[,;:\u3001]"
    ampersand = "(?i:&amp;|&)"
    apostrophe = r"(?:['\x92\u2019]|(?i:&apos;))"
    any_apostrophe = r"(?:['\x92\u2019`\x91\u2018\u201b]|(?i:&apos;))"
    double_quote = r"(?:\"|(?i:&quot;))"

    word = rf"{letter}{letter_or_digit}*(?:[.!?]{letter}{letter_or_digit}*)*"
    contraction = f"{apostrophe}(?:[msdMSD]|{_words('re ve ll')})"
    negation = f"(?i:n){any_apostrophe}(?i:t)"
    hyphen = r"[-_\u058a\u2010\u2011]"
    d_or_l = f"[dDoOlL]{any_apostrophe}{plain_letters}"
    compound = f"(?:{d_or_l})?{plain_letters}+(?:{hyphen}(?:{d_or_l})?{plain_letters}+)*"
    joined_by_slash = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    joined_by_ampersand = rf"[A-Z]+(?:(?:\+|{ampersand})[A-Z]+)+"

    separated_digits = rf"[.:,\xad\u066b\u066c]{digit}+"
    number = rf"[-+]?(?:{digit}+(?:{separated_digits})*|(?:{separated_digits})+)"

    nations = _words(r"(?:canada|sino|korean|eu|japan|non)-u\.s u\.s\.-u\.s\.s\.r u\.s\.-u\.k")
    long_acronym = rf"(?:{nations}|[A-Za-z](?:\.[A-Za-z])+)"
    acronym = f"(?:{long_acronym}|[A-Za-z])"
    hyphenated = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{long_acronym}\.|[A-Za-z0-9\xad]+))+"
    abbreviation = rf"{_words(_ABBREVIATIONS)}\."  # a capital behind it starts a sentence
    title = _words(_TITLES)
    name = r"[A-Za-z][A-Za-z0-9_:.\-]*"
    attribute = rf"{name}(?: *= *(?:'[^'\n]*'|\"[^\"\n]*\"))?"
    tag = rf"<(?:[!?][A-Za-z\-][^>\n]*|{name}(?: +{attribute})* */?|/{name}) *>"
    starters = """about according additionally after an a as at but earlier he her here however if in it last many more
        mr\\. ms\\. now once one other our she since so some such that the their then there these they this we when
        while what yet you"""
    capitalised = "|".join(rf"[{word[0].upper()}](?i:{word[1:]})" for word in starters.split())
    sentence_start = rf"{blank_or_newline}+(?:{capitalised}|{tag}){blank_or_newline}"

    not_in_url = r" \t\n\f\r\"<>|()"
    path = rf"(?:/[^{not_in_url}]+[^{not_in_url}.!?{{}},\-])"
    host = rf"[^{not_in_url}{{}}.\xa0]+"
    email = rf"(?:(?i:&lt;)|<)?[a-zA-Z0-9][^{not_in_url}\xa0{{}}]*@(?:{host}\.)*{host}"
    extensions = _words(
        """bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py sql tar
        txt wav x xml zip"""
    )

    return [
        _rule(r"[cC]\+\+|[cCfF]\#"),
        _rule("(?i:can)", "(?i:not)"),
        _rule("(?i:'t)", "(?i:was)"),
        _rule(f"{apostrophe}(?i:t)", "(?i:is)"),
        _rule("(?i:gon|wan)", "(?i:na)"),
        _rule("(?i:got)", "(?i:ta)"),
        _rule("(?i:lem|gim)", "(?i:me)"),
        _rule(tag, rewrite=_blanks_kept_together),
        _rule(rf"&{_words('md mdash ndash')};|[\x96\x97\u2013-\u2015]", rewrite=lambda _: "--"),
        _rule("(?i:&amp;)", rewrite=_ampersands_plain),
        _rule(f"&{_words('ht tl ur lr qc ql qr odq cdq')};|&#[0-9]+;"),
        # words
        _rule(word, contraction, _soft_hyphens_removed),
        _rule(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", negation, _soft_hyphens_removed),
        _rule(word, rewrite=_soft_hyphens_removed),
        _rule(
            rf"[A-HJ-XZn]{any_apostrophe}{plain_letter}{{2,}}"
            rf"|{plain_letter}+[aeiouyAEIOUY]{any_apostrophe}[aeiouA-Z]{plain_letter}*"
            rf"|[lLdDjJ]{apostrophe}|{_words('dunkin somethin ol')}{apostrophe}|(?i:o){any_apostrophe}(?i:o)"
            rf"|{apostrophe}(?:(?i:n){apostrophe}|{_words('em till? cause n')}|[2-9]0(?i:s))"
            rf"|{_words('''cont'd[.] cont'd nor'easter c'mon e'er s'mores ev'ry li'l nat'l''')}"
        ),
        _rule(f"(?i:y){apostrophe}", plain_letter),
        # addresses
        _rule(rf"(?i:https?://)[^{not_in_url}{{}}]+[^{not_in_url}.!?{{}},\-]"),
        _rule(rf"(?i:www\.)(?:[^{not_in_url}.!?{{}},]+\.)+[a-zA-Z]{{2,4}}{path}?"),
        _rule(rf"(?:[^{not_in_url}`'.!?{{}},-_$]+\.)+{_words('com net org edu')}{path}?"),
        _rule(email),
        _rule(f"{email}(?:(?i:&gt;)|>)"),
        _rule(r"@[a-zA-Z_][a-zA-Z_0-9]*"),
        _rule(rf"\#{letter}+"),
        _rule(contraction, "[^A-Za-z]", _quotes_plain),
        _rule(negation, "[^A-Za-z]", _quotes_plain),
        # numbers
        _rule(rf"{digit}{{1,2}}[-/]{digit}{{1,2}}[-/]{digit}{{2,4}}"),
        _rule(number, rewrite=_soft_hyphens_removed),
        _rule(r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
        _rule(
            rf"(?:{digit}{{1,4}}[- \xa0])?{digit}{{1,4}}(?:\\?/|\u2044){digit}{{1,4}}", rewrite=_blanks_kept_together
        ),
        _rule(r"[\xbc\xbd\xbe\u2153-\u215e]", rewrite=_fraction_in_digits),
        _rule(
            rf"-{_words('rrb lrb rcb lcb rsb lsb')}-|(?i:c\.d\.s|pro-|anti-|s{ampersand}p-500|s{ampersand}ls)"
            rf"|(?i:cap){apostrophe}(?i:n)|(?i:c){apostrophe}(?i:est)",
            rewrite=_ampersands_plain,
        ),
        _rule(rf"{joined_by_slash}(?:\\?/{joined_by_slash}){{1,2}}"),
        _rule(r"[A-Z]*\$|\#"),
        _rule(
            r"[\x80\xa2-\xa5\u060b\u0e3f\u20a0\u20a4\u20ac\uffe0\uffe1\uffe5\uffe6]", rewrite=_currency_of_the_treebank
        ),
        # abbreviations
        _rule("[A-Za-z]", rf"\.{sentence_start}"),
        _rule(rf"{long_acronym}\.", sentence_start),
        _rule(rf"{_words(_BEFORE_NUMBERS)}\.", f"{blank_or_newline}?{digit}"),
        _rule(r"(?:(?i:pt)[eyEY]|(?i:co))\.", f"{blank}{_words('ltd lim')}"),
        _rule(abbreviation, f"{blank_or_newline}(?:{blank_or_newline}|{capital}|{tag})"),
        _rule(abbreviation, r"[\s\S]{2}"),
        _rule(abbreviation),
        _rule(rf"(?:{title}|{acronym})\."),
        _rule(f"{title}|{acronym}", blank),
        _rule(acronym, blank_or_newline),
        _rule(f"{apostrophe}[0-9]{{2}}", blank_or_newline),
        _rule(rf"{letter_or_digit}+(?:\.{letter_or_digit}+)*\.{extensions}", rf"{blank_or_newline}|[.,?!]"),
        _rule(rf"{word}\.", clause_mark, _soft_hyphens_removed),
        _rule(
            r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
            r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
            r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
            rewrite=lambda token: _parentheses_named(_blanks_kept_together(token)),
        ),
        # punctuation
        _rule(double_quote, "[A-Za-z0-9$]", _opening_quote),
        _rule(double_quote, rewrite=_quotes_plain),
        _rule("<|(?i:&lt;)", rewrite=lambda _: "<"),
        _rule(">|(?i:&gt;)", rewrite=lambda _: ">"),
        _rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _parentheses_named),
        _rule(
            r"[\^x=~<>]\.\[\^[xX]=[^<]*<>\]|[-^x=~<>']_[-^x=~<>']"
            r"|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",
            rewrite=_parentheses_named,
        ),
        _rule(r"[{}\[\]()]", rewrite=_brackets_named),
        _rule("-+", rewrite=_dashes),
        _rule(r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85\u2026]", rewrite=lambda _: "..."),
        _rule(r"@+|\#+|_+|\*+|(?:\\\*){1,3}|[?!]+"),
        _rule(r"[.,;:\u3001=/]"),
        # words with hyphens and other joints
        _rule(rf"{hyphenated}\.", clause_mark, _soft_hyphens_removed),
        _rule(hyphenated, rewrite=_soft_hyphens_removed),
        _rule(rf"{compound}\.", clause_mark),
        _rule(compound),
        _rule(rf"{joined_by_ampersand}\.", clause_mark, _ampersands_plain),
        _rule(joined_by_ampersand, rewrite=_ampersands_plain),
        # quotes and the rest
        _rule("'", r"[A-Za-z][^ \t\n\r\xa0]", _opening_quote),
        _rule(contraction, rewrite=_quotes_plain),
        _rule(negation, rewrite=_quotes_plain),
        _rule(rf"''|[`\x91-\x94\u2018-\u201f\u2039\u203a\xab\xbb]{{1,2}}|{apostrophe}", rewrite=_quotes_plain),
        _rule("<<|>>"),
        _rule(rf"[+%&~^|\\{_SYMBOL}{_SYMBOL_CAPITAL}\u2044\u207a\u207b\u208a\u208b]"),
        _rule(f"{blank}+|(?i:&nbsp;)", rewrite=lambda _: ""),
    ]


_RULES = _build_rules()
