"""The store of the jobs, and the painter that empties it; both without a server."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import torch
from scenes import hills, strokes

from services import jobs, painter
from services.jobs import (
    FILE,
    LEASE_SECONDS,
    MOST_ATTEMPTS,
    MOST_LOSSES,
    REMEMBERED_SECONDS,
    JobGone,
    JobStore,
    JobUnfinished,
    thinned,
)
from services.messages import Busy
from services.painter import Painter
from shared.errors import InvalidInput, LienzoError, NotFound, PictureError
from shared.images import decode, encode
from shared.optimized_painting import OptimizedPainting, paint_optimized, prepare
from shared.optimizer import Iteration, OptimizerSettings

REQUEST = {"size": 64, "steps": 4, "format": "png"}
LOSS = {"content": 1.0, "style": 2.0, "tv": 0.5, "total": 3.5}
TTL = 100.0


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path, clock) -> JobStore:
    return open_store(tmp_path, clock=clock)


def open_store(folder: Path, queue: int = 4, **options) -> JobStore:
    return JobStore(folder, queue=queue, ttl=TTL, most_seconds=120, **options)


def submit(store: JobStore, **request) -> str:
    return store.submit(REQUEST | request, b"content", b"style", {"style": "s"}).id


def finish(store: JobStore) -> str:
    claim = store.claim()
    assert store.finish(claim, b"picture", 4, [{"step": 4, **LOSS}], {"steps": 4})
    return claim.job


# The store


def test_a_job_from_its_submission_to_its_picture(store, clock):
    id = submit(store)
    assert len(id) >= 20
    job = store.job(id)
    assert (job.state, job.position, job.step, job.steps, job.over) == ("queued", 1, 0, 4, False)
    assert (job.created, job.started, job.ended) == (clock.now, None, None)
    with pytest.raises(JobUnfinished, match="waits"):
        store.result(id)

    clock.now += 5
    assert store.waiting()
    claim = store.claim()
    assert (claim.job, claim.content, claim.style, claim.request) == (id, b"content", b"style", REQUEST)
    assert not store.waiting() and store.claim() is None
    job = store.job(id)
    assert (job.state, job.position, job.started, job.preview) == ("running", 0, clock.now, None)
    assert store.progress(claim, 2, [{"step": 2, **LOSS}], b"preview")
    job = store.job(id)
    assert (job.step, job.losses, job.preview, store.preview(id)) == (2, [{"step": 2, **LOSS}], 2, b"preview")
    with pytest.raises(JobUnfinished, match="step 2 of 4"):
        store.result(id)

    clock.now += 7
    assert store.finish(claim, b"picture", 4, [{"step": 4, **LOSS}], {"steps": 4})
    job, picture = store.result(id)
    assert (picture, job.state, job.step, job.position, job.ended) == (b"picture", "done", 4, None, clock.now)
    assert job.facts == {"style": "s", "steps": 4}
    with pytest.raises(NotFound, match="no preview"):
        store.preview(id)
    assert roles(store) == {"result"}, "what was sent is not kept for longer than it is needed"


def roles(store: JobStore) -> set[str]:
    with closing(sqlite3.connect(store._file)) as db:
        return {role for (role,) in db.execute("SELECT role FROM pictures")}


def test_every_change_has_a_version(store):
    id = submit(store)
    versions = [store.job(id).version]
    claim = store.claim()
    versions.append(store.job(id).version)
    store.renew(claim)
    assert store.job(id).version == versions[-1], "nothing to tell"
    store.progress(claim, 1, [])
    versions.append(store.job(id).version)
    store.cancel(id)
    versions.append(store.job(id).version)
    assert versions == sorted(set(versions))


def test_jobs_are_painted_in_the_order_of_their_submission(store):
    ids = [submit(store) for _ in range(3)]
    assert [store.job(id).position for id in ids] == [1, 2, 3]
    assert store.claim().job == ids[0]
    assert [store.job(id).position for id in ids] == [0, 1, 2]
    store.cancel(ids[1])
    assert [store.job(id).position for id in ids] == [0, None, 1]
    assert store.claim().job == ids[2]


def test_a_full_queue_refuses_and_says_when_there_is_a_place(store, clock):
    ids = [submit(store) for _ in range(4)]
    store.claim()
    with pytest.raises(Busy) as caught:
        submit(store)
    assert caught.value.retry_after == 1 and caught.value.hint, "four small steps are made in no time"
    store.cancel(ids[3])
    submit(store)


def test_when_there_is_a_place_is_learned_from_the_jobs_that_were_done(tmp_path, clock):
    store = open_store(tmp_path, queue=1, clock=clock)
    submit(store)
    claim = store.claim()
    clock.now += 8
    store.finish(claim, b"", 4, [], {})
    submit(store, size=128)  # four times the pixels
    with pytest.raises(Busy) as caught:
        submit(store)
    assert caught.value.retry_after == 32
    store.claim()
    clock.now += 12
    with pytest.raises(Busy) as caught:
        submit(store)
    assert caught.value.retry_after == 20
    clock.now += 1000  # longer than thought
    with pytest.raises(Busy) as caught:
        submit(store)
    assert caught.value.retry_after == 1


def test_what_a_step_takes_is_assumed_until_it_is_known(tmp_path, clock):
    store = open_store(tmp_path, queue=1, clock=clock)
    submit(store, size=512, steps=60)
    with pytest.raises(Busy) as caught:
        submit(store)
    assert caught.value.retry_after == 35


def test_a_long_job_is_not_expected_to_take_longer_than_it_may(tmp_path, clock):
    store = open_store(tmp_path, queue=1, clock=clock)
    submit(store, size=1024, steps=500)
    with pytest.raises(Busy) as caught:
        submit(store)
    assert caught.value.retry_after == 120


def test_a_cancelled_job_stops_its_painter_and_has_no_picture(store):
    id = submit(store)
    claim = store.claim()
    assert store.cancel(id).state == "cancelled"
    assert not store.renew(claim) and not store.progress(claim, 1, [])
    assert not store.finish(claim, b"picture", 4, [], {}) and not store.fail(claim, LienzoError("no."))
    assert store.job(id).state == "cancelled" and roles(store) == set()
    with pytest.raises(JobGone, match="cancelled"):
        store.result(id)
    assert store.claim() is None


def test_what_has_ended_is_not_cancelled(store):
    id = submit(store)
    finish(store)
    before = store.job(id)
    assert store.cancel(id) == before and before.state == "done"


def test_a_job_that_fails_says_why(store):
    id = submit(store)
    assert store.fail(store.claim(), PictureError("it is torn.", hint="mend it.", field="image"))
    job = store.job(id)
    assert job.state == "failed" and job.over
    with pytest.raises(PictureError) as caught:
        store.result(id)
    for error in (job.error, caught.value):
        assert type(error) is PictureError
        assert (error.message, error.hint, error.field) == ("it is torn.", "mend it.", "image")


def test_ended_jobs_expire_then_are_forgotten_and_others_are_not(store, clock):
    done, failed, cancelled = (submit(store) for _ in range(3))
    finish(store)
    store.fail(store.claim(), LienzoError("no."))
    store.cancel(cancelled)
    waiting = submit(store)
    clock.now += TTL - 1
    store.sweep()
    assert [store.job(id).state for id in (done, failed, cancelled)] == ["done", "failed", "cancelled"]
    clock.now += 1
    for _ in range(2):  # it counts as expired before anybody swept
        assert [store.job(id).state for id in (done, failed, cancelled)] == ["expired"] * 3
        for id in (done, failed, cancelled):
            with pytest.raises(JobGone, match="expired"):
                store.result(id)
        store.sweep()
    assert roles(store) == {"content", "style"}
    clock.now += REMEMBERED_SECONDS
    store.sweep()
    for id in (done, failed, cancelled):
        with pytest.raises(NotFound):
            store.job(id)
    assert store.job(waiting).state == "queued"


def test_of_jobs_without_a_painting_only_the_last_are_remembered(store, clock, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_REMEMBERED", 2)
    done = submit(store)
    finish(store)
    failed = submit(store)
    store.fail(store.claim(), LienzoError("no."))
    cancelled = []
    for _ in range(3):
        clock.now += 1
        cancelled.append(submit(store))
        store.cancel(cancelled[-1])
    waiting = submit(store)
    store.sweep()
    for id in (failed, cancelled[0]):
        with pytest.raises(NotFound):
            store.job(id)
    assert [store.job(id).state for id in cancelled[1:]] == ["cancelled"] * 2
    assert (store.result(done)[1], store.job(waiting).state) == (b"picture", "queued")
    clock.now += TTL
    store.sweep()  # now the painting has expired, and is the oldest
    with pytest.raises(NotFound):
        store.job(done)


def test_the_file_shrinks_when_pictures_go(store, clock):
    store.submit(REQUEST, b"x" * 2_000_000, b"y" * 2_000_000, {})
    finish(store)
    with closing(sqlite3.connect(store._file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store._file.stat().st_size < 200_000


def test_unknown_jobs_are_not_found(store):
    for ask in (store.job, store.result, store.preview, store.cancel):
        with pytest.raises(NotFound) as caught:
            ask("x" * 300)
        assert caught.value.field == "id" and len(caught.value.message) < 150


def test_a_claim_that_nobody_renews_is_taken_over_once(store, clock):
    id = submit(store)
    dead = store.claim()
    store.progress(dead, 3, [{"step": 3, **LOSS}], b"preview")
    clock.now += LEASE_SECONDS - 1
    assert store.claim() is None
    assert store.renew(dead)
    clock.now += LEASE_SECONDS + 1
    assert store.waiting()
    heir = store.claim()
    assert heir.job == id and heir.token != dead.token
    assert store.claim() is None
    job = store.job(id)
    assert (job.state, job.step, job.losses, job.preview) == ("running", 0, [], None)
    # Whoever was thought dead, and is not, writes nothing more.
    assert not store.renew(dead) and not store.finish(dead, b"wrong", 4, [], {})
    assert store.finish(heir, b"right", 4, [], {})
    assert store.result(id)[1] == b"right"


def test_a_claim_that_nobody_took_is_still_one(store, clock):
    submit(store)
    claim = store.claim()
    clock.now += 10 * LEASE_SECONDS
    assert store.renew(claim)
    assert store.claim() is None


def test_a_job_that_kills_its_painters_is_given_up(store, clock):
    id, other = submit(store), submit(store)
    for _ in range(MOST_ATTEMPTS):
        assert store.claim().job == id
        clock.now += LEASE_SECONDS + 1
    assert store.claim().job == other
    job = store.job(id)
    assert (job.state, job.error.code) == ("failed", "interrupted")


def test_a_job_handed_back_keeps_its_place_and_its_attempts(store):
    id, other = submit(store), submit(store)
    for _ in range(2 * MOST_ATTEMPTS):
        claim = store.claim()
        assert claim.job == id
        store.progress(claim, 2, [{"step": 2, **LOSS}], b"preview")
        store.hand_back(claim)
        job = store.job(id)
        assert (job.state, job.position, job.step, job.started, job.preview) == ("queued", 1, 0, None, None)
    assert store.job(other).position == 2
    assert not store.renew(claim)


def test_everything_survives_a_restart(tmp_path, clock):
    before = open_store(tmp_path, clock=clock)
    done = submit(before)
    finish(before)
    running, waiting = submit(before), submit(before)
    before.claim()
    after = open_store(tmp_path, clock=clock)
    assert after.result(done)[1] == b"picture"
    assert after.claim().job == waiting, "the lease of the one that ran is not over"
    clock.now += LEASE_SECONDS + 1
    assert after.claim().job == running


def test_the_state_is_its_owners_alone(tmp_path):
    store = open_store(tmp_path / "a" / "state")
    submit(store)
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700
    for file in (tmp_path / "a" / "state").glob(f"{FILE}*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"the state folder .*file/state' cannot be used") as caught:
        open_store(tmp_path / "file" / "state")
    assert "LIENZO_STATE" in caught.value.hint
    (tmp_path / FILE).write_text("this is no database, and long enough to be seen as none" * 50)
    with pytest.raises(InvalidInput, match="cannot be used"):
        open_store(tmp_path)


def test_the_file_of_another_version_is_left_alone(tmp_path):
    open_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(InvalidInput, match=r"another version of Lienzo \(99, expected 2\)"):
        open_store(tmp_path)


def test_the_jobs_of_version_1_go_on_and_are_nobodys(tmp_path):
    id = submit(open_store(tmp_path))
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.executescript("ALTER TABLE jobs DROP COLUMN owner; PRAGMA user_version = 1;")
    for _ in range(2):
        store = open_store(tmp_path)
        assert (store.job(id).state, store.job(id).owner) == ("queued", None)
    mine = store.submit(REQUEST, b"content", b"style", {}, owner="alice").id
    assert store.job(mine).owner == "alice"


def test_a_change_that_fails_leaves_nothing(store):
    with pytest.raises(sqlite3.Error):
        store.submit(REQUEST, object(), b"style", {})  # type: ignore[arg-type]
    assert not store.waiting()
    submit(store)  # and the connection is not stuck in it


def _work(folder: Path, count: int, out: multiprocessing.Queue) -> None:
    """Submit jobs, and paint whatever there is, until everything is done."""
    store, mine = open_store(folder, queue=10_000), []
    for _ in range(count):
        submit(store)
        if claim := store.claim():
            store.progress(claim, 1, [])
            if store.finish(claim, claim.job.encode(), 4, [], {}):
                mine.append(claim.job)
    out.put(mine)


def test_processes_share_the_queue_and_no_job_is_lost_or_painted_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [context.Process(target=_work, args=(tmp_path, 25, out)) for _ in range(4)]
    for worker in workers:
        worker.start()
    painted = Counter(id for _ in workers for id in out.get(timeout=60))
    for worker in workers:
        worker.join()
    store = open_store(tmp_path)
    while store.waiting():
        painted[finish(store)] += 1
    assert len(painted) == 100 and set(painted.values()) == {1}
    assert all(store.job(id).state == "done" for id in painted)


@pytest.mark.parametrize("count", [0, 1, MOST_LOSSES, MOST_LOSSES + 1, 999])
def test_losses_are_thinned_to_what_may_be_told(count):
    losses = []
    for step in range(1, count + 1):
        losses = thinned([*losses, {"step": step}])
    assert len(losses) <= MOST_LOSSES and len(losses) >= min(count, MOST_LOSSES // 2)
    assert [point["step"] for point in losses] == sorted({point["step"] for point in losses})
    if count:
        assert losses[0]["step"] == 1 and losses[-1]["step"] == count


# Preparing


def test_prepared_pictures_give_the_same_painting(encoder):
    settings = OptimizerSettings(steps=2, scales=1)
    content, style = encode(hills(150, 110), "jpeg"), encode(strokes(90, 120), "jpeg")
    prepared = prepare(content, style, size=64)
    assert [max(decode(data).size) for data in prepared] == [64, 64]
    ours, theirs = (paint_optimized(encoder, *pair, settings, size=64) for pair in (prepared, (content, style)))
    assert ours.data == theirs.data


def test_what_cannot_be_painted_is_refused_when_it_is_prepared():
    good, ribbon = encode(hills(64, 64)), encode(hills(400, 20))
    for pair, field in (((b"no picture", good), "image"), ((good, b"no picture"), "style_image")):
        with pytest.raises(PictureError) as caught:
            prepare(*pair, size=64)
        assert caught.value.field == field
    for pair, field in (((ribbon, good), "image"), ((good, ribbon), "style_image")):
        with pytest.raises(InvalidInput, match=r"64×\d pixels") as caught:
            prepare(*pair, size=64)
        assert caught.value.field == field


# The painter


class Canvas:
    """Paints by counting: stands for the optimiser, and calls back as that does."""

    def __init__(self, pace: float = 0.0):
        self.pace, self.made = pace, []

    def __call__(self, *, content, style, on_iteration, steps, **request) -> OptimizedPainting:
        assert (content, style) == (b"content", b"style")
        step, going = 0, True
        while going and step < steps:
            step += 1
            time.sleep(self.pace)
            pixels = torch.full((1, 3, 40, 60), 0.5)
            going = on_iteration(Iteration(step, steps, 40, 60, 0.0, Terms(step), pixels)) is not False
        self.made.append(step)
        return OptimizedPainting(b"picture", {"network": 0.1}, step, Terms(step).values(), not going)


class Terms:
    """Losses that say at which step they were."""

    def __init__(self, step: int):
        self.step = step

    def values(self) -> dict[str, float]:
        return LOSS | {"total": float(self.step)}


@pytest.fixture
def paints(tmp_path):
    """Starts painters, and stops them at the end."""
    started = []

    def start(paint, folder=tmp_path) -> Painter:
        started.append(Painter(open_store(folder), paint, {"device": "cpu"}))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_the_painter_paints_what_waits_one_after_the_other(tmp_path, paints):
    store = open_store(tmp_path)
    ids = [submit(store), submit(store, steps=1)]
    canvas = Canvas()
    paints(canvas)
    until(lambda: all(store.job(id).state == "done" for id in ids))
    assert canvas.made == [4, 1]
    job, data = store.result(ids[0])
    assert data == b"picture"
    assert job.facts == {"style": "s", "device": "cpu", "steps": 4, "painting_seconds": {"network": 0.1}}
    assert (job.step, job.losses[0]["step"], job.losses[-1]) == (4, 1, {"step": 4, **LOSS, "total": 4.0})
    late = submit(store)
    until(lambda: store.job(late).state == "done")


def test_the_painter_reports_losses_and_previews_while_it_paints(tmp_path, paints, monkeypatch):
    monkeypatch.setattr(painter, "REPORT_SECONDS", 0.0)
    store = open_store(tmp_path)
    id = submit(store, steps=500)
    paints(Canvas(pace=0.01))
    until(lambda: store.job(id).step > 10)
    job = store.job(id)
    assert [point["total"] for point in job.losses] == [point["step"] for point in job.losses]
    assert job.preview == 1, "the next one comes later"
    assert decode(store.preview(id)).size == (60, 40)


def test_a_cancelled_job_stops_within_a_step_or_two(tmp_path, paints):
    store, canvas = open_store(tmp_path), Canvas(pace=0.25)
    id, after = submit(store, steps=500), submit(store, steps=1)
    paints(canvas)
    until(lambda: store.job(id).step >= 1)
    step = store.cancel(id).step
    until(lambda: store.job(after).state == "done")
    assert canvas.made[0] <= step + 2 and canvas.made[1] == 1
    assert store.job(id).state == "cancelled"


def test_a_painter_that_is_stopped_hands_its_job_back(tmp_path, paints):
    store, canvas = open_store(tmp_path), Canvas(pace=0.05)
    id = submit(store, steps=500)
    first = paints(canvas)
    until(lambda: store.job(id).step >= 1)
    first.stop()
    assert not first.alive
    assert (store.job(id).state, store.job(id).position, store.job(id).step) == ("queued", 1, 0)
    store.cancel(id)


def test_a_painter_is_waited_for_no_longer_than_one_likes(tmp_path, paints):
    store, canvas = open_store(tmp_path), Canvas(pace=0.5)
    id = submit(store, steps=500)
    slow = paints(canvas)
    until(lambda: store.job(id).state == "running")
    slow.stop(0.01)
    assert slow.alive and store.job(id).state == "running", "the step is not made yet"
    until(lambda: store.job(id).state == "queued")


def test_a_painter_keeps_the_claim_of_a_job_whose_steps_are_long(tmp_path, paints, monkeypatch):
    for module in (jobs, painter):
        monkeypatch.setattr(module, "LEASE_SECONDS", 0.4)
    store, canvas = open_store(tmp_path), Canvas(pace=1.5)
    id = submit(store, steps=1)
    paints(canvas)
    paints(canvas)
    until(lambda: store.job(id).state == "done")
    assert canvas.made == [1]


@pytest.mark.parametrize(
    ("error", "code"), [(PictureError("torn.", code="truncated_picture"), "truncated_picture"), (KeyError("x"), "bug")]
)
def test_what_goes_wrong_ends_the_job_and_not_the_painter(tmp_path, paints, error, code):
    store = open_store(tmp_path)
    bad, good = submit(store, steps=99), submit(store)
    canvas = Canvas()

    def paint(**request):
        if request["steps"] == 99:
            raise error
        return canvas(**request)

    paints(paint)
    until(lambda: store.job(good).state == "done")
    assert (store.job(bad).state, store.job(bad).error.code) == ("failed", code)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("database or disk is full"), KeyError("content")])
def test_a_store_that_fails_is_asked_again(tmp_path, paints, monkeypatch, error):
    monkeypatch.setattr(painter, "SWEEP_SECONDS", 0.05)
    failing = threading.Event()
    failing.set()
    real = JobStore.claim

    def claim(self):
        if failing.is_set():
            raise error
        return real(self)

    monkeypatch.setattr(JobStore, "claim", claim)
    store = open_store(tmp_path)
    id = submit(store)
    working = paints(Canvas())
    time.sleep(0.2)
    assert working.alive and store.job(id).state == "queued"
    failing.clear()
    until(lambda: store.job(id).state == "done")
