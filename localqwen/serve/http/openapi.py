"""What the server says of itself at `/openapi.json` (OpenAPI 3.1): the routes, the fields that are read, the errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localqwen._version import __version__
from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.serve.api import EFFORTS
from localqwen.serve.fields import LONGEST_STOP, MOST_STOPS
from localqwen.serve.http import openapi_others
from localqwen.serve.openai.request import MOST_ANSWERS, MOST_LOGPROBS, ROLES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}
_ERRORS = {
    "400": "a field is wrong, or the model cannot do what was asked",
    "401": "the API key is missing or wrong",
    "403": "the Host or Origin is not ours",
    "404": "there is no such model",
    "408": "the body did not come in time",
    "413": "the body is too large",
    "500": "the engine failed",
    "503": "all runs are taken and the queue is full, or the server stops",
    "507": "the model does not fit the memory",
}


def description() -> Mapping[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "localqwen", "version": __version__, "description": "Qwen3 on this machine."},
        "paths": {
            "/v1/chat/completions": _asking("OpenAI's chat completions", _chat(), "chat.completion"),
            "/v1/completions": _asking("OpenAI's completions: a text is continued", _completion(), "text_completion"),
            "/v1/responses": _asking("OpenAI's responses; nothing is stored", _responses(), "response"),
            "/v1/chat/completions/{id}/end_thinking": {"post": _end_thinking()},
            "/v1/models": {"get": _answer("The models that can be named", _listed())},
            "/v1/models/{model}": {"get": {**_answer("One of them", _model(), "404"), "parameters": [_path("model")]}},
            "/health": {"get": _answer("Whether the server lives", _object(status={"enum": ["ok", "dead"]}), "503")},
            "/metrics": {"get": {"summary": "Prometheus", "responses": {"200": _body("text/plain", _TEXT)}}},
            **openapi_others.paths(),
        },
        "components": {
            "schemas": {"Error": _error()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _whole(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _list_of(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def _error() -> Schema:
    text_or_null: Schema = {"type": ["string", "null"]}
    body = _object("message", "type", message=_TEXT, type=_TEXT, param=text_or_null, code=text_or_null)
    return _object("error", error=body)


def _body(media_type: str, schema: Schema, what: str = "what was asked for") -> Schema:
    return {"description": what, "content": {media_type: {"schema": schema}}}


def _refused(*codes: str) -> Schema:
    error = {"$ref": "#/components/schemas/Error"}
    return {code: _body("application/json", error, _ERRORS[code]) for code in codes}


def _answer(summary: str, schema: Schema, *errors: str) -> Schema:
    own = {"503": _body("application/json", schema, "the same, of a server that has died")} if "503" in errors else {}
    refused = _refused("401", "403", *(code for code in errors if code != "503"))
    return {"summary": summary, "responses": {"200": _body("application/json", schema), **refused, **own}}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _listed() -> Schema:
    return _object("object", "data", object={"const": "list"}, data=_list_of(_model()))


def _model() -> Schema:
    return _object("id", "object", id=_TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=_TEXT)


def _end_thinking() -> Schema:
    ending = _object("id", "thinking", id=_TEXT, thinking={"const": "ending"})
    asked = _answer("End the thinking of an answer that streams", ending, "404")
    return {**asked, "parameters": [_path("id")]}


def _asking(summary: str, schema: Schema, kind: str) -> Schema:
    whole = _object("id", "object", "model", id=_TEXT, object={"const": kind}, model=_TEXT)
    given = _body("application/json", whole)
    given["content"]["text/event-stream"] = {"schema": _object("data", data=_TEXT, event=_TEXT)}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    responses = {"200": given, **_refused(*_ERRORS)}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


_SAMPLING: dict[str, Schema] = {
    **{name: openapi_others.sampling(name) for name in SAMPLING_RANGES},
    "top_k": {**openapi_others.sampling("top_k"), "minimum": -1},
    "seed": _whole(-(2**63), 2**63 - 1),
}
_LIMIT: Schema = {**_whole(-1, 2**31 - 1), "not": {"const": 0}}
_EFFORT: Schema = {"enum": [*EFFORTS, None]}
_THINKING: dict[str, Schema] = {
    "chat_template_kwargs": {"type": ["object", "null"], "properties": {"enable_thinking": _FLAG}},
    "thinking_budget": _whole(-1, 2**31 - 1),
    "thinking_token_budget": _whole(-1, 2**31 - 1),
    "reasoning_budget_tokens": _whole(-1, 2**31 - 1),
    "reasoning_effort": _EFFORT,
    "thinking": {
        "type": ["object", "null"],
        "properties": {"type": {"enum": ["enabled", "disabled", "auto", "adaptive"]}},
    },
}
_STOP: Schema = {"type": "string", "maxLength": LONGEST_STOP}
_STREAMING: dict[str, Schema] = {
    "stream": _FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": _FLAG}},
    "n": _whole(1, MOST_ANSWERS),
    "stop": {"anyOf": [_STOP, _list_of(_STOP, maxItems=MOST_STOPS), {"type": "null"}]},
}


def _chat() -> Schema:
    return _object(
        "messages",
        model={"type": ["string", "null"], "description": "a name of /v1/models; the first where it is left out"},
        messages=_list_of(_message(), minItems=1),
        tools={"anyOf": [_list_of(_tool()), {"type": "null"}]},
        tool_choice={"anyOf": [{"enum": ["none", "auto", "required", None]}, _OBJECT]},
        parallel_tool_calls=_FLAG,
        response_format={"anyOf": [_format(), {"type": "null"}]},
        max_tokens=_LIMIT,
        max_completion_tokens=_LIMIT,
        logprobs=_FLAG,
        top_logprobs=_whole(0, MOST_LOGPROBS),
        include_reasoning=_FLAG,
        separate_reasoning=_FLAG,
        **_SAMPLING,
        **_THINKING,
        **_STREAMING,
    )


def _message() -> Schema:
    part = _object("type", "text", type={"enum": ["text", "input_text", "output_text"]}, text=_TEXT)
    content: Schema = {"anyOf": [_TEXT, _list_of(part)]}
    return _object(
        "role",
        "content",
        role={"enum": list(ROLES)},
        content=content,
        reasoning_content={"type": ["string", "null"]},
        reasoning={"type": ["string", "null"]},
        tool_calls={"anyOf": [_list_of(_called()), {"type": "null"}]},
        tool_call_id={"type": ["string", "null"]},
    )


def _called() -> Schema:
    arguments: Schema = {"anyOf": [_OBJECT, {"type": "string", "contentMediaType": "application/json"}]}
    return _object("function", id=_TEXT, function=_object("name", name=_TEXT, arguments=arguments))


def _tool() -> Schema:
    function = _object("name", name={"type": "string", "minLength": 1}, description=_TEXT, parameters=_OBJECT)
    return _object("type", "function", type={"const": "function"}, function=function)


def _format() -> Schema:
    schema = _object("schema", name=_TEXT, schema=_OBJECT, strict=_FLAG)
    kinds = {"enum": ["text", "json_object", "json_schema"]}
    return _object("type", type=kinds, json_schema=schema)


def _completion() -> Schema:
    return _object(
        "prompt",
        model={"type": ["string", "null"]},
        prompt={"type": "string", "minLength": 1},
        max_tokens={**_LIMIT, "default": 16},
        logprobs=_whole(0, MOST_LOGPROBS),
        echo=_FLAG,
        **_SAMPLING,
        **_STREAMING,
    )


def _responses() -> Schema:
    return _object(
        "input",
        model={"type": ["string", "null"]},
        input={"anyOf": [_TEXT, _list_of(_OBJECT, minItems=1)]},
        instructions={"type": ["string", "null"]},
        reasoning={"type": ["object", "null"], "properties": {"effort": _EFFORT}},
        tools={"anyOf": [_list_of(_OBJECT), {"type": "null"}]},
        max_output_tokens=_LIMIT,
        top_logprobs=_whole(0, MOST_LOGPROBS),
        text={"type": ["object", "null"]},
        stream=_FLAG,
        **_SAMPLING,
    )
