"""Reads images and their captions from every layout that they are kept in; see `layouts` for which."""

from captioner.data.sources.layouts import iter_samples, load_samples
from captioner.data.sources.sample import Sample, Skip, SourceError

__all__ = ["Sample", "Skip", "SourceError", "iter_samples", "load_samples"]
