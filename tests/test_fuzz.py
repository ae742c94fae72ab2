"""Generated requests to every endpoint: whatever comes, the answer is one that the OpenAPI document describes.

``pytest tests/test_fuzz.py -s --fuzz-cases 5000`` runs as many cases as one likes, and tells what was answered.
"""

from __future__ import annotations

import time
from collections import Counter

import httpx
import picture_corpus as pictures
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks as openapi
from schemathesis.transport.serialization import Binary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

CHECKS = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
]
REFUSAL = openapi.negative_data_rejection
GALLERY = ["met-436947", "met-437344"]

_UPLOADS = [*pictures.corpus().values(), *(data for data in pictures.hostile().values() if len(data) < 50_000)]
schemathesis.openapi.format("binary", st.sampled_from(_UPLOADS) | st.binary(max_size=200))


@pytest.fixture(scope="module")
def known(small_server) -> dict[str, list[object]]:
    """Values that mean something to this server, by the parameter or field that takes them."""
    client = httpx.Client(base_url=small_server.url, timeout=60)
    slug = client.get("/v1/styles").json()[0]["slug"]
    picture = pictures.corpus()["png"]
    job = client.post("/v1/optimize", files={"image": picture}, data={"style": GALLERY[0]}).json()
    return {
        "id": [job["id"], *GALLERY],
        "slug": [slug],
        "style": [slug, *GALLERY],
        "style_id": [slug, *GALLERY],
        "content_id": GALLERY,
        "title": ["boat", "a portrait of a woman"],
        "image": [Binary(picture)],
        "style_image": [Binary(picture)],
    }


def test_every_answer_to_generated_requests_is_one_that_is_documented(small_server, known, request):
    document = schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    strategies = [operation.as_strategy(generation_mode=mode) for operation in operations for mode in GenerationMode]
    session, statuses, asked, failures, slowest = requests.Session(), Counter(), Counter(), {}, (0.0, "")

    @settings(
        max_examples=request.config.getoption("--fuzz-cases"),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        nonlocal slowest
        case = data.draw(data.draw(st.sampled_from(strategies)))
        if case.meta.generation.mode.is_positive:
            for values in (case.path_parameters, case.query, case.body):
                if isinstance(values, dict):
                    _make_meaningful(values, known, data)
        began = time.monotonic()
        answer = case.call(session=session, timeout=60)
        slowest = max(slowest, (time.monotonic() - began, case.operation.label))
        statuses[answer.status_code] += 1
        asked[case.operation.label] += 1
        try:
            # An empty part of a form counts as left out, whatever is no value otherwise.
            form = case.body if case.media_type == "multipart/form-data" and isinstance(case.body, dict) else {}
            case.validate_response(answer, checks=CHECKS if "" in map(str, form.values()) else [*CHECKS, REFUSAL])
        except (Failure, FailureGroup) as error:
            for failure in getattr(error, "exceptions", [error]):
                failures.setdefault((case.operation.label, failure.title, answer.status_code), str(error))

    ask()
    answered = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    print(f"\n{statuses.total()} cases, answered {answered}; the slowest took {slowest[0]:.2f} s, {slowest[1]}")
    assert failures == {}, "\n\n".join(failures.values())
    assert statuses.total() >= request.config.getoption("--fuzz-cases")
    assert set(asked) == {operation.label for operation in operations}
    assert {200, 404, 422} <= set(statuses), "cases get through to every part"


def _make_meaningful(values: dict[str, object], known: dict[str, list[object]], data: st.DataObject) -> None:
    """Put something that exists in the place of half the names, or nearly every case would end at a name unknown."""
    for name in sorted(values.keys() & known):
        if data.draw(st.booleans()):
            values[name] = data.draw(st.sampled_from(known[name]))
            if name == "style":  # one of the two, and only one
                values.pop("style_image", None)
