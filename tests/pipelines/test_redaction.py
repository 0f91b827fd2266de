"""Secrets are refused where they are given, and hidden where errors are stored or shown."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipelines.errors import SourceError, StorageError, some_of
from pipelines.planning.prompt_table import read_prompt_table
from pipelines.redaction import check_storage_options, quoted, quoted_names, redacted, secret_in, shown_name
from pipelines.sources.fetch import FetchError
from pipelines.sources.listing import list_images
from pipelines.sources.uri_lists import resolve_uri
from pipelines.storage.client_errors import explain
from pipelines.storage.store import open_store
from pipelines.types import Reason

SIGNED = "X-Amz-Date=20260101&X-Amz-Signature=canary"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://host/a/b.png?{SIGNED}", "https://host/a/b.png"),
        (f"500, message='x', url='https://host/a.png?{SIGNED}'", "500, message='x', url='https://host/a.png'"),
        (f'endpoint URL: "http://127.0.0.1:9/bkt?list-type=2&{SIGNED}"', 'endpoint URL: "http://127.0.0.1:9/bkt"'),
        (f"for url: https://host/a.png?{SIGNED}; tried 3 times", "for url: https://host/a.png; tried 3 times"),
        (f"(https://host/it's(1).png?{SIGNED})", "(https://host/it's(1).png)"),
        (f"https://me:canary@host:8080/a@2x.png?{SIGNED}#canary", "https://host:8080/a@2x.png"),
        ("https://host#access_token=canary", "https://host"),
        (f"HTTPS://host/a?{SIGNED}\nhttp://other/b?{SIGNED} gone", "HTTPS://host/a\nhttp://other/b gone"),
        ("s3://key:canary@bucket/a.png", "s3://bucket/a.png"),
        ("s3://bucket/what?size=1.png: not found", "s3://bucket/what?size=1.png: not found"),
        (f"/a.png?{SIGNED} - no host", "/a.png?X-Amz-Date=20260101&X-Amz-Signature=(hidden) - no host"),
        (
            "headers {'Authorization': 'Bearer canary12', 'Accept': '*'}",
            "headers {'Authorization': '(hidden)', 'Accept': '*'}",
        ),
        ("Authorization: AWS4-HMAC-SHA256 Credential=canary/1, Signature=canary", "Authorization: (hidden)"),
        ("said bearer canary.canary-1", "said bearer (hidden)"),
        ("/photos/a b?c.png: 3 bytes = nothing", "/photos/a b?c.png: 3 bytes = nothing"),
        ("KeyError: 'tokens=7' in a <SEG> of 100% [x](y)", "KeyError: 'tokens=7' in a <SEG> of 100% [x](y)"),
        ("", ""),
    ],
)
def test_a_text_keeps_scheme_host_and_path_of_its_addresses(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["a.", "a-://", "?", "&a", ")", "authorization ", "bearer ", "a=", "://"])
def test_a_long_text_takes_no_longer_than_it_is_long(part: str) -> None:
    assert redacted(f"http://host/{part * 100_000}x").startswith("http://host")
    assert len(redacted(f"{part * 100_000}x")) <= 100_000 * 30


@pytest.mark.parametrize("part", ["word ", "a line\n", f"https://host/a.png?{SIGNED}\n", "Bearer canary.canary-1\n"])
def test_of_a_text_that_no_one_would_read_its_two_ends_are_kept_without_their_secrets(part: str) -> None:
    shown = redacted(f"the beginning https://host/a?{SIGNED}\n{part * 2_000_000}\nthe end?sig=canary")
    assert shown.startswith("the beginning https://host/a\n")
    assert len(shown) < 100_000
    assert "characters left out" in shown
    assert shown.endswith("the end?sig=(hidden)")
    assert "canary" not in shown
    assert redacted(shown) == shown


def test_a_text_is_never_cut_inside_a_secret() -> None:
    header = f"Authorization: {'canary ' * 100_000}\nand on"
    for number in range(50):
        shown = redacted(f"{'.' * number}{header}")
        assert "canary" not in shown
        assert shown.endswith("and on")
    assert "canary" not in redacted(f"token=?sig={'canary' * 100_000}")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a.png", "'a.png'"),
        (b"\0\1", r"b'\x00\x01'"),
        (None, "None"),
        (7.5, "7.5"),
        (["a", {"b": 1}], "['a', {'b': 1}]"),
        ("a" * 200, f"'{'a' * 200}'"),
        ("a" * 201, f"'{'a' * 200}'... (201 in all)"),
        (b"a" * 10**6, f"b'{'a' * 200}'... (1,000,000 in all)"),
    ],
)
def test_a_value_is_quoted_so_that_a_message_can_be_read(value: Any, shown: str) -> None:
    assert quoted(value) == shown


def test_names_are_listed_so_that_a_message_can_be_read() -> None:
    assert quoted_names(["a", "b"]) == "a, b"
    assert quoted_names(["a, b", "c"]) == '"a, b", c'
    assert len(quoted_names(["a" * 10**6, "b"])) <= 203
    assert quoted_names(map(str, range(10**5))).endswith("48, 49 and 99,950 more")


def test_examples_are_named_so_that_a_message_can_be_read() -> None:
    assert some_of(["a", "b", "c", "d"]) == "a, b, c, ..."
    assert len(some_of(["a" * 10**6, "b" * 201, "c"])) <= 3 * 200 + len(", , ")


@pytest.mark.parametrize("value", [["a" * 10**6] * 100, {"a" * 10**6: ["b" * 10**6]}, [[["a" * 10**4] * 99] * 99] * 9])
def test_a_value_of_any_depth_is_quoted_short(value: Any) -> None:
    assert len(quoted(value)) <= 400


@pytest.mark.parametrize("kind", [StorageError, SourceError, lambda text: FetchError(Reason.FETCH_FAILED, text)])
def test_no_error_of_ours_holds_a_signature(kind: Any) -> None:
    error = kind(f"https://host/a.png?{SIGNED}: gone")
    assert str(error) == "https://host/a.png: gone"
    if kind is not StorageError and kind is not SourceError:
        return
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


def test_what_the_clients_of_stores_say_is_shown_without_signatures() -> None:
    from aiohttp import ClientResponseError, RequestInfo
    from botocore.exceptions import EndpointConnectionError, HTTPClientError
    from multidict import CIMultiDict, CIMultiDictProxy
    from yarl import URL

    url = f"https://me:canary@cdn.host/a.png?{SIGNED}"
    info = RequestInfo(URL(url), "GET", CIMultiDictProxy(CIMultiDict()), URL(url))
    for error in (
        ClientResponseError(info, (), status=503, message="Slow Down"),
        EndpointConnectionError(endpoint_url=url),
        HTTPClientError(error=f"Could not connect to {url}"),
    ):
        said = explain(error, "s3://bucket/a.png")
        assert "cdn.host/a.png" in said
        assert "canary" not in said


@pytest.mark.parametrize(
    "use",
    [
        lambda uri: resolve_uri(uri, "/photos", "photos.csv: row 3"),
        lambda uri: next(list_images(uri)),
        open_store,
    ],
)
def test_a_message_about_an_address_that_is_refused_does_not_hold_its_secret(use: Any) -> None:
    with pytest.raises((StorageError, SourceError)) as refused:
        use(f"https://me:canary@host/a.png?{SIGNED}")
    assert "canary" not in str(refused.value)


def test_a_prompt_that_is_rejected_is_told_without_the_signature_of_its_image(tmp_path: Any) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text(f"image_id,prompt_id,task,text\nhttps://host/a.png?{SIGNED},p1,refseg,\na.png?x=1,p2,refseg,\n")
    rejected = read_prompt_table(str(table)).rejected
    assert [prompt.image for prompt in rejected] == ["https://host/a.png", "a.png?x=1"]
    assert shown_name("https://host/a.png?size=2") == "https://host/a.png?size=2"


@pytest.mark.parametrize(
    "options",
    [
        *({name: "hunter2"} for name in ("key", "secret", "token", "password", "username")),
        *({name: "hunter2"} for name in ("sas_token", "api_key", "apikey", "passwd", "pwd", "connection_string")),
        *({name: "hunter2"} for name in ("account_key", "AccountKey", "client_secret", "aws_session_token", "auth")),
        *({name: "hunter2"} for name in ("SSECustomerKey", "private_key", "proxy_auth", "credentials", "sas")),
        {"client_kwargs": {"headers": {"Authorization": "hunter2"}}},
        {"client_kwargs": {"headers": {"X-Api-Key": "hunter2"}}},
        {"client_kwargs": {"headers": [["Authorization", "hunter2"], ["Accept", "*"]]}},
        {"session_kwargs": {"headers": {"Cookie": "hunter2"}}},
        {"client_kwargs": {"headers": {"X-Whatever": "Bearer hunter2"}}},
        {"s3_additional_kwargs": [{"SSECustomerKey": "hunter2"}]},
        {"endpoint": "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=hunter2;"},
        {"project": "-----BEGIN RSA PRIVATE KEY-----hunter2"},
    ],
)
def test_credentials_in_options_are_refused_and_not_shown(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must not hold credentials|carries what looks like") as caught:
        check_storage_options({**options, "endpoint_url": "http://127.0.0.1"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "http://127.0.0.1:8333", "anon": True, "profile": "labels", "requester_pays": True},
        {"config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "path"}, "max_pool_connections": 9}},
        {"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:aws:kms:eu:1:key/2"}},
        {"client_kwargs": {"region_name": "eu-central-1", "verify": False}, "project": "labels", "token": None},
        {"session_kwargs": {"trust_env": True}, "block_size": 2**20, "session": {"user_agent_extra": "labels"}},
    ],
)
def test_options_that_let_nobody_in_are_taken(options: dict[str, Any]) -> None:
    check_storage_options(options)


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("https://user:hunter2@host/a.png", "a user name or password"),
        ("s3://key:hunter2@bucket/a.png", "a user name or password"),
        ("https://b.s3.amazonaws.com/a.png?X-Amz-Algorithm=A&X-Amz-Signature=f00", "a signature or token"),
        ("https://storage.googleapis.com/b/a.png?x-goog-signature=f00", "a signature or token"),
        ("https://a.blob.core.windows.net/b/a.png?sv=2&sig=f00", "a signature or token"),
        ("https://host/a.png?access_token=", "a signature or token"),
        ("https://host/a.png?X-Api-Key=f00", "a signature or token"),
        ("https://host/a.png?sas_token=f00", "a signature or token"),
        ("https://host/a.png?x-oss-signature=f00", "a signature or token"),
        ("https://host/a.png#access_token=f00", "a signature or token"),
        ("https://host/a@2x.png?size=2&v=signature", None),
        ("s3://bucket/mail@host/a.png", None),
        ("s3://bucket/what?sig=1.png", None),
        ("/photos/user:hunter2@host.png", None),
        ("http://[broken/a.png", None),
    ],
)
def test_a_secret_in_a_uri_is_seen(uri: str, secret: str | None) -> None:
    assert secret_in(uri) == secret


def test_an_endpoint_with_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="endpoint_url carries a user name") as caught:
        check_storage_options({"client_kwargs": {"endpoint_url": "http://me:hunter2@127.0.0.1:8333"}})
    assert "hunter2" not in str(caught.value)
