"""What the page can ask: only GET, only runs in the folders that were named, by their ids, and nothing is written."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from rewardlm.listening import NO_TELEMETRY
from rewardlm.local_page import PAGE_POLICY, Guard, json_answer, page_file
from rewardlm.reporting.shell import policy_of
from rewardlm.viewing.comparing import Comparisons
from rewardlm.viewing.followed import FollowedRun
from rewardlm.viewing.following import Follower, curves_since
from rewardlm.viewing.samples import Only

# The page's files by name: content type and package. No other file can be asked for.
_ASSETS = {
    "view.html": ("text/html", "viewing/page"),
    "view.css": ("text/css", "viewing/page"),
    "view.js": ("text/javascript", "viewing/page"),
    "curves.js": ("text/javascript", "viewing/page"),
    "results.js": ("text/javascript", "viewing/page"),
    "answers.js": ("text/javascript", "viewing/page"),
    "dom.js": ("text/javascript", "viewing/page"),
    "page.css": ("text/css", "reporting/templates"),
    "plotly.js": ("text/javascript", ""),
}
_MOST_COMPARED = 40
Ids = Annotated[list[str], Query(max_length=_MOST_COMPARED)]


def make_app(follower: Follower, comparisons: Comparisons, *, host: str = "127.0.0.1") -> Guard:
    """The server's application, which follows runs while it is up. ``host`` is the address that it listens on."""

    @asynccontextmanager
    async def up(_: FastAPI) -> Any:
        follower.start()
        yield
        follower.close()
        comparisons.close()

    app = FastAPI(
        title="rewardlm view", lifespan=up, docs_url=None, redoc_url=None, openapi_url=None, telemetry=NO_TELEMETRY
    )

    @app.get("/")
    def page(request: Request) -> Response:
        return page_file(request, _ASSETS, "view.html", {"Content-Security-Policy": PAGE_POLICY})

    @app.get("/assets/{name}")
    def part(request: Request, name: str) -> Response:
        return page_file(request, _ASSETS, name)

    @app.get("/api/state")
    def state(request: Request) -> Response:
        return json_answer(request, follower.state())

    @app.get("/api/runs/{identity}/curves")
    def curves(request: Request, identity: str, generation: int = -1, start: int = 0) -> Response:
        run = _known(identity)
        return json_answer(request, follower.read(run, lambda one: curves_since(one, generation, start)))

    @app.get("/api/runs/{identity}/answers")
    def answers(
        request: Request, identity: str, step: int | None = None, text: str = "", only: Only = "all"
    ) -> Response:
        run = _known(identity)
        return json_answer(request, follower.read(run, lambda one: one.answers(step=step, text=text[:200], only=only)))

    @app.get("/api/comparison")
    def comparison(request: Request, run: Ids) -> Response:
        runs = [_known(identity) for identity in dict.fromkeys(run)]
        if not any(one.measurement is not None for one in runs):
            raise HTTPException(400, "nothing to compare: choose at least one measurement")
        if unfinished := [one.run.label for one in runs if one.state != "finished"]:
            raise HTTPException(400, f"not finished yet: {', '.join(unfinished)}")
        return json_answer(request, comparisons.of([one.folder for one in runs]))

    @app.get("/report/{name}")
    def report(name: str) -> Response:
        file = comparisons.page(name)
        if file is None:
            raise HTTPException(404, "no such page: compare the runs again")
        # The file's own policy names the scripts that may run; only this page may show it in a frame.
        policy = f"{policy_of(file)}; frame-ancestors 'self'"
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": policy})

    def _known(identity: str) -> FollowedRun:
        found = follower.get(identity)
        if found is None:
            raise HTTPException(404, "no such run")
        return found

    return Guard(app, host)
