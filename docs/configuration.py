"""Writes docs/configuration.md from the settings classes; `--check` compares instead.

The texts are the strings under each field, which Python keeps out of reach at run time: so the
sources are parsed. Defaults come from the classes themselves.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cli.profiles import Profile
from pli.client import ClientProfile
from server.config import EmbeddedSettings, RelaySettings, ServerSettings
from vault.config import VaultSettings

ROOTS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("An ingest node", "pli server --config FILE", ServerSettings),
    ("A relay", "pli relay --config FILE", RelaySettings),
    ("The vault", "pli vault --config FILE", VaultSettings),
    ("The embedded store", "python -m server.main.embedded --config FILE", EmbeddedSettings),
    ("A client profile", "ClientProfile.load(FILE)", ClientProfile),
    ("A person's profile", "pli status --profile FILE", Profile),
)
HEAD = """# Configuration

Written by `make docs` from the code. One TOML file per process; unknown keys stop the start. A variable
`PLI_KEY`, or `PLI_TABLE__KEY` for a key in a table, overrides the file; unknown `PLI_` variables stop the
start too. Secrets are never values, only paths to files that nobody else may read. Units are in the names.
"""


def texts_of(kind: type[BaseModel]) -> dict[str, str]:
    """Field → the string under it, in the class or the one it derives from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not issubclass(one, BaseModel) or one.__module__.startswith("pydantic"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        if isinstance(body, ast.ClassDef):
            waiting: list[str] = []
            for node in body.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    waiting.append(node.target.id)
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    for name in waiting:
                        found[name] = " ".join(str(node.value.value).split())
                    waiting = []
    return found


def section_of(annotation: object) -> type[BaseModel] | None:
    """The table behind a field; None for a plain value."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def rows_of(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per key, tables under their name."""
    texts, rows, tables = texts_of(kind), list[str](), list[str]()
    for name, field in kind.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            tables += [
                "",
                f"`[{prefix}{name}]` {texts.get(name, '')}".rstrip(),
                "",
                *table_of(section, f"{prefix}{name}."),
            ]
            continue
        value = field.get_default(call_default_factory=False)
        default = "required" if field.is_required() or value is PydanticUndefined else f"`{written(value)}`"
        rows.append(f"| `{name}` | {default} | {texts.get(name, '').replace('|', '&#124;')} |")
    return [*rows, *tables]


def table_of(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """A Markdown table of a class."""
    return ["| key | default | meaning and reason |", "|---|---|---|", *rows_of(kind, prefix)]


def written(value: object) -> str:
    """A default as TOML writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def document() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, command, kind in ROOTS:
        lines += [f"## {title}", "", f"`{command}`", "", *table_of(kind), ""]
    return "\n".join(lines)


def main(path: Path, *, check: bool) -> int:
    """Writes the page, or says that it is not what the code says."""
    if not check:
        path.write_text(document(), encoding="utf-8")
        return 0
    if path.read_text(encoding="utf-8") == document():
        return 0
    print(f"{path} is not what the code says: run make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(__file__).with_suffix(".md"), check="--check" in sys.argv[1:]))
