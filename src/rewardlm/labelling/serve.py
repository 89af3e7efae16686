"""Starts the server of ``rewardlm label open`` and says where it is."""

from __future__ import annotations

from collections.abc import Callable

from rewardlm.labelling.folder import LabelFolder
from rewardlm.labelling.server import make_app
from rewardlm.listening import address_of, listen
from rewardlm.local_page import run_server


def serve(
    folder: LabelFolder, *, host: str = "127.0.0.1", port: int = 0, browser: bool = True, say: Callable[[str], None]
) -> None:
    """Serve the page until Ctrl-C. No other command can add to the folder meanwhile.

    ``say`` gets one line with the address once the page can be opened. Port 0 is a free one. Raises RunError where
    another command has the folder open, ConfigError if ``host`` and ``port`` can't be used.
    """
    with folder.alone():
        listening = listen(host, port, free_port="leave --port out")
        address = address_of(host, listening)
        waiting = f"{len(folder.items)} answers to label, kept in {folder.run.path}"
        app = make_app(folder, host=host)
        run_server(app, listening, ready=lambda: say(f"{address} has {waiting}"), browser=address if browser else None)
