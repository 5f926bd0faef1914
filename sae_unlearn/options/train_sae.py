"""Options of `train_sae` and of `sae-unlearn train-sae`."""

from dataclasses import dataclass

from sae_unlearn.errors import UnlearnError
from sae_unlearn.options.field import at_least, check_options, option


_TEXT, _SAE, _RUN = "texts", "SAE", "run"


@dataclass(kw_only=True)
class SAETrainingConfig:
    """Options of the training of an SAE."""

    layer: int | None = option(
        None, "0-based decoder layer whose output the SAE reads", group=_SAE, shown="the middle layer"
    )
    d_sae: int | None = option(
        None, "number of features", group=_SAE, shown="a power of two, with 64 tokens of text for each"
    )
    active_features: int | None = option(
        None, "features that are active on an average token", group=_SAE, shown="width / 16, from 8 to 64"
    )
    text_column: str = option("text", "column or key that holds the text", group="data")
    max_tokens: int | None = option(
        None, "tokens to train on at most", group=_TEXT, shown="all that the texts have and the disk takes"
    )
    context: int = option(128, "tokens of a row", group=_TEXT)
    held_out: float = option(0.05, "share of the texts that is measured on and not trained on", group=_TEXT)
    epochs: float | None = option(
        None, "passes over the tokens", group=_RUN, shown="as many as make 800 steps, from 1 to 8"
    )
    batch_size: int = option(1024, "tokens of a training step", group=_RUN)
    rows_per_pass: int = option(8, "rows of a forward pass", group=_RUN)
    learning_rate: float = option(1e-3, "initial learning rate; a tenth of it at the end", group=_RUN)
    max_disk_gb: float = option(8.0, "gigabytes that the activations may take on disk", group=_RUN)
    work_dir: str | None = option(
        None,
        "folder for activations and checkpoints; the same call continues from there",
        group=_RUN,
        shown="OUTPUT-work, removed at the end",
    )
    seed: int = option(0, "seed of everything that is drawn", group=_RUN)
    progress: bool = option(True, "show progress bars", group=_RUN, command_line=False)

    def __post_init__(self) -> None:
        check_options(self, UnlearnError)
        least = {"layer": 0, "d_sae": 2, "active_features": 1, "max_tokens": 1, "context": 4}
        least |= {"batch_size": 8, "rows_per_pass": 1}
        at_least(self, least, UnlearnError)
        if not 0 < self.held_out < 1:
            raise UnlearnError(f"held_out={self.held_out}: expected a share between 0 and 1. Pass 0.05.")
        for name in ("learning_rate", "max_disk_gb", "epochs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UnlearnError(f"{name}={value}: expected a number above 0. Pass another one.")
