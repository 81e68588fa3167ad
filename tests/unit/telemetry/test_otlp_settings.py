"""Where the OTEL_* variables send spans, and what they ask for in vain."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from millrace.core.errors import ConfigError
from millrace.telemetry.otlp_settings import ExportSettings, read_export_settings, why_off

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel.example:4318"}


def read(**variables: str) -> ExportSettings:
    settings = read_export_settings(ENDPOINT | variables)
    assert settings is not None
    return settings


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " ", "OTEL_TRACES_EXPORTER": "otlp"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": " None ", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_nothing_is_sent(environ: dict[str, str]) -> None:
    assert read_export_settings(environ) is None


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, "http://otel.example:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://h/base/"}, "https://h/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://h/?k=v"}, "https://h/v1/traces?k=v"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/own"}, "http://t:1/own"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ""}, "http://otel.example:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:1"}, "http://[::1]:1/v1/traces"),
    ],
)
def test_the_endpoint_is_made_as_the_specification_says(
    variables: dict[str, str], endpoint: str
) -> None:
    assert read(**variables).endpoint.reveal() == endpoint


@pytest.mark.parametrize(
    ("text", "headers"),
    [
        ("api-key=abc", {"api-key": "abc"}),
        ("A=1, b = 2 ,", {"a": "1", "b": "2"}),
        ("authorization=Basic%20dTpw", {"authorization": "Basic dTpw"}),
        ("authorization=Bearer x y", {"authorization": "Bearer x y"}),
        ("k=a=b==", {"k": "a=b=="}),
        ("k=a%2Cb", {"k": "a,b"}),
        ("k=50%", {"k": "50%"}),
        ("k=", {"k": ""}),
    ],
)
def test_headers_are_decoded(text: str, headers: dict[str, str]) -> None:
    assert read(OTEL_EXPORTER_OTLP_HEADERS=text).headers == headers


def test_headers_for_traces_replace_the_general_ones() -> None:
    settings = read(OTEL_EXPORTER_OTLP_HEADERS="a=1", OTEL_EXPORTER_OTLP_TRACES_HEADERS="b=2")

    assert settings.headers == {"b": "2"}


def test_the_password_of_the_url_becomes_a_header_unless_one_is_given() -> None:
    url = "http://bob:hunt%23er2@otel.example"
    basic = "Basic " + b64encode(b"bob:hunt#er2").decode()

    settings = read(OTEL_EXPORTER_OTLP_ENDPOINT=url)
    other = read(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_HEADERS="authorization=x")

    assert settings.headers == {"authorization": basic}
    assert other.headers == {"authorization": "x"}
    assert "er2" not in settings.endpoint.without_credentials() + settings.shown + repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "'zipkin'; Millrace knows otlp and none"),
        ("OTEL_TRACES_EXPORTER", "otlp,console", "'otlp,console'; Millrace knows"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc'; Millrace sends traces by http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "'http/json'; Millrace sends"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel:4318", "is no URL; it must begin with http://"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://h", "not with grpc://"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,hunter2", "entry 2 of OTEL_EXPORTER_OTLP_HEADERS"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hunter2", "entry 1 of"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0d%0ax", "the value of entry 1 of"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=hunter2é", "the value of entry 1 of"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "'zstd'; it must be one of none, gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "'soon'; it must be a number over 0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1", "a number over 0"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nan", "a number over 0"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem", "/nowhere/ca.pem, which is no file"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "'many'; it must be a whole number from 0"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-3", "a whole number from 0"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem", "is no file"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_names_the_variable(
    variable: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{variable: value})

    assert variable in caught.value.message
    assert message in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("environ", [{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}])
def test_a_protocol_that_is_asked_for_without_an_endpoint_is_an_error_too(
    environ: dict[str, str],
) -> None:
    with pytest.raises(ConfigError, match="grpc"):
        read_export_settings(environ)


def test_the_rest_is_taken_over(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.touch()
    settings = read(
        OTEL_EXPORTER_OTLP_TIMEOUT="2.5",
        OTEL_EXPORTER_OTLP_COMPRESSION="GZIP",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(certificate),
    )

    assert (settings.timeout_s, settings.compression) == (2.5, "gzip")
    assert settings.certificate == str(certificate)


def test_a_port_that_usually_speaks_grpc_is_remarked() -> None:
    assert "gRPC port" in read(OTEL_EXPORTER_OTLP_ENDPOINT="http://h:4317").shown
    assert "gRPC" not in read().shown


def test_why_there_are_no_traces_is_told() -> None:
    assert why_off({"OTEL_SDK_DISABLED": "true"}) == "OTEL_SDK_DISABLED=true"
    assert why_off({"OTEL_TRACES_EXPORTER": "none"}) == "OTEL_TRACES_EXPORTER=none"
    assert why_off({"OTEL_SDK_DISABLED": "false", "OTEL_TRACES_EXPORTER": "otlp"}) == ""
