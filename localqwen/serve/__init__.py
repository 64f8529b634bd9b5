"""HTTP over the engines: the OpenAI, Ollama and Anthropic APIs on one event stream.

`worker` is the one thread that owns the engines; `http` speaks HTTP; each API is a folder of pure functions: a body in
(`read`), bytes out (`Stream`, `response_body`, `error`), tested without a server.
"""
