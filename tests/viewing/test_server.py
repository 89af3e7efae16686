"""What the server answers, to whom, and what it never does."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from rewardlm.runs import Run
from rewardlm.viewing.folders import Place
from rewardlm.viewing.following import Follower

pytest.importorskip("fastapi", reason="rewardlm[view] is not installed")
from fastapi.testclient import TestClient

from rewardlm.viewing.comparing import Comparisons
from rewardlm.viewing.server import make_app

HERE = "http://127.0.0.1:8123"
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\ud83d"


class NoComparisons(Comparisons):
    """Compares nothing; remembers what it was asked."""

    def __init__(self):
        self.asked: list[list[Path]] = []

    def of(self, folders):
        self.asked.append(list(folders))
        return {"status": "waiting", "seconds": 0.0}

    def page(self, name):
        return None

    def close(self):
        pass


@pytest.fixture
def runs(tmp_path):
    run = Run.start(tmp_path / "runs" / "rl", kind="rlaf", label=HOSTILE[:-1], settings={"model": "tiny", "steps": 3})
    run.append("metrics", [{"step": step, "reward_mean": step / 3, "warnings": [HOSTILE]} for step in (1, 2)])
    run.append("samples", [{"step": 1, "prompt": HOSTILE, "response": HOSTILE, "by_judge": {HOSTILE: 0.9}}])
    measured = Run.start(tmp_path / "runs" / "pt", kind="measure", label="PT", settings={"samples": 1})
    measured.update(status="finished")
    return tmp_path / "runs"


@pytest.fixture
def comparisons():
    return NoComparisons()


@pytest.fixture
def client(runs, comparisons):
    follower = Follower([Place.of(str(runs))], every=0.05)
    follower.look()
    with TestClient(make_app(follower, comparisons), base_url=HERE) as client:
        yield client


def ids(client) -> dict[str, str]:
    return {run["kind"]: run["id"] for run in client.get("/api/state").json()["runs"]}


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8123", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.1:x", "[::1",
     "[::1]x", "127.0.0.1@evil.example", "10.0.0.1", "2130706433", "localhost, evil.example", "127.0.0.1:80:80"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/api/state", "/assets/view.js"])
def test_a_foreign_name_that_points_here_is_refused(client, host, path):
    refused = client.get(path, headers={"Host": host})
    assert refused.status_code == 421
    assert "runs" not in refused.text


@pytest.mark.parametrize("host", ["127.0.0.1:8123", "localhost:8123", "LOCALHOST", "[::1]:8123", "localhost:9"])
def test_this_machines_own_names_are_answered_through_a_tunnel_too(client, host):
    assert client.get("/api/state", headers={"Host": host}).status_code == 200


def test_whoever_opened_it_to_others_reaches_it_by_number_and_never_by_a_foreign_name(runs):
    app = make_app(Follower([Place.of(str(runs))]), NoComparisons(), host="0.0.0.0")
    with TestClient(app, base_url="http://10.1.2.3:80") as client:
        assert client.get("/api/state").status_code == 200
        assert client.get("/api/state", headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/api/state", "/api/comparison", "/report/x"])
def test_nothing_but_reading_is_possible(client, method, path):
    refused = client.request(method, path)
    assert refused.status_code == 405
    assert "POST" not in refused.headers["allow"]


def test_every_route_only_reads():
    app = make_app(Follower([]), NoComparisons()).app
    for route in app.routes:
        assert route.methods <= {"GET", "HEAD"}, route.path


def test_nothing_is_sent_to_where_the_environment_says(runs, monkeypatch):
    """FastAPI can send traces, with addresses, to a collector."""
    with socket.create_server(("127.0.0.1", 0)) as collector:
        collector.settimeout(1.5)
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        follower = Follower([Place.of(str(runs))])
        with TestClient(make_app(follower, NoComparisons()), base_url=HERE) as client:
            assert client.get("/api/state").status_code == 200
        with pytest.raises(TimeoutError):
            collector.accept()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_pages_may_not_read_but_may_link_here(client, site):
    for path in ("/api/state", "/assets/view.js", "/api/comparison?run=x"):
        assert client.get(path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 403
    assert client.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert client.get("/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert client.get("/api/state", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


TRAVERSALS = [
    "..", "../..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "....//etc/passwd",
    "/etc/passwd", "%2fetc%2fpasswd", "..%5c..%5cetc%5cpasswd", "..%252f..%252fetc%252fpasswd", "%00", "run.json",
    "view.js%00.css", "page.css/../../../runs.py", "__init__.py", "server.py", ".", "~root",
]  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize("path", ["/assets/{}", "/report/{}", "/api/runs/{}/curves", "/api/runs/{}/answers", "/{}"])
def test_no_path_leads_out(client, path, name):
    found = client.get(path.format(name))
    assert found.status_code in (404, 400) or found.text == client.get("/").text
    assert "root:" not in found.text
    assert "import" not in found.text or found.text == client.get("/").text


def test_no_answer_may_be_framed_sniffed_or_told_elsewhere(client):
    identity = ids(client)["rlaf"]
    for path in ("/", "/assets/view.js", "/api/state", f"/api/runs/{identity}/curves", "/nothing", "/report/x"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    script = client.get("/").headers["content-security-policy"].split("script-src ")[1].split(";")[0]
    assert script == "'self'"


def test_the_page_fetches_nothing_from_elsewhere_and_all_that_it_names_is_there(client):
    page = client.get("/").text
    assert "http" not in page
    for name in ("view.js", "curves.js", "answers.js", "results.js", "dom.js", "view.css", "page.css", "plotly.js"):
        found = client.get(f"/assets/{name}")
        assert found.status_code == 200
        if name != "plotly.js":
            assert "://" not in found.text.replace("http://www.w3.org/2000/svg", "")
        if name.endswith(".js"):
            assert found.headers["content-type"].startswith("text/javascript")


def test_what_did_not_change_is_not_sent_again(client, runs):
    path = f"/api/runs/{ids(client)['rlaf']}/curves"
    first = client.get(path)
    tag = first.headers["etag"]
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    Run.open(runs / "rl").append("metrics", [{"step": 3, "reward_mean": 1.0}])
    deadline = threading.Event()
    for _ in range(100):
        found = client.get(path, headers={"If-None-Match": tag})
        if found.status_code == 200:
            break
        deadline.wait(0.05)
    assert found.json()["columns"]["reward_mean"] == [0.333333, 0.666667, 1.0]
    assert client.get(path + "?generation=0&start=2").json()["columns"]["step"] == [3]


def test_texts_come_as_data_and_only_where_they_are_asked_for(client):
    found = client.get(f"/api/runs/{ids(client)['rlaf']}/answers")
    assert found.headers["content-type"] == "application/json"
    (answer,) = found.json()["answers"]
    assert answer["answer"].startswith("</script><img")
    assert "<img" not in json.dumps(client.get("/").text)


@pytest.mark.parametrize("query", ["step=x", "only=secret", "step=1e9", "only=all&step=" + "9" * 5000])
def test_a_question_that_makes_no_sense_is_refused(client, query):
    assert client.get(f"/api/runs/{ids(client)['rlaf']}/answers?{query}").status_code == 422


def test_only_finished_measurements_are_compared(client, comparisons, runs):
    known = ids(client)
    assert client.get("/api/comparison").status_code == 422
    assert client.get("/api/comparison?run=0123456789ab").status_code == 404
    refused = client.get(f"/api/comparison?run={known['rlaf']}")
    assert "at least one measurement" in refused.json()["detail"]
    refused = client.get(f"/api/comparison?run={known['measure']}&run={known['rlaf']}")
    assert "not finished yet" in refused.json()["detail"]
    assert comparisons.asked == []
    assert client.get(f"/api/comparison?run={known['measure']}&run={known['measure']}").json()["status"] == "waiting"
    assert comparisons.asked == [[(runs / "pt").resolve()]]
    many = "&".join(["run=x"] * 1000)
    assert client.get(f"/api/comparison?{many}").status_code == 422


def test_many_may_ask_at_once(client, runs):
    path = f"/api/runs/{ids(client)['rlaf']}/curves"
    run, wrong = Run.open(runs / "rl"), []

    def ask():
        for _ in range(15):
            found = client.get(path).json()
            columns = found["columns"]
            if {len(column) for column in columns.values()} != {found["n"]} or columns["step"] != sorted(
                columns["step"]
            ):
                wrong.append(found)

    asking = [threading.Thread(target=ask) for _ in range(6)]
    for one in asking:
        one.start()
    for step in range(3, 60):
        run.append("metrics", [{"step": step, "reward_mean": 0.5, "kl": 0.1 if step % 2 else None}])
    for one in asking:
        one.join()
    assert wrong == []


def test_reading_leaves_every_file_as_it_was(client, runs):
    def files():
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(runs.rglob("*")) if path.is_file()
        }

    before = files()
    known = ids(client)
    for identity in known.values():
        client.get(f"/api/runs/{identity}/curves")
        client.get(f"/api/runs/{identity}/answers?text=x")
    client.get(f"/api/comparison?run={known['measure']}")
    assert files() == before
    assert sorted(os.listdir(runs)) == ["pt", "rl"]
