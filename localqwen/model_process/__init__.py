"""One loaded model in a process of its own, so that no file, template or question can end the process that asks.

`frames` and `values` are the messages between the two, `launch` starts a child, `death` says how one ended. The child's
side is `channel`, `preparing`, `answering` and `child`; `process` is the server's side.
"""
