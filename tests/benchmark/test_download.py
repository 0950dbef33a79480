from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import evalplus.data.utils
import pytest

from codetune.benchmark import download
from codetune.errors import CodetuneError, InputError

CONTENT = gzip.compress(b'{"task_id": "HumanEval/0"}\n')


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:10] if "broken" in self.path else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # EvalPlus' own constant, which it sets from the home directory at its import.
    monkeypatch.setattr(evalplus.data.utils, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/HumanEvalPlus-v0.1.10.jsonl"


def use_address(address: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "get_dataset_metadata", lambda *_, **__: (address, str(path)))


def test_a_file_in_the_cache_is_taken_without_a_network(cached: Path) -> None:
    cached.parent.mkdir()
    cached.write_text("{}", encoding="utf-8")
    assert download.cached_file("HumanEvalPlus", "v0.1.10") == cached


def test_a_download_is_unpacked_into_the_cache(address: str, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_address(address, cached, monkeypatch)
    assert download.cached_file("HumanEvalPlus", "v0.1.10").read_bytes() == gzip.decompress(CONTENT)
    assert list(cached.parent.iterdir()) == [cached]


def test_a_download_that_breaks_off_failed_and_leaves_nothing(
    address: str, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_address(f"{address}/broken", cached, monkeypatch)
    with pytest.raises(CodetuneError, match="broke off") as error:
        download.cached_file("HumanEvalPlus", "v0.1.10")
    assert error.value.exit_status == 1
    assert not cached.exists()


@pytest.mark.parametrize("path", ["absent", None])
def test_an_address_that_cannot_be_reached_is_an_input_error(
    address: str, cached: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    use_address(f"{address}/{path}" if path else "http://127.0.0.1:1/", cached, monkeypatch)
    with pytest.raises(InputError, match="cannot be reached"):
        download.cached_file("HumanEvalPlus", "v0.1.10")
