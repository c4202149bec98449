"""How far reviewers agree where two of them decided on the same photo."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from captioner.annotate.project import Project, stacks

_Choice = tuple[str, int | None]
"""A verdict, and the caption that it is about."""


@dataclass(frozen=True)
class Pair:
    """Two reviewers and the photos that both decided on.

    Attributes:
        same_verdict: share of photos that both keep or both reject; accepting and editing are both keeping.
        kappa: the same beyond chance (Cohen 1960, https://doi.org/10.1177/001316446002000104): 1 agree always, 0 as
            often as by chance; None where both always decide alike, since chance explains that too.
        same_caption: share of those photos that both keep with the same text.
    """

    reviewers: tuple[str, str]
    photos: int
    same_verdict: float
    kappa: float | None
    same_caption: float


@dataclass(frozen=True)
class Agreement:
    """What each reviewer decided, and how far each two agree."""

    verdicts: dict[str, dict[str, int]]
    pairs: list[Pair]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(project: Project) -> Agreement:
    """Compare reviewers by the last decision of each on a photo, leaving out those that were undone."""
    verdicts: dict[str, Counter[str]] = {}
    seen_by: dict[tuple[str, str], list[tuple[_Choice, _Choice]]] = {}
    for (image,) in project.rows("SELECT DISTINCT image FROM decisions ORDER BY image"):
        last: dict[str, _Choice] = {}
        for decision in stacks(project.history(image))[0]:
            if decision.verdict is None:  # withdrawn
                last.pop(decision.reviewer, None)
            else:
                last[decision.reviewer] = (decision.verdict, decision.caption)
        for reviewer, (verdict, _) in last.items():
            verdicts.setdefault(reviewer, Counter())[verdict] += 1
        for first, second in combinations(sorted(last), 2):
            seen_by.setdefault((first, second), []).append((last[first], last[second]))
    texts = dict(map(tuple, project.rows("SELECT id, text FROM captions WHERE id IN (SELECT caption FROM decisions)")))
    pairs = [_pair(reviewers, choices, texts) for reviewers, choices in sorted(seen_by.items())]
    return Agreement({reviewer: dict(counts) for reviewer, counts in sorted(verdicts.items())}, pairs)


def _pair(reviewers: tuple[str, str], choices: Sequence[tuple[_Choice, _Choice]], texts: dict[int, str]) -> Pair:
    keeps = [(first[0] != "rejected", second[0] != "rejected") for first, second in choices]
    both = [choice for choice, kept in zip(choices, keeps, strict=True) if all(kept)]
    same = [texts.get(first[1] or 0) == texts.get(second[1] or 0) for first, second in both]
    observed = sum(first == second for first, second in keeps) / len(keeps)
    return Pair(
        reviewers=reviewers,
        photos=len(choices),
        same_verdict=observed,
        kappa=_kappa(keeps, observed),
        same_caption=sum(same) / len(same) if same else 0.0,
    )


def _kappa(keeps: Sequence[tuple[bool, bool]], observed: float) -> float | None:
    first, second = (sum(kept[side] for kept in keeps) / len(keeps) for side in (0, 1))
    by_chance = first * second + (1 - first) * (1 - second)
    return None if by_chance == 1 else (observed - by_chance) / (1 - by_chance)
