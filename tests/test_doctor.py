"""The doctor names what would keep a run from working, with a remedy for each."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.doctor import (
    BREAKS,
    examine,
    judge_cache,
    judge_disk,
    judge_remote,
    judge_server,
    judge_torch,
    judge_versions,
)
from tests.project import make_project


@pytest.mark.parametrize(
    ("name", "version", "bad"),
    [
        ("fastapi", "0.153.9", False),
        ("fastapi", "0.154.0", True),
        ("fastapi", "0.155.1", True),
        ("fastapi", "1.0", True),
        ("sqlalchemy", "2.0.58", False),
        ("sqlalchemy", "2.1.0b1", True),
    ],
)
def test_versions_that_break_are_known(name: str, version: str, bad: bool) -> None:
    found = {finding.subject: finding for finding in judge_versions({name: version})}
    assert (name in found) == bad
    if bad:
        assert found[name].level == "bad"
        assert found[name].remedy == BREAKS[name][2]


def test_a_missing_library_is_bad() -> None:
    first = next(judge_versions({"prefect": None, "dvc": "3.67.1"}))
    assert (first.level, first.text) == ("bad", "not installed: prefect")


@pytest.mark.parametrize(("free", "level"), [(0.5, "bad"), (3, "warn"), (50, "ok")])
def test_disk(free: float, level: str) -> None:
    finding = judge_disk("disk", Path("/"), free)
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")


def test_hard_links_as_root_are_bad() -> None:
    assert [finding.level for finding in judge_cache("hardlink,copy", True)] == ["bad"]
    assert not list(judge_cache("hardlink,copy", False))
    assert not list(judge_cache("reflink,copy", True))


def test_remotes(tmp_path: Path) -> None:
    assert judge_remote("here", str(tmp_path / "not" / "yet")).level == "ok"
    assert judge_remote("here", "").level == "bad"
    assert "not contacted" in judge_remote("far", "ssh://host/path").text


def test_torch_probe_is_read() -> None:
    cpu = list(judge_torch("2.13.0+cpu|2|False\n"))
    assert [finding.subject for finding in cpu] == ["torch", "CUDA"]
    assert "no GPU" in cpu[1].text
    gpu = list(judge_torch("2.13.0|8|True\nTesla T4|15|7\nNVIDIA H200|139|9\n"))
    assert [finding.text for finding in gpu[1:]] == [
        "Tesla T4, 15 GiB, no native bf16: use precision: fp32",
        "NVIDIA H200, 139 GiB, bf16",
    ]


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Serve /api/health on a free port."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Health) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/api"
        running.shutdown()
        thread.join()


def test_a_server_that_answers_and_one_that_does_not(server: str) -> None:
    assert judge_server(server).level == "ok"
    silent = judge_server("http://127.0.0.1:1/api")
    assert silent.level == "bad"
    assert "make serve" in silent.remedy


def test_each_finding_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.doctor._torch", lambda root: iter(()))
    monkeypatch.setattr("flows.doctor._prefect", lambda root: iter(()))
    found = list(examine(make_project(tmp_path / "a project", stand_ins=True).root))
    assert ("ok", "git") in [(finding.level, finding.subject) for finding in found]
    assert [finding for finding in found if "\n" in finding.text + finding.remedy] == []


def test_an_empty_folder_is_examined_without_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.doctor._torch", lambda root: iter(()))
    monkeypatch.setattr("flows.doctor._prefect", lambda root: iter(()))
    found = {finding.subject: finding for finding in examine(tmp_path)}
    assert found["DVC"].level == "bad"
    assert found["DVC"].remedy == "dvc init"
    assert found["recipes"].level == "warn"
    assert found["git"].level == "warn"
