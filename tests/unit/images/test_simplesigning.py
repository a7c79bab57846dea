from __future__ import annotations

import base64
import http.server
import threading

import pytest

from zos_cri.errors import FailedPrecondition, Unavailable
from zos_cri.images import simplesigning
from zos_cri.images.model import Floor
from zos_cri.images.simplesigning import BadSignature, Place
from zos_cri.wire import reference

DIGEST = "sha256:" + "a" * 64
REST = f"x/y@sha256={'a' * 64}/signature-"
REF = reference.parse("r.example/x/y:1")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", f"file:///var/lib/containers/sigstore/{REST}"),
        ("default-docker: {lookaside: 'https://d/'}", f"https://d/{REST}"),
        ("default-docker: {sigstore: 'file:///old'}", f"file:///old/{REST}"),
        (
            "default-docker: {lookaside: 'https://d'}\n"
            "docker: {r.example: {lookaside: 'https://r'}, r.example/x: {lookaside: 'https://x'}}",
            f"https://x/{REST}",
        ),
        (
            "docker: {r.example/z: {lookaside: 'https://z'}, '*.example': {lookaside: 'https://w'}}",
            f"https://w/{REST}",
        ),
        (
            "docker: {r.example: {use-sigstore-attachments: true}}",
            f"file:///var/lib/containers/sigstore/{REST}",
        ),
    ],
)
def test_where_signatures_are(tmp_path, text, place):
    (tmp_path / "a.yaml").write_text(text)
    assert Place.find(tmp_path, REF, DIGEST).url == place


def test_without_a_directory_they_are_at_the_usual_place(tmp_path):
    assert Place.find(tmp_path / "none", REF, DIGEST).url.startswith(simplesigning.DEFAULT_PLACE)


@pytest.mark.parametrize(
    "text", ["docker: [", "docker: []", "- 1", "docker: {r.example: {lookaside: 'ftp://x'}}"]
)
def test_a_file_that_cannot_be_understood_is_named(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(FailedPrecondition, match=str(tmp_path)):
        Place.find(tmp_path, REF, DIGEST)


@pytest.fixture(params=["file", "http"])
def served(request, tmp_path):
    """A directory, and the URL that it is at."""
    if request.param == "file":
        yield tmp_path, f"file://{tmp_path}/s-"
        return

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *_):
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}/s-"
        server.shutdown()
        thread.join()


def test_signatures_are_read_up_to_the_first_that_is_missing(served):
    directory, url = served
    for number in (1, 2, 4):
        (directory / f"s-{number}").write_bytes(b"%d" % number)
    assert list(Place(url).signatures(9, 10, Floor())) == [b"1", b"2"]
    assert list(Place(url).signatures(1, 10, Floor())) == [b"1"]


def test_one_that_is_too_long_is_an_error(served):
    directory, url = served
    (directory / "s-1").write_bytes(b"x" * 11)
    with pytest.raises(Unavailable, match=r"s-1: .*(more|larger) than"):
        list(Place(url).signatures(9, 10, Floor()))


@pytest.fixture
def gpgv(tmp_path, monkeypatch):
    """Puts a program in gpgv's place that says what it is told to, with an exit code."""

    def put(status, code=0):
        program = tmp_path / "bin" / "gpgv"
        program.parent.mkdir()
        program.write_text(
            "#!/bin/sh\n"
            'while [ $# -gt 1 ]; do [ "$1" = --keyring ] && ring=$2; shift; done\n'
            f"echo '{status}' >&2; cat $ring $1; exit {code}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return put


def test_all_keys_are_in_the_ring_without_their_armour(gpgv, tmp_path):
    gpgv("[GNUPG:] GOODSIG 0123 somebody")
    armoured = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: x\n\n%s\n=abcd\n%s\n" % (
        base64.encodebytes(b"second" * 20).rstrip(),
        b"-----END PGP PUBLIC KEY BLOCK-----",
    )
    content = simplesigning.opened(b"signed", (b"first", armoured), tmp_path)
    assert content == b"first" + b"second" * 20 + b"signed"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("status", "code"),
    [("[GNUPG:] GOODSIG 0123 x", 1), ("[GNUPG:] EXPKEYSIG 0123 x", 0), ("[GNUPG:] BADSIG 0", 1)],
)
def test_what_gpgv_does_not_call_good_is_refused(gpgv, tmp_path, status, code):
    gpgv(status, code)
    with pytest.raises(BadSignature, match="a signature is refused"):
        simplesigning.opened(b"signed", (b"key",), tmp_path)


def test_without_gpgv_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="apt-get install gpgv"):
        simplesigning.opened(b"signed", (b"key",), tmp_path)


def test_a_damaged_key_is_an_error(tmp_path):
    key = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!\n-----END PGP PUBLIC KEY BLOCK-----\n"
    with pytest.raises(FailedPrecondition, match="a key's armour is damaged"):
        simplesigning.opened(b"signed", (key,), tmp_path)
