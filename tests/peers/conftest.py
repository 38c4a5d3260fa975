"""What the packages need to be found."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# The helpers of tests/, and what benchmarks share with this.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from alone import find_alone  # noqa: E402

find_alone("timm", "optim")
