"""Write the pages of `docs/evidence` and `docs/speed` from the files of `benchmarks/results`.

    python -m benchmarks.site_pages            # write the pages
    python -m benchmarks.site_pages --check    # exit with 1 and name the pages that are stale

Each page has a template in `templates/`. A template is Markdown with Jinja expressions: `{{ forget.pooled() }}`
is a call in `forget.py`. Numbers that describe a setting (rows of a split, a percentile) stand in the first line of
the template as `{# settings: 16; 97.5 #}`. Every other number has to come from an expression, so that no figure is
typed by hand: `bare_numbers` finds those that are.

Parts of other pages are written between two marker lines:

    <!-- generated: readme-results -->
    ...
    <!-- end of generated -->
"""

import argparse
import re
import textwrap
from pathlib import Path

import jinja2

from . import (
    alignment,
    alignment_claims,
    alignment_pooled,
    alignment_sizes,
    any_model,
    attacks,
    batching,
    edits,
    forget,
    gates,
    index,
    models,
    paragraphs,
    peers,
    rivals,
    serving,
    serving_speed,
    speed,
    speed_index,
    transcripts,
    windowed,
)
from .markdown_text import number, shown


ROOT = Path(__file__).parents[2]
TEMPLATES = Path(__file__).parent / "templates"
DOCS = ROOT / "docs"
WIDTH = 100
MARKED = (ROOT / "README.md",)
MODULES = {
    "alignment": alignment,
    "alignment_claims": alignment_claims,
    "alignment_pooled": alignment_pooled,
    "alignment_sizes": alignment_sizes,
    "any_model": any_model,
    "attacks": attacks,
    "batching": batching,
    "edits": edits,
    "forget": forget,
    "gates": gates,
    "index": index,
    "models": models,
    "paragraphs": paragraphs,
    "peers": peers,
    "rivals": rivals,
    "serving": serving,
    "serving_speed": serving_speed,
    "speed": speed,
    "speed_index": speed_index,
    "transcripts": transcripts,
    "windowed": windowed,
}
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
_SETTINGS = re.compile(r"\A\{# settings: (.*?) #\}", re.DOTALL)
_NOT_PROSE = re.compile(
    r"\{#.*?#\}|\{\{.*?\}\}|\{%.*?%\}|^```.*?^```$|`[^`\n]*`|\]\([^)]*\)|https?://\S+", re.DOTALL | re.MULTILINE
)
_NUMBER = re.compile(r"(?<!\w)\d[\d.,]*\w*")  # not the digits of names such as SmolLM2
_KEPT = re.compile(r"^( *[|<#!]|    |$)")
_ITEM = re.compile(r"( *(?:[-*]|\d+\.) )")


class StaleClaimError(Exception):
    """A sentence of a template no longer agrees with the results."""


def ensure(condition: bool, claim: str) -> str:
    """Return "" if a sentence of the template agrees with the results; raise if it does not.

    Args:
        condition (`bool`): Whether the results support the sentence.
        claim (`str`): The sentence, in short.

    Raises:
        StaleClaimError: If `condition` is false.
    """
    if not condition:
        raise StaleClaimError(f"The results no longer show that {claim}. Rewrite the sentence in the template.")
    return ""


def render(template: Path) -> str:
    """Return the page of a template, wrapped to 100 columns."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals.update(MODULES, ensure=ensure, shown=shown)
    environment.filters["two"] = number
    text = environment.from_string(template.read_text(encoding="utf-8")).render()
    return wrap(text).strip("\n") + "\n"


def wrap(text: str) -> str:
    """Wrap paragraphs and list items to 100 columns; leave tables, code, headings and HTML as they are."""
    lines: list[str] = []
    paragraph: list[str] = []
    fenced = False

    def close() -> None:
        if paragraph:
            marker = _ITEM.match(paragraph[0])
            indent = " " * len(marker[1]) if marker else ""
            joined = " ".join(line.strip() for line in paragraph)
            start = marker[1] if marker else ""
            body = joined.removeprefix(start.strip()).strip()
            options = {"break_long_words": False, "break_on_hyphens": False}
            lines.extend(textwrap.wrap(body, WIDTH, initial_indent=start, subsequent_indent=indent, **options))
            paragraph.clear()

    for line in text.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        if fenced or line.startswith("```") or _KEPT.match(line):
            close()
            lines.append(line)
        elif _ITEM.match(line):
            close()
            paragraph.append(line)
        else:
            paragraph.append(line)
    close()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def bare_numbers(template: str) -> list[str]:
    """Return the numbers of a template's prose that are neither generated nor listed as settings."""
    return [number for number in _prose_numbers(template) if number not in _settings(template)]


def unused_settings(template: str) -> set[str]:
    """Return the numbers that a template lists as settings and does not use."""
    return _settings(template) - set(_prose_numbers(template))


def _settings(template: str) -> set[str]:
    found = _SETTINGS.match(template)
    return {one.strip() for one in found[1].split(";")} if found else set()


def _prose_numbers(template: str) -> list[str]:
    return [number.rstrip(".,") for number in _NUMBER.findall(_NOT_PROSE.sub(" ", template))]


def pages() -> dict[Path, Path]:
    """Return the template of each generated page."""
    templates = sorted(TEMPLATES.glob("*/*.md.in"))
    return {DOCS / path.parent.name / path.name.removesuffix(".in"): path for path in templates}


def filled(page: Path) -> str:
    """Return a page with its marked blocks rendered anew."""
    text = page.read_text(encoding="utf-8")
    return _BLOCK.sub(lambda match: match[1] + render(TEMPLATES / f"{match[2]}.md.in") + match[3], text)


def generated() -> dict[Path, str]:
    """Return the text of every generated page, and of every page with marked blocks."""
    return {page: render(template) for page, template in pages().items()} | {page: filled(page) for page in MARKED}


def stale() -> list[Path]:
    """Return the pages that differ from what the results give, and those without a template."""
    made = generated()
    differing = [page for page, text in made.items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    orphans = [page for page in (*DOCS.glob("evidence/*.md"), *DOCS.glob("speed/*.md")) if page not in made]
    return sorted({*differing, *orphans})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    if parser.parse_args().check:
        found = stale()
        for page in found:
            print(f"{page.relative_to(ROOT)} is stale: run python -m benchmarks.site_pages")
        return 1 if found else 0
    for page, text in generated().items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    return 0
