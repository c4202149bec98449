"""English words that tell a person's gender, and neutral ones: for the audit and for `--neutral-people`."""

import re

MALE = {
    **dict.fromkeys(("man", "guy", "gentleman", "dude"), "person"),
    **dict.fromkeys(("men", "guys", "gentlemen", "dudes", "males"), "people"),
    **dict.fromkeys(("boy", "son"), "child"),
    **dict.fromkeys(("boys", "sons"), "children"),
    **{"father": "parent", "dad": "parent", "grandfather": "grandparent", "brother": "sibling", "brothers": "siblings"},
    **{"husband": "partner", "groom": "partner", "he": "they", "him": "them", "his": "their", "himself": "themselves"},
    "male": "",
}
"""Each word and its neutral counterpart; an adjective has none, and is left out."""

FEMALE = {
    **dict.fromkeys(("woman", "lady", "gal"), "person"),
    **dict.fromkeys(("women", "ladies", "gals", "females"), "people"),
    **dict.fromkeys(("girl", "daughter"), "child"),
    **dict.fromkeys(("girls", "daughters"), "children"),
    **{"mother": "parent", "mom": "parent", "grandmother": "grandparent", "sister": "sibling", "sisters": "siblings"},
    **{"wife": "partner", "bride": "partner", "she": "they", "her": "their", "herself": "themselves", "female": ""},
}

NEUTRAL = MALE | FEMALE

_GENDERED = re.compile(rf"\b({'|'.join(sorted(NEUTRAL, key=len, reverse=True))})\b", re.IGNORECASE)


def neutralized(caption: str) -> str:
    """A reference with neutral words in place of gendered ones, to measure neutral captions against. Its grammar may
    suffer ("he is" becomes "they is"), so it is not for writing captions."""
    return " ".join(_GENDERED.sub(lambda found: NEUTRAL[found[0].lower()], caption).split())
