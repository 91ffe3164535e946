"""Tests from which remote hosts media may be fetched, without and with allowed domains."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gateway.media.addresses import check_addresses, is_public, target
from omni_pipeline.errors import OmniError


def code_of(url: str, *allowed: str) -> str:
    """Error code of `url` under a policy, or "ok"."""
    try:
        target(url, allowed, param="images[0]")
    except OmniError as error:
        info = error.info
    else:
        return "ok"
    assert (info.status, info.param) == (400, "images[0]")
    return info.code or ""


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.8.8.8",
        "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1",
        "192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::2", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.1.2.3", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
        "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:db8::1",
        "2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::", "2002:a9fe:a9fe::1", "3fff::1", "4000::1", "5f00::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
    ],
)  # fmt: skip
def test_what_is_not_on_the_public_internet_is_refused(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
        "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255",
        "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
    ],
)  # fmt: skip
def test_what_is_on_the_public_internet_is_allowed(address):
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://127.0.0.1:80/x.png", "https://10.1.2.3/", "http://[::1]/", "http://[::]/",
        "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[64:ff9b::7f00:1]/", "http://[fe80::1]/",
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://0.0.0.0/",
        "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://8.8.8.8:22/", "http://example.org:25/",
        "http://example.org:1023/", "HTTP://192.168.1.1/",
    ],
)  # fmt: skip
def test_a_forbidden_host_or_port_is_refused_as_written(url):
    assert code_of(url) == "media_not_allowed"


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://017700000001/",
        "http://127.1/", "http://127.0.1/", "http://127.0.0.1./", "http://127.0.0.01/", "http://1.2.3.4.5/",
        "http://256.256.256.256/", "http://8.8.8.8./", "http://0x08080808/", "http://example.0x1/",
        "http://user@example.org/", "http://user:pass@example.org/", "http://:pass@example.org/",
        "http://example.org@127.0.0.1/", "http://127.0.0.1\\@example.org/", "http://exam ple.org/",
        "http://example.org\t/", "http://example.org\r\nHost: x/", "http://example%2eorg/", "http://%31%32%37.0.0.1/",
        "http:///x", "http://", "http:example.org", "//example.org/", "ftp://example.org/", "gopher://example.org/",
        "http://example.org:0/", "http://example.org:99999/", "http://example.org:x/", "http://[::1/",
        "http://[fe80::1%25eth0]/", "http://-example.org/", "http://exa..mple/", "http://" + "a" * 64 + ".org/",
    ],
)  # fmt: skip
def test_what_is_not_a_plain_url_with_an_ordinary_host_is_refused(url):
    assert code_of(url) == "invalid_url"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://example.org/a.png?b=c#d", "example.org", 80),
        ("https://EXAMPLE.org", "example.org", 443),
        ("https://example.org./", "example.org", 443),
        ("http://example.org:8080/", "example.org", 8080),
        ("https://bücher.example/", "xn--bcher-kva.example", 443),
        ("http://my_bucket.example.org/", "my_bucket.example.org", 80),
        ("http://8.8.8.8/", "8.8.8.8", 80),
        ("http://[2606:4700:4700::1111]/", "2606:4700:4700::1111", 80),
    ],
)
def test_a_public_url_is_taken_apart(url, host, port):
    found = target(url, [], param="images[0]")
    assert (found.host, found.port, found.vouched) == (host, port, False)


@pytest.mark.parametrize(
    ("url", "allowed", "code"),
    [
        ("http://example.org/", ["example.org"], "ok"),
        ("http://example.org:8080/", ["example.org"], "ok"),
        ("http://Example.ORG./", ["example.org"], "ok"),
        ("http://example.org/", ["EXAMPLE.org"], "ok"),
        ("http://www.example.org/", ["example.org"], "media_not_allowed"),
        ("http://example.org.evil.net/", ["example.org"], "media_not_allowed"),
        ("http://evil.net/", ["example.org"], "media_not_allowed"),
        ("http://8.8.8.8/", ["example.org"], "media_not_allowed"),
        ("http://10.0.0.5:9000/", ["10.0.0.5:9000"], "ok"),
        ("http://10.0.0.5:9001/", ["10.0.0.5:9000"], "media_not_allowed"),
        ("http://10.0.0.5/", ["10.0.0.5:9000"], "media_not_allowed"),
        ("http://10.0.0.5/", ["10.0.0.5"], "ok"),
        ("http://example.org:22/", ["example.org"], "media_not_allowed"),
        ("http://example.org:22/", ["example.org:22"], "ok"),
        ("http://[::1]:9000/", ["[::1]:9000"], "ok"),
        ("http://[::1]:9000/", ["::1"], "ok"),
        ("http://0x7f000001/", ["0x7f000001"], "invalid_url"),
        ("http://user@example.org/", ["example.org"], "invalid_url"),
    ],
)
def test_allowed_domains(url, allowed, code):
    assert code_of(url, *allowed) == code


def test_one_private_address_spoils_a_whole_resolution():
    found = target("http://example.org/", [], param="images[0]")
    check_addresses(found, [ip_address("8.8.8.8")], param="images[0]")
    with pytest.raises(OmniError, match="not on the public internet"):
        check_addresses(found, [ip_address("8.8.8.8"), ip_address("10.0.0.1")], param="images[0]")


def test_an_allowed_domain_may_resolve_to_a_private_address():
    found = target("http://storage.internal/", ["storage.internal"], param="images[0]")
    check_addresses(found, [ip_address("10.0.0.1")], param="images[0]")
