"""Makes random JSON schemas of the kinds that clients send."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

WORDS = ("name", "age", "city", "tags", "items", "price", "unit", "note", "kind", "id", "größe", "a b", 'quo"te', "x/y")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
PATTERNS = ("^[0-9]{5}$", "^[A-Z]{2,3}-[0-9]+$", "^(red|green|blue)$", "[a-c]+x", "^\\w{1,8}$")
VALUES: tuple[Any, ...] = (None, True, 0, -3, 2.5, "", "yes", 'a "b" \\c', "ü", [1, "x"], {"a": None})


def random_schema(rng: random.Random) -> Schema:
    """A schema of an object with definitions, some of them recursive."""
    schema = _object(rng, 3)
    if rng.random() < 0.4:
        schema["$defs"] = {"node": _object(rng, 1)}
        schema["$defs"]["node"]["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
        schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
    return schema


def _schema(rng: random.Random, depth: int) -> Schema:
    kinds = [_string, _string, _number, _integer, _constant, _enum, _plain]
    if depth:
        kinds += [_object, _object, _array, _array, _any_of, _nullable]
    schema: Schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.2:
        schema |= {"title": rng.choice(WORDS), "description": "What it is.", "default": None}
    return schema


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randint(1, 4))
    schema: Schema = {"type": "object", "properties": {name: _schema(rng, depth - 1 if depth else 0) for name in names}}
    if rng.random() < 0.8:
        schema["required"] = [name for name in names if rng.random() < 0.7]
    if rng.random() < 0.8:
        schema["additionalProperties"] = False if rng.random() < 0.8 else {"type": "integer"}
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "array", "items": _schema(rng, depth - 1), "maxItems": rng.randint(1, 4)}
    if rng.random() < 0.3:
        schema["prefixItems"] = [_schema(rng, 0) for _ in range(rng.randint(1, 2))]
        schema["items"] = False if rng.random() < 0.5 else schema["items"]
        schema["maxItems"] = len(schema["prefixItems"]) + 2
    if rng.random() < 0.4:
        schema["minItems"] = rng.randint(0, len(schema.get("prefixItems", "x")))
    return schema


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def _nullable(rng: random.Random, depth: int) -> Schema:
    return {"type": [rng.choice(("integer", "boolean")), "null"]}


def _string(rng: random.Random, depth: int) -> Schema:
    match rng.randrange(4):
        case 0:
            return {"type": "string", "format": rng.choice(FORMATS)}
        case 1:
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        case 2:
            least = rng.randint(0, 3)
            return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}
    return {"type": "string"}


def _integer(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-200, 200)
    match rng.randrange(3):
        case 0:
            return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 5000)}
        case 1:
            return {"type": "integer", "exclusiveMinimum": least, "multipleOf": rng.choice((2, 5, 10))}
    return {"type": "integer"}


def _number(rng: random.Random, depth: int) -> Schema:
    if rng.random() < 0.5:
        least = round(rng.uniform(-10, 10), 2)
        return {"type": "number", "minimum": least, "maximum": least + rng.choice((0.5, 3, 1000))}
    return {"type": "number"}


def _constant(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice(VALUES)}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample(VALUES, rng.randint(1, 4))}


def _plain(rng: random.Random, depth: int) -> Schema:
    return {"type": rng.choice(("boolean", "null"))}
