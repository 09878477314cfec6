"""Request bodies, hostile until proven otherwise: JSON without its dark corners, then a pydantic model, or one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pellucid.serving.errors import ApiError, refusal

DEPTH = 64  # of lists and objects in each other
SHOWN = 60  # characters of an offending value

Model = TypeVar("Model", bound="Body")


class Body(BaseModel):
    """What every request is: nothing unknown, nothing converted (true is no integer), no number that is none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def read_body(kind: type[Model], body: bytes) -> Model:
    """A request of this kind. Raises `ApiError` for anything else."""
    value = read_json(body)
    if not isinstance(value, dict):
        raise refusal(f"the body must be a JSON object, not {shown(value)}", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise explained(error) from None


def read_json(body: bytes) -> Any:
    """JSON as its standard has it, no deeper than anyone needs."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=unique, parse_constant=no_number, parse_float=finite)
    except UnicodeDecodeError as error:
        raise refusal(f"the body is not UTF-8 from byte {error.start} on", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise refusal(f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json") from None
    except RecursionError:
        raise too_deep() from None
    except ValueError:  # what Python says of an integer of thousands of digits
        raise refusal("the body holds a number of too many digits", code="invalid_json") from None
    check(value)
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise refusal(f"the field {shown(name)} is given twice", code="invalid_json")
        found[name] = value
    return found


def no_number(name: str) -> float:
    raise refusal(f"the body is not JSON: {name} is no number there", code="invalid_json")


def finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise refusal(f"the number {digits[:SHOWN]} is too large", code="invalid_json")
    return value


def check(value: Any) -> None:
    """Refuse what is nested too deep, and text with half a character: a surrogate without its other half."""
    level: Sequence[Any] = [value]
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str) and not is_whole(item):
                raise refusal(f"the text {shown(item)} holds half a character (a lone surrogate)", code="invalid_json")
            if isinstance(item, list):
                deeper += item
            elif isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
        if not deeper:
            return
        level = deeper
    raise too_deep()


def is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def too_deep() -> ApiError:
    return refusal(f"the body is nested more than {DEPTH} levels deep", code="invalid_json")


def shown(value: Any) -> str:
    """A value as JSON, short, with nothing in it that a terminal or a log would obey."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def explained(error: ValidationError) -> ApiError:
    """The first thing that is wrong, by the name of its field."""
    first = error.errors(include_url=False)[0]
    param = ".".join(map(str, first["loc"]))[:200] or None
    name = shown(param) if param else "the body"
    if first["type"] == "extra_forbidden":
        return refusal(f"the field {name} is not supported here; leave it out", param, "unknown_parameter")
    if first["type"] == "missing":
        return refusal(f"the field {name} is missing; give it", param, "missing_required_parameter")
    said = first["msg"]
    if param is None:  # what the fields are together
        return refusal(said)
    return refusal(f"{name}: {said[:1].lower()}{said[1:300]}, not {shown(first['input'])}", param)
