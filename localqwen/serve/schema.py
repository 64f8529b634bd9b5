"""JSON schemas as Python values: the words in which each API's `schema.py` describes its bodies for `/openapi.json`.

Knows nothing about any API. The schemas follow OpenAPI 3.1, whose dialect is JSON Schema 2020-12.
"""

from __future__ import annotations

from typing import Any

from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.serve.encoding import JSON

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
FLAG: Schema = {"type": ["boolean", "null"]}
OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 0}
#: The HTTP statuses with which a POST of any API can be refused.
REFUSED = ("400", "401", "403", "404", "408", "413", "500", "502", "503", "507")


def object_of(*required: str, **properties: Schema) -> Schema:
    """Return the schema of an object with these properties; other properties are allowed too."""
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def list_of(item: Schema, **more: Any) -> Schema:
    """Return the schema of a list; `more` are further keywords, as in `minItems=1`."""
    return {"type": "array", "items": item, **more}


def sampling(name: str) -> Schema:
    """Return the schema of a field of `Sampling`, or null."""
    bounds = SAMPLING_RANGES[name]
    lower = "exclusiveMinimum" if bounds.above_low else "minimum"
    kind = "integer" if bounds.whole else "number"
    return {"type": [kind, "null"], lower: bounds.low, "maximum": bounds.high}


def whole(low: int, high: int) -> Schema:
    """Return the schema of a whole number between `low` and `high`, or null."""
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def content(schema: Schema, what: str, *media_types: str) -> Schema:
    """Return a response (OpenAPI's Response Object) whose body has this schema, in each of the media types."""
    return {"description": what, "content": {media_type: {"schema": schema} for media_type in media_types}}


def responses(given: Schema, error: Schema, *codes: str) -> Schema:
    """Return an operation's responses by status: `given` for 200, and an error of this schema for each of `codes`."""
    return {"200": given, **{code: content(error, "refused, with the reason", JSON) for code in codes}}


def posted(summary: str, body: Schema, responses: Schema) -> Schema:
    """Return a path (OpenAPI's Path Item) with one operation, a POST that needs a JSON body."""
    required = {"required": True, "content": {JSON: {"schema": body}}}
    return {"post": {"summary": summary, "requestBody": required, "responses": responses}}
