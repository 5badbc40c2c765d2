"""Spec: a frozen, validated value that says a choice, goes to JSON and comes back.

Features, tasks, schemas, sharing structures, heads and training settings are specs. A spec with a
`kind` is found by that name in JSON and TOML; declaring the class registers it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from recsys_mtl.errors import SchemaError

T = TypeVar("T", bound="Spec")

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)


class Spec:
    """Base of all specs; subclasses are decorated with `spec` and may carry a `kind`."""

    kind: ClassVar[str | None] = None
    _kinds: ClassVar[dict[str, type[Spec]]] = {}

    def __init_subclass__(cls, *, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is None:
            return
        taken = Spec._kinds.get(kind)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise SchemaError(f"Kind {kind!r} must be unique. {taken.__qualname__} has it already.")
        cls.kind = kind
        Spec._kinds[kind] = cls

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain JSON values, with its `kind` first where it has one."""
        named = {} if self.kind is None else {"kind": self.kind}
        return named | {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type] # made by `spec`
        }

    def to_json(self) -> str:
        """Return the spec as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change whenever any value of the spec changes."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, path: str = "") -> Self:
        """Build the spec, and those inside it, from plain values.

        Parameters
        ----------
        data
            What `to_dict` returned, or the same from a TOML file; missing keys take their defaults.
        path
            Where `data` stands in its file, such as ``model.sharing``; errors begin with it.

        Raises
        ------
        SchemaError
            If a key is unknown or a value breaks a rule. The text names the full path of the key.
        """
        if not isinstance(data, Mapping):
            raise SchemaError(f"{path or cls.__name__} must be a table of keys. Found {data!r}.")
        return _build(cls, data, path)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build the spec from what `to_json` returned."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SchemaError(
                f"{cls.__name__} must be given as JSON, as to_json writes it. Found {error}."
            ) from error
        return cls.from_dict(data)


class Difference(NamedTuple):
    """A place at which two JSON values differ, and what each has there; None: nothing."""

    path: str
    before: Any
    after: Any


def differences(before: Any, after: Any, path: str = "") -> list[Difference]:
    """Find where two JSON values differ, such as what `Spec.to_dict` returned of two settings.

    Members of a list that have names, such as features, are compared with those of the same name.

    Parameters
    ----------
    before, after
        The values.
    path
        Where they stand; paths of what is found begin with it.
    """
    if before == after:
        return []
    one, other = _members(before), _members(after)
    if one is None or other is None or one.get("kind") != other.get("kind"):
        return [Difference(path, before, after)]
    found = [
        difference
        for key in one | other
        for difference in differences(one.get(key), other.get(key), _below(path, key))
    ]
    return found or [Difference(path, list(one), list(other))]  # the same members in another order


def _members(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        names = [one.get("name") for one in value]
        named = all(isinstance(name, str) for name in names)
        keys = [str(name) if named else f"[{number}]" for number, name in enumerate(names)]
        return dict(zip(keys, value, strict=True))
    return None


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path and not key.startswith("[") else f"{path}{key}"


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def spec(cls: type[T]) -> type[T]:
    """Make a `Spec` class a frozen dataclass whose values are validated on construction."""
    made = validated_dataclass(frozen=True, config=_CONFIG)(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def checked(self: T, *args: Any, **kwargs: Any) -> None:
        if _is_family(type(self)):
            name = type(self).__name__
            raise SchemaError(f"{name} must be built as one of its kinds: {_kinds_of(type(self))}.")
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise SchemaError(_explain(error, made.__name__)) from None

    setattr(made, "__init__", checked)  # noqa: B010 # mypy forbids assigning to a method
    return typing.cast("type[T]", made)


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]
        )
        text = problem["msg"].removeprefix("Value error, ")
        found = (
            "" if problem["type"] in {"missing", "value_error"} else f" Found {problem['input']!r}."
        )
        lines.append(f"{where}{place}: {text.rstrip('.')}.{found}{_remedy(problem)}")
    return "\n".join(lines)


def _remedy(problem: Mapping[str, Any]) -> str:
    """Say what to do about a value of the wrong type, where that is plain."""
    found = problem["input"]
    if isinstance(found, type) and issubclass(found, Spec):
        return f" Add parentheses: {found.__name__}()."
    listed = problem["type"].startswith(("tuple", "sequence", "list")) or (
        problem["type"] == "is_instance_of" and "instance of Sequence" in problem["msg"]
    )
    if listed and not isinstance(found, list | tuple):
        return " Put it in a list: [...]."
    if isinstance(found, str) and found in Spec._kinds:
        name = Spec._kinds[found].__name__
        return f" Write {name}(), or in a file {{ kind = {found!r} }}."
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _build(cls: type[T], data: Mapping[str, Any], path: str) -> T:
    made = _class_of(cls, data.get("kind"), f"{path}.kind" if path else "kind")
    hints = typing.get_type_hints(made)
    values = {
        key: _nested(value, _spec_in(hints.get(key)), f"{path}.{key}" if path else key)
        for key, value in data.items()
        if key != "kind"
    }
    known = {field.name for field in dataclasses.fields(made) if field.init}  # type: ignore[arg-type] # made by `spec`
    unknown = sorted(set(values) - known)
    if unknown:
        place = f"{path}.{unknown[0]}" if path else unknown[0]
        raise SchemaError(f"{place} is not known to {made.__name__}. Known: {sorted(known)}.")
    try:
        return made(**values)
    except SchemaError as error:
        if not path:
            raise
        lines = str(error).split("\n")
        raise SchemaError(
            "\n".join(path + line.removeprefix(made.__name__) for line in lines)
        ) from None


def _class_of(cls: type[T], kind: object, place: str) -> type[T]:
    """Return the class that `kind` names among `cls` and its subclasses."""
    if kind is None and not _is_family(cls):
        return cls
    if kind is None:
        raise SchemaError(f"{place} is required: one of {_kinds_of(cls)}.")
    found = Spec._kinds.get(kind) if isinstance(kind, str) else None
    if found is None or not issubclass(found, cls):
        rule = f"must be one of {_kinds_of(cls)}" if _kinds_of(cls) else "must be left out"
        raise SchemaError(f"{place} {rule}. Found {kind!r}.")
    return found


def _is_family(cls: type[Spec]) -> bool:
    """Tell whether only the kinds below a class can be built, not the class itself."""
    return cls.kind is None and bool(_kinds_of(cls))


def _nested(value: Any, hint: type[Spec] | None, path: str) -> Any:
    if isinstance(value, Mapping) and hint is not None:
        return hint.from_dict(value, path=path)
    if isinstance(value, list | tuple):
        return tuple(_nested(item, hint, f"{path}[{i}]") for i, item in enumerate(value))
    return value


def _spec_in(hint: Any) -> type[Spec] | None:
    """Find the spec class inside a type such as `tuple[Feature, ...]` or `Side | None`."""
    if typing.get_origin(hint) is None and isinstance(hint, type):
        return hint if issubclass(hint, Spec) else None
    inner = (_spec_in(argument) for argument in typing.get_args(hint))
    return next((found for found in inner if found is not None), None)


def _kinds_of(cls: type[Spec]) -> list[str]:
    return sorted(kind for kind, member in Spec._kinds.items() if issubclass(member, cls))
