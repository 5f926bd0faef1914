"""Folder of a saved alignment: one adapter at its top, without a pickle."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft.utils import CONFIG_NAME
from transformers import trainer


TRAINING_ARGS_NAME = "training_args.bin"
_NOT_UPLOADED = f"_{TRAINING_ARGS_NAME}"  # `Trainer` does not upload names that begin with an underscore


def trained_adapter_alone(folder: Path, name: str) -> None:
    """Move one adapter of `PeftModel.save_pretrained` to the top of its folder, and remove the others.

    PEFT saves an adapter that is not called "default" in a subfolder of its name. `Trainer` then finds no best
    checkpoint (transformers 5.24), and `PeftModel.from_pretrained` needs `subfolder=`.

    Args:
        folder (Path): A new folder that was just saved.
        name (str): Name of the adapter.
    """
    of_adapter = folder / name
    if name != "default":
        for path in of_adapter.iterdir():
            path.replace(folder / path.name)
    for config in folder.glob(f"*/{CONFIG_NAME}"):
        shutil.rmtree(config.parent)
    if of_adapter.is_dir() and not any(of_adapter.iterdir()):
        of_adapter.rmdir()


@contextmanager
def unpublished_training_args(folder: str) -> Iterator[None]:
    """Keep `Trainer`'s pickled settings from being uploaded inside the `with` block.

    They are written under a name that `Trainer` does not upload, and removed after the block:
    `Trainer._push_from_checkpoint` writes them and starts the upload in one call (transformers 5.24).

    Args:
        folder (str): The output folder.
    """
    usual = trainer.TRAINING_ARGS_NAME
    try:
        trainer.TRAINING_ARGS_NAME = _NOT_UPLOADED
        yield
    finally:
        trainer.TRAINING_ARGS_NAME = usual
        (Path(folder) / _NOT_UPLOADED).unlink(missing_ok=True)
