"""Microbenchmarks of optimizer steps: ``python -m fusedopt.bench``, and ``compare`` for your own model."""

from .comparison import compare
from .report import BenchError, Finding, Report

__all__ = ["BenchError", "Finding", "Report", "compare"]
