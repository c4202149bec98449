"""Calibration and the audit of gendered words, as tables for people and as JSON for programs."""

import math
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from captioner.metrics.gender import GenderAudit
from captioner.metrics.report import WIDTH_OF_FILES
from captioner.metrics.score import Interval
from captioner.metrics.trust import Trust


def print_trust(trust: Trust) -> None:
    """Print how far confidences can be trusted."""
    intervals = trust.intervals()
    table = Table(
        "confidence", title=f"{len(trust.confidence)} captions, acceptable from CIDEr-D {trust.threshold:.3f} on"
    )
    table.add_column("", justify="right")
    table.add_column("95 % interval", justify="center", no_wrap=True)
    first, last = trust.halves
    rows = [
        ("mean confidence", trust.confidence.mean(), None),
        ("acceptable captions", trust.acceptable.mean(), None),
        ("ECE, 15 equal-mass bins", trust.ece, intervals.get("ece")),
        ("ECE without bias correction", trust.plug_in_ece, None),
        ("the same of perfect confidences", trust.calibration_noise, None),
        ("AUROC", trust.auroc, intervals.get("auroc")),
        ("area under risk-coverage", trust.aurc, intervals.get("aurc")),
        ("CIDEr, most confident half", first, None),
        ("CIDEr, least confident half", last, None),
    ]
    for name, value, interval in rows:
        table.add_row(name, f"{value:.4f}", _interval(interval))
    _print(table)


def print_audit(audit: GenderAudit) -> None:
    table = Table("images of", title="gendered words that contradict the references")
    for column in ("images", "captions with gender", "contradicting", "share"):
        table.add_column(column, justify="right")
    table.add_column("95 % interval", justify="center", no_wrap=True)
    for gender, found in audit.contradictions.items():
        counts = map(str, (found.images, found.gendered, found.contradicting))
        table.add_row(gender, *counts, _share(found.share), _interval(found.interval))
    _print(table)
    if not audit.associations:
        return
    table = Table("word", "gender", title="associations: how often a word comes with its usual gender")
    for column in ("references", "captions", "amplification"):
        table.add_column(column, justify="right")
    table.add_column("95 % interval", justify="center", no_wrap=True)
    for each in audit.associations:
        shares = (_share(each.in_references), _share(each.in_captions))
        table.add_row(each.word, each.gender, *shares, f"{each.amplification:+.3f}", _interval(each.interval))
    table.add_row("mean", "", "", "", f"{audit.mean_amplification:+.3f}", _interval(audit.mean_interval))
    _print(table)


def trust_as_json(trust: Trust) -> dict[str, Any]:
    intervals = trust.intervals()
    coverage, risk = trust.risk_coverage
    first, last = trust.halves
    return {
        "captions": len(trust.confidence),
        "acceptable_from_cider": trust.threshold,
        "acceptable": float(trust.acceptable.mean()),
        "mean_confidence": float(trust.confidence.mean()),
        "ece": {"value": trust.ece, **_bounds(intervals.get("ece"))},
        "ece_plug_in": trust.plug_in_ece,
        "ece_plug_in_of_perfect_confidences": trust.calibration_noise,
        "auroc": {"value": _number(trust.auroc), **_bounds(intervals.get("auroc"))},
        "aurc": {"value": trust.aurc, **_bounds(intervals.get("aurc"))},
        "cider_of_most_confident_half": first,
        "cider_of_least_confident_half": last,
        "risk_coverage": {"coverage": coverage.tolist(), "risk": risk.tolist()},
    }


def audit_as_json(audit: GenderAudit) -> dict[str, Any]:
    return {
        "contradictions": {
            gender: {
                **{name: getattr(found, name) for name in ("images", "gendered", "contradicting")},
                **{"share": _number(found.share), **_bounds(found.interval)},
            }
            for gender, found in audit.contradictions.items()
        },
        "associations": [each._asdict() | {"interval": _bounds(each.interval)} for each in audit.associations],
        "mean_amplification": {"value": _number(audit.mean_amplification), **_bounds(audit.mean_interval)},
    }


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES).print(table)


def _interval(interval: Interval | None) -> str:
    return "" if interval is None or math.isnan(interval.low) else f"{interval.low:.4f} .. {interval.high:.4f}"


def _bounds(interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": _number(low), "high": _number(high)}


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else value
