"""`python -m localqwen.model_process NAME`: the process of a model. Not for people: the server starts it."""

from __future__ import annotations

import os

from localqwen.model_process import launch


def main() -> None:
    """Answer the parent's messages on standard input until it ends."""
    launch.begin_child()  # before the long imports: the parent may end meanwhile
    from localqwen.model_process import channel, child

    child.serve(channel.of_this_process(), child.open_named, end=lambda: os._exit(0))
    os._exit(0)  # at once: threads that still prepare, and libraries that free memory, have nothing left to do


if __name__ == "__main__":
    main()
