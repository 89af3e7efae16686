"""A stranger's configuration wants the user's keys: none is sent to a host that the user hasn't named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import command

from fake_service import Asked, FakeService, Reply
from rewardlm.config import keys

CANARY = "a-secret-of-the-user"
CATEGORIES = {"hate": 0.25, "insult": 0.5}


def moderated(_: Asked) -> Reply:
    return Reply({"results": [{"flagged": False, "category_scores": CATEGORIES}], "id": "1", "model": "m"})


@pytest.fixture
def home(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run to score; keys in the environment; a server that says that everything is harmless."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HF_TOKEN", "OPENAI_API_KEY", "PERSPECTIVE_API_KEY"):
        monkeypatch.setenv(variable, CANARY)
    service.answer = moderated
    Path("answers.csv").write_text("prompt,response\nhello,hi\n")
    assert command("import", "answers.csv", "--label", "PT", "--out", "run") == 0
    return tmp_path


def judge(url: str, **more: Any) -> dict[str, Any]:
    return {"services": {"endpoint": {"url": url, "kind": "moderation", "category": "hate", **more}}}


def written(settings: dict[str, Any]) -> str:
    Path("stranger.yaml").write_text(json.dumps(settings))
    return "stranger.yaml"


def sent(service: FakeService) -> list[str]:
    """The keys that arrived."""
    return [value for asked in service.asked for value in asked.headers.values() if CANARY in value]


SCORE = ("score", "run", "--scorer", "endpoint", "--device", "cpu")


def test_a_file_that_names_a_variable_and_an_address_gets_nothing(
    home: Path, service: FakeService, capfd: pytest.CaptureFixture[str]
) -> None:
    config = written(judge(service.url, key_variable="HF_TOKEN"))
    assert command(*SCORE, "--config", config) == 1
    said = capfd.readouterr().err
    assert service.asked == []
    host = f"127.0.0.1:{service.port}"
    assert f"HF_TOKEN is not sent to {host}" in said
    assert f"services.endpoint.url={service.url} services.endpoint.key_variable=HF_TOKEN" in said
    assert CANARY not in said
    # As it says: named by the user, or in the user's own file.
    named = (f"services.endpoint.url={service.url}", "services.endpoint.key_variable=HF_TOKEN")
    assert command(*SCORE, "--config", config, *named) == 0
    assert sent(service) == [f"Bearer {CANARY}"] * len(service.asked) != []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:{port}"])
@pytest.mark.parametrize("shape", ['"{host}": HF_TOKEN', '"{host}": [OTHER, HF_TOKEN]'])
def test_the_credentials_file_is_the_users(
    home: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch, host: str, shape: str
) -> None:
    mine = home / "credentials.yaml"
    monkeypatch.setattr(keys, "credentials_file", lambda: mine)
    config = written(judge(service.url, key_variable="HF_TOKEN"))
    mine.write_text('"127.0.0.1:1": HF_TOKEN\nexample.org: HF_TOKEN\n')
    assert command(*SCORE, "--config", config) == 1
    mine.write_text(shape.format(host=host.format(port=service.port)))
    assert command(*SCORE, "--config", config) == 0
    assert sent(service) == [f"Bearer {CANARY}"] * len(service.asked) != []


def test_a_credentials_file_that_cannot_be_read_is_told_in_one_line(
    home: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = home / "credentials.yaml"
    monkeypatch.setattr(keys, "credentials_file", lambda: mine)
    mine.write_text("example.org: {a: b}\n")
    assert command(*SCORE, "--config", written(judge(service.url, key_variable="HF_TOKEN"))) == 2
    assert "credentials.yaml: example.org: expected the name of an environment variable" in capfd.readouterr().err
    assert service.asked == []


def test_a_vendors_default_key_goes_to_that_vendor_alone(home: Path, service: FakeService) -> None:
    """The address may be a harmless server of the user's own: it is asked, without the key."""
    assert command(*SCORE, "--config", written(judge(service.url))) == 0
    assert service.asked
    assert sent(service) == []
    assert keys.may_leave("OPENAI_API_KEY", "https://api.openai.com/v1")
    assert not keys.may_leave("OPENAI_API_KEY", "http://api.openai.com/v1")
    assert not keys.may_leave("OPENAI_API_KEY", "https://api.openai.com.evil.example/v1")
    assert not keys.may_leave("OPENAI_API_KEY", "https://user@evil.example/api.openai.com")
    assert not keys.may_leave("HF_TOKEN", "https://api.openai.com/v1")


def test_a_server_that_then_wants_a_key_is_told_with_the_way_out(
    home: Path, service: FakeService, capfd: pytest.CaptureFixture[str]
) -> None:
    service.answer = lambda _: Reply({"error": {"message": "no key"}}, 401)
    assert command(*SCORE, "--config", written(judge(service.url))) == 1
    said = capfd.readouterr().err
    assert "OPENAI_API_KEY was not sent to a host that you haven't named" in said
    assert f"services.endpoint.url={service.url}" in said
    assert sent(service) == []


@pytest.mark.parametrize("given", ["url", "variable"])
def test_one_of_the_two_by_the_user_is_not_enough(home: Path, service: FakeService, given: str) -> None:
    """A file must not choose which secret goes to the user's server, nor which server gets the user's secret."""
    mine = {
        "url": f"services.endpoint.url={service.url}",
        "variable": "services.endpoint.key_variable=HF_TOKEN",
    }[given]
    assert command(*SCORE, "--config", written(judge(service.url, key_variable="HF_TOKEN")), mine) == 1
    assert service.asked == []


def test_merged_and_aliased_sections_count_as_the_files(home: Path, service: FakeService) -> None:
    Path("stranger.yaml").write_text(
        "services:\n  endpoints:\n    a: &a {kind: moderation, category: hate, key_variable: HF_TOKEN, "
        f"url: '{service.url}'}}\n    b:\n      <<: *a\n    c: *a\n"
    )
    for name in "abc":
        assert command("score", "run", "--scorer", f"endpoint:{name}", "--config", "stranger.yaml") == 1
    assert service.asked == []


MEASURE = ("--prompts", "starter", "--limit", "2", "--scorer", "lexical", "--max-new-tokens", "2")


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", "m", "--engine", "openai", *MEASURE, "--out", "o"),
        ("rlaf", "tiny", "--reward", "lexical", "--witness", "none", "--steps", "1", "--out", "o"),
    ],
)
def test_servers_of_models_get_none_either(
    home: Path, service: FakeService, arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    section = "server" if arguments[0] == "measure" else "rollout"
    config = written({section: {"url": service.url, "key_variable": "HF_TOKEN"}})
    assert command(*arguments, "--config", config) == 1
    assert f"HF_TOKEN is not sent to 127.0.0.1:{service.port}" in capfd.readouterr().err
    assert service.asked == []


def test_an_experiments_file_neither(home: Path, service: FakeService, capfd: pytest.CaptureFixture[str]) -> None:
    stage = {"limit": 2, "scorer": "endpoint", **judge(service.url, key_variable="HF_TOKEN")}
    assert command("run", written({"model": "tiny", "measure": stage}), "--out", "o") == 1
    assert "HF_TOKEN is not sent to" in capfd.readouterr().err
    assert service.asked == []


def test_perspectives_own_host_gets_no_other_variable(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = written({"services": {"perspective": {"key_variable": "HF_TOKEN"}}})
    assert command("score", "run", "--scorer", "perspective", "--config", config) == 1
    assert "HF_TOKEN is not sent to commentanalyzer.googleapis.com" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "section"),
    [
        (("score", "run", "--scorer", "endpoint"), "services.endpoint"),
        (("measure", "m", "--engine", "openai", *MEASURE, "--out", "o"), "server"),
        (("rlaf", "tiny", "--reward", "lexical", "--witness", "none", "--steps", "1", "--out", "o"), "rollout"),
    ],
)
def test_http_to_another_machine_is_refused_unless_asked_for(
    home: Path, arguments: tuple[str, ...], section: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """192.0.2.1 is for documentation: nobody has it."""
    address = f"{section}.url=http://192.0.2.1:9/v1"
    assert command(*arguments, address) == 1
    said = capfd.readouterr().err
    assert f"give an address with https, or {section}.plain_http=true" in said
    assert len(said.strip().splitlines()) == 1
    asked = (f"{section}.plain_http=true", f"{section}.tries=1", f"{section}.timeout_seconds=0.2")
    assert command(*arguments, address, *asked) == 1
    assert "plain_http" not in capfd.readouterr().err


def test_a_file_alone_cannot_ask_for_plain_http(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    address = "http://192.0.2.1:9/v1"
    config = written(judge(address, plain_http=True, tries=1, timeout_seconds=0.2))
    assert command(*SCORE, "--config", config) == 1
    said = capfd.readouterr().err
    assert "only a file asks for it" in said
    assert len(said.strip().splitlines()) == 1
    for asked in ("services.endpoint.plain_http=true", f"services.endpoint.url={address}"):
        assert command(*SCORE, "--config", config, asked) == 1
        assert "only a file asks for it" not in capfd.readouterr().err
        keys.NAMED.origins.clear()
        keys.NAMED.plain_http = False


def rated(_: Asked) -> Reply:
    return Reply({"choices": [{"message": {"content": '{"toxicity": 0}'}}], "id": "1", "model": "m"})


def test_a_rubric_is_no_way_to_a_users_files(
    home: Path, service: FakeService, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is sent to the server. A link travels with a stranger's repository, as a file of theirs does."""
    service.answer = rated
    private = tmp_path_factory.mktemp("elsewhere") / "diary.txt"
    private.write_text(f"Dear diary, {CANARY}")
    Path("rubric.txt").symlink_to("/proc/self/environ")
    Path("linked.md").symlink_to(private)
    for rubric in ("rubric.txt", "linked.md", str(private), f"../{private.parent.name}/diary.txt"):
        settings = {"services": {"endpoint": {"url": service.url, "kind": "chat", "model": "m", "rubric": rubric}}}
        assert command(*SCORE, "--config", written(settings)) == 2
        said = capfd.readouterr().err
        assert "outside of the folder that you work in" in said
        assert [line.startswith("error: ") for line in said.strip().splitlines()].count(True) == 1
        assert said.strip().splitlines()[-1].startswith("error: ")
    assert service.asked == []
    # What is secret holds NUL even where the user's own folder is the root.
    Path("own.txt").write_bytes(b"A=1\0B=2")
    settings["services"]["endpoint"]["rubric"] = "own.txt"
    assert command(*SCORE, "--config", written(settings)) == 2
    assert "NUL character" in capfd.readouterr().err
    # One that the user names may lie anywhere; one of the folder's own needs no name.
    Path("fine.md").write_text("Rate it.")
    settings["services"]["endpoint"]["rubric"] = "fine.md"
    assert command(*SCORE, "--config", written(settings)) == 0
    assert command("import", "answers.csv", "--label", "PT", "--out", "again") == 0
    named = f"services.endpoint.rubric={private}"
    assert command("score", "again", *SCORE[2:], "--config", written(settings), named) == 0
    assert any(CANARY in json.dumps(asked.body) for asked in service.asked)


def test_a_key_that_the_user_typed_goes_to_no_host_of_a_file(
    home: Path, service: FakeService, capfd: pytest.CaptureFixture[str]
) -> None:
    typed = "services.endpoint.key=typed-by-the-user"
    assert command(*SCORE, "--config", written(judge(service.url)), typed) == 1
    assert "the key that you gave is not sent to" in capfd.readouterr().err
    assert service.asked == []
    assert command(*SCORE, "--config", written(judge(service.url)), typed, f"services.endpoint.url={service.url}") == 0
    assert {asked.headers["Authorization"] for asked in service.asked} == {"Bearer typed-by-the-user"}


def test_a_file_cannot_send_a_key_by_http_instead_of_https(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "credentials.yaml"
    monkeypatch.setattr(keys, "credentials_file", lambda: mine)
    mine.write_text('api.example.com: A\n"2001:db8::5": A\n')
    assert keys.may_leave("A", "https://api.example.com/v1")
    assert not keys.may_leave("A", "http://api.example.com/v1")
    keys.NAMED.note({"server.url": "https://named.example/v1", "server.key_variable": "B"})
    assert keys.may_leave("B", "https://named.example/other")
    assert not keys.may_leave("B", "http://named.example/v1")
    # Another machine, which is written alike without its brackets.
    keys.NAMED.note({"url": "https://[2001:db8::7]:8000/v1"})
    assert keys.may_leave("B", "https://[2001:db8::7]:8000/v1")
    assert not keys.may_leave("B", "https://[2001:db8::7:8000]/v1")
    assert not keys.may_leave("A", "https://[2001:db8::5:6666]/v1")


def test_a_file_cannot_choose_a_ray_cluster(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It gets the settings with their keys, and may run code here."""
    pytest.importorskip("ray")
    config = written({"engine": "ray", "ray_address": "ray://192.0.2.1:10001"})
    assert command("measure", "tiny", *MEASURE, "--config", config, "--out", "o") == 2
    assert "only a file has named this one" in capfd.readouterr().err


def test_what_is_given_in_python_is_not_used_up() -> None:
    names = iter(["lexical"])
    keys.NAMED.note({"scorer": names})
    assert list(names) == ["lexical"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Api.OpenAI.com/v1", "api.openai.com"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://user:pass@host.example:1/x?y=http://other", "host.example:1"),
        ("https://[::1]:3/v1", "[::1]:3"),
        ("https://[broken", ""),
    ],
)
def test_the_host_is_what_is_connected_to(url: str, host: str) -> None:
    assert keys.host_of(url) == host


def test_python_arguments_are_the_users(home: Path, service: FakeService) -> None:
    import rewardlm as rl

    options = judge(service.url, key_variable="HF_TOKEN")
    rl.measure(
        "tiny", prompts="starter", limit=1, max_new_tokens=2, scorer=["endpoint"], similarity=False, perplexity=False,
        counter_narrative=None, out=home / "measured", progress=False, **options,
    )  # fmt: skip
    assert sent(service) == [f"Bearer {CANARY}"] * len(service.asked) != []
