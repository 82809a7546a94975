"""Writing the configuration files that pli's processes read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_toml(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes tables of one level; None values are left out."""
    lines = [f"{key} = {_value(value)}" for key, value in content.items() if not isinstance(value, Mapping | None)]
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines.append(f"[{key}]")
            lines += [f"{name} = {_value(inner)}" for name, inner in value.items() if inner is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string is a TOML basic string.
    return json.dumps(str(value))
