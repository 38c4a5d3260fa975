"""README and docs: code runs as it stands, tables are those of the sources, links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bytes_per_param
import pytest
import torch
import torch_versions
from tiers import slow

import fusedopt
from fusedopt._core.optimizer import FusedStep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
# What can be run is Python, and C++ for compile_rule. The rest is for a shell, for Sphinx, or was printed by something.
NOT_RUN = ("sh", "text", "{toctree}", "{eval-rst}", "{include}")
GPU = "<!-- needs a GPU -->"
# Its examples need two processes, and are run in them by tests of their own.
ELSEWHERE = DOCS / "distributed.md"

BLOCK = re.compile(r"^(?P<mark>" + GPU + r"\n)?```(?P<language>.*)\n(?P<code>(?:.*\n)*?)```$", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Language, code, and whether it needs a GPU, of each fenced block."""
    for found in BLOCK.finditer(path.read_text()):
        yield found["language"].split()[0] if found["language"] else "", found["code"], bool(found["mark"])


def has_code(path: Path) -> bool:
    return path != ELSEWHERE and any(language == "python" for language, _, _ in blocks(path))


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("FUSEDOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_block_says_what_it_is(path: Path) -> None:
    languages = {language for language, _, _ in blocks(path)}
    assert languages <= {"python", "cpp", *NOT_RUN}, languages
    assert path.read_text().count("```") == 2 * len(list(blocks(path)))
    # An indented block has no language, so nobody would run it. Lists indent by less.
    assert not re.search(r"^\n {4,}\S", BLOCK.sub("", path.read_text()), re.MULTILINE)


@pytest.mark.parametrize("path", [p for p in PAGES if has_code(p)], ids=name_of)
def test_code_runs_as_it_stands(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is a program: its blocks run one after another, in a folder of their own, with nothing defined before."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for language, code, needs_gpu in blocks(path):
        if language == "cpp":
            (name,) = re.findall(r'compile_rule\("(\w+\.h)"', path.read_text())
            Path(name).write_text(code)
        if language == "python":
            compiled = compile(code, name_of(path), "exec")
            if not needs_gpu or torch.cuda.is_available():
                exec(compiled, names)


def test_the_readme_is_for_a_person_in_a_hurry() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 6
    top = "\n".join(text.splitlines()[:15])
    assert "no GPU has run it yet" in top
    for jargon in ("A/A", "fresh", " mix", "rows"):
        assert jargon not in text, jargon


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_nothing_is_installed_from_an_index_by_name(path: Path) -> None:
    """The package is on none: whoever took the name there would be installed instead."""
    assert not re.search(r"pip install [^\n`]*\bfusedopt\b", path.read_text())


def test_errors_install_nothing_by_name_either() -> None:
    for path in (ROOT / "fusedopt").rglob("*.py"):
        assert not re.search(r"pip install [^\n]*\bfusedopt\b", path.read_text()), path


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith("https://"):
            assert (path.parent / link).exists(), link


def test_every_page_is_in_the_site() -> None:
    listed = set()
    for index in (DOCS / "index.md", DOCS / "api/index.md"):
        for tree in re.findall(r"```{toctree}\n(.*?)```", index.read_text(), re.DOTALL):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            pages = [re.sub(r".* <(.*)>", r"\1", entry) for entry in entries]
            listed |= {index.parent / f"{page}.md" for page in pages}
    assert listed == set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


@slow("the pages' code, links to files and names are other tests'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` builds it; `make test-site` looks at what comes out."""
    for package in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(package, reason=f"needs {package}, of the docs extra")
    command = [
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(tmp_path / "trees"),
        "docs",
        str(tmp_path / "site"),
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").with_suffix(".md") for path in (tmp_path / "site").rglob("*.html")}
    assert {path.relative_to(DOCS) for path in DOCS.rglob("*.md")} <= pages
    assert 'class="math"' in (tmp_path / "site/your_own_rule.html").read_text()


def test_the_reference_has_every_public_name() -> None:
    reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^\.\. auto\w+:: fusedopt\.(\w+)$", reference, re.MULTILINE))
    assert shown == set(fusedopt.__all__)
    functions = set(re.findall(r"^\.\. autofunction:: fusedopt\.functional\.(\w+)$", reference, re.MULTILINE))
    assert functions == set(fusedopt.functional.__all__)
    members = set(re.findall(r"^\.\. auto\w+:: fusedopt\.AdamW\.(\w+)$", reference, re.MULTILINE))
    ours = {
        name
        for cls in FusedStep.__mro__
        if cls.__module__.startswith("fusedopt.")
        for name in vars(cls)
        if not name.startswith("_")
    }
    assert members == {name for name in ours if getattr(FusedStep, name).__doc__}


def test_the_table_of_torch_versions_is_what_was_run() -> None:
    results = json.loads(torch_versions.RESULTS.read_text())
    page = (DOCS / "compatibility.md").read_text()
    assert torch_versions.with_table(page, torch_versions.table(results)) == page
    assert all((ROOT / f"tests/test_{name}.py").exists() for name in torch_versions.CORE)


def test_the_table_of_wheels_is_what_was_installed() -> None:
    """In a process of its own: beside release/ there is a package whose name is that of one of its files."""
    check = "import json, prove; print(prove.table(json.loads(prove.RESULTS.read_text())))"
    told = subprocess.check_output([sys.executable, "-c", check], cwd=ROOT / "release", text=True)
    assert told.strip() in (DOCS / "compatibility.md").read_text()


def test_the_table_of_memory_is_computed() -> None:
    assert bytes_per_param.table() in (DOCS / "memory.md").read_text()


def test_bytes_are_those_of_the_dtypes() -> None:
    """Worked out by hand, so that the table is not only equal to itself."""
    setting = bytes_per_param.Setting
    assert bytes_per_param.measure(setting("SGD")) == (4, 4, 0)
    own, grad, kept = bytes_per_param.measure(
        setting("AdamW", torch.bfloat16, {"master_weights": "remainder", "state_dtype": "int8"})
    )
    # The lower half of a master, and two states of a byte with a float32 for each 256; a counter besides.
    assert (own, grad) == (2, 2)
    assert kept == pytest.approx(2 + 2 * (1 + 4 / 256), rel=1e-5)


def read_of_the_environment() -> dict[str, set[str]]:
    """What sources read, by whether they run with the package or compile."""
    found: dict[str, set[str]] = {}
    for path in [ROOT / "setup.py", *(ROOT / "fusedopt").rglob("*.py"), *(ROOT / "csrc").rglob("*")]:
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
            pattern = r"(?:environ\.get\(|environ\[|(?<!fe)getenv\()[\"'](\w+)[\"']"
            found[name_of(path)] = set(re.findall(pattern, path.read_text()))
    return found


def test_environment_variables_are_those_that_sources_read() -> None:
    text = (DOCS / "environment.md").read_text()
    package, command_line = text.split("## On make's command line")
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in package.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in row]
    assert len(listed) == len(set(listed))
    assert set(listed) == set().union(*read_of_the_environment().values())
    given = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^\| `(\w+)`", command_line, re.MULTILINE) == given


def test_errors_of_the_faq_are_said_by_the_sources() -> None:
    """Each quoted sentence, cut at the values in it, stands in a source, whose lines break where they like."""
    files = [ROOT / "setup.py", *(ROOT / "fusedopt").rglob("*.py"), *(ROOT / "csrc").rglob("*.[hc]*")]
    sources = "\n".join(path.read_text() for path in files)
    sources = re.sub(r"\"\s*\n\s*f?\"", "", sources).replace("\\n", " ")
    _, errors = (DOCS / "faq.md").read_text().split("## Errors of the build")
    quoted = [
        text
        for line in errors.splitlines()
        if line.startswith("| `")
        for text in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(quoted) > 10
    for text in quoted:
        for part in re.split(r"'[^']*'", text):
            assert part in sources, text
