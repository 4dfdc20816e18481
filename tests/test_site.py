"""The documentation as a website: it builds without a network, every link leads somewhere, nothing is left out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cosplace

ROOT = Path(__file__).resolve().parents[1]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = dict(re.findall(r"^- \[(.+)\]\((.+)\)$", (folder / "README.md").read_text(), re.MULTILINE))
    titles = {path.read_text().partition("\n")[0].removeprefix("# "): path.name for path in folder.glob("0*.md")}
    assert listed == titles


def test_the_page_of_the_python_api_has_all_public_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r"heading: cosplace\.(\w+)$", page, re.MULTILINE)) == set(cosplace.__all__)


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_site(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs `pip install 'cosplace[docs]'`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not included in the" not in done.stderr  # every page is in the navigation
    pages = {path.relative_to(tmp_path / "site").with_suffix("") for path in (tmp_path / "site").rglob("*.html")}
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert pages - {Path("404")} == {
        source.parent / "index" if source.name == "README" else source for source in sources
    }
    home = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://[^\s>]*", home)
    reference = (tmp_path / "site" / "api.html").read_text()
    assert "a name from" in reference and "accept_license" in reference
