"""Compare captioner's tokenizer with the official Java one, caption by caption; print one JSON line for each corpus.

    python benchmarks/ptb_parity.py [--hard 10000] [--seed 0]

Corpora: the references of the folder CAPTIONER_COCO, the raw captions of CAPTIONER_FLICKR8K (where set), and generated
difficult strings. Needs Java and the development dependency pycocoevalcap. Exits with status 1 if any caption differs.
"""

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from captioner.metrics.ptb import tokenize

PIECES = {
    "words": (
        "a the man Woman dog's snow-covered t-shirt skateboarder McDonald's O'Brien d'Avignon l'eau rock'n'roll "
        "cannot Gonna gotta WANNA lemme gimme dunno 'twas 'tis y'all o'clock ma'am ol' 'em 'til '90s '85 "
        "students' isn't can't won't DON'T she'll I'm they've we'd he's cain't ain't n't 's 're it's'"
    ),
    "abbreviations": (
        "Mr. Mrs. Dr. St. Inc. Co. Ltd. Jr. Sr. vs. etc. e.g. i.e. U.S. U.S.A. U.K. D.C. N.Y. Ph.D. a.m. p.m. No. "
        "no. Fig. fig. pp. Jan. Sept. Mon. Ave. Blvd. Calif. Wash. wash. Miss. miss. Mass. Ill. ill. A. I. b. "
        "approx. ca. Wii-U. J.R.R. non-U.S. pty. Mt. Ft. cont'd. Sens. Govs. Del. tex. Pa. AT&T Q&A R&B S&P-500 "
        "C.D.s A&amp;M B+B"
    ),
    "followers": "The the He A a It ltd. limited After 5 12 <b> Yet yet",
    "numbers": (
        "5 12 1,000 3.14 .5 -5 +7 1/2 3/4 5-1/2 1\u20442 \u00bd \u2153 \u215e 10:30 7:05pm 2:30 1990s 1st 22nd "
        "3-D 4x4 1-2-3 12/25/2013 2014-01-02 555-1234 (555) 555-5555 1-800-555-1234 +44 20 7946 0958 555.123.4567 "
        "6'2\" 5'10 100% #1 $5 $3.50 US$5 \u00a35 \u20ac10 \u00a5 50\u00a2 10\u00b0 m\u00b2 x\u00b3 H\u2082O "
        "1\u00ad000 1.2.3.4 ٣٫٥"
    ),
    "addresses": (
        "http://www.example.com/a?b=c https://t.co/x) www.flickr.com flickr.com photo.jpg IMG_1234.JPG a/b.html, "
        "me@x.org <me@x.com> mailto:a.b@c.de @user_1 #hashtag #tag_2 #1 foo.net/bar. example.co.uk readme.txt? "
        "c++ C# f# b.mp3!"
    ),
    "marks": (
        ". , ; : ! ? !! ?! ... .... ..... . . . \u2026 - -- --- ---- ----- \u2013 \u2014 \u2015 \u2010 _ __ / \\ "
        "| ~ ^ * ** = == + & && @ @@ # ## % < > << >> <3 \u2022 \u00b7 \u00a9 \u2122 \u00a7 \u2190 \u266b \u2605 "
        "\u00a1 \u00bf"
    ),
    "quotes": (
        "\" ' ` `` '' \u201c \u201d \u2018 \u2019 \u201a \u201e \u00ab \u00bb \u2039 \u203a \u201b \u0091 \u0092 "
        '\u0093 \u0094 " \u201d\u2019 &quot; &apos; \u00b4'
    ),
    "brackets": "( ) [ ] { } (a) [b] {c} (( )) -LRB- -RRB- :) :( ;-) :D =P <3 ^_^ (^_^) (-: >:( :'( ()",
    "entities": (
        '&amp; &lt; &gt; &nbsp; &mdash; &ndash; &eacute; caf&eacute; &#39; &HT; &AMP; <b> </b> <br/> <a href="x"> '
        "<!-- z --> <img src='q' /> <p <1>"
    ),
    "letters": (
        "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u00c9cole \u0141\u00f3d\u017a stra\u00dfe \u0130stanbul \u017fo "
        "\u212aelvin \ufb01sh \u0391\u03b8\u03ae\u03bd\u03b1 \u041c\u043e\u0441\u043a\u0432\u0430 \u5317\u4eac "
        "\u65e5\u672c\u8a9e \ud55c\uad6d e\u0301t\u00e9 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 "
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 co\u00adoperate soft\u00ad \u00ad \u01c5 \u2167 "
        "\u24b6"
    ),
    "emoji": (
        "\U0001f600 \U0001f415\U0001f415 \u2764\ufe0f \U0001f1eb\U0001f1f7 \U0001f468\u200d\U0001f469 \u263a "
        "\u2713 http://x.com/\U0001f600 \U0001f3c2ing"
    ),
    "blanks": "\u00a0 \u2009 \u3000 \u200b \ufeff \t \u0001 \u007f",
}
LETTERS = "aAbBeEiInNsStTuUyY019.,'-/&$#@\u00e9\u2019\u00ad _:;!?\"()<>=+*`\u201c\u2014"


def hard_strings(count: int, seed: int = 0) -> list[str]:
    """Captions of all that the tokenizer has a rule for, joined with and without blanks, and of random characters."""
    rng = random.Random(seed)
    pieces = {kind: text.split(" ") for kind, text in PIECES.items()}
    kinds = list(pieces)
    return [" ".join(_hard_string(rng, pieces, kinds).split("\n")) for _ in range(count)]


def _hard_string(rng: random.Random, pieces: dict[str, list[str]], kinds: list[str]) -> str:
    if rng.random() < 0.2:
        return "".join(rng.choices(LETTERS, k=rng.randint(1, 30)))
    if rng.random() < 0.2:  # short pieces run together: here two rules most often match equally many characters
        short = [piece for kind in kinds for piece in pieces[kind] if len(piece) <= 6]
        return "".join(rng.choice(short) + rng.choice(["", "", "", " ", rng.choice(LETTERS)]) for _ in range(4))
    favourite = rng.choice(kinds)
    text = ""
    for _ in range(rng.randint(1, 8)):
        piece = rng.choice(pieces[rng.choice([favourite, "words", rng.choice(kinds)])])
        piece = rng.choice([piece, piece, piece, piece.upper(), piece.capitalize()])
        text += piece + rng.choice(["", "", " ", " ", " ", " ", ".", ", ", "'s ", "-"])
    return text


def official(captions: list[str]) -> list[str]:
    """The official tokens of each caption, joined by blanks."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenized = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    return [tokenized[i][0] for i in range(len(captions))]


def _corpora(hard: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    if folder := os.environ.get("CAPTIONER_COCO"):
        annotations = json.loads((Path(folder) / "references.json").read_text())["annotations"]
        yield "coco references", [annotation["caption"] for annotation in annotations]
    if folder := os.environ.get("CAPTIONER_FLICKR8K"):
        images = json.loads((Path(folder) / "dataset_flickr8k.json").read_text())["images"]
        yield "flickr8k raw captions", [sentence["raw"] for image in images for sentence in image["sentences"]]
    yield "hard strings", hard_strings(hard, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hard", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if shutil.which("java") is None:
        sys.exit("the official tokenizer needs Java")
    differing = 0
    for name, captions in _corpora(options.hard, options.seed):
        pairs = zip(captions, map(" ".join, tokenize(captions)), official(captions), strict=True)
        different = [(caption, ours, theirs) for caption, ours, theirs in pairs if ours != theirs]
        differing += len(different)
        for caption, ours, theirs in different[:20]:
            print(f"{caption!r}\n  ours     {ours!r}\n  official {theirs!r}", file=sys.stderr)
        print(json.dumps({"corpus": name, "captions": len(captions), "different": len(different)}))
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
