"""Mutants: changes that break the package, one at a time, and the tests that are to notice.

`before` stands once in `file`; `tests` are what pytest is given. A change of a rule or of one source takes seconds to
build, so there are few of headers that every rule or every binding includes.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str
    before: str
    after: str
    why: str
    tests: str
    emulated: bool = False  # the tests step on the emulated CUDA engine, which has to be built anew
