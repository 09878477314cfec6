"""What recipes are made of: sections of fields, read from TOML and from options, in which nothing is ignored."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pellucid.core.errors import ConfigError

LENGTHS = ("steps", "tokens", "minutes", "epochs")


class Section(BaseModel):
    """A part of a recipe: frozen; an unknown key is an error, and so is one that could have no effect."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def without_effect(self) -> dict[str, str]:
        """Fields that the other fields make idle, each with the reason."""
        return {}

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> Self:
        for name, reason in self.without_effect().items():
            if name in self.model_fields_set:
                raise ValueError(f"{name} has no effect {reason}; leave it out")
        return self


class Settings(Section):
    """A whole recipe: sections of fields, each of which is also an option by its dotted name."""

    verb: ClassVar[str]  # what the command that runs it is called

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a recipe from a TOML file."""
        try:
            fields = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; give --recipe the path of a TOML file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
        return cls.of(fields, source=str(path))

    @classmethod
    def of(cls, fields: dict[str, Any], *, source: str = "recipe") -> Self:
        """Validate nested fields; what is wrong is said in one sentence."""
        try:
            return cls.model_validate(fields, strict=True)  # the command line has words only, and is not strict
        except ValidationError as error:
            raise ConfigError(explain(error, source, cls)) from None

    def override(self, fields: dict[str, Any], *, source: str = "options") -> Self:
        """This recipe with some fields replaced. A new length (steps, tokens, minutes, epochs) replaces the old one."""
        merged = self.given()
        for section, values in fields.items():
            if not isinstance(values, dict):
                return type(self).of({section: values}, source=source)  # says what is wrong
            kept = merged.get(section, {})
            if section == "training" and set(LENGTHS) & values.keys():
                kept = {name: value for name, value in kept.items() if name not in LENGTHS}
            merged[section] = kept | values
        return type(self).of(merged, source=source)

    def given(self) -> dict[str, dict[str, Any]]:
        """The fields that were set, as nested dictionaries."""
        return self.model_dump(exclude_unset=True)

    def to_toml(self) -> str:
        """The recipe as TOML, with what each field means."""
        lines = [f"# A recipe of Pellucid: `pellucid {self.verb} --recipe THIS --out RUN` runs it.\n"]
        for name, section in self:
            lines.append(f"\n[{name}]  # {type(section).__doc__}\n")
            idle = section.without_effect()
            for field, info in type(section).model_fields.items():
                value = getattr(section, field)
                setting = f"{field} = {toml_value(value)}" if value is not None and field not in idle else f"# {field} ="
                lines.append(f"{setting:<44}# {info.description}\n")
        return "".join(lines)


def toml_value(value: object) -> str:
    """A scalar or a list of them, in TOML; a JSON string is a TOML string."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def explain(error: ValidationError, source: str, recipe: type[Settings]) -> str:
    """The first problem of a recipe, as one sentence with the value and the way out."""
    problem = error.errors(include_url=False)[0]
    path = [str(part) for part in problem["loc"]][:2]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key {name!r}{suggest(path, recipe)}"
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if problem["type"] == "value_error":
        return f"{source}: {reason}"
    return f"{source}: {name} = {problem['input']!r} will not do: {reason}"


def suggest(path: list[str], recipe: type[Settings]) -> str:
    """The way out of a misspelt key: where a key of that name lives, the nearest one there is, or all there are."""
    sections = {name: list(info.annotation.model_fields) for name, info in recipe.model_fields.items() if info.annotation}
    home = {field: section for section, fields in sections.items() for field in fields}
    *section, name = path  # an unknown section, or a known one and an unknown field of it
    known = sections[section[0]] if section else list(sections)
    if name in home:
        return f"; did you mean '{home[name]}.{name}'?"
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"; did you mean {'.'.join([*section, *near])!r}?"
    return f"; the {f'keys of {section[0]}' if section else 'sections'} are {', '.join(known)}"
