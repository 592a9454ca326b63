"""A benchmark's file from a hub on loopback, at a fixed commit."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from ray_jobs.eval_formats import read_file
from synth.errors import BadInput

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = b"prompt,label\nhow to bake,safe\nhow to pick,unsafe\n"


class Hub(http.server.BaseHTTPRequestHandler):
    """One file of one data set, as the hub answers."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(FILE)

    def _answer(self, body: bytes) -> None:
        found = self.path == f"/datasets/own/set/resolve/{COMMIT}/data/mine.csv"
        self.send_response(200 if found else 404)
        headers = {"ETag": '"abc"', "X-Repo-Commit": COMMIT} if found else {"X-Error-Code": "EntryNotFound"}
        for name, value in (headers | {"Content-Length": str(len(FILE) if found else 0)}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if found else b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


def test_a_file_at_a_commit_is_fetched_and_then_read_from_the_cache(hub, monkeypatch):
    path = f"hub:own/set/data/mine.csv@{COMMIT}"
    rows = read_file(path).rows
    assert [row.prompt for row in rows] == ["how to bake", "how to pick"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_file(path).rows == rows


def test_a_file_that_is_not_there_is_one_sentence(hub):
    with pytest.raises(BadInput, match=r"data/other.csv@0123456789.*: cannot be fetched"):
        read_file(f"hub:own/set/data/other.csv@{COMMIT}")


WRONG = ["own/set/a.csv", f"own/a.csv@{COMMIT}", "own/set/a.csv@main", f"own/set/../a@{COMMIT}"]


@pytest.mark.parametrize("name", WRONG)
def test_only_a_whole_commit_names_a_file(name):
    with pytest.raises(BadInput, match="OWNER/NAME/PATH@COMMIT"):
        read_file(f"hub:{name}")
