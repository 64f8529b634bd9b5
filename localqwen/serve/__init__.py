"""HTTP over the engines: the OpenAI, Ollama and Anthropic APIs on one event stream.

`worker` is the one thread that owns the engines; `app` speaks HTTP; each API is one file of pure functions: a body
in (`read`), events out (`Stream`, `whole`, `error`), tested without a server.
"""
