"""Options of `scout` and of `sae-unlearn scout`."""

from dataclasses import dataclass

from sae_unlearn.options.field import check_options, documented, option


@documented
@dataclass(kw_only=True)
class ScoutConfig:
    """Options of `scout`, checked at construction.

    Every field can also be passed to `scout` by name.

    Raises:
        UnlearnError: If a value is out of range; the message names it.
    """

    layers: list[int] | None = option(None, "0-based decoder layers", group="layers", shown="all", low=0)
    max_rows: int = option(200, "texts of each side at most", group="texts", low=8)
    max_length: int = option(256, "tokens of a text that are read", group="texts", low=4)
    text_column: str = option("text", "column or key that holds the text", group="data")
    batch_size: int = option(8, "rows per forward pass", group="run", low=1)
    progress: bool = option(True, "show a progress bar", group="run", command_line=False)

    def __post_init__(self) -> None:
        check_options(self)
