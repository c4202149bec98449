"""Caption metrics equal to the official COCO scorer's, without Java: strings in, floats out. Needs NumPy alone."""

from captioner.metrics.cider import CiderDReward
from captioner.metrics.ptb import tokenize
from captioner.metrics.score import FAST_METRICS, METRICS, Scores, score_captions

__all__ = ["FAST_METRICS", "METRICS", "CiderDReward", "Scores", "score_captions", "tokenize"]
