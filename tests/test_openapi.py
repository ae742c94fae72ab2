"""The OpenAPI document: valid, and with an example of everything, each of which is what its schema says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from services.http import create_app

METHODS = {"get", "post", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return TestClient(create_app(lambda: None)).get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield f"{method} {path}", operation


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema


def examples(document: dict[str, Any], described: dict[str, Any]) -> list[Any]:
    """Those of a parameter or a body: its own, or its schema's; a list's are those of what it lists."""
    if "example" in described:
        return [described["example"]]
    schema = resolved(document, described["schema"])
    if schema.get("type") == "array":
        return [[example] for example in examples(document, {"schema": schema["items"]})]
    # FastAPI leaves every null out of the document, in examples too.
    nulls = {
        name for name in schema.get("required", []) if {"type": "null"} in schema["properties"][name].get("anyOf", [])
    }
    return [dict.fromkeys(nulls) | example if nulls else example for example in schema.get("examples", [])]


def test_the_document_is_valid(document):
    validate(document)


def test_every_endpoint_has_examples_of_its_requests_and_of_what_is_json_in_its_answers(document):
    checked = 0
    for name, operation in operations(document):
        described = {f"{name} {each['name']}": each for each in operation.get("parameters", []) if each["in"] == "path"}
        contents = {"request": operation.get("requestBody", {}).get("content", {})}
        contents |= {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
        for part, content in contents.items():
            kinds = [kind for kind in content if kind == "application/json" or part == "request"]
            described |= {f"{name} {part} {kind}": content[kind] for kind in kinds}
        for where, each in described.items():
            found = examples(document, each)
            assert found, where
            validator = Draft202012Validator(each["schema"] | {"components": document["components"]})
            for example in found:
                validator.validate(example)
                checked += 1
    assert checked > 100


def test_the_headers_of_answers_are_described(document):
    for name, operation in operations(document):
        answers = operation["responses"]
        for status, header in (
            ("401", "WWW-Authenticate"),
            ("405", "Allow"),
            ("429", "Retry-After"),
            ("503", "Retry-After"),
        ):
            assert header in answers[status]["headers"], name
        if "painting" in operation["tags"]:
            assert {"Lienzo-Engine", "Lienzo-Content", "Server-Timing"} <= set(answers["200"]["headers"])
            assert "Location" in answers["202"]["headers"]
