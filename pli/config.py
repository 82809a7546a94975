"""Configuration: a TOML file, then `PLI_…` variables over it; whatever is unknown stops the start.

A nested key is written with two underscores: `PLI_SPOOL__URL` overrides `url` in `[spool]`. Secrets
are never values, only paths to files that nobody else may read.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pli.errors import ConfigError
from pli.secret import Secret

PREFIX = "PLI_"
NESTED = "__"

NO_SETTINGS = frozenset({"PLI_REAL_DATA"})
"""Variables of pli that configure no process: where the tests find real input."""


class Section(BaseModel):
    """A table inside a configuration file. Unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(BaseSettings):
    """Root of one process's configuration. Read it with `load`, never by its constructor alone."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter=NESTED)


S = TypeVar("S", bound=Settings)
P = TypeVar("P", bound=Section)


def load(kind: type[S], path: Path | None, environ: Mapping[str, str] | None = None) -> S:
    """Reads `path` (None: defaults and variables only) into settings of `kind`.

    `environ` holds the variables (the process's own by default).

    Raises:
        ConfigError: file missing or not TOML, unknown key or variable, value out of range.
    """
    given = os.environ if environ is None else environ
    variables = {name: value for name, value in given.items() if name.startswith(PREFIX) and name not in NO_SETTINGS}
    _refuse_unknown_variables(kind, variables)
    if path is not None and not path.is_file():
        raise ConfigError(f"configuration file {path} does not exist; give the path of a TOML file")
    place = str(path) if path is not None else "configuration"

    class FromFile(kind):  # type: ignore[valid-type,misc]  # the file's path is known at run time only
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **_sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return _Variables(settings_cls, variables), TomlConfigSettingsSource(settings_cls, toml_file=path)

    FromFile.__name__ = kind.__name__
    try:
        settings: S = FromFile()
    except ValidationError as error:
        raise ConfigError(_explained(error, place)) from error
    except SettingsError as error:
        raise ConfigError(f"{place}: a {PREFIX}… variable of a table or list is no JSON: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{place}: {error}; correct the file") from error
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    return settings


class _Variables(EnvSettingsSource):
    """The variables that `load` was given, instead of the process's own."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items()}


def read_secret_file(path: Path) -> Secret:
    """The content of a secret file, which its owner alone may read.

    Raises:
        ConfigError: missing, empty, or readable by group or others.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"secret file {path} cannot be read: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"secret file {path} is open to others ({stat.filemode(mode)}): chmod 0400 {path}")
    if not content:
        raise ConfigError(f"secret file {path} is empty")
    return Secret(content)


def write_secret_file(path: Path, content: bytes, mode: int = 0o400) -> None:
    """Writes a new secret file: content and name are on disk before this returns.

    Raises:
        ConfigError: the file exists or cannot be written; then nothing is left of it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _sync_directory(path.parent)
        except OSError:
            path.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"secret file {path} cannot be written: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    # A new file's name is durable only when its directory is.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_unknown_variables(kind: type[BaseSettings], variables: Mapping[str, str]) -> None:
    unknown = sorted(name for name in variables if not _is_known(kind, name[len(PREFIX) :]))
    if unknown:
        raise ConfigError(
            f"unknown environment variable {', '.join(unknown)}; unset it, or correct its name "
            f"(known: {PREFIX}{f', {PREFIX}'.join(sorted(field.upper() for field in kind.model_fields))})"
        )


def _is_known(kind: type[BaseModel], name: str) -> bool:
    head, _, rest = name.partition(NESTED)
    fields = {field.upper(): info for field, info in kind.model_fields.items()}
    if head.upper() not in fields:
        return False
    if not rest:
        return True
    section = _section_of(fields[head.upper()].annotation)
    return section is not None and _is_known(section, rest)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def read_section(kind: type[P], path: Path, what: str) -> P:
    """Reads a TOML file that holds one Section and no secret, such as a profile; `what` names its kind.

    Raises:
        ConfigError: missing, not TOML in UTF-8, a key missing or unknown, a value of the wrong form.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{what} {path} is not TOML in UTF-8: {error}") from error
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_explained(error, f"{what} {path}")) from error


def _explained(error: ValidationError, place: str) -> str:
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in fault["loc"])
        rule = "unknown key; remove it or correct its name" if fault["type"] == "extra_forbidden" else fault["msg"]
        lines.append(f"  {key}: {rule}")
    return "\n".join((f"{place}: configuration is not valid", *lines))
