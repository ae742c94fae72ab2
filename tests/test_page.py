"""The web page, in a real browser, against a really started server."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from accessibility import axe_script, violations
from PIL import Image

from services.http import WEB

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need the program chromium"),
]

WORDS = "A boat trip on a sunny day"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MOST_BYTES = 100_000
MOST_SCREENSHOT_BYTES = 200_000


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The script of axe-core."""
    return axe_script(tmp_path_factory.mktemp("axe"))


@pytest.fixture
def visit(browser, server_url) -> Iterator[Callable[..., sync_api.Page]]:
    """Open an address of the page as a new visitor; at the end no visit may have asked another server or gone wrong."""
    contexts, wrong = [], []

    def visit(address: str = "/", *, width: int = 1280, locale: str = "en-GB", **options) -> sync_api.Page:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, locale=locale, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
        page.on("request", lambda request: wrong.append(request.url) if is_foreign(request.url) else None)
        page.goto(server_url + address)
        return page

    def is_wrong(message: sync_api.ConsoleMessage) -> bool:
        # The browser also notes every refusal; 4xx and 503 are what some tests ask for.
        refused = "status of 4" in message.text or "status of 503" in message.text
        return message.type in ("error", "warning") and not refused

    def is_foreign(url: str) -> bool:
        return not url.startswith((f"{server_url}/", f"blob:{server_url}/", "data:"))

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def picture(colour: tuple[int, int, int] = (200, 120, 40), size: tuple[int, int] = (96, 64)) -> dict:
    """A picture file, as the browser's file dialogue would give it."""
    image = Image.new("RGB", size, colour)
    image.paste((20, 60, 150), (10, 10, 50, 40))
    data = io.BytesIO()
    image.save(data, "PNG")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": data.getvalue()}


def painted(page: sync_api.Page) -> None:
    """Wait until the painting hangs and nothing is under way."""
    page.wait_for_selector("#download:not([hidden])")
    page.wait_for_selector("#progress", state="hidden")


def choose(page: sync_api.Page, group: str, title: str) -> None:
    """Click a card, and wait for the painting that it leads to."""
    page.get_by_role("radiogroup", name=group, exact=True).locator(".card", has_text=title).first.click()
    page.wait_for_function("title => document.querySelector('#painting-style').textContent.includes(title)", arg=title)
    page.wait_for_function("name => document.querySelector('#made').textContent.includes(name)", arg=title)
    painted(page)


def download(page: sync_api.Page) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.click("#download")
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def in_own_style(answer: sync_api.Response) -> bool:
    return answer.headers.get("lienzo-style") == "upload"


def checked(page: sync_api.Page, name: str) -> str:
    return page.locator(f"input[name={name}]:checked").input_value()


def test_from_words_to_a_painting(visit, server_url, twin):
    page = visit("/?size=128&steps=1")
    page.get_by_label("Title").fill(WORDS)
    page.get_by_role("button", name="Paint", exact=True).click()
    painted(page)

    found = httpx.post(f"{server_url}/v1/retrieve/content", json={"title": WORDS, "k": 5}).json()
    near = httpx.post(f"{server_url}/v1/retrieve/style", json={"content_id": found[0]["id"], "k": 5}).json()
    for role, works in (("contents", found), ("near", near)):
        cards = page.locator(f"#{role} .card")
        assert cards.evaluate_all("cards => cards.map(card => card.dataset.id)") == [work["id"] for work in works]
        for at, work in enumerate(works):
            text = cards.nth(at).inner_text()
            assert work["title"] in text and work["artist"] in text
            assert f"similarity {round(100 * (1 - work['distance']))}%" in text
    assert (checked(page, "content"), checked(page, "style")) == (found[0]["id"], near[0]["id"])
    # No network knows that style, so the optimiser paints; the sketch before it is gone.
    assert "the optimiser in one step on" in page.inner_text("#made")
    assert page.is_hidden("#sketch")

    choose(page, "The style", "The Twin")
    assert page.inner_text("#painting-title") == found[0]["title"]
    assert page.inner_text("#painting-style").startswith("in the style of The Twin")
    made = page.inner_text("#made")
    assert f"distance {found[0]['distance']:.3f} from your words" in made
    assert "fast network “The Twin” on" in made
    assert re.search(r"Finding took \d.*, painting \d.* \(reading \d.*, network \d.*, finishing \d.*, writing \d", made)
    name, data = download(page)
    assert name == f"{found[0]['title'].lower()}-the-twin.png"
    assert max(Image.open(io.BytesIO(data)).size) == 128
    page.wait_for_selector("#fast img")  # the tile shows what its network makes of the picture


def test_the_empty_form_paints_its_example(visit):
    page = visit("/?engine=fast&size=128")
    page.get_by_role("button", name="Paint", exact=True).click()
    painted(page)
    assert page.input_value("#title") == WORDS
    assert page.input_value("#description") == page.get_attribute("#description", "placeholder")


def test_an_example_is_painted_with_one_click(visit):
    page = visit("/?engine=fast&size=128")
    page.locator("#examples button").nth(2).click()
    painted(page)
    assert page.inner_text("#painting-title") == "The Dance Class"
    assert page.is_hidden("#examples")


def test_another_picture_is_painted_when_chosen_and_back_goes_back(visit):
    page = visit(f"/?title={WORDS}&engine=fast&size=128")
    painted(page)
    cites = page.locator("#contents cite")
    first, second = cites.nth(0).inner_text(), cites.nth(1).inner_text()
    assert page.inner_text("#painting-title") == first
    page.locator("#contents .card").nth(1).click()
    page.wait_for_selector(f"#after[alt^={second!r}]")
    assert page.inner_text("#painting-title") == second
    page.go_back()
    page.wait_for_selector(f"#after[alt^={first!r}]")
    assert page.inner_text("#painting-title") == first


def test_the_address_repeats_the_painting(visit, server_url, twin):
    page = visit(f"/?title={WORDS}&style={twin.slug}&size=256")
    painted(page)
    page.locator("#contents .card").nth(1).click()
    page.wait_for_selector("#after[alt^='Whalers']")
    page.get_by_text("How it is painted").click()
    page.get_by_label("Keep the picture’s own colours").check()
    page.wait_for_url("**preserve_color=true**")
    page.get_by_label("Strength").fill("0.6")
    page.wait_for_url("**strength=0.6**")
    page.wait_for_function("() => document.querySelector('#progress').hidden === false")
    painted(page)
    _, data = download(page)
    asked = {"content_id": checked(page, "content"), "style_id": twin.slug, "size": 256}
    asked |= {"strength": 0.6, "preserve_color": True}
    assert data == httpx.post(f"{server_url}/v1/text_to_art", json=asked, timeout=60).content

    other = visit(page.url.removeprefix(server_url))
    painted(other)
    assert download(other)[1] == data
    assert other.input_value("#title") == WORDS
    assert other.inner_text("#painting-title") == "Whalers"
    assert checked(other, "style") == twin.slug
    assert other.is_checked("#preserve_color")
    assert (other.input_value("#strength"), other.input_value("#size")) == ("0.6", "256")


def test_an_address_may_name_pictures_that_no_words_find(visit, server_url, twin):
    near = httpx.post(f"{server_url}/v1/retrieve/style", json={"content_id": twin.picture_id, "k": 100}).json()
    page = visit(f"/?content={twin.picture_id}&style={near[-1]['id']}&engine=fast&size=128")
    painted(page)
    assert page.inner_text("#painting-title") == twin.picture_title
    assert near[-1]["title"] in page.inner_text("#painting-style")


def test_a_style_that_a_network_knows_is_painted_by_it_alone(visit, twin):
    asked = []
    page = visit(f"/?title={WORDS}&style={twin.picture_id}&size=128")
    page.on("request", lambda request: asked.append(request.url))
    painted(page)
    assert "fast network “The Twin”" in page.inner_text("#made")
    assert "distance 0.000" in page.inner_text("#made")
    assert page.is_hidden("#sketch")


def test_ones_own_picture_and_ones_own_style(visit, twin):
    page = visit(f"/?engine=fast&size=128&style={twin.slug}")
    page.set_input_files("#own-content", picture(size=(96, 64)))
    painted(page)
    assert page.inner_text("#painting-title") == "your own picture"
    assert checked(page, "content") == ":content"
    assert page.locator("#near .card").count() == 5
    assert "content=" not in page.url and page.is_visible("#own-note")
    assert page.locator("#before").evaluate("before => [before.naturalWidth, before.naturalHeight]") == [96, 64]
    assert Image.open(io.BytesIO(download(page)[1])).size == (128, 85)

    with page.expect_response(in_own_style) as answer:
        page.set_input_files("#own-style", picture((30, 160, 90)))
    assert answer.value.headers["lienzo-content"] == "upload"
    page.wait_for_function("() => document.querySelector('#painting-style').textContent.includes('your own picture')")
    painted(page)
    assert checked(page, "style") == ":style"


def test_ones_own_style_on_a_gallery_picture(visit):
    page = visit(f"/?title={WORDS}&engine=fast&size=128")
    painted(page)
    with page.expect_response(in_own_style):
        page.set_input_files("#own-style", picture())
    painted(page)
    assert page.inner_text("#painting-title") == "Boating"
    assert checked(page, "style") == ":style"


def test_a_picture_can_be_dropped(visit):
    page = visit("/?engine=fast&size=128")
    page.wait_for_selector("#examples img")
    drop = """(zone, bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
      zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.locator("[data-drop=content]").evaluate(drop, list(picture()["buffer"]))
    painted(page)
    assert "dropped.png" in page.inner_text("#contents")


def test_a_file_that_is_no_picture_is_refused_in_place(visit):
    page = visit()
    page.set_input_files("#own-content", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"words, no picture"})
    error = page.locator("#words-error")
    error.wait_for()
    assert error.get_attribute("role") == "alert"
    assert "is no picture" in error.inner_text() and "Send a picture" in error.inner_text()
    assert page.is_hidden("#exhibit")
    page.get_by_label("Title").fill(WORDS)
    assert page.is_visible("#examples")


def test_words_that_nothing_fits_are_answered_with_a_hint(visit, server_url):
    page = visit("/?engine=fast&size=128")
    page.get_by_label("Title").fill("zzzz qqqq")
    page.keyboard.press("Enter")
    error = page.locator("#words-error")
    error.wait_for()
    refusal = httpx.post(f"{server_url}/v1/retrieve/content", json={"title": "zzzz qqqq"}).json()["error"]
    assert refusal["code"] == "no_match"
    assert refusal["message"] in error.inner_text() and refusal["hint"] in error.inner_text()
    page.get_by_label("Title").fill(WORDS)
    page.keyboard.press("Enter")
    painted(page)
    assert error.is_hidden()


def test_what_the_engine_refuses_is_said_beside_the_painting(visit, twin):
    page = visit(f"/?title={WORDS}&style={twin.slug}&engine=optimize")
    error = page.locator("#painting-error")
    error.wait_for()
    assert f"'{twin.slug}' is a fast style without a picture" in error.inner_text()
    page.get_by_text("How it is painted").click()
    page.get_by_label("Painted by").select_option("auto")
    page.get_by_label("Longer side").select_option("256")
    painted(page)
    assert error.is_hidden()


def test_pictures_that_are_not_there_are_refused(visit, server_url):
    page = visit("/?content=no-such-picture")
    page.wait_for_selector("#words-error")
    assert "no-such-picture" in page.inner_text("#words-error")
    assert page.is_hidden("#exhibit")
    page.goto(f"{server_url}/?title={WORDS}&style=no-such-style&engine=fast&size=128")
    page.wait_for_selector("#painting-error")
    assert "no-such-style" in page.inner_text("#painting-error")
    page.locator("#near .card").nth(1).click()
    painted(page)


def test_a_long_optimisation_can_be_stopped_and_leaves_the_sketch(visit):
    page = visit()
    held = []

    def hold(route: sync_api.Route) -> None:
        if route.request.post_data_json["engine"] == "optimize":
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/text_to_art", hold)
    page.goto(f"{page.url}?title={WORDS}&engine=optimize&size=128")
    page.wait_for_selector("[data-doing=optimizing]")
    page.wait_for_function("() => document.querySelector('#elapsed').textContent === '1 s'")
    assert page.is_visible("#sketch")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("#progress", state="hidden")
    assert page.inner_text("#status") == "Stopped."
    assert page.is_visible("#after") and page.is_visible("#sketch") and page.is_hidden("#painting-error")
    assert "in one pass" in page.inner_text("#made")

    page.get_by_text("How it is painted").click()
    page.get_by_role("button", name="Paint again").click()
    page.wait_for_selector("[data-doing=optimizing]")
    page.wait_for_function("() => document.querySelector('#status').textContent.startsWith('The optimiser paints')")
    busy = {"code": "busy", "message": "too many paintings are being optimised.", "hint": "Later.", "field": None}
    held[-1].fulfill(status=429, json={"error": busy})
    page.wait_for_selector("#painting-error")
    assert "Too many paintings" in page.inner_text("#painting-error")
    assert page.get_by_role("button", name="Try again").is_visible()


def test_an_unseen_style_is_previewed_at_once_and_then_optimised(visit):
    page, said = visit(locale="es-ES"), []
    page.expose_function("say", lambda text: said.append(text))
    page.evaluate(
        "new MutationObserver(() => say(document.querySelector('#status').textContent))"
        ".observe(document.querySelector('#status'), { childList: true })"
    )
    engines = []

    def note(answer: sync_api.Response) -> None:
        asked = answer.request.post_data_json if answer.request.method == "POST" else None
        if "lienzo-engine" in answer.headers and (asked or {}).get("size") != 192:  # those are the tiles
            engines.append(answer.headers["lienzo-engine"])

    page.on("response", note)
    page.get_by_text("Cómo se pinta").evaluate("summary => (summary.parentElement.open = true)")
    page.get_by_label("Lado mayor").evaluate("size => (size.value = '256')")
    page.get_by_label("Pasos del optimizador").evaluate("steps => (steps.value = '1')")
    page.locator("#options").evaluate("form => form.dispatchEvent(new Event('change'))")
    page.get_by_label("Título").fill(WORDS)
    page.keyboard.press("Enter")
    page.wait_for_selector("#sketch:not([hidden])")
    assert page.inner_text("#sketch").startswith("Una vista previa")
    assert "Pintado de una vez" in page.inner_text("#made")
    painted(page)
    assert page.is_hidden("#sketch")
    assert "Pintado por el optimizador en un paso" in page.inner_text("#made")
    assert engines == ["instant", "optimize"]
    # What is heard: that there is a preview, that the optimiser paints, that it is done.
    heard = [text for text in said if text.startswith(("Ya hay", "El optimizador", "La pintura"))]
    assert [text.split()[0] for text in heard] == ["Ya", "El", "La"]


def test_without_a_decoder_the_optimiser_paints_without_a_preview(visit):
    page = visit()

    def refuse(route: sync_api.Route) -> None:
        if route.request.post_data_json["engine"] == "instant":
            error = {"code": "engine_unavailable", "message": "no decoder.", "hint": "Fetch it.", "field": "engine"}
            route.fulfill(status=409, json={"error": error})
        else:
            route.continue_()

    page.route("**/v1/text_to_art", refuse)
    page.goto(f"{page.url}?title={WORDS}&engine=optimize&size=64&steps=1")
    painted(page)
    assert "by the optimiser in one step" in page.inner_text("#made")
    assert page.is_hidden("#painting-error")


def test_a_job_is_followed_found_again_and_cancelled(visit, server_url, axe):
    page, asked = visit(f"/?title={WORDS}&engine=optimize&size=128&steps=400"), []
    page.wait_for_selector("#steps-made:not([hidden])")
    page.wait_for_selector("#curve:not([hidden])")
    job = httpx.URL(page.url).params["job"]
    assert re.match(r"Loss .+ at first, .+ after step \d+", page.get_attribute("#curve svg", "aria-label"))
    assert page.locator("#curve polyline").evaluate("line => line.points.length") >= 2
    page.wait_for_selector("#after[alt*='while it is painted']")
    assert violations(page, axe) == []
    assert page.is_hidden("#download")

    page.on("request", lambda request: asked.append(request.method) if "/v1/text_to_art" in request.url else None)
    page.reload()
    page.wait_for_selector("#steps-made:not([hidden])")
    assert httpx.URL(page.url).params["job"] == job and not asked
    assert re.search(r"step \d+ of 400", page.inner_text("#doing"))
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        page.get_by_role("button", name="Stop").click()
    assert httpx.get(f"{server_url}/v1/jobs/{job}").json()["state"] == "cancelled"
    assert page.is_hidden("#progress") and page.is_hidden("#curve")
    assert "job=" not in page.url


def test_a_job_is_followed_through_a_restart_of_the_server(visit):
    page, asked = visit(), []
    stopping = {"code": "stopping", "message": "this server is being stopped.", "hint": "Again.", "field": None}

    def stop(route: sync_api.Route) -> None:
        kind = "events" if route.request.url.endswith("/events") else "status"
        asked.append(kind)
        if len(asked) == 1:
            route.fulfill(status=503, json={"error": stopping}, headers={"Retry-After": "5"})
        elif len(asked) == 2:  # a proxy, whose server is gone
            route.fulfill(status=503, body="")
        else:
            route.continue_()

    page.route(re.compile(r"/v1/jobs/[^/]+(/events)?$"), stop)
    page.goto(f"{page.url}?title={WORDS}&engine=optimize&size=64&steps=30")
    painted(page)
    assert "by the optimiser in 30 steps" in page.inner_text("#made") and page.is_hidden("#painting-error")
    assert asked[:3] == ["events", "status", "status"]


def test_a_sheet_shows_every_picture_in_every_style(visit, twin):
    page, engines, refusals = visit(f"/?title={WORDS}&style={twin.slug}&engine=fast&size=128&format=jpeg"), set(), []
    painted(page)
    page.wait_for_selector("#fast .card:last-child img")  # the tiles of the fast styles are painted
    button, said = page.locator("#sheet-paint"), page.locator("#sheet-said")
    tiles = page.locator("#sheet .tile")

    def refuse(route: sync_api.Route) -> None:
        engines.add(route.request.post_data_json["engine"])
        if refusals:
            error = {"code": "unreachable", "message": "busy.", "hint": "", "field": None}
            status = refusals.pop(0)
            route.fulfill(status=status, headers={} if status == 422 else {"Retry-After": "1"}, json={"error": error})
        else:
            route.continue_()

    page.route("**/v1/text_to_art", refuse)
    button.click()
    page.wait_for_function("() => document.querySelectorAll('#sheet .tile').length >= 2")
    assert button.inner_text() == "Stop"
    button.click()
    page.wait_for_function("() => document.querySelector('#sheet-paint').textContent === 'Paint the rest'")
    before = tiles.count()
    assert 2 <= before < 25 and page.is_hidden("#sheet-save")
    assert page.inner_text("#status") == "Stopped."
    assert said.inner_text() == f"{before} of 25 painted"
    refusals += [503, 429, 422]
    button.click()
    page.wait_for_function("() => document.querySelector('#sheet-said').textContent.includes('busy')")
    page.wait_for_selector("#sheet-save:not([hidden])", timeout=240_000)
    # It waits where the service is busy, and passes over what cannot be painted.
    assert tiles.count() == 24 and page.inner_text("#status") == "24 of 25 painted"
    assert page.inner_text("#sheet .none") == "This one cannot be painted."
    assert engines == {"fast", "instant"} and not refusals

    contents, styles = (page.locator(f"#sheet {part} th cite").all_inner_texts() for part in ("tbody", "thead"))
    assert contents == page.locator("#contents cite").all_inner_texts() and styles[0] == "The Twin"
    expected = [f"{content}, painted in the style of {style}" for content in contents for style in styles]
    first_of_second = expected[5]
    del expected[before]
    assert page.locator("#sheet .tile img").evaluate_all("images => images.map(image => image.alt)") == expected

    with page.expect_download() as waiting:
        page.click("#sheet-save")
    assert waiting.value.suggested_filename == "lienzo-sheet.jpg"
    sheet = Image.open(waiting.value.path())
    assert sheet.format == "JPEG" and sheet.width > 5 * 260 and sheet.height > 5 * 208
    for row in range(5):
        for column in range(5):
            x, y = 48 + 230 + 284 * column, 48 + 104 + 92 + 232 * row
            drawn = np.asarray(sheet.convert("L").crop((x, y, x + 120, y + 60))).std() > 2
            assert drawn == (5 * row + column != before), (row, column)
    title = np.asarray(sheet.convert("L").crop((48, 48, 600, 100)))
    assert title.min() < 80 < title.max()

    second = page.locator("#sheet tbody tr").nth(1).locator(".tile").first
    assert f"style={twin.slug}" in second.get_attribute("href")
    second.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#after[alt={first_of_second!r}]")
    painted(page)
    assert tiles.count() == 24  # the sheet stays
    assert checked(page, "style") == twin.slug and page.inner_text("#painting-title") == contents[1]


def test_the_page_offers_no_more_than_the_service_paints(visit, twin, server_url):
    health = httpx.get(f"{server_url}/v1/health").json()
    health["limits"] |= {"size": 700, "optimize_size": 300, "steps": 20}
    page = visit("/nowhere")
    page.route("**/v1/health", lambda route: route.fulfill(json=health))
    page.goto(f"{server_url}/?title={WORDS}&style={twin.slug}&size=2048&steps=100&strength=0.5&format=jpeg")
    painted(page)

    def sizes() -> list[str]:
        return page.locator("#size option").evaluate_all("options => options.map(option => option.value)")

    assert sizes() == ["256", "512", "700"]
    assert page.get_attribute("#steps", "max") == "20"
    name, data = download(page)
    painting = Image.open(io.BytesIO(data))
    assert name.endswith(".jpg") and (painting.format, max(painting.size)) == ("JPEG", 700)
    assert f'"Style": "{twin.slug}"' in painting.getexif()[270]
    page.get_by_text("How it is painted").click()
    page.get_by_label("Painted by").select_option("instant")
    page.locator("#near .card").first.click()
    with page.expect_request(lambda request: "instant" in (request.post_data or "")) as asked:
        page.get_by_role("button", name="Paint again").click()
    assert asked.value.post_data_json["steps"] == 20 and asked.value.post_data_json["size"] == 300
    assert sizes() == ["256", "300"]


def test_a_large_picture_is_reduced_before_it_travels(visit, twin):
    page = visit(f"/?engine=fast&size=64&style={twin.slug}")
    page.evaluate(
        "() => { const real = fetch; window.sent = []; window.fetch = (path, init) => {"
        " if (init?.body instanceof FormData) sent.push(init.body.get('image').type); return real(path, init); } }"
    )
    page.set_input_files("#own-photo", picture(size=(3000, 1500)))
    painted(page)
    assert set(page.evaluate("sent")) == {"image/jpeg"}
    assert page.locator("#before").evaluate("before => [before.naturalWidth, before.naturalHeight]") == [2048, 1024]
    assert Image.open(io.BytesIO(download(page)[1])).size == (64, 32)
    assert page.get_attribute("#own-photo", "capture") == "environment"


PASTE = """bytes => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
  document.activeElement.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
}"""


def test_a_picture_can_be_pasted_and_refusals_are_kind_in_both_languages(visit, twin):
    page = visit(f"/?engine=fast&size=64&style={twin.slug}", locale="es-ES")
    error = page.locator("#words-error")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/retrieve" in request.url else None)
    page.wait_for_selector("#examples img")
    asked.clear()
    for name, data, spanish, english in (
        ("a.png", picture(size=(60, 12))["buffer"], "solo tiene 60 × 12 píxeles", "only 60 × 12 pixels"),
        ("a.png", picture(size=(4000, 16))["buffer"], "demasiado alargada", "too elongated"),
        ("a.txt", b"words, no picture", "no es una imagen", "is no picture"),
        ("a.png", b"", "está vacío", "is empty"),
    ):
        kind = "text/plain" if name == "a.txt" else "image/png"
        page.set_input_files("#own-content", {"name": name, "mimeType": kind, "buffer": data})
        page.wait_for_function("text => document.querySelector('#words-error').innerText.includes(text)", arg=spanish)
        assert error.locator("p").count() == 2  # what is wrong, and what to do
        page.click("#language")
        assert english in error.inner_text()
        page.click("#language")
    assert not asked and page.is_hidden("#exhibit")
    page.evaluate(PASTE, list(picture()["buffer"]))
    painted(page)
    assert "pasted.png" in page.inner_text("#contents") and error.is_hidden()


def test_the_networks_are_shown_with_what_they_learned_and_how_good_they_are(visit, server_url):
    page = visit("/web/networks.html", width=360)
    cards = httpx.get(f"{server_url}/v1/styles").json()
    page.wait_for_selector(".network img")
    assert page.locator(".network h2").all_inner_texts() == [card["name"] for card in cards]
    for at, card in enumerate(cards):
        text = page.locator(".network").nth(at).inner_text()
        assert all(style["title"] in text for style in card["styles"])
        assert f"{card['bytes'] / 1e6:.1f} MB" in text and f"{card['parameters']:,} parameters" in text
        assert f"{card['reference']['network_total']:.2f}".rstrip("0").rstrip(".") in text
        steps = card["reference"]["equals_steps"]
        assert (f"{steps} steps from noise" if steps else "more than 100 steps") in text
    first = page.locator(".network img").first
    page.wait_for_function("() => document.querySelector('.network img').naturalWidth === 320")
    assert "painted by the network" in first.get_attribute("alt")
    # A phone sees the first cards; the last one's picture is not even asked for.
    assert not page.locator(".network img").last.evaluate("image => image.complete")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#language")
    assert page.inner_text("h1") == "Las redes y lo que aprendieron"
    assert "Aprendido de" in page.inner_text("#networks")
    page.get_by_role("link", name="Pintar en este estilo").first.click()
    page.wait_for_url(f"**style={cards[0]['slug']}**")


STATES = {
    "entrance": ("/", {}),
    "entrance in the dark, in Spanish": ("/", {"color_scheme": "dark", "locale": "es-ES"}),
    "painting": (f"/?title={WORDS}&engine=fast&size=64", {}),
    "painting on a phone in the dark": (f"/?title={WORDS}&engine=fast&size=64", {"color_scheme": "dark", "width": 360}),
    "refusal": ("/?title=zzzz+qqqq", {}),
    "networks": ("/web/networks.html", {"color_scheme": "dark"}),
}


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_serious(visit, axe, state):
    address, options = STATES[state]
    page = visit(address, **options)
    if "painting" in state:
        painted(page)
        page.locator("details").evaluate("details => (details.open = true)")
        page.click("#sheet-paint")
        page.wait_for_selector("#sheet .tile")
        page.click("#sheet-paint")
    page.wait_for_selector(
        {"refusal": "#words-error .what", "networks": ".network dl"}.get(state, "#examples img, #after")
    )
    assert violations(page, axe) == []


def test_targets_are_large_enough_for_a_finger(visit):
    page = visit(f"/?title={WORDS}&engine=fast&size=64", width=360)
    painted(page)
    page.locator("details").evaluate("details => (details.open = true)")
    small = page.evaluate(
        "() => [...document.querySelectorAll('a, button, select, summary, input:not(.unseen), label.card, .own label')]"
        ".filter(one => one.checkVisibility() && !one.closest('#cut'))"
        ".map(one => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])"
        ".filter(([, { width, height }]) => Math.min(width, height) < 24 && width > 0).map(([html]) => html)"
    )
    # A range's thumb is what is touched; a check box has its label.
    assert [html for html in small if 'type="range"' not in html and 'type="checkbox"' not in html] == []


def test_the_readme_shows_the_page(visit, request):
    """Writes the pictures, on demand: `pytest tests/test_page.py -k readme --screenshots services/web/examples`."""
    folder = request.config.getoption("--screenshots")
    if folder is None:
        pytest.skip("writes pictures only where --screenshots names a folder")

    def keep(page: sync_api.Page, name: str, **options) -> None:
        path = folder / f"page-{name}.jpg"
        page.screenshot(path=path, type="jpeg", quality=80, **options)
        assert path.stat().st_size < MOST_SCREENSHOT_BYTES

    page = visit()
    seen = (
        "() => [...document.querySelectorAll('#examples img')].filter(({ naturalWidth }) => naturalWidth).length === 6"
    )
    page.wait_for_function(seen)
    page.wait_for_selector("#about:not(:empty)")
    keep(page, "entrance")
    page.goto(f"{page.url}?title={WORDS}&style=great-wave")
    painted(page)
    keep(page, "painting")
    page.click("#sheet-paint")
    page.wait_for_selector("#sheet-save:not([hidden])", timeout=300_000)
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.locator("#sheet").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#sheet').scrollIntoView()")
    keep(page, "sheet")
    phone = visit(f"/?title={WORDS}&style=starry-night&size=256", width=360, color_scheme="dark")
    painted(phone)
    keep(phone, "phone")
    page = visit(f"/?title={WORDS}&engine=optimize&size=256&steps=60")
    page.wait_for_selector("#after[alt*='while it is painted']", timeout=300_000)
    page.wait_for_function("() => document.querySelector('#steps-made').value > 15", timeout=300_000)
    keep(page, "optimiser")
    page = visit("/web/networks.html")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.network img')].slice(0, 3).every(({ naturalWidth }) => naturalWidth)"
    )
    page.evaluate("scrollTo(0, 350)")
    keep(page, "networks")


def test_spanish(visit):
    english, spanish = visit(), visit(locale="es-ES")
    texts = "() => [...document.querySelectorAll('[data-t]')].map(element => element.textContent)"
    assert spanish.get_attribute("html", "lang") == "es"
    pairs = list(zip(english.evaluate(texts), spanish.evaluate(texts), strict=True))
    assert len(pairs) > 20
    assert [pair for pair in pairs if pair[0] == pair[1]] == []
    spanish.get_by_label("Título").fill("zzzz qqqq")
    spanish.get_by_role("button", name="Pintar", exact=True).click()
    spanish.wait_for_selector("#words-error")
    assert "Ninguna imagen de la galería" in spanish.inner_text("#words-error")

    spanish.get_by_role("button", name="English").click()
    assert spanish.inner_text("h1") == "Words in, a painting out."
    assert "No picture fits" in spanish.inner_text("#words-error")
    spanish.reload()
    assert spanish.inner_text("h1") == "Words in, a painting out."
    assert spanish.get_attribute("html", "lang") == "en"


def test_the_spanish_painting_is_described_in_spanish(visit, twin):
    page = visit(f"/?title={WORDS}&style={twin.slug}&size=128", locale="es-ES")
    painted(page)
    assert "al estilo de The Twin" in page.inner_text("#painting-style")
    assert "Pintado por la red rápida “The Twin”" in page.inner_text("#made")
    assert page.get_by_role("radiogroup", name="La imagen").is_visible()


def test_every_text_of_the_scripts_is_in_both_languages():
    script = (WEB / "language.js").read_text()
    english, spanish = (
        set(re.findall(r"^  (\w+):", re.search(rf"const {name} = {{\n(.*?)\n}};", script, re.DOTALL)[1], re.MULTILINE))
        for name in ("ENGLISH", "SPANISH")
    )
    assert len(english) > 30
    assert english <= spanish


def test_a_phone_never_scrolls_sideways(visit, twin):
    page = visit("/?engine=fast&size=128", width=360)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    page.wait_for_selector("#examples img")
    assert page.evaluate(fits)
    page.get_by_label("Title").fill("zzzz " + 40 * "q")
    page.keyboard.press("Enter")
    page.wait_for_selector("#words-error")
    assert page.evaluate(fits)
    page.get_by_label("Title").fill(WORDS)
    page.keyboard.press("Enter")
    painted(page)
    page.get_by_text("How it is painted").click()
    assert page.locator("#contents .card").count() == 5
    assert page.evaluate(fits)
    # The strip of cards moves instead.
    assert page.locator("#contents .cards").evaluate("cards => cards.scrollWidth > cards.clientWidth")


def test_with_the_keyboard_alone(visit):
    page = visit("/?engine=fast&size=128")
    page.wait_for_selector("#examples img")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached with the Tab key")

    tab_to("#title")
    page.keyboard.type(WORDS)
    page.keyboard.press("Enter")
    painted(page)
    tab_to("#cut")
    before = int(page.input_value("#cut"))
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert int(page.input_value("#cut")) == before + 3
    assert page.locator("#compare").evaluate("box => box.style.getPropertyValue('--cut')") == f"{before + 3}%"
    assert page.get_attribute("#cut", "aria-valuetext") == f"{before + 3} %"
    tab_to("input[name=content]")
    outline = "document.activeElement.closest('.card').querySelector('.hook')"
    assert page.evaluate(f"getComputedStyle({outline}).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    second = page.locator("#contents .card").nth(1)
    page.wait_for_selector(f"#after[alt^={second.locator('cite').inner_text()!r}]")
    assert second.locator("input").evaluate("input => input === document.activeElement")
    tab_to("input[name=style]")
    last = page.evaluate("async () => (await (await fetch('/v1/styles')).json()).at(-1).name")
    page.keyboard.press("ArrowLeft")  # round to the last one, a fast style
    page.wait_for_function("name => document.querySelector('#painting-style').textContent.includes(name)", arg=last)
    painted(page)
    assert page.evaluate("document.activeElement.value") == checked(page, "style")


def test_nothing_but_a_picture_moves_for_those_who_ask_for_stillness(visit, twin):
    page = visit(f"/?title={WORDS}&style={twin.slug}&size=128")
    painted(page)
    assert int(page.input_value("#cut")) < 50  # the unveiling is over at once


def test_the_first_view_is_light(visit):
    page = visit()
    page.wait_for_load_state("networkidle")
    sizes = page.evaluate("performance.getEntries().map(entry => [entry.name, entry.encodedBodySize ?? 0])")
    assert 10_000 < sum(size for name, size in sizes if "/v1/" not in name) < MOST_BYTES
    assert 10_000 < sum(size for name, size in sizes if "/v1/" in name) < MOST_BYTES
