"""The published schemas, in which objects may gain fields, as strict ones: ours have no others."""

import json
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


def close(schema: Any) -> Any:
    """The schema with every object that lists properties closed."""
    if isinstance(schema, list):
        return [close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: close(each) for name, each in schema.items()}
    listed = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    return {"additionalProperties": False} | found if listed else found


def check_file(path: Path, kind: str) -> None:
    """Refuses a file that its schema does not describe in full."""
    schema = json.loads((FOLDER / f"{kind}.schema.json").read_text("utf-8"))
    jsonschema.validate(json.loads(path.read_text("utf-8")), close(schema))
