"""Options for texts and questions, and reading of their rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_unlearn.cli.arguments import Parser
from sae_unlearn.cli.inputs import drawn, read_texts
from sae_unlearn.errors import UnlearnError


if TYPE_CHECKING:
    import argparse

    from sae_unlearn.evaluation import Choice, Fact

DATA = "data"
"""Heading of the options."""
LEAST_TEXTS = 8
"""Fewest texts of a topic: the gate is measured on the part that is held out."""
TEXTS = """texts: a .txt or .md file (paragraphs between blank lines), .json, .jsonl, .csv, .tsv or .parquet (see
--text-column), .pdf or .html (extra `texts`), or a folder of such files; a dataset of the Hub or in a folder, with the
package `datasets`; or a named data set or a file of questions, as for evaluate: each question is read with its
answer; `default` is paragraphs of Wikipedia (WikiText-2, from the Hub)
"""


def add_text_arguments(parser: Parser, forget: str, retain: str) -> None:
    """Add `--forget`, `--retain` and the options of reading them.

    Args:
        parser (Parser): Parser of the command.
        forget (str): Help text of `--forget`.
        retain (str): Help text of `--retain`.
    """
    group = parser.group(DATA)
    for side, help in (("forget", forget), ("retain", retain)):
        group.add_argument(f"--{side}", nargs="+", metavar="DATA", help=help)
    for side in ("forget", "retain"):
        group.add_argument(f"--{side}-split", metavar="SPLIT", help="split of the dataset (default: train)")
    add_drawing_arguments(parser)


def add_column_argument(parser: Parser) -> None:
    """Add `--text-column`, for commands whose options do not have it."""
    parser.group(DATA).add_argument(
        "--text-column",
        type=str,
        default="text",
        metavar="TEXT",
        help="column or key that holds the text (default: text)",
    )


def add_drawing_arguments(parser: Parser, seed: bool = True) -> None:
    """Add `--limit` and `--seed`."""
    group = parser.group(DATA)
    group.add_argument("--limit", type=int, metavar="N", help="largest number of rows of each set, drawn at random")
    if seed:
        group.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the draw (default: 0)")


def texts_of(args: "argparse.Namespace", side: str) -> Iterable[Any] | None:
    """Return the texts of `--forget` or `--retain`, at most `--limit` of them; None without the option.

    Args:
        args ('argparse.Namespace'): The parsed arguments of a command with `add_text_arguments`.
        side (str): `"forget"` or `"retain"`.

    Raises:
        FileNotFoundError: If a source does not exist.
        UnlearnError: If a source does not hold texts.
    """
    sources, split = getattr(args, side), getattr(args, f"{side}_split")
    if not sources:
        return None
    if len(sources) == 1 and args.limit is None:
        return _texts(sources[0], args.text_column, split)  # a dataset is not read as a whole
    return drawn(texts_in(sources, args.text_column, split), args.limit, args.seed)


def texts_in(sources: list[str], text_column: str = "text", split: str | None = None) -> list[str]:
    """Return the texts of all sources, one after the other."""
    return [plain(row, text_column) for source in sources for row in _texts(source, text_column, split)]


def held_texts(corpus: Any, column: str = "text") -> list[Any] | None:
    """Return the texts of a corpus, read once for the checks below; None for a stream and for None.

    Args:
        corpus (Iterable[Any], *optional*): Texts of `--forget` or `--retain`.
        column (str, *optional*, defaults to "text"): Column or key that holds a text.
    """
    return [plain(row, column) for row in corpus] if hasattr(corpus, "__len__") else None


def check_number(forget: list[Any] | None) -> None:
    """Check that a part of the topic's texts can be held out. A stream is not counted.

    Args:
        forget (list, *optional*): `held_texts` of `--forget`.

    Raises:
        UnlearnError: If there are fewer than `LEAST_TEXTS` different ones.
    """
    if forget is None:
        return
    found = len(forget) - repeated(forget)
    if found < LEAST_TEXTS:
        kind = "texts" if found == len(forget) else "different texts"
        raise UnlearnError(
            f"--forget: expected at least {LEAST_TEXTS} {kind}, got {found}. 100 paragraphs are a good start; in a "
            ".txt file, blank lines separate them."
        )


def repeated(texts: list[Any]) -> int:
    """Return how many of the texts are exact repeats of an earlier one."""
    found = [text for text in texts if isinstance(text, str)]
    return len(found) - len({*found})


def check_differ(forget: list[Any] | None, retain: list[Any] | None) -> None:
    """Check that some text of the topic is not in the other text.

    Args:
        forget (list, *optional*): `held_texts` of `--forget`.
        retain (list, *optional*): `held_texts` of `--retain`.

    Raises:
        UnlearnError: If each forget text is also a retain text.
    """
    if not forget or retain is None:
        return
    others = {text for text in retain if isinstance(text, str)}
    if all(isinstance(text, str) and text in others for text in forget):
        raise UnlearnError(
            "--forget, --retain: each forget text is among the retain texts, so nothing tells them apart. Pass other "
            "retain text."
        )


def read_sets(
    sources: list[str], text_column: str = "text", limit: int | None = None, seed: int = 0
) -> dict[str, list[Any]]:
    """Return the rows of each source, by its name without folders.

    Args:
        sources (list[str]): Names of data sets, or files.
        text_column (str, *optional*, defaults to "text"): Column or key that holds a text.
        limit (int, *optional*): Largest number of rows of each.
        seed (int, *optional*, defaults to 0): Seed of the draw.

    Raises:
        FileNotFoundError: If a source does not exist.
        UnlearnError: If it cannot be read, or two have the same name.
    """
    found: dict[str, list[Any]] = {}
    for source in sources:
        path = Path(source).expanduser()
        rows = _questions(source)
        label = path.name if path.exists() else source.partition("@")[0] if rows is not None else source
        rows = list(read_texts(source, text_column)) if rows is None else rows
        if label in found:
            raise UnlearnError(f"{source}: two sets are called {label!r}. Rename one of the files, or pass it once.")
        found[label] = [plain(row, text_column) for row in drawn(rows, limit, seed)]
    return found


def _texts(source: str, column: str, split: str | None) -> Iterable[Any]:
    from sae_unlearn.cli.default_texts import DEFAULT, default_texts

    if source == DEFAULT and not Path(source).exists():
        return default_texts()
    rows = _questions(source)
    return read_texts(source, column, split) if rows is None else [as_text(row) for row in rows]


def _questions(source: str) -> list[Any] | None:
    """Return the rows of a named data set or of a file of questions; None for anything else."""
    from sae_unlearn.evaluation.datasets import read_questions
    from sae_unlearn.evaluation.datasets.registry import is_named, read_named

    path = Path(source).expanduser()
    if not path.exists() and is_named(source):
        return read_named(source)
    found: list[Any] | None = read_questions(path) if path.is_file() else None
    return found


def as_text(row: "Fact | Choice | str") -> str:
    """Return a question with its right answer, or a text as it is."""
    if isinstance(row, str):
        return row
    from sae_unlearn.evaluation import Choice

    if isinstance(row, Choice):
        return f"{row.question}\nAnswer: {row.options[row.right]}"
    return f"{row.prompt} {row.answers[0]}"


def plain(row: Any, column: str) -> Any:
    """The text of a row of a dataset; anything else as it is."""
    return row[column] if isinstance(row, dict) else row
