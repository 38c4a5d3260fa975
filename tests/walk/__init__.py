"""Random walks over optimizers, their options and what happens to them: `python -m tests.walk --help`."""

import sys
from pathlib import Path

# Tests find each other by plain name, under pytest and here.
_TESTS = str(Path(__file__).parents[1])
if _TESTS not in sys.path:
    sys.path.insert(0, _TESTS)
