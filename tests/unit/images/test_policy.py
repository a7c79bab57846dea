from __future__ import annotations

import base64
import json

import pytest

from zos_cri.errors import FailedPrecondition, SignatureValidationFailed
from zos_cri.images import policy
from zos_cri.images.policy import (
    Accept,
    ExactReference,
    ExactRepository,
    MatchExact,
    MatchRepoDigestOrExact,
    MatchRepository,
    Reject,
    RemapIdentity,
    SignedBy,
    SigstoreSigned,
)
from zos_cri.wire import reference

ACCEPT, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def written(tmp_path):
    """Writes a policy, and answers its path."""

    def write(document):
        path = tmp_path / "policy.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


@pytest.mark.parametrize(
    ("ref", "scopes"),
    [
        (
            "busybox",
            [
                *("docker.io/library/busybox:latest", "docker.io/library/busybox"),
                *("docker.io/library", "docker.io", "*.io"),
            ],
        ),
        (
            f"a.b.example:5000/x/y:1@{DIGEST}",
            [
                *(f"a.b.example:5000/x/y@{DIGEST}", "a.b.example:5000/x/y"),
                *("a.b.example:5000/x", "a.b.example:5000", "*.b.example", "*.example"),
            ],
        ),
        ("localhost/x:1", ["localhost/x:1", "localhost/x", "localhost"]),
    ],
)
def test_what_an_image_is_called_from_the_most_exact_on(ref, scopes):
    assert list(policy.scopes(reference.parse(ref))) == scopes


@pytest.mark.parametrize(
    ("ref", "where"),
    [
        ("r.example/a/b:1", 'transports.docker."r.example/a/b:1"'),
        ("r.example/a/b:2", 'transports.docker."r.example/a"'),
        ("r.example/ab:1", 'transports.docker."*.example"'),
        ("x.y.example/ab", 'transports.docker."*.example"'),
        ("example/ab", 'transports.docker.""'),
    ],
)
def test_the_most_exact_scope_counts(written, ref, where):
    names = ["r.example/a/b:1", "r.example/a", "*.example", ""]
    known = {name: [ACCEPT] for name in names}
    found = policy.load(written({"default": [REJECT], "transports": {"docker": known}}))
    assert found.find("docker", policy.scopes(reference.parse(ref))) == (where, (Accept(),))


def test_a_transport_without_a_fitting_scope_has_the_default(written):
    document = {"default": [REJECT], "transports": {"docker": {"r.example": [ACCEPT]}}}
    found = policy.load(written(document))
    for transport in ("docker", "flist"):
        assert found.find(transport, ["other.example"]) == ("default", (Reject(),))


@pytest.mark.parametrize(
    ("identity", "ref", "signed", "matches"),
    [
        (MatchExact(), "r.example/a:1", "r.example/a:1", True),
        (MatchExact(), "busybox:1", "docker.io/library/busybox:1", True),
        (MatchExact(), "r.example/a:1", "r.example/a:2", False),
        (MatchExact(), "r.example/a:latest", "r.example/a", False),
        (MatchExact(), f"r.example/a@{DIGEST}", "r.example/a:1", False),
        (MatchExact(), f"r.example/a@{DIGEST}", f"r.example/a@{DIGEST}", True),
        (MatchRepoDigestOrExact(), "r.example/a:1", "r.example/a:1", True),
        (MatchRepoDigestOrExact(), "r.example/a:1", "r.example/a:2", False),
        (MatchRepoDigestOrExact(), "r.example/a", "r.example/a", False),
        (MatchRepoDigestOrExact(), f"r.example/a@{DIGEST}", "r.example/a:1", True),
        (MatchRepoDigestOrExact(), f"r.example/a:2@{DIGEST}", "r.example/a:1", True),
        (MatchRepoDigestOrExact(), f"r.example/a@{DIGEST}", "r.example/b:1", False),
        (MatchRepository(), "r.example/a:1", "r.example/a", True),
        (MatchRepository(), "r.example/a:1", "r.example/a:2", True),
        (MatchRepository(), "r.example/a:1", "r.example/ab", False),
        (ExactReference("o.example/a:1"), "r.example/a:1", "o.example/a:1", True),
        (ExactReference("o.example/a:1"), "r.example/a:1", "r.example/a:1", False),
        (ExactRepository("o.example/a"), "r.example/a:1", "o.example/a", True),
        (ExactRepository("o.example/a"), "r.example/a:1", "r.example/a", False),
        (RemapIdentity("m.example/x", "o.example"), "m.example/x/a:1", "o.example/a:1", True),
        (RemapIdentity("m.example/x", "o.example"), "m.example/x/a:1", "o.example/a:2", False),
        (RemapIdentity("m.example/x", "o.example"), "m.example/xa:1", "o.example/a:1", False),
        (RemapIdentity("m.example/x", "o.example"), "m.example/xa:1", "m.example/xa:1", True),
        (MatchRepository(), "r.example/a:1", "R E F", False),
        (MatchRepository(), "r.example/a:1", "", False),
    ],
)
def test_which_names_in_a_signature_match(identity, ref, signed, matches):
    assert policy.matches(identity, reference.parse(ref), signed) is matches


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "Expecting"),
        ({}, "default"),
        ({"default": []}, "length >= 1"),
        ({"default": [{"type": "signedBaseLayer"}]}, "signedBaseLayer"),
        ({"default": [{"type": "reject", "x": 1}]}, "unknown field `x`"),
        ({"default": [{"type": "sigstoreSigned", "fulcio": {}}]}, "unknown field `fulcio`"),
        ({"default": [REJECT], "transport": {}}, "unknown field `transport`"),
        ('{"default": [{"type": "reject"}], "default": []}', '"default" is given twice'),
        ("[" * 100_000, "recursion"),
        ({"default": [{"type": "sigstoreSigned", "signedIdentity": {"type": "x"}}]}, "'x'"),
    ],
)
def test_what_cannot_be_understood_is_an_error(written, document, said):
    path = written(document)
    with pytest.raises(FailedPrecondition, match=said) as caught:
        policy.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_policy_that_is_not_there(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"policy\.json: No such file"):
        policy.load(tmp_path / "policy.json")


def test_keys_are_read_from_where_they_are_said_to_be(written, tmp_path):
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "b").write_bytes(b"B")
    paths, encoded = [str(tmp_path / "a"), str(tmp_path / "b")], base64.b64encode(b"C").decode()
    for fields, keys in (
        ({"keyPath": paths[0]}, (b"A",)),
        ({"keyPaths": paths}, (b"A", b"B")),
        ({"keyData": encoded}, (b"C",)),
        ({"keyDatas": [encoded, encoded]}, (b"C", b"C")),
    ):
        path = written({"default": [{"type": "sigstoreSigned", **fields}]})
        (requirement,) = policy.load(path).default
        assert isinstance(requirement, SigstoreSigned)
        assert requirement.read_keys() == keys


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": "sigstoreSigned"}, "give one of keyPath"),
        ({"type": "sigstoreSigned", "keyPath": "/x", "keyData": "eA=="}, "give one of keyPath"),
        ({"type": "sigstoreSigned", "keyPath": "/not/there"}, "/not/there: No such file"),
        ({"type": "sigstoreSigned", "keyData": "!"}, "keyData: "),
        ({"type": "signedBy", "keyData": "eA=="}, 'keyType: "" is not "GPGKeys"'),
    ],
)
def test_keys_that_cannot_be_had(written, fields, said):
    (requirement,) = policy.load(written({"default": [fields]})).default
    assert isinstance(requirement, SigstoreSigned | SignedBy)
    with pytest.raises(FailedPrecondition, match=said):
        requirement.read_keys()


def test_what_has_no_signatures_passes_where_none_are_asked_for(written):
    policy.allow_unsigned("", "flist", "/a.fl")
    allowed = {"default": [REJECT], "transports": {"flist": {"": [ACCEPT]}}}
    policy.allow_unsigned(str(written(allowed)), "flist", "/a.fl")
    with pytest.raises(SignatureValidationFailed, match=r"^SignatureValidationFailed: /a\.fl: "):
        policy.allow_unsigned(str(written({"default": [REJECT]})), "flist", "/a.fl")
