"""Options of `train_sae` and of `sae-unlearn train-sae`."""

from dataclasses import dataclass

from sae_unlearn.options.field import check_options, documented, option


_TEXT, _SAE, _RUN = "texts", "SAE", "run"


@documented
@dataclass(kw_only=True)
class SAETrainingConfig:
    """Options of the training of an SAE."""

    layer: int | None = option(
        None, "0-based decoder layer whose output the SAE reads", group=_SAE, shown="the middle layer", low=0
    )
    d_sae: int | None = option(
        None, "number of features", group=_SAE, shown="a power of two, with 64 tokens of text for each", low=2
    )
    active_features: int | None = option(
        None, "features that are active on an average token", group=_SAE, shown="width / 16, from 8 to 64", low=1
    )
    text_column: str = option("text", "column or key that holds the text", group="data")
    max_tokens: int | None = option(
        None, "tokens to train on at most", group=_TEXT, shown="all that the texts have and the disk takes", low=1
    )
    context: int = option(128, "tokens of a row", group=_TEXT, low=4)
    held_out: float = option(
        0.05, "share of the texts that is measured on and not trained on", group=_TEXT, above=0, below=1
    )
    epochs: float | None = option(
        None, "passes over the tokens", group=_RUN, shown="as many as make 800 steps, from 1 to 8", above=0
    )
    batch_size: int = option(1024, "tokens of a training step", group=_RUN, low=8)
    rows_per_pass: int = option(8, "rows of a forward pass", group=_RUN, low=1)
    learning_rate: float = option(1e-3, "initial learning rate; a tenth of it at the end", group=_RUN, above=0)
    max_disk_gb: float = option(8.0, "gigabytes that the activations may take on disk", group=_RUN, above=0)
    work_dir: str | None = option(
        None,
        "folder for activations and checkpoints; the same call continues from there",
        group=_RUN,
        shown="OUTPUT-work, removed at the end",
    )
    seed: int = option(0, "seed of everything that is drawn", group=_RUN)
    progress: bool = option(True, "show progress bars", group=_RUN, command_line=False)

    def __post_init__(self) -> None:
        check_options(self)
