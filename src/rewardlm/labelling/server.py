"""What the page for labellers can ask: the next answer, and to write a label or take one back. It names no model."""

from __future__ import annotations

import functools
import threading
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from rewardlm.errors import DataError
from rewardlm.labelling.folder import LabelFolder
from rewardlm.labelling.session import Session
from rewardlm.listening import NO_TELEMETRY
from rewardlm.local_page import PAGE_POLICY, Guard, answer, json_answer

# The page's files by name: content type and package. No other file can be asked for.
_ASSETS = {
    "label.html": ("text/html", "labelling/page"),
    "label.css": ("text/css", "labelling/page"),
    "label.js": ("text/javascript", "labelling/page"),
    "dom.js": ("text/javascript", "viewing/page"),
    "page.css": ("text/css", "reporting/templates"),
}
# A name in one line, with something in it.
_NAME = r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"
Labeller = Annotated[str, Query(max_length=40, pattern=_NAME)]


class _Undo(BaseModel):
    """Who takes their last label back."""

    model_config = ConfigDict(extra="forbid", strict=True)
    labeller: Annotated[str, Field(max_length=40, pattern=_NAME)]


class _Given(_Undo):
    """A label, as the page sends it."""

    item: str
    label: Annotated[int, Field(ge=0, le=1)] | None
    seconds: Annotated[float, Field(ge=0, le=86_400)] | None = None


def make_app(folder: LabelFolder, *, host: str = "127.0.0.1") -> Guard:
    """The server's application. ``host`` is the address that it listens on."""
    session, alone = Session(folder), threading.Lock()
    app = FastAPI(title="rewardlm label", docs_url=None, redoc_url=None, openapi_url=None, telemetry=NO_TELEMETRY)

    def next_of(labeller: str) -> dict[str, Any]:
        item, progress = session.next(labeller), session.progress(labeller)
        return {
            "item": None if item is None else {"id": item.id, "prompt": item.prompt, "text": item.text},
            "done": progress.done,
            "left": progress.left,
        }

    @app.get("/")
    def page(request: Request) -> Response:
        return _asset(request, "label.html", {"Content-Security-Policy": PAGE_POLICY})

    @app.get("/assets/{name}")
    def part(request: Request, name: str) -> Response:
        return _asset(request, name, {})

    @app.get("/api/about")
    def about(request: Request) -> Response:
        return json_answer(
            request,
            {
                "question": folder.question,
                "guideline": folder.guideline,
                "break_every": folder.run.meta["settings"]["break_every"],
            },
        )

    @app.get("/api/next")
    def following(request: Request, labeller: Labeller) -> Response:
        with alone:
            return json_answer(request, next_of(labeller.strip()))

    @app.post("/api/label")
    def label(request: Request, given: _Given) -> Response:
        with alone:
            try:
                session.label(given.labeller.strip(), given.item, given.label, given.seconds)
            except DataError as error:
                raise HTTPException(400, str(error)) from None
            return json_answer(request, next_of(given.labeller.strip()))

    @app.post("/api/undo")
    def undo(request: Request, given: _Undo) -> Response:
        with alone:
            undone = session.undo(given.labeller.strip())
            return json_answer(request, {**next_of(given.labeller.strip()), "undone": undone is not None})

    return Guard(app, host, writes=("/api/label", "/api/undo"))


def _asset(request: Request, name: str, headers: dict[str, str]) -> Response:
    """A file of the page, by its bare name."""
    if name not in _ASSETS:
        raise HTTPException(404, "no such file")
    return answer(request, _content(name), f"{_ASSETS[name][0]}; charset=utf-8", headers)


@functools.cache
def _content(name: str) -> bytes:
    return (resources.files("rewardlm") / _ASSETS[name][1] / name).read_bytes()
