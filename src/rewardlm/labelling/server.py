"""What the page for labellers can ask: the next answer, and to write a label or take one back. It names no model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rewardlm.config import LabelSettings
from rewardlm.errors import DataError, DiskFullError
from rewardlm.labelling.folder import LabelFolder, labeller_name
from rewardlm.labelling.session import Session
from rewardlm.listening import NO_TELEMETRY
from rewardlm.local_page import PAGE_POLICY, Guard, json_answer, page_file

# The page's files by name: content type and package. No other file can be asked for.
# Of folders that were begun before there was the setting.
_BREAK_EVERY = LabelSettings.model_fields["break_every"].default
_ASSETS = {
    "label.html": ("text/html", "labelling/page"),
    "label.css": ("text/css", "labelling/page"),
    "label.js": ("text/javascript", "labelling/page"),
    "dom.js": ("text/javascript", "viewing/page"),
    "page.css": ("text/css", "reporting/templates"),
}


def _checked(name: str) -> str:
    try:
        return labeller_name(name)
    except DataError as error:
        raise ValueError(str(error)) from None


_Name = Annotated[str, AfterValidator(_checked)]


class _Undo(BaseModel):
    """Who takes their last label back, and how many they have as their page knows it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    labeller: _Name
    done: int


class _Given(BaseModel):
    """A label, as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    labeller: _Name
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
        return page_file(request, _ASSETS, "label.html", {"Content-Security-Policy": PAGE_POLICY})

    @app.get("/assets/{name}")
    def part(request: Request, name: str) -> Response:
        return page_file(request, _ASSETS, name)

    @app.get("/api/about")
    def about(request: Request) -> Response:
        return json_answer(
            request,
            {
                "question": folder.question,
                "guideline": folder.guideline,
                "break_every": folder.run.meta["settings"].get("break_every", _BREAK_EVERY),
            },
        )

    @app.get("/api/next")
    def following(request: Request, labeller: Annotated[_Name, Query()]) -> Response:
        with alone:
            return json_answer(request, next_of(labeller))

    @app.post("/api/label")
    def label(request: Request, given: _Given) -> Response:
        with alone, _told():
            session.label(given.labeller, given.item, given.label, given.seconds)
            return json_answer(request, next_of(given.labeller))

    @app.post("/api/undo")
    def undo(request: Request, given: _Undo) -> Response:
        with alone, _told():
            undone = session.undo(given.labeller, given.done)
            return json_answer(request, {**next_of(given.labeller), "undone": undone is not None})

    return Guard(app, host, writes=("/api/label", "/api/undo"))


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong inside is told to the page, in words."""
    try:
        yield
    except DataError as error:
        raise HTTPException(400, str(error)) from None
    except (OSError, DiskFullError) as error:
        why = getattr(error.__cause__ or error, "strerror", None) or error
        raise HTTPException(507, f"the label can't be written: {why}; make room and try again") from None
