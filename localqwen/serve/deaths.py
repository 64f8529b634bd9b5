"""What is known of processes that died: which request was at work each time, and which models die again and again."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable

from localqwen.errors import SetAside, Unsupported

#: At so many deaths a request was at work, until it is refused.
_DEATHS_OF_A_REQUEST = 2
#: So many deaths within so many seconds, and a model is set aside.
DEATHS_OF_A_MODEL, WITHIN = 3, 600.0
#: How many requests are remembered.
_MOST_REQUESTS = 1000


class Deaths:
    """The deaths since the server started. `on_aside` is called with the models that are set aside when they change."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_aside: Callable[[dict[str, str]], None] = lambda aside: None,
    ) -> None:
        self._clock = clock
        self._on_aside = on_aside
        self._requests: OrderedDict[tuple[str, str], int] = OrderedDict()  # by model and digest
        self._times: dict[str, deque[float]] = {}
        self._aside: dict[str, str] = {}
        self._died: set[str] = set()
        self.causes: Counter[tuple[str, str]] = Counter()  # (model, cause)

    def note(self, model: str, running: Iterable[str], cause: str, doing: str) -> None:
        """Note that the process of a model died. `running` are the digests of the requests that were at work, `doing`
        says in words what it did."""
        self.causes[model, cause] += 1
        self._died.add(model)
        counts = [self._count((model, digest)) for digest in running]
        if any(count >= _DEATHS_OF_A_REQUEST for count in counts):
            return  # the request is to blame, not the model
        times = self._times.setdefault(model, deque(maxlen=DEATHS_OF_A_MODEL))
        times.append(self._clock())
        if len(times) == DEATHS_OF_A_MODEL and times[-1] - times[0] <= WITHIN:
            often = f"{DEATHS_OF_A_MODEL} times within {WITHIN / 60:.0f} minutes"
            self._aside[model] = f"its process died {often}, the last time by {cause} {doing}".rstrip()
            self._on_aside(self.aside)

    def _count(self, request: tuple[str, str]) -> int:
        count = self._requests[request] = self._requests.pop(request, 0) + 1
        while len(self._requests) > _MOST_REQUESTS:
            self._requests.popitem(last=False)
        return count

    def check_request(self, model: str, digest: Callable[[], str]) -> None:
        """Raise Unsupported for a request at which processes died. `digest` is called only where any did."""
        if self._requests and self._requests.get((model, digest()), 0) >= _DEATHS_OF_A_REQUEST:
            raise Unsupported(
                f"the process of {model} died {_DEATHS_OF_A_REQUEST} times while it worked on this very request",
                "change the request, or report it: localqwen doctor shows what to add",
            )

    def check_model(self, model: str) -> None:
        """Raise SetAside for a model that is set aside."""
        if model in self._aside:
            raise SetAside(
                f"{model} is set aside: {self._aside[model]}",
                f"replace its file, or unload it (POST /api/generate with keep_alive 0), or restart the server; "
                f"then it is tried again: localqwen run {model} shows what happens",
            )

    @property
    def aside(self) -> dict[str, str]:
        """Return the models that are set aside, with the reason."""
        return dict(self._aside)

    def knows(self, model: str) -> bool:
        """Return whether the process of a model died since it was last revived."""
        return model in self._died

    def revive(self, model: str) -> None:
        """Forget the deaths of a model."""
        if self._aside.pop(model, None) is not None:
            self._on_aside(self.aside)
        self._times.pop(model, None)
        self._died.discard(model)
        for request in [request for request in self._requests if request[0] == model]:
            del self._requests[request]
