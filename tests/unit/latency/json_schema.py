"""The part of JSON Schema that the profiles' schema uses, written out: what it says can be held against files."""

from __future__ import annotations

import re

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None), "boolean": bool}
KNOWN = {
    "$schema", "$defs", "$ref", "title", "description", "oneOf", "const", "enum", "type", "required", "properties",
    "additionalProperties", "items", "minItems", "minLength", "pattern", "minimum", "maximum", "exclusiveMinimum",
}  # fmt: skip


def problems(value, schema, root=None, where="it"):
    """Everything about a value that a schema forbids, as sentences; empty if it is valid."""
    root = root or schema
    unknown = set(schema) - KNOWN
    assert not unknown, f"the schema uses what this does not understand: {unknown}"
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "oneOf" in schema:
        found = [problems(value, part, root, where) for part in schema["oneOf"]]
        return [] if sum(not each for each in found) == 1 else [text for each in found for text in each] or ["more than one fits"]
    if "const" in schema and value != schema["const"]:
        return [f"{where} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} is not one of {schema['enum']}"]
    types = schema.get("type", list(TYPES))
    types = types if isinstance(types, list) else [types]
    if not any(isinstance(value, TYPES[t]) and (t == "boolean" or not isinstance(value, bool)) for t in types):
        return [f"{where} is not of type {types}"]
    if isinstance(value, str):
        found = [] if re.search(schema.get("pattern", ""), value) else [f"{where} does not match"]
        return found + ([f"{where} is too short"] if len(value) < schema.get("minLength", 0) else [])
    if isinstance(value, int | float):
        low, above, high = schema.get("minimum", -1e99), schema.get("exclusiveMinimum", -1e99), schema.get("maximum", 1e99)
        return [] if low <= value <= high and value > above else [f"{where} is out of range"]
    if isinstance(value, list):
        found = [] if len(value) >= schema.get("minItems", 0) else [f"{where} has too few items"]
        return found + [t for i, v in enumerate(value) for t in problems(v, schema.get("items", {}), root, f"{where}[{i}]")]
    if isinstance(value, dict):
        found = [f"{where} lacks {name}" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            part = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            if part is False:
                found.append(f"{where} has an unknown {name}")
            else:
                found += problems(item, {} if part is True else part, root, f"{where}.{name}")
        return found
    return []
