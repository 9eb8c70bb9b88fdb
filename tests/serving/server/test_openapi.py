from __future__ import annotations

import json
from typing import Any

from prerank.serving.server.openapi import document


def walk(value: Any) -> Any:
    yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from walk(inner)


def test_every_reference_leads_somewhere() -> None:
    found = document(needs_token=True)
    references = [part["$ref"] for part in walk(found) if isinstance(part, dict) and "$ref" in part]
    assert references
    for reference in references:
        part: Any = found
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part["type"] == "object"


def test_every_operation_has_a_name_and_answers() -> None:
    found = document(needs_token=False)
    assert found["openapi"] == "3.1.0"
    assert found["info"]["title"]
    assert found["info"]["version"]
    names = []
    for path, methods in found["paths"].items():
        assert path.startswith("/")
        for method, operation in methods.items():
            assert method in ("get", "post")
            names.append(operation["operationId"])
            for status, response in operation["responses"].items():
                assert 200 <= int(status) < 600
                assert response["description"]
                assert response["content"]
    assert len(set(names)) == len(names)
    assert "security" not in found
    json.dumps(found, allow_nan=False)


def test_the_token_is_in_the_document_when_it_is_asked_for() -> None:
    found = document(needs_token=True)
    assert found["security"] == [{"token": []}]
    assert found["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_bytes_and_limits_of_the_messages_are_stated() -> None:
    schemas = document(needs_token=False)["components"]["schemas"]
    ids = schemas["Candidates"]["properties"]["ids"]["anyOf"]
    assert {"type": "string", "contentEncoding": "base64"} in ids
    assert schemas["RankRequest"]["required"] == ["candidates"]
    assert schemas["RankRequest"]["additionalProperties"] is False
    for schema in schemas.values():
        assert "Parameters" not in schema["description"]
