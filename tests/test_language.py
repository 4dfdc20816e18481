"""Texts for users are in plain American English: no phrase of BANNED in help, messages, docs, pages.

Checked are the help of all commands, the text of errors, log lines and printed results (the arguments of raise, log and
print calls), the documentation, the map and the report templates.  Docstrings and comments are not checked.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosplace.cli.commands import COSPLACE
from cosplace.cli.help import explanation
from cosplace.cli.parser import leaf_commands

ROOT = Path(__file__).resolve().parents[1]
PRINTING = {
    "print",
    "print_result",
    "say",
    "info",
    "warning",
    "error",
    "debug",
    "exception",
    "log",
    "announce",
    "write",
}

BANNED = {  # pattern -> plain words
    r"(?<!\bthere )\bis no (?!\w+er\b|more\b|less\b)\w": "is not a",
    r"\b(is|are|was|were) told\b|\btold (as|with|by|of)\b": "is reported",
    r"\btells? (at once|nobody|no|when|how|what|which|whether|that|in)\b": "reports, prints",
    r"\b(go|goes|going|went) on\b(?! to)": "continues",
    r"\banew\b": "again",
    r"\bcannot be(:|;|,? use\b|,? give\b|\.$|$)": "must be …, got …",
    r"\bso many\b(?! of| that)": "this number of",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bmade[- ](up )?(city|cities|photos?|pictures?|images?|data|datasets?|street|ones)\b": "synthetic, generated",
    r"\bhands full\b": "is busy",
    r"\bhouses?\b": "building, place",
    r"\bstreets? of\b": "name the thing itself",
    r"\bjourneys?\b": "steps, workflow",
    r"\ba line of code\b": "code",
    r"\balike\b": "similar",
    r"\bhow sure\b": "confidence",
    r"\bor the like\b": "or a similar …, or leave it out",
    r"\bstrangers?\b": "other people, unknown",
    r"\b(which|that) is none\b|\bthere (is|are) none\b|\bwhere there is\b": "without, if there is no …",
    r"\bno (picture|photo|index|model)( of ours)?[.:;]": "is not …",
    r"(?<![/\w.-])pictures?\b(?![/\w])": "image, photo",
    r"\bbeside\b": "next to, and",
    r"\bpasses the filter\b": "is in this area",
    r"\bdescribe[sd]? (the )?(photos?|images?|quer(y|ies)|database)\b|\bdescribing\b": "encode, compute descriptors",
    r"\bcompany\b": "more photos",
    r"\bof one's own\b": "your own",
    r"\blooked at\b": "compared, shown",
    r"\bis there already\b|\bwas there already\b|\bwere there already\b": "already exists",
    r"\bnot here\b": "not available",
    r"\btook the place of\b": "replaced",
    r"\bgives? back\b|\bgiven back\b": "free",
    r"\bknobs?\b": "setting",
    r"\bgive (a|an|another|one|the|it|other|only|--\w+)\b(?! location)": "use, pass, add",
    r"\bfiles? of weights\b": "weights file",
    r"\bnames? of the zoo\b": "name from the zoo",
    r"\bwith your rights\b": "with your permissions",
    r"\bleave the flag out\b|\bleave (it|them|one of them) out\b": "omit",
    r"\bis not that of a\b": "unknown",
    r"\bdoubtful\b": "uncertain",
    r"\blooks? into\b": "reads, searches",
    r"\d %(?=[ ,.;:)]|$)(?! \d| \})": "no space before %",
    r"\b(north|south)-(east|west)\b": "northeast",
    r"\b(recogni|normali|initiali|optimi|summari|organi|minimi|maximi|quanti)s(e|es|ed|ing|ation|ations)\b": "-ize",
    r"\b(colou|behaviou)rs?\b|\bmetres?\b|\bgrey\b": "American spelling",
}

ALLOWED: dict[tuple[str, str], str] = {}  # (file, matched text) -> reason


# --- texts -----------------------------------------------------------------------------------------------------------


def help_lines() -> Iterator[tuple[str, str]]:
    """(place, text) of the summary of each command and the explanation of each flag."""
    for command in COSPLACE.actions:
        yield f"cosplace {command.name}", command.summary
    for prog, command in leaf_commands(COSPLACE):
        yield prog, command.summary
        for one in command.settings:
            yield f"{prog} {one.label}", explanation(one)


def message_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of the messages in a Python file: what is raised, logged or printed."""
    seen = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            found = [node.exc]
        elif isinstance(node, ast.Call) and _called_name(node) in PRINTING:
            found = node.args
        else:
            continue
        for text in (text for one in found for text in texts_in(one)):
            if (node.lineno, text) not in seen:
                seen.add((node.lineno, text))
                yield f"line {node.lineno}", text


def _called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def texts_in(node: ast.AST) -> Iterator[str]:
    """String literals in an expression; the parts of an f-string together, with {} for its values."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from texts_in(part.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts_in(child)


def page_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of the lines of a page; in Markdown without code."""
    is_code = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".md" and line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield f"line {number}", re.sub("`[^`]*`", "`", line) if path.suffix == ".md" else line


# --- the check -------------------------------------------------------------------------------------------------------


def hits(file: str, lines: Iterator[tuple[str, str]]) -> list[str]:
    """Banned phrases in a file, with their place and plain words for them."""
    found = []
    for place, text in lines:
        for pattern, advice in BANNED.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                if (file, match[0]) not in ALLOWED:
                    found.append(f"{place}: '{match[0]}' -> {advice}: {text.strip()[:100]}")
    return found


def files(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def test_help() -> None:
    found = hits("help", help_lines())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", files("cosplace/**/*.py", "synthcity/*.py", "benchmarks/*.py", "hubconf.py"))
def test_messages(file: str) -> None:
    found = hits(file, message_lines(ROOT / file))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "file",
    files(
        "*.md", "docs/*.md", "docs/decisions/*.md", "docs/tutorials/*.md", "examples/**/*.md",
        "cosplace/web/*.html", "cosplace/web/*.js", "cosplace/report/templates/*",
    ),
)  # fmt: skip
def test_pages(file: str) -> None:
    found = hits(file, page_lines(ROOT / file))
    assert not found, "\n".join(found)


def test_the_check_finds_messages_and_no_other_texts(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        'raise ValueError(f"{name} is no photo")\nlog.info("the run goes " "on")\nprint("fine")\nx = "is no message"\n'
    )
    assert [text for _, text in message_lines(source)] == ["{} is no photo", "the run goes on", "fine"]
    assert [line.partition(":")[0] for line in hits("module.py", message_lines(source))] == ["line 1", "line 2"]
