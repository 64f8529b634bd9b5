"""What `/openapi.json` says about OpenAI's routes, and OpenAI's error, which the server's own routes return too."""

from __future__ import annotations

from collections.abc import Mapping

from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.serve.api import EFFORTS
from localqwen.serve.encoding import JSON, SSE
from localqwen.serve.fields import LONGEST_STOP, MOST_STOPS
from localqwen.serve.openai.request import MOST_ANSWERS, MOST_LOGPROBS, ROLES
from localqwen.serve.schema import (
    FLAG,
    NAME,
    OBJECT,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    content,
    list_of,
    object_of,
    posted,
    sampling,
    whole,
)

#: The name of the error among the document's components.
ERROR = "Error"
_ERRORS = {
    "400": "a field is wrong, or the model cannot do that",
    "401": "the API key is missing or wrong",
    "403": "the Host or Origin is not ours",
    "404": "there is no such model",
    "408": "the body did not come in time",
    "413": "the body is too large",
    "500": "the engine failed",
    "503": "all runs are taken and the queue is full, or the server stops",
    "507": "the model does not fit the memory",
}


def paths() -> Mapping[str, Schema]:
    """Return OpenAPI's description of each route, by path."""
    one = {**_answer("One of them", _model(), "404"), "parameters": [_path("model")]}
    return {
        "/v1/chat/completions": _post("OpenAI's chat completions", _chat(), "chat.completion"),
        "/v1/completions": _post("OpenAI's completions: a text is continued", _completion(), "text_completion"),
        "/v1/responses": _post("OpenAI's responses; nothing is stored", _responses(), "response"),
        "/v1/chat/completions/{id}/end_thinking": {"post": _end_thinking()},
        "/v1/models": {"get": _answer("The models that can be named", _listed())},
        "/v1/models/{model}": {"get": one},
    }


def error() -> Schema:
    """Return the schema of an error in OpenAI's format, which `refused` refers to."""
    body = object_of("message", "type", message=TEXT, type=TEXT, param=TEXT_OR_NULL, code=TEXT_OR_NULL)
    return object_of("error", error=body)


def refused(*codes: str) -> Schema:
    """Return the responses with an error, by HTTP status."""
    schema = {"$ref": f"#/components/schemas/{ERROR}"}
    return {code: content(schema, _ERRORS[code], JSON) for code in codes}


def _answer(summary: str, schema: Schema, *errors: str) -> Schema:
    given = content(schema, "the response", JSON)
    return {"summary": summary, "responses": {"200": given, **refused("401", "403", *errors)}}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": TEXT}


def _listed() -> Schema:
    return object_of("object", "data", object={"const": "list"}, data=list_of(_model()))


def _model() -> Schema:
    return object_of("id", "object", id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)


def _end_thinking() -> Schema:
    ending = object_of("id", "thinking", id=TEXT, thinking={"const": "ending"})
    answer = _answer("End the thinking of an answer that streams", ending, "404")
    return {**answer, "parameters": [_path("id")]}


def _post(summary: str, schema: Schema, kind: str) -> Schema:
    given = content(
        object_of("id", "object", "model", id=TEXT, object={"const": kind}, model=TEXT), "the response", JSON
    )
    given["content"][SSE] = {"schema": object_of("data", data=TEXT, event=TEXT)}
    return posted(summary, schema, {"200": given, **refused(*_ERRORS)})


_SAMPLING: dict[str, Schema] = {
    **{name: sampling(name) for name in SAMPLING_RANGES},
    "top_k": {**sampling("top_k"), "minimum": -1},
    "seed": whole(-(2**63), 2**63 - 1),
}
_LIMIT: Schema = {**whole(-1, 2**31 - 1), "not": {"const": 0}}
_EFFORT: Schema = {"enum": [*EFFORTS, None]}
_THINKING: dict[str, Schema] = {
    "chat_template_kwargs": {"type": ["object", "null"], "properties": {"enable_thinking": FLAG}},
    "thinking_budget": whole(-1, 2**31 - 1),
    "thinking_token_budget": whole(-1, 2**31 - 1),
    "reasoning_budget_tokens": whole(-1, 2**31 - 1),
    "reasoning_effort": _EFFORT,
    "thinking": {
        "type": ["object", "null"],
        "properties": {"type": {"enum": ["enabled", "disabled", "auto", "adaptive"]}},
    },
}
_STOP: Schema = {"type": "string", "maxLength": LONGEST_STOP}
_STREAMING: dict[str, Schema] = {
    "stream": FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": FLAG}},
    "n": whole(1, MOST_ANSWERS),
    "stop": {"anyOf": [_STOP, list_of(_STOP, maxItems=MOST_STOPS), {"type": "null"}]},
}


def _chat() -> Schema:
    return object_of(
        "messages",
        model={"type": ["string", "null"], "description": "a name of /v1/models; the first where it is left out"},
        messages=list_of(_message(), minItems=1),
        tools={"anyOf": [list_of(_tool()), {"type": "null"}]},
        tool_choice={"anyOf": [{"enum": ["none", "auto", "required", None]}, OBJECT]},
        parallel_tool_calls=FLAG,
        response_format={"anyOf": [_format(), {"type": "null"}]},
        max_tokens=_LIMIT,
        max_completion_tokens=_LIMIT,
        logprobs=FLAG,
        top_logprobs=whole(0, MOST_LOGPROBS),
        include_reasoning=FLAG,
        separate_reasoning=FLAG,
        **_SAMPLING,
        **_THINKING,
        **_STREAMING,
    )


def _message() -> Schema:
    part = object_of("type", "text", type={"enum": ["text", "input_text", "output_text"]}, text=TEXT)
    content: Schema = {"anyOf": [TEXT, list_of(part)]}
    return object_of(
        "role",
        "content",
        role={"enum": list(ROLES)},
        content=content,
        reasoning_content=TEXT_OR_NULL,
        reasoning=TEXT_OR_NULL,
        tool_calls={"anyOf": [list_of(_called()), {"type": "null"}]},
        tool_call_id=TEXT_OR_NULL,
    )


def _called() -> Schema:
    arguments: Schema = {"anyOf": [OBJECT, {"type": "string", "contentMediaType": "application/json"}]}
    return object_of("function", id=TEXT, function=object_of("name", name=TEXT, arguments=arguments))


def _tool() -> Schema:
    function = object_of("name", name=NAME, description=TEXT, parameters=OBJECT)
    return object_of("type", "function", type={"const": "function"}, function=function)


def _format() -> Schema:
    schema = object_of("schema", name=TEXT, schema=OBJECT, strict=FLAG)
    kinds = {"enum": ["text", "json_object", "json_schema"]}
    return object_of("type", type=kinds, json_schema=schema)


def _completion() -> Schema:
    return object_of(
        "prompt",
        model=TEXT_OR_NULL,
        prompt=NAME,
        max_tokens={**_LIMIT, "default": 16},
        logprobs=whole(0, MOST_LOGPROBS),
        echo=FLAG,
        **_SAMPLING,
        **_STREAMING,
    )


def _responses() -> Schema:
    return object_of(
        "input",
        model=TEXT_OR_NULL,
        input={"anyOf": [TEXT, list_of(OBJECT, minItems=1)]},
        instructions=TEXT_OR_NULL,
        reasoning={"type": ["object", "null"], "properties": {"effort": _EFFORT}},
        tools={"anyOf": [list_of(OBJECT), {"type": "null"}]},
        max_output_tokens=_LIMIT,
        top_logprobs=whole(0, MOST_LOGPROBS),
        text={"type": ["object", "null"]},
        stream=FLAG,
        **_SAMPLING,
    )
