"""Starts the server of ``rewardlm view`` and says where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rewardlm.listening import address_of, listen
from rewardlm.local_page import run_server
from rewardlm.viewing.comparing import Comparisons
from rewardlm.viewing.folders import Place, find_runs
from rewardlm.viewing.following import Follower
from rewardlm.viewing.server import make_app


def serve(
    runs: Sequence[str], *, host: str = "127.0.0.1", port: int = 0, browser: bool = True, say: Callable[[str], None]
) -> None:
    """Serve the page about ``runs``, folders that hold runs or will, until Ctrl-C.

    ``say`` gets one line with the address once the page can be opened. Port 0 is a free one. Raises RunError where
    a run is a file, ConfigError if ``host`` and ``port`` can't be used.
    """
    places = [Place.of(given) for given in dict.fromkeys(runs)]
    listening = listen(host, port, free_port="leave --port out")
    follower, comparisons = Follower(places), Comparisons()
    address = address_of(host, listening)

    def ready() -> None:
        waiting = [place.given for place in places if not find_runs(place)]
        say(f"{address} shows {', '.join(runs)}" + (f"; waiting for runs in {', '.join(waiting)}" if waiting else ""))

    try:
        app = make_app(follower, comparisons, host=host)
        run_server(app, listening, ready=ready, browser=address if browser else None)
    finally:
        # If the server did not come up, it did not close these.
        comparisons.close()
        follower.close()
