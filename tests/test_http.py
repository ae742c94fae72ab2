"""The HTTP interface, asked by a real client of a server that was really started."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import httpx
import numpy as np
import picture_corpus as pictures
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from scenes import hills, strokes
from serving import raw
from test_images import CODE_OF

from shared import images
from shared.galleries import read_met
from shared.images import decode

CORPUS, HOSTILE = pictures.corpus(), pictures.hostile()
STATUS = {
    "empty_picture": 422,
    "not_a_picture": 415,
    "truncated_picture": 422,
    "picture_too_small": 422,
    "picture_too_large": 413,
}
BOAT_TRIP = {
    "title": "A boat trip on a sunny day",
    "description": "From a boat accompanied by people you can see the city illuminated by a radiant sun.",
}
OUTSIDE = "met-437344"
"""A picture of a style that no network knows."""
BOATING = "met-436947"  # Manet's Boating
ANOTHER = "met-437344"
MET_IDS = [picture.id for picture in read_met().pictures]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(server_url):
    with httpx.Client(base_url=server_url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def slug(client) -> str:
    return client.get("/v1/styles").json()[0]["slug"]


@pytest.fixture(scope="module")
def photo() -> bytes:
    return pictures.save(hills(160, 120), "PNG")


def picture_of(answer: httpx.Response) -> Image.Image:
    """The painting in an answer, which must have one."""
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def levels(answer: httpx.Response) -> np.ndarray:
    return np.asarray(picture_of(answer)).astype(int)


def refused(answer: httpx.Response, status: int, code: str, *, field: str | None = None) -> dict:
    """The refusal in an answer, which must have the one form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint", "field"}
    assert (error["code"], error["field"]) == (code, field)
    assert error["message"].endswith(".") and not error["message"].endswith("..") and len(error["message"]) < 400
    assert error["hint"]
    assert "Traceback" not in answer.text and "services/" not in answer.text
    return error


def stylize(client, image: bytes, *, style_image: bytes | None = None, path="/v1/stylize", **fields) -> httpx.Response:
    files = {"image": ("picture", image)} | ({} if style_image is None else {"style_image": ("style", style_image)})
    return client.post(path, files=files, data={name: str(value) for name, value in fields.items()})


# Text to art


def test_the_example_of_the_readme_gives_a_painting(client):
    found = client.post("/v1/retrieve/content", json=BOAT_TRIP).json()
    assert BOATING in [match["id"] for match in found]
    answer = client.post("/v1/text_to_art", json=BOAT_TRIP | {"size": 256, "steps": 6})
    painting = picture_of(answer)
    painting.load()
    assert painting.format == "PNG" and answer.headers["content-type"] == "image/png"
    assert max(painting.size) == 256
    headers = answer.headers
    assert headers["lienzo-content"] == found[0]["id"]
    assert float(headers["lienzo-content-distance"]) == pytest.approx(found[0]["distance"], abs=1e-4)
    near = client.post("/v1/retrieve/style", json={"content_id": headers["lienzo-content"], "k": 1}).json()
    assert headers["lienzo-style"] == near[0]["id"]
    assert float(headers["lienzo-style-distance"]) == pytest.approx(near[0]["distance"], abs=1e-4)
    assert unquote(headers["lienzo-style-title"]) == near[0]["title"]
    assert headers["lienzo-engine"] in ("fast", "optimize")
    assert 0 < painting.width / painting.height < 3
    aspect = picture_of(client.get(found[0]["url"]))
    assert painting.width / painting.height == pytest.approx(aspect.width / aspect.height, rel=0.02)
    timing = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    assert {"retrieve", "paint", "decode", "network", "encode"} <= set(timing)
    assert all(float(milliseconds) >= 0 for milliseconds in timing.values())
    assert float(timing["paint"]) >= float(timing["network"]) > 0


def test_a_title_or_a_description_or_a_content_is_enough(client, slug):
    rest = {"size": 64, "style_id": slug}
    for words in ({"title": "boat"}, {"description": "a boat on the river"}, {"content_id": BOATING}):
        answer = client.post("/v1/text_to_art", json=words | rest)
        assert max(picture_of(answer).size) == 64
        assert ("lienzo-content-distance" in answer.headers) is ("content_id" not in words)
    assert answer.headers["lienzo-content"] == BOATING
    assert answer.headers["lienzo-content-title"] == "Boating"


def test_a_content_and_a_style_of_the_gallery_tell_their_distance(client):
    answer = client.post(
        "/v1/text_to_art", json={"content_id": BOATING, "style_id": ANOTHER, "size": 64, "engine": "fast"}
    )
    assert max(picture_of(answer).size) == 64
    near = client.post("/v1/retrieve/style", json={"content_id": BOATING, "k": 100}).json()
    expected = {match["id"]: match["distance"] for match in near}[ANOTHER]
    assert float(answer.headers["lienzo-style-distance"]) == pytest.approx(expected, abs=1e-4)


def test_a_style_inside_a_cluster_is_painted_by_its_network(client, twin):
    request = {"content_id": BOATING, "style_id": twin.picture_id, "size": 96}
    answer = client.post("/v1/text_to_art", json=request)
    assert max(picture_of(answer).size) == 96
    assert answer.headers["lienzo-engine"] == "fast"
    assert answer.headers["lienzo-model"] == twin.slug
    assert float(answer.headers["lienzo-model-distance"]) == pytest.approx(0, abs=1e-4)
    assert answer.headers["lienzo-provider"].startswith(("OpenVINO CPU ", "CPUExecution", "CUDAExecution"))
    assert "lienzo-steps" not in answer.headers
    # Naming the network itself is the same painting.
    named = client.post("/v1/text_to_art", json={"content_id": BOATING, "style_id": twin.slug, "size": 96})
    assert named.headers["lienzo-style"] == twin.slug
    assert (levels(answer) == levels(named)).all()


def test_a_style_outside_every_cluster_is_optimised_and_the_answer_says_so(client, photo):
    unlike_any = client.get(f"/v1/pictures/{OUTSIDE}").content
    answer = stylize(client, photo, style_image=unlike_any, size=128, steps=4)
    assert picture_of(answer).size == (128, 96)
    assert answer.headers["lienzo-engine"] == "optimize"
    assert answer.headers["lienzo-steps"] == "4"
    assert answer.headers["lienzo-style"] == "upload"
    # The nearest network does not know it.
    (model,) = [card for card in client.get("/v1/styles").json() if card["slug"] == answer.headers["lienzo-model"]]
    assert float(answer.headers["lienzo-model-distance"]) > model["cluster"]["radius"]


@pytest.mark.parametrize("engine", ["auto", "fast", "instant", "optimize"])
def test_the_engine_is_the_one_asked_for(client, twin, engine):
    request = {"content_id": BOATING, "style_id": twin.picture_id, "size": 64, "steps": 2, "engine": engine}
    answer = client.post("/v1/text_to_art", json=request)
    assert max(picture_of(answer).size) == 64
    assert answer.headers["lienzo-engine"] == ("fast" if engine == "auto" else engine)


def test_the_optimiser_brings_the_painting_nearer_to_the_style_than_a_foreign_network_does(client, twin, encoder):
    from shared.images import to_tensor
    from shared.perceptual_loss import PerceptualLoss

    loss, painted = PerceptualLoss(encoder), {}
    style = client.get(f"/v1/pictures/{ANOTHER}").content
    content = client.get(f"/v1/pictures/{BOATING}").content
    target = loss.style_target(to_tensor(decode(style, longer_side=128)))
    kept = loss.content_target(to_tensor(decode(content, longer_side=128)))
    for engine in ("fast", "optimize"):
        request = {"content_id": BOATING, "style_id": ANOTHER, "size": 128, "steps": 30, "engine": engine}
        painting = to_tensor(decode(client.post("/v1/text_to_art", json=request).content))
        painted[engine] = loss(painting, kept, target).total.item()
    assert painted["optimize"] < 0.8 * painted["fast"]


# Painting an upload


def test_an_instant_painting_is_made_in_any_style(client, photo):
    own = stylize(client, photo, style_image=client.get(f"/v1/pictures/{ANOTHER}").content, size=96, engine="instant")
    gallery = stylize(client, photo, style=ANOTHER, size=96, engine="instant")
    for answer, style in ((own, "upload"), (gallery, ANOTHER)):
        painting = picture_of(answer)
        assert painting.size == (96, 72)
        assert (answer.headers["lienzo-engine"], answer.headers["lienzo-style"]) == ("instant", style)
        assert "lienzo-model" not in answer.headers and "lienzo-steps" not in answer.headers
        recipe = {"Software": "Lienzo", "Content": "upload", "Style": style, "Engine": "instant"}
        assert painting.text == recipe | {"Size": "96", "Strength": "1"}
        assert {"paint", "decode", "network", "finish", "encode"} == {
            part.split(";")[0] for part in answer.headers["server-timing"].split(", ")
        }
    assert (levels(own) == levels(gallery)).all()
    nothing = stylize(client, photo, style=ANOTHER, size=96, engine="instant", strength=0)
    assert (levels(nothing) == np.asarray(decode(photo, longer_side=96))).all()


def test_the_fast_path_is_deterministic(client, photo, slug):
    first, second = (stylize(client, photo, style=slug, size=128) for _ in range(2))
    assert picture_of(first).size == (128, 96)
    assert first.content == second.content


def test_the_optimiser_is_deterministic_enough(client, photo):
    style = pictures.save(strokes(96, 96), "PNG")
    paintings = [levels(stylize(client, photo, style_image=style, size=64, steps=3, engine="optimize")) for _ in "ab"]
    assert np.abs(paintings[0] - paintings[1]).mean() < 1


@pytest.mark.parametrize("size", [64, 97, 333])
def test_the_painting_is_as_large_as_asked_for(client, photo, slug, size):
    painting = picture_of(stylize(client, photo, style=slug, size=size))
    assert painting.size == (size, round(size * 3 / 4))
    assert painting.mode == "RGB"


def test_the_default_size_is_512(client, photo, slug):
    assert picture_of(stylize(client, photo, style=slug)).size == (512, 384)


def test_strength_0_gives_the_content_back_and_1_the_painting(client, photo, slug):
    content = np.asarray(decode(photo, longer_side=96)).astype(int)
    nothing, half, whole = (levels(stylize(client, photo, style=slug, size=96, strength=s)) for s in (0, 0.5, 1))
    assert (nothing == content).all()
    assert np.abs(whole - content).mean() > 5
    assert np.abs(half - (content + whole) / 2).max() <= 1


def test_preserve_color_keeps_the_contents_chroma_and_takes_the_paintings_luminance(client, photo, slug):
    content = np.asarray(decode(photo, longer_side=96)).astype(float)
    painted = picture_of(stylize(client, photo, style=slug, size=96))
    kept = levels(stylize(client, photo, style=slug, size=96, preserve_color="true"))
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(kept @ luma - np.asarray(painted).astype(float) @ luma).max() < 2
    chroma, wanted = (levels - (levels @ luma)[..., None] for levels in (kept, content))
    # Where the colours fit into the RGB cube they are the content's; elsewhere they fade, and never turn.
    inside = (np.abs(chroma - wanted) < 2).all(axis=-1)
    assert inside.mean() > 0.5
    share = (chroma * wanted).sum(-1) / np.maximum((wanted * wanted).sum(-1), 1)
    assert np.abs(chroma - share[..., None] * wanted).max() < 4
    expected = images.preserve_color(painted, decode(photo, longer_side=96))
    assert (kept == np.asarray(expected)).all()


@pytest.mark.parametrize(("format", "media"), [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_formats_have_their_media_type_and_carry_the_recipe(client, photo, slug, format, media):
    answer = stylize(client, photo, style=slug, size=96, format=format, strength=0.75)
    assert answer.headers["content-type"] == media
    painting = picture_of(answer)
    assert painting.format == format.upper()
    recipe = painting.text if format == "png" else json.loads(painting.getexif()[270])
    expected = {"Software": "Lienzo", "Content": "upload", "Style": slug, "Engine": "fast", "Model": slug}
    assert recipe == expected | {"Size": "96", "Strength": "0.75"}
    reference = levels(stylize(client, photo, style=slug, size=96, strength=0.75))
    assert np.abs(np.asarray(painting).astype(int) - reference).mean() < 12


def test_a_style_of_ones_own_and_a_gallery_style_paint_an_upload(client, photo, twin):
    own = stylize(client, photo, style_image=client.get(f"/v1/pictures/{twin.picture_id}").content, size=64)
    assert own.headers["lienzo-engine"] == "fast"
    assert own.headers["lienzo-model"] == twin.slug
    gallery = stylize(client, photo, style=twin.picture_id, size=64)
    assert gallery.headers["lienzo-style"] == twin.picture_id
    assert unquote(gallery.headers["lienzo-style-title"]) == twin.picture_title
    assert (levels(own) == levels(gallery)).all()


def test_optimize_always_optimises(client, photo):
    fields = {"style": ANOTHER, "size": "64", "steps": "2"}
    answer = client.post("/v1/optimize", files={"image": photo}, data=fields, headers={"prefer": "wait=60"})
    assert picture_of(answer).size == (64, 48)
    assert answer.headers["lienzo-engine"] == "optimize"


def test_empty_parts_of_a_form_count_as_left_out(client, photo, slug):
    # What a browser sends for a file field that nobody filled in.
    def part(name: str, value: bytes, more: str = "") -> bytes:
        return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"

    body = part("image", photo, '; filename="a.png"') + part("size", b"64") + part("style", slug.encode())
    body += part("style_image", b"", '; filename=""') + b"--x--\r\n"
    answer = client.post("/v1/stylize", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert picture_of(answer).size == (64, 48)
    assert answer.headers["lienzo-style"] == slug


@pytest.mark.parametrize("name", CORPUS)
def test_every_odd_picture_is_painted_upright(client, slug, name):
    answer = stylize(client, CORPUS[name], style=slug, size=64, strength=0)
    assert (levels(answer) == np.asarray(decode(CORPUS[name], longer_side=64))).all()
    assert picture_of(answer).size == (64, 48)


# Hostile pictures


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_by_reason_and_at_once(client, slug, name):
    code = CODE_OF[name]
    began = time.monotonic()
    answer = stylize(client, HOSTILE[name], style=slug, size=64)
    assert time.monotonic() - began < 2
    refused(answer, STATUS[code], code, field="image")


@pytest.mark.parametrize("name", ["empty", "text", "png-1x1", "png-30000x30000", "jpeg-half", "png-text-bomb"])
def test_hostile_styles_are_refused_wherever_they_are_sent(client, photo, name):
    code = CODE_OF[name]
    refused(stylize(client, photo, style_image=HOSTILE[name], size=64), STATUS[code], code, field="style_image")
    refused(
        client.post("/v1/retrieve/style", files={"image": ("a.jpg", HOSTILE[name])}), STATUS[code], code, field="image"
    )


def test_the_name_and_the_declared_kind_of_a_picture_do_not_count(client, slug):
    for name, kind in (("holiday.jpg", "image/jpg"), ("a.exe", "text/html"), ("../../../etc/passwd", "image/jpeg")):
        files = {"image": (name, CORPUS["png"], kind)}
        answer = client.post("/v1/stylize", files=files, data={"style": slug, "size": "64"})
        assert picture_of(answer).size == (64, 48)
    files = {"image": ("picture.jpg", HOSTILE["text"], "image/jpeg")}
    refused(client.post("/v1/stylize", files=files, data={"style": slug}), 415, "not_a_picture", field="image")


def test_a_picture_too_elongated_to_paint_is_refused(client, slug):
    ribbon = pictures.save(np.zeros((16, 2000, 3), np.uint8), "PNG")
    assert (
        "200×" not in refused(stylize(client, ribbon, style=slug, size=200), 422, "invalid_input", field="size")["hint"]
    )
    answer = stylize(client, ribbon, style=ANOTHER, size=200, steps=1, engine="optimize")
    assert answer.status_code == 422


# Retrieval


def test_content_is_found_nearest_first(client):
    found = client.post("/v1/retrieve/content", json={"title": "river landscape", "k": 4}).json()
    assert len(found) == 4
    distances = [match["distance"] for match in found]
    assert distances == sorted(distances) and 0 <= distances[0] < distances[-1] < 1
    for match in found:
        assert set(match) == {"id", "title", "artist", "date", "distance", "url", "thumbnail"}
        assert match["id"] in MET_IDS
        assert match["url"] == f"/v1/pictures/{match['id']}"
        assert max(picture_of(client.get(match["thumbnail"])).size) == 320


def test_styles_are_found_for_a_gallery_picture_from_json_and_from_a_form(client):
    asked = {"content_id": BOATING, "k": 7}
    found = client.post("/v1/retrieve/style", json=asked).json()
    assert len(found) == 7
    assert BOATING not in [match["id"] for match in found]
    distances = [match["distance"] for match in found]
    assert distances == sorted(distances) and distances[0] > 0 and distances[-1] < 2
    form = {name: str(value) for name, value in asked.items()}
    assert client.post("/v1/retrieve/style", data=form).json() == found
    assert (
        client.post("/v1/retrieve/style", files={name: (None, value) for name, value in form.items()}).json() == found
    )


def test_a_gallery_picture_that_is_uploaded_is_nearest_to_itself(client):
    files = {"image": ("upload", client.get(f"/v1/pictures/{BOATING}").content)}
    found = client.post("/v1/retrieve/style", files=files, data={"k": "3"}).json()
    assert found[0]["id"] == BOATING
    assert found[0]["distance"] < 0.01 < found[1]["distance"]


@pytest.mark.parametrize("k", [0, 101, -1, 2.5, "many", None])
def test_k_outside_its_limits_is_refused(client, k):
    refused(client.post("/v1/retrieve/content", json={"title": "boat", "k": k}), 422, "invalid_input", field="k")
    refused(client.post("/v1/retrieve/style", json={"content_id": BOATING, "k": k}), 422, "invalid_input", field="k")


def test_k_may_be_1_and_100(client):
    for k in (1, 100):
        assert len(client.post("/v1/retrieve/style", json={"content_id": BOATING, "k": k}).json()) == k


def test_words_that_the_gallery_does_not_know_match_nothing(client):
    for path in ("/v1/retrieve/content", "/v1/text_to_art"):
        error = refused(client.post(path, json={"title": "xyzzy qwrtp"}), 422, "no_match", field="title")
        assert "xyzzy, qwrtp" in error["message"]
        assert "landscapes" in error["hint"]


# The catalogue


def test_styles_are_the_cards_and_a_dropped_in_folder_adds_one(client, twin):
    cards = {card["slug"]: card for card in client.get("/v1/styles").json()}
    assert list(cards) == sorted(cards)
    card = cards[twin.slug]
    assert card["name"] == "The Twin" and card["cluster"]["radius"] == 0.05
    assert re.fullmatch("[0-9a-f]{64}", card["sha256"])
    assert card["bytes"] == (twin.folder / twin.slug / "model.onnx").stat().st_size


def test_an_example_of_a_style_is_painted_and_remembered_by_its_etag(client, slug):
    address = f"/v1/styles/{slug}/example"
    first, small = client.get(address), client.get(f"{address}?content_id={BOATING}&size=64")
    assert max(picture_of(first).size) == 320 and max(picture_of(small).size) == 64
    assert small.headers["content-type"] == "image/jpeg" and "max-age" in small.headers["cache-control"]
    tag = small.headers["etag"]
    known = client.get(f"{address}?content_id={BOATING}&size=64", headers={"if-none-match": f'"no", W/{tag}'})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", tag)
    others = (
        f"{address}?size=64",
        f"{address}?content_id={BOATING}&size=80",
        f"{address}?content_id={ANOTHER}&size=64",
    )
    tags = {client.get(other, headers={"if-none-match": tag}).headers["etag"] for other in others}
    assert len(tags | {tag}) == 4
    refused(client.get("/v1/styles/nowhere/example"), 404, "not_found", field="style")
    refused(client.get(f"{address}?content_id=nothing"), 404, "not_found", field="id")
    refused(client.get(f"{address}?size=2000"), 422, "invalid_input", field="size")


def test_health_says_what_runs_and_what_was_refused(client, twin):
    health = client.get("/v1/health").json()
    assert health["gallery"] == "met" and health["pictures"] == 174
    assert health["search"] == ["words", "sentences"]
    assert health["models"] == [card["slug"] for card in client.get("/v1/styles").json()]
    assert health["refused"] == [twin.refused]
    assert health["provider"].startswith(("OpenVINO CPU ", "CPUExecution", "CUDAExecution"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", health["version"])


def test_what_health_calls_the_limits_are_the_limits(client, photo, slug):
    limits = client.get("/v1/health").json()["limits"]
    asked = {"content_id": BOATING, "style_id": slug, "engine": "fast"}
    refused(
        client.post("/v1/text_to_art", json=asked | {"size": limits["size"] + 1}), 422, "invalid_input", field="size"
    )
    at_once = {"content_id": BOATING, "style_id": OUTSIDE, "engine": "instant"}
    too_large = client.post("/v1/text_to_art", json=at_once | {"size": limits["optimize_size"] + 1})
    assert str(limits["optimize_size"]) in refused(too_large, 422, "invalid_input", field="size")["message"]
    many = client.post("/v1/text_to_art", json=asked | {"steps": limits["steps"] + 1})
    assert str(limits["steps"]) in refused(many, 422, "invalid_input", field="steps")["message"]
    thin = pictures.save(hills(64, limits["side"] - 1), "PNG")
    assert (
        str(limits["side"])
        in refused(stylize(client, thin, style=slug), 422, "picture_too_small", field="image")["message"]
    )
    assert limits["body_bytes"] == 32 * 2**20 and limits["pixels"] == 64_000_000


def test_pictures_come_whole_or_reduced_and_are_remembered_by_their_etag(client):
    record = read_met().by_id(BOATING)
    whole = client.get(f"/v1/pictures/{BOATING}")
    assert whole.content == record.path.read_bytes()
    assert whole.headers["content-type"] == "image/jpeg"
    small = client.get(f"/v1/pictures/{BOATING}?size=100")
    assert max(picture_of(small).size) == 100
    assert small.headers["etag"] != whole.headers["etag"]
    for tag in (whole.headers["etag"], f'"another", {whole.headers["etag"]}', f"W/{whole.headers['etag']}"):
        known = client.get(f"/v1/pictures/{BOATING}", headers={"if-none-match": tag})
        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["etag"] == whole.headers["etag"]
    assert client.get(f"/v1/pictures/{BOATING}", headers={"if-none-match": '"another"'}).status_code == 200
    assert "max-age" in whole.headers["cache-control"]


@pytest.mark.parametrize("size", ["15", "1025", "-1", "big", "1e3", "nan"])
def test_a_thumbnail_out_of_range_is_refused(client, size):
    refused(client.get(f"/v1/pictures/{BOATING}?size={size}"), 422, "invalid_input", field="size")


def test_unknown_ids_are_not_found_and_the_hint_names_near_ones(client, photo):
    error = refused(client.get("/v1/pictures/met-436948"), 404, "not_found", field="id")
    assert "met-436948" in error["message"] and BOATING in error["hint"]
    error = refused(client.post("/v1/retrieve/style", json={"content_id": "met-436948"}), 404, "not_found", field="id")
    assert BOATING in error["hint"]
    refused(client.post("/v1/text_to_art", json={"content_id": "met-436948"}), 404, "not_found", field="id")
    request = {"content_id": BOATING, "style_id": "stary-night"}
    refused(client.post("/v1/text_to_art", json=request), 404, "not_found", field="style")
    error = refused(stylize(client, photo, style="no-such-style"), 404, "not_found", field="style")
    assert "no-such-style" in error["message"]
    assert all(card["slug"] in error["hint"] for card in client.get("/v1/styles").json())


# Refusals


@pytest.mark.parametrize("path", ["/v1/text_to_art", "/v1/retrieve/content", "/v1/retrieve/style"])
@pytest.mark.parametrize(
    "body",
    [b'{"title":', b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"k":' + b"9" * 5000 + b"}", b'"\xff"'],
)
def test_what_is_no_json_is_refused(client, path, body):
    answer = client.post(path, content=body, headers=JSON)
    assert refused(answer, 400, answer.json()["error"]["code"])["code"] in ("invalid_json", "bad_request")


@pytest.mark.parametrize("path", ["/v1/text_to_art", "/v1/retrieve/content", "/v1/retrieve/style"])
@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"[1, 2]", b'"boat"', b"3"])
def test_what_is_no_object_is_refused(client, path, body):
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code, answer.json()["error"]["code"])


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/vnd.bentoml+pickle", "image/png", None])
@pytest.mark.parametrize("path", ["/v1/text_to_art", "/v1/retrieve/content", "/v1/retrieve/style"])
def test_other_kinds_of_body_are_refused_pickles_too(client, path, kind):
    pickled = b"cos\nsystem\n(S'false'\ntR."
    answer = client.post(path, content=pickled, headers={"content-type": kind} if kind else {})
    error = refused(answer, 415, "unsupported_media_type")
    assert (kind or "''") in error["message"] and "application/json" in error["message"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, None),
        ({"title": "  ", "description": "\n"}, None),
        ({"title": "boat " * 20_000}, "title"),
        ({"title": 5}, "title"),
        ({"title": ["boat"]}, "title"),
        ({"description": "boat " * 20_000}, "description"),
        ({"title": "boat", "size": 63}, "size"),
        ({"title": "boat", "size": 100_000}, "size"),
        ({"title": "boat", "size": "large"}, "size"),
        ({"title": "boat", "size": 99.5}, "size"),
        ({"title": "boat", "strength": 1.01}, "strength"),
        ({"title": "boat", "strength": -0.01}, "strength"),
        ({"title": "boat", "engine": "warp"}, "engine"),
        ({"title": "boat", "format": "gif"}, "format"),
        ({"title": "boat", "steps": 0}, "steps"),
        ({"title": "boat", "steps": 10**6}, "steps"),
        ({"title": "boat", "seed": -1}, "seed"),
        ({"title": "boat", "seed": 2**40}, "seed"),
        ({"title": "boat", "preserve_color": "maybe"}, "preserve_color"),
        ({"title": "boat", "colour": "red"}, "colour"),
        ({"content_id": "../../etc/passwd"}, "content_id"),
        ({"content_id": "met-436947\n"}, "content_id"),
        ({"content_id": ""}, "content_id"),
        ({"content_id": "x" * 201}, "content_id"),
        ({"content_id": BOATING, "style_id": "a\r\nX-Evil: 1"}, "style_id"),
        ({"content_id": BOATING, "style_id": "..%2f..%2fetc"}, "style_id"),
    ],
)
def test_text_to_art_names_the_field_that_is_out_of_its_limits(client, request_, field):
    error = refused(client.post("/v1/text_to_art", json=request_), 422, "invalid_input", field=field)
    assert field is None or field in error["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_are_none_are_refused(client, photo, slug, number):
    body = f'{{"title": "boat", "strength": {number}}}'
    refused(client.post("/v1/text_to_art", content=body, headers=JSON), 422, "invalid_input", field="strength")
    refused(stylize(client, photo, style=slug, strength=number), 422, "invalid_input", field="strength")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"size": 63}, "size"),
        ({"size": "1e9"}, "size"),
        ({"strength": "2"}, "strength"),
        ({"strength": "strong"}, "strength"),
        ({"engine": "warp"}, "engine"),
        ({"format": "exe"}, "format"),
        ({"preserve_color": "perhaps"}, "preserve_color"),
        ({"steps": "-5"}, "steps"),
        ({"style": "../../etc/passwd"}, "style"),
        ({"style": "a\r\nX-Evil: 1"}, "style"),
        ({"style": "s" * 300}, "style"),
    ],
)
def test_stylize_names_the_field_that_is_out_of_its_limits(client, photo, slug, fields, field):
    answer = stylize(client, photo, **({"style": slug} | fields))
    refused(answer, 422, "invalid_input", field=field)
    assert "x-evil" not in answer.headers


def test_the_optimiser_has_a_limit_of_its_own_on_size(client, photo, slug):
    error = refused(
        stylize(client, photo, style=ANOTHER, size=1025, engine="optimize"), 422, "invalid_input", field="size"
    )
    assert "1025" in error["message"] and "1024" in error["message"]


def test_an_unknown_engine_is_refused_with_those_that_there_are(client, photo):
    form = stylize(client, photo, style=ANOTHER, engine="warp")
    body = client.post("/v1/text_to_art", json={"content_id": BOATING, "engine": "warp"})
    for answer in (form, body):
        error = refused(answer, 422, "invalid_input", field="engine")
        assert all(f"'{engine}'" in error["message"] for engine in ("auto", "fast", "instant", "optimize"))


def test_a_form_needs_its_picture_and_one_style(client, photo, slug):
    post = client.post
    refused(post("/v1/stylize", data={"style": slug}), 422, "invalid_input", field="image")
    refused(post("/v1/stylize", data={"style": slug, "image": "photo.jpg"}), 422, "invalid_input", field="image")
    refused(post("/v1/stylize", files={"other": photo}, data={"style": slug}), 422, "invalid_input", field="image")
    refused(post("/v1/stylize", json={"style": slug}), 422, "invalid_input", field="image")
    for path in ("/v1/stylize", "/v1/optimize"):
        refused(stylize(client, photo, path=path), 422, "invalid_input", field="style")
        both = stylize(client, photo, style=slug, style_image=photo, path=path)
        assert "only one" in refused(both, 422, "invalid_input", field="style")["message"]


def test_a_fast_style_without_a_picture_cannot_be_optimised(client, photo, slug):
    for engine in ("instant", "optimize"):
        refused(stylize(client, photo, style=slug, engine=engine), 422, "invalid_input", field="engine")
    refused(stylize(client, photo, style=slug, path="/v1/optimize"), 422, "invalid_input", field="engine")


def test_a_style_query_needs_one_picture(client, photo):
    post = client.post
    refused(post("/v1/retrieve/style", json={}), 422, "invalid_input", field="content_id")
    both = post("/v1/retrieve/style", files={"image": photo}, data={"content_id": BOATING})
    refused(both, 422, "invalid_input", field="content_id")
    refused(post("/v1/retrieve/style", files=[("image", photo)] * 2), 400, "bad_request")
    refused(
        post("/v1/retrieve/style", files={"image": photo}, data={"colour": "red"}), 422, "invalid_input", field="colour"
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"abc", "multipart/form-data"),
        (b"abc", "multipart/form-data; boundary=x"),
        (
            b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nno end",
            "multipart/form-data; boundary=x",
        ),
        (b"\xff" * 1000, "application/x-www-form-urlencoded"),
    ],
)
def test_broken_forms_are_refused(client, content, kind):
    for path in ("/v1/stylize", "/v1/retrieve/style"):
        answer = client.post(path, content=content, headers={"content-type": kind})
        assert 400 <= answer.status_code < 500
        assert set(answer.json()["error"]) == {"code", "message", "hint", "field"}


def test_a_form_of_very_many_or_very_long_fields_is_refused(client, photo):
    many = client.post("/v1/stylize", files={"image": photo}, data={f"f{i}": "x" for i in range(2000)})
    refused(many, 400, "bad_request")
    refused(client.post("/v1/stylize", files={"image": photo}, data={"style": "x" * 2_000_000}), 400, "bad_request")


def test_a_body_over_the_limit_is_refused_before_it_is_read_whole(client):
    whole = client.post("/v1/stylize", files={"image": b"\0" * 34_000_000})
    assert "33,554,432 bytes" in refused(whole, 413, "body_too_large")["message"]
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(2000):
            sent += 100_000
            yield b"\0" * 100_000

    refused(client.post("/v1/text_to_art", content=chunks(), headers=JSON), 413, "body_too_large")
    assert 33_000_000 < sent < 150_000_000


def test_a_body_shorter_than_it_says_harms_nobody(client, server_url):
    for path in ("/v1/text_to_art", "/v1/stylize", "/nowhere"):
        raw(server_url, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{".encode(), wait=False)
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/pictures/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/pictures/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/pictures/..",
        "/v1/pictures/%2fetc%2fpasswd",
        "/v1/pictures/met-436947.jpg",
        "/v1/pictures/met-436947%00",
        "/v1/pictures/met-436947%0d%0aX-Evil:%201",
        "/v1/pictures/%ff%fe",
        "/v1/pictures/",
        "/web/..%2fhttp.py",
        "/web/%2e%2e/http.py",
        "/web/../cli.py",
        "/swagger/..%2f..%2fapp.py",
        "/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_no_path_leads_out(client, server_url, path):
    answer = raw(server_url, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 4(04|22) ", head), head
    assert b"\r\nX-Evil" not in head and b"root:" not in body
    if b"%0d%0a" not in path.encode():  # no route takes a line break, so BentoML itself refuses this one
        assert set(json.loads(body)["error"]) == {"code", "message", "hint", "field"}


def test_very_long_addresses_are_refused(client, server_url):
    refused(client.get("/v1/pictures/" + "a" * 10_000), 422, "invalid_input", field="id")
    refused(client.get("/" + "a" * 10_000), 404, "not_found")
    assert 400 <= client.get("/" + "a" * 60_000).status_code < 500
    with contextlib.suppress(ConnectionError):  # the server may hang up in the middle of it
        answer = raw(server_url, b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert re.match(rb"HTTP/1\.1 4\d\d ", answer), answer[:200]
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/text_to_art", "POST"),
        ("DELETE", "/v1/stylize", "POST"),
        ("PUT", "/v1/optimize", "POST"),
        ("PATCH", "/v1/retrieve/content", "POST"),
        ("GET", "/v1/retrieve/style", "POST"),
        ("POST", "/v1/styles", "GET"),
        ("OPTIONS", "/v1/styles", "GET"),
        ("DELETE", f"/v1/pictures/{BOATING}", "GET"),
        ("POST", "/v1/health", "GET"),
        ("POST", "/", "GET"),
    ],
)
def test_another_method_is_refused_and_the_right_one_named(client, method, path, allowed):
    answer = client.request(method, path)
    error = refused(answer, 405, "method_not_allowed")
    assert allowed in error["message"] and allowed in answer.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1", "/v1/", "/v1/nowhere", "/v2/text_to_art", "/favicon.ico", "/docs.json"]
)
def test_unknown_paths_are_not_found(client, path):
    for method in ("GET", "POST", "DELETE"):
        assert path in refused(client.request(method, path), 404, "not_found")["message"]


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES = st.recursive(
    _SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=6
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.dictionaries(st.sampled_from(["title", "description", "k", "content_id", "x"]), _VALUES) | _VALUES)
def test_any_json_is_answered_or_refused(client, body):
    for path in ("/v1/retrieve/content", "/v1/retrieve/style"):
        answer = client.post(path, json=body)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, answer.text
            assert set(answer.json()["error"]) == {"code", "message", "hint", "field"}


# Operations


def test_every_answer_carries_the_security_headers(client):
    for path in ("/", "/docs", "/v1/health", f"/v1/pictures/{BOATING}", "/nowhere", "/web/icon.svg"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'" and policy["object-src"] == "'none'"
        assert "'unsafe-inline'" not in policy.get("script-src", "") and "*" not in " ".join(policy.values())


def test_texts_are_compressed_for_those_who_take_it_and_pictures_are_not(client):
    def fetched(path: str, accepted: str) -> tuple[str | None, int]:
        with client.stream("GET", path, headers={"Accept-Encoding": accepted}) as answer:
            return answer.headers.get("content-encoding"), len(b"".join(answer.iter_raw()))

    assert fetched("/v1/styles", "identity")[0] is None
    for path in ("/v1/styles", "/web/app.js"):
        (encoding, compressed), (_, plain) = fetched(path, "gzip"), fetched(path, "identity")
        assert encoding == "gzip" and compressed < 0.7 * plain
    for path in (f"/v1/pictures/{BOATING}", f"/v1/pictures/{BOATING}?size=320"):
        assert fetched(path, "gzip") == fetched(path, "identity")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics"])
def test_operations_answer(client, path):
    assert client.get(path).status_code == 200


def test_metrics_count_requests(client):
    def counted(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    before = counted("lienzo_requests_total", route="/v1/styles", status="200")
    for _ in range(3):
        client.get("/v1/styles")
    assert counted("lienzo_requests_total", route="/v1/styles", status="200") == before + 3
    for service in ("TextToArt", "Retriever", "Stylizer", "Optimizer"):
        assert counted("lienzo_up", service=service) == 1
    models = len(client.get("/v1/styles").json())
    assert counted("lienzo_models", service="Stylizer") == models
    assert counted("lienzo_session_load_seconds") > 0
    assert counted("lienzo_provider_info", engine="optimize") == 1


def test_no_path_makes_a_time_series_or_a_line_of_the_log(client, server_url, server_process):
    raw(server_url, b"GET /v1/%0a2026%20forged%1b[31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert "forged" not in client.get("/metrics").text
    assert "forged" not in server_process.log.read_text(errors="replace")


def test_health_says_what_runs_each_engine(client):
    health = client.get("/v1/health").json()
    assert set(health["engines"]) == {"fast", "instant", "optimize"}
    assert health["engines"]["fast"] == health["provider"]
    assert health["engines"]["instant"].split(":")[0] in ("cpu", "cuda")


def test_a_request_id_returns_and_is_in_every_services_log(client, server_process, slug):
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = {"X-Request-ID": "of-this-test.1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = client.post("/v1/text_to_art", json={"title": "boat", "style_id": slug, "size": 64}, headers=sent)
    assert answer.headers["x-request-id"] == "of-this-test.1"
    lines = [line for line in server_process.log.read_text().splitlines() if "[of-this-test.1]" in line]
    assert {line.split()[2] for line in lines} == {"Retriever", "Stylizer", "TextToArt"}
    (access,) = [line for line in lines if " answered " in line]
    for fact in ("method=POST", "route=/v1/text_to_art", "status=200", "engine=fast", f"model={slug}"):
        assert fact in access
    assert client.get("/v1/styles", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


def test_the_api_is_described(client):
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.") and described["info"]["title"] == "Lienzo"
    paths = described["paths"]
    assert set(paths) == {
        "/v1/text_to_art", "/v1/stylize", "/v1/optimize", "/v1/retrieve/content", "/v1/retrieve/style",
        "/v1/jobs/{id}", "/v1/jobs/{id}/result", "/v1/jobs/{id}/preview", "/v1/jobs/{id}/events",
        "/v1/styles", "/v1/styles/{slug}/example", "/v1/pictures/{id}", "/v1/health",
    }  # fmt: skip
    for operations in paths.values():
        for method, operation in operations.items():
            assert operation["summary"] and operation["description"] and operation["tags"]
            assert operation["responses"]["200"]["content"]
            assert "ErrorAnswer" in json.dumps(operation["responses"]["422"])
            if "painting" in operation["tags"]:
                assert "JobStatus" in json.dumps(operation["responses"]["202"])
            if method == "post":
                for content in operation["requestBody"]["content"].values():
                    assert content["schema"]
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(described)):
        found = described
        for part in reference.split("/"):
            found = found[part]
        assert found
    assert "instant" in json.dumps(described["components"]["schemas"]["TextToArt"]["properties"]["engine"])
    example = described["components"]["schemas"]["TextToArt"]["examples"][0]
    assert example == BOAT_TRIP


def test_the_page_and_the_documentation_ask_nobody_else(client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        asked = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"'#]+)""", page.text)
        asked += re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""", page.text)
        for address in asked:
            assert not re.match(r"[a-z]+:(?!//www\.w3\.org)|//", address) or address.startswith("data:"), address
            if address.startswith("/"):
                assert client.get(address).status_code == 200, address


def test_the_documentations_script_is_the_one_its_policy_allows(client):
    page = client.get("/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.headers["content-security-policy"]
    assert "url: '/openapi.json'" in script


# Load


def test_eight_fast_requests_at_once_all_succeed(client, photo, slug):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: stylize(client, photo, style=slug, size=256), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.content for answer in answers}) == 1


def test_a_painting_survives_any_number_of_other_requests(client, photo, slug):
    # BentoML's client to a service closes its connections after 100 calls, unless told otherwise.
    with ThreadPoolExecutor(8) as pool:
        paintings = [pool.submit(stylize, client, photo, style=slug, size=1024) for _ in range(4)]
        others = list(pool.map(lambda _: client.get("/v1/styles").status_code, range(150)))
    assert others == [200] * 150
    assert [picture_of(painting.result()).size for painting in paintings] == [(1024, 768)] * 4


@pytest.mark.slow
def test_a_fast_request_does_not_wait_for_an_optimisation(client, photo, slug):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(stylize, client, photo, style=ANOTHER, size=256, steps=60, engine="optimize")
        time.sleep(0.5)
        began = time.monotonic()
        assert picture_of(stylize(client, photo, style=slug, size=128)).size == (128, 96)
        assert picture_of(stylize(client, photo, style=ANOTHER, size=128, engine="instant")).size == (128, 96)
        assert client.post("/v1/retrieve/content", json={"title": "boat"}).status_code == 200
        spent, running = time.monotonic() - began, not slow.done()
        assert picture_of(slow.result()).size == (256, 192)
    assert running and spent < 10


def test_the_service_is_healthy_after_all_that(client, server_process):
    """Last in this module, so that everything above has happened."""
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/health").json()["pictures"] == 174
    log = server_process.log.read_text(errors="replace")
    assert "Traceback" not in log and "status=500" not in log
