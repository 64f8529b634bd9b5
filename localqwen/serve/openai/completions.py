"""OpenAI's `/v1/completions`: the model continues a text, without a template and without thinking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localqwen.chat.answer import Answer
from localqwen.chat.messages import Event, Finished, Request, Started, Text, TokenLogprob
from localqwen.errors import LocalqwenError
from localqwen.serve import encoding
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.fields import Fields
from localqwen.serve.openai import request as openai_request
from localqwen.serve.openai import response as openai_response

error = openai_response.error
#: OpenAI's own default for max_tokens: a base model would continue to the end of its context.
DEFAULT_TOKENS = 16


def read(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a completion request. Raise BadField if a field is wrong or cannot be obeyed."""
    fields = Fields(body)
    _refuse(fields)
    options = fields.object("stream_options")
    unlimited = fields.data.get("max_tokens") == -1
    prompt = _prompt(fields)
    request = Request(
        messages=(),
        prompt=prompt,
        max_tokens=openai_request.limit(fields, "max_tokens") or (None if unlimited else DEFAULT_TOKENS),
        stop=fields.stops("stop"),
        sampling=openai_request.sampling(fields),
        logprobs=fields.whole("logprobs", 0, openai_request.MOST_LOGPROBS),
        format=openai_request.response_format(fields),
    )
    return ParsedRequest(
        fields.text("model") or "",
        request,
        stream=fields.flag("stream") or False,
        include_usage=bool(options and options.flag("include_usage")),
        answers=fields.whole("n", 1, openai_request.MOST_ANSWERS) or 1,
        extra={"echo": prompt if fields.flag("echo") else ""},
    )


def _refuse(fields: Fields) -> None:
    """Raise BadField if a field would change the answer and cannot be obeyed."""
    openai_request.refuse(fields)
    if fields.text("suffix"):
        raise fields.wrong("suffix", "is not supported: these models only continue a text")
    if (fields.whole("best_of", 1) or 1) > (fields.whole("n", 1) or 1):
        raise fields.wrong("best_of", "cannot be larger than n: this server does not rank answers")
    if fields.flag("echo") and fields.has("logprobs"):
        raise fields.wrong("echo", "cannot be used with logprobs: this server does not compute those of the prompt")


def _prompt(fields: Fields) -> str:
    if not fields.has("prompt"):
        raise fields.wrong("prompt", "is missing")
    if isinstance(fields.data["prompt"], list) and not all(isinstance(each, str) for each in fields.data["prompt"]):
        raise fields.wrong("prompt", "must be a string: token ids are not supported")
    prompts = fields.texts("prompt")
    if len(prompts) != 1 or not prompts[0]:
        raise fields.wrong("prompt", "must be one string that is not empty")
    return prompts[0]


class Stream:
    """Encodes the events as `text_completion` objects, then `[DONE]`. With `echo` the prompt comes first."""

    media_type = encoding.SSE

    def __init__(self, parsed: ParsedRequest, meta: ResponseMeta) -> None:
        self._parsed = parsed
        self._meta = meta
        self._finished: list[Finished] = []
        self._offsets: dict[int, int] = {}

    def feed(self, event: Event, index: int = 0) -> bytes:
        """Return the chunk of one event of answer `index`."""
        match event:
            case Started() if self._parsed.extra["echo"]:
                return self._chunk(index, self._parsed.extra["echo"])
            case Text(text, logprobs):
                return self._chunk(index, text, logprobs=logprobs)
            case Finished():
                self._finished.append(event)
                return self._chunk(index, "", finished=event)
        return b""

    def end(self) -> bytes:
        """Return the usage, if the client wants it, and `[DONE]`."""
        return openai_response.end(self._parsed, _base(self._meta), self._finished)

    def error(self, error: LocalqwenError) -> bytes:
        """Return the error and `[DONE]`, after an answer that failed in the middle."""
        return openai_response.failed(error)

    def _chunk(
        self, index: int, text: str, *, logprobs: Sequence[TokenLogprob] = (), finished: Finished | None = None
    ) -> bytes:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        choice = _choice(index, text, _logprobs(logprobs, offset) if logprobs else None, finished)
        return openai_response.chunk(self._parsed, _base(self._meta), choice, finished)


def response_body(parsed: ParsedRequest, meta: ResponseMeta, answers: Sequence[Answer]) -> Mapping[str, Any]:
    """Return the body of a response that is not streamed, a `text_completion` object."""
    echo = parsed.extra["echo"]
    finished = [answer.end for answer in answers]
    wanted = parsed.request.logprobs is not None
    return {
        **_base(meta),
        "choices": [
            _choice(
                index,
                echo + answer.content,
                _logprobs(answer.logprobs, len(echo)) if wanted else None,
                answer.end,
            )
            for index, answer in enumerate(answers)
        ],
        "usage": openai_response.usage(finished),
        "timings": openai_response.timings(finished[0]),
    }


def _base(meta: ResponseMeta) -> dict[str, Any]:
    return {"id": f"cmpl-{meta.id}", "object": "text_completion", "created": int(meta.created), "model": meta.model}


def _choice(index: int, text: str, logprobs: Any, finished: Finished | None) -> dict[str, Any]:
    reason = finished.finish_reason if finished else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Return log-probabilities in the older format of completions: parallel lists, with offsets in characters."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry.text)
    return {
        "tokens": [entry.text for entry in entries],
        "token_logprobs": [openai_response.finite(entry.logprob) for entry in entries],
        "top_logprobs": [{top.text: openai_response.finite(top.logprob) for top in entry.top} for entry in entries],
        "text_offset": offsets,
    }
