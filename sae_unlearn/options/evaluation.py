"""Options of `evaluate`, `audit` and `picture_guardrail`, and their checks."""

from dataclasses import dataclass

from sae_unlearn.options.field import check_options, documented, option


_ASKING, _ATTACKS, _PAGE = "measuring", "attacks", "page"


@documented
@dataclass(frozen=True, kw_only=True)
class MeasurementConfig:
    """Options that all measurements on a model share."""

    batch_size: int = option(
        8, "rows per forward pass; results do not depend on it, up to rounding", group=_ASKING, low=1
    )
    max_length: int = option(512, "largest number of tokens of a text; longer ones are cut", group=_ASKING, low=2)
    max_new_tokens: int | None = option(
        None,
        "tokens of a completion",
        group=_ASKING,
        shown="those of the longest accepted answer and four more, up to 128",
        low=1,
    )
    chat_template: bool = option(False, "apply the tokenizer's chat template to questions and prompts", group=_ASKING)
    progress: bool = option(True, "show progress bars", group=_ASKING, command_line=False)

    def __post_init__(self) -> None:
        check_options(self)

    def bar(self, *parts: str) -> str | None:
        """Return the title of a progress bar; None for no bar."""
        return ", ".join(parts) if self.progress else None


@documented
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(MeasurementConfig):
    """Options of `evaluate`, checked at construction.

    Every field can also be passed to `evaluate` by name.

    Raises:
        UnlearnError: If a value is out of range; the message names it.
    """

    orders: int | None = option(
        None,
        "number of orders of the options in which letters are scored",
        group=_ASKING,
        shown="the number of options",
        low=1,
    )
    text_column: str = option("text", "column or key that holds the text", group="data")


@documented
@dataclass(frozen=True, kw_only=True)
class AuditConfig(MeasurementConfig):
    """Options of `audit`, checked at construction.

    Every field can also be passed to `audit` by name.

    Raises:
        UnlearnError: If a value is out of range; the message names it.
    """

    attacks: list[str] | None = option(None, "names of the attacks", group=_ATTACKS, shown="all that have data")
    lengths: tuple[int, ...] = option((16, 64, 256), "words of filler for dilution", group=_ATTACKS, low=0)
    steps: tuple[int, ...] = option((0, 10, 40), "relearning steps after which it is measured", group=_ATTACKS, low=0)
    layer: int | None = option(
        None,
        "0-based layer at which the direction is added",
        group=_ATTACKS,
        shown="the last guarded one, or else the middle",
        low=0,
    )
    seed: int = option(0, "seed of all random choices", group=_ATTACKS)


@documented
@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Options of `picture_guardrail`, checked at construction.

    Every field can also be passed to it by name.

    Raises:
        UnlearnError: If a value is out of range; the message names it.
    """

    contexts: int = option(5, "contexts of each feature", group=_PAGE, low=1)
    around: int = option(16, "tokens shown before and after a peak", group=_PAGE, low=0)
    text_column: str = option("text", "column or key that holds the text", group="data")
    batch_size: int = option(8, "rows per forward pass", group=_PAGE, low=1)
    progress: bool = option(True, "show progress bars", group=_PAGE, command_line=False)

    def __post_init__(self) -> None:
        check_options(self)
