"""Changes of a JSON file in a folder, for folders that are to be something else than they were."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edited_json(name: str, **fields: Any) -> Callable[[Path], None]:
    """What sets fields of the file `name` of a folder."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit
