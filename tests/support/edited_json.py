"""Changes of a JSON file in a folder, for folders that are to be something else than they were."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config_fields import with_fields


def edited_json(name: str, **fields: Any) -> Callable[[Path], None]:
    """What sets fields of the file `name` of a folder; those of a guardrail's config by their own names."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(with_fields(json.loads(path.read_text()), **fields)))

    return edit
