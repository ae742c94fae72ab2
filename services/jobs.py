"""Optimisations as jobs: a queue in one SQLite file, which the processes that ask and the process that paints share.

A job lives through restarts and crashes. Whoever paints it holds a claim that has to be renewed; where that stops, the
next one takes the job up from its start. Everything that a painter writes is bound to its claim, so that of two, one
that was only thought dead writes nothing.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

from filelock import FileLock

from services.messages import Busy, as_data, as_error
from services.settings import settings
from shared.errors import InvalidInput, LienzoError, NotFound

FILE = "jobs.sqlite3"
LEASE_SECONDS = 20.0
"""A claim that is not renewed for so long is lost. Renewals come several times in that, from a thread of their own."""
MOST_ATTEMPTS = 3
"""Painters may die with a job this often; then it is the job."""
MOST_LOSSES = 200
REMEMBERED_SECONDS = 24 * 3600.0
"""For so long after its expiry a job is known to have been."""
MOST_REMEMBERED = 1000
"""Of jobs that ended without a painting, or whose painting expired, no more are known: cancelling costs nothing."""

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
STATES: tuple[State, ...] = get_args(State)
Losses = Sequence[Mapping[str, float]]

_VERSION = 2
_SCHEMA = """
CREATE TABLE jobs (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    id       TEXT    NOT NULL UNIQUE,
    state    TEXT    NOT NULL,
    version  INTEGER NOT NULL DEFAULT 1,
    request  TEXT    NOT NULL,
    work     REAL    NOT NULL,
    facts    TEXT    NOT NULL,
    steps    INTEGER NOT NULL,
    step     INTEGER NOT NULL DEFAULT 0,
    losses   TEXT    NOT NULL DEFAULT '[]',
    preview  INTEGER,
    error    TEXT,
    created  REAL    NOT NULL,
    started  REAL,
    ended    REAL,
    claim    TEXT,
    lease    REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    owner    TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE pictures (
    job  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (job, role)
);
"""
_SINCE_1 = "ALTER TABLE jobs ADD COLUMN owner TEXT;"
"""What a file of version 1 lacks."""
_OPEN = "state IN ('queued', 'running')"
_ENDED = "state IN ('done', 'failed', 'cancelled')"

_SECONDS_PER_WORK = 35 / (60 * 512**2)
"""Of a step, by pixel: what 60 steps take on two processor cores, until this machine has shown what they take here."""


class JobUnfinished(LienzoError):
    """The job's picture is not there yet."""

    code = "job_unfinished"


class JobGone(LienzoError):
    """The job's picture is not there any more, or never will be."""

    code = "job_gone"


@dataclass(frozen=True)
class Job:
    """A job as it stands.

    Attributes:
        version: grows with every change.
        position: 1 for the next of those that wait, 0 where it is being painted, None where it has ended.
        steps: those asked for.
        step: those made.
        losses: by step: ``step`` and the terms of the loss, at most :data:`MOST_LOSSES`.
        preview: the step that there is a preview of.
        created, started, ended: seconds since the epoch.
        facts: plain data about the painting, as the submitter and the painter gave it.
        owner: name of the API key that it was submitted with; None where there was none.
    """

    id: str
    state: State
    version: int
    position: int | None
    steps: int
    step: int
    losses: Losses
    preview: int | None
    created: float
    started: float | None
    ended: float | None
    error: LienzoError | None
    facts: Mapping[str, Any]
    owner: str | None

    @property
    def over(self) -> bool:
        return self.state not in ("queued", "running")


@dataclass(frozen=True)
class Claim:
    """A job that somebody has begun to paint.

    Attributes:
        token: what every report about it has to show.
        request: the painter's arguments, without the two pictures.
        content, style: those pictures, encoded.
    """

    job: str
    token: str
    request: Mapping[str, Any]
    content: bytes
    style: bytes


class JobStore:
    """The jobs of one state folder. Threads and processes may share it; each thread has its own connection.

    Args:
        folder: made where it does not exist, for its owner alone: it holds people's pictures.
        queue: jobs that wait or are painted at once.
        ttl: seconds for which an ended job is kept.
        most_seconds: a painting takes no longer.
        clock: seconds since the epoch.

    Raises:
        InvalidInput: the folder cannot be written, or another version wrote its file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        queue: int,
        ttl: float,
        most_seconds: float,
        clock: Callable[[], float] = time.time,
    ):
        self._file, self._queue, self._ttl, self._clock = Path(folder) / FILE, queue, ttl, clock
        self._most_seconds = most_seconds
        self._local = threading.local()
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite's own locks do not cover the change to a write-ahead log.
            with FileLock(self._file.with_suffix(".lock")):
                self._create()
        except (OSError, sqlite3.Error) as error:
            raise InvalidInput(
                f"the state folder '{folder}' cannot be used: {getattr(error, 'strerror', None) or error}.",
                hint="Name another folder in LIENZO_STATE.",
                field="state",
            ) from error

    @classmethod
    def of_settings(cls) -> JobStore:
        """The store that the operator set."""
        config = settings()
        return cls(
            config.state_folder,
            queue=config.optimize_queue,
            ttl=config.job_ttl,
            most_seconds=config.optimize_seconds,
        )

    # What a submitter does

    def submit(
        self,
        request: Mapping[str, Any],
        content: bytes,
        style: bytes,
        facts: Mapping[str, Any],
        *,
        owner: str | None = None,
    ) -> Job:
        """Add a job to the queue.

        Args:
            request: the painter's arguments, plain data with ``steps`` and ``size``.
            content, style: encoded pictures, checked by the caller.
            facts, owner: see :class:`Job`.

        Raises:
            Busy: the queue is full; its ``retry_after`` says when there may be a place.
        """
        id, work = secrets.token_urlsafe(16), request["steps"] * request["size"] ** 2
        with self._writing() as db:
            (count,) = db.execute(f"SELECT count(*) FROM jobs WHERE {_OPEN}").fetchone()
            if count >= self._queue:
                raise self._full(db)
            db.execute(
                "INSERT INTO jobs (state, id, request, work, facts, steps, created, owner)"
                " VALUES ('queued', ?, ?, ?, ?, ?, ?, ?)",
                (id, json.dumps(dict(request)), work, json.dumps(dict(facts)), request["steps"], self._clock(), owner),
            )
            self._keep(db, id, content=content, style=style)
        return self.job(id)

    def job(self, id: str) -> Job:
        """The job as it stands.

        Raises:
            NotFound: there is no such job, or it expired long ago.
        """
        db = self._connection()
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise no_such_job(id)
        state, position = row["state"], None
        if state == "running":
            position = 0
        elif state == "queued":
            query = "SELECT count(*) FROM jobs WHERE state = 'queued' AND number <= ?"
            (position,) = db.execute(query, (row["number"],)).fetchone()
        elif row["ended"] + self._ttl <= self._clock():
            state = "expired"
        return Job(
            id=id,
            state=state,
            version=row["version"],
            position=position,
            steps=row["steps"],
            step=row["step"],
            losses=json.loads(row["losses"]),
            preview=None if state == "expired" else row["preview"],
            created=row["created"],
            started=row["started"],
            ended=row["ended"],
            error=row["error"] and as_error(json.loads(row["error"])),
            facts=json.loads(row["facts"]),
            owner=row["owner"],
        )

    def result(self, id: str) -> tuple[Job, bytes]:
        """A job that is done, and its encoded picture.

        Raises:
            NotFound: there is no such job.
            JobUnfinished: it waits, or is being painted.
            JobGone: it expired or was cancelled.
            LienzoError: the one that it failed with.
        """
        job = self.job(id)
        if job.state == "failed":
            raise job.error
        if not job.over:
            waiting = "waits" if job.state == "queued" else f"is at step {job.step} of {job.steps}"
            raise JobUnfinished(f"the job {waiting}.", hint="Ask again later, or listen to its events.", field="id")
        data = self._picture(id, "result") if job.state == "done" else None
        if data is None:  # also where it expired just now
            reason = "was cancelled" if job.state == "cancelled" else "has expired, and its picture with it"
            raise JobGone(f"the job {reason}.", hint="Submit it again.", field="id")
        return job, data

    def preview(self, id: str) -> bytes:
        """The last preview of a job, a JPEG.

        Raises:
            NotFound: there is no such job, or no preview of it.
        """
        job = self.job(id)
        data = self._picture(id, "preview") if job.preview is not None else None
        if data is None:
            raise NotFound("the job has no preview.", hint="There is one while it is painted.", field="id")
        return data

    def cancel(self, id: str) -> Job:
        """End a job that has not ended; its painter finds at the next step that its claim is gone.

        Raises:
            NotFound: there is no such job.
        """
        with self._writing() as db:
            query = f"SELECT count(*) FROM jobs WHERE id = ? AND {_OPEN}"
            if db.execute(query, (id,)).fetchone()[0]:
                self._end(db, id, "cancelled")
        return self.job(id)

    def counts(self) -> dict[State, int]:
        """How many jobs there are of each state."""
        found = self._connection().execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        return dict.fromkeys(STATES, 0) | dict(found)

    # What a painter does

    def waiting(self) -> bool:
        """Whether :meth:`claim` may find something; cheap enough to ask again and again."""
        query = "SELECT count(*) FROM jobs WHERE state = 'queued' OR (state = 'running' AND lease < ?)"
        return self._connection().execute(query, (self._clock(),)).fetchone()[0] > 0

    def claim(self) -> Claim | None:
        """Begin the job that has waited longest, or one whose painter is lost; None where there is nothing to do."""
        now, token = self._clock(), secrets.token_hex(16)
        with self._writing() as db:
            lost = "state = 'running' AND lease < ?"
            worn = db.execute(f"SELECT id FROM jobs WHERE {lost} AND attempts >= ?", (now, MOST_ATTEMPTS)).fetchall()
            for (id,) in worn:
                self._end(db, id, "failed", error=_interrupted())
            row = db.execute(
                f"SELECT id, request FROM jobs WHERE state = 'queued' OR ({lost}) ORDER BY number LIMIT 1", (now,)
            ).fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET state = 'running', version = version + 1, claim = ?, lease = ?, started = ?, step = 0,"
                " losses = '[]', preview = NULL, attempts = attempts + 1 WHERE id = ?",
                (token, now + LEASE_SECONDS, now, row["id"]),
            )
            pictures = dict(db.execute("SELECT role, data FROM pictures WHERE job = ?", (row["id"],)).fetchall())
        return Claim(row["id"], token, json.loads(row["request"]), pictures["content"], pictures["style"])

    def renew(self, claim: Claim) -> bool:
        """Keep a claim; False where it is lost or the job was cancelled, and painting must stop."""
        with self._writing() as db:
            return self._held(db, claim)

    def progress(self, claim: Claim, step: int, losses: Losses, preview: bytes | None = None) -> bool:
        """Note how far a job is, and keep the claim; False as with :meth:`renew`.

        Args:
            losses: all of them, thinned out by :func:`thinned`.
            preview: a JPEG of the painting at ``step``; where not given, the last one stays.
        """
        with self._writing() as db:
            if not self._held(db, claim):
                return False
            db.execute(
                "UPDATE jobs SET version = version + 1, step = ?, losses = ? WHERE id = ?",
                (step, json.dumps(list(losses)), claim.job),
            )
            if preview is not None:
                db.execute("UPDATE jobs SET preview = ? WHERE id = ?", (step, claim.job))
                self._keep(db, claim.job, preview=preview)
            return True

    def finish(self, claim: Claim, picture: bytes, step: int, losses: Losses, facts: Mapping[str, Any]) -> bool:
        """A job is done; False, and nothing is written, as with :meth:`renew`.

        Args:
            facts: join those that the job was submitted with.
        """
        with self._writing() as db:
            if not self._held(db, claim):
                return False
            known = json.loads(db.execute("SELECT facts FROM jobs WHERE id = ?", (claim.job,)).fetchone()[0])
            db.execute(
                "UPDATE jobs SET step = ?, losses = ?, facts = ? WHERE id = ?",
                (step, json.dumps(list(losses)), json.dumps(known | dict(facts)), claim.job),
            )
            self._keep(db, claim.job, result=picture)
            self._end(db, claim.job, "done")
            return True

    def fail(self, claim: Claim, error: LienzoError) -> bool:
        """A job cannot be painted; False as with :meth:`renew`."""
        with self._writing() as db:
            if not self._held(db, claim):
                return False
            self._end(db, claim.job, "failed", error=error)
            return True

    def hand_back(self, claim: Claim) -> None:
        """Put a job back into the queue, at its old place, because its painter has to go."""
        with self._writing() as db:
            if self._held(db, claim):
                db.execute(
                    "UPDATE jobs SET state = 'queued', version = version + 1, claim = NULL, lease = NULL,"
                    " started = NULL, step = 0, losses = '[]', preview = NULL, attempts = attempts - 1 WHERE id = ?",
                    (claim.job,),
                )
                db.execute("DELETE FROM pictures WHERE job = ? AND role = 'preview'", (claim.job,))

    def sweep(self) -> None:
        """Throw away the pictures of jobs that have expired, and the memory of those that expired long ago.

        Of those that have no painting only the last :data:`MOST_REMEMBERED` are kept.
        """
        oldest = self._clock() - self._ttl
        with self._writing() as db:
            db.execute(
                f"DELETE FROM pictures WHERE job IN (SELECT id FROM jobs WHERE {_ENDED} AND ended <= ?)", (oldest,)
            )
            db.execute(
                "UPDATE jobs SET state = 'expired', version = version + 1, facts = '{}', losses = '[]', error = NULL,"
                f" preview = NULL WHERE {_ENDED} AND ended <= ?",
                (oldest,),
            )
            db.execute("DELETE FROM jobs WHERE state = 'expired' AND ended <= ?", (oldest - REMEMBERED_SECONDS,))
            db.execute(
                "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state IN ('failed', 'cancelled', 'expired')"
                " ORDER BY ended DESC, number DESC LIMIT -1 OFFSET ?)",
                (MOST_REMEMBERED,),
            )

    # Within

    def _create(self) -> None:
        self._file.touch(mode=0o600)  # its log takes the same mode
        db = self._connection()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            # Before the first table, or it has no effect: the file shrinks when pictures go.
            db.execute("PRAGMA auto_vacuum = FULL")
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version == 1:
            db.executescript(f"BEGIN IMMEDIATE; {_SINCE_1} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise InvalidInput(
                f"the jobs in '{self._file.parent}' were written by another version of Lienzo ({version}, expected "
                f"{_VERSION}).",
                hint="Name another folder in LIENZO_STATE, or delete that file once its jobs are not needed.",
                field="state",
            )

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self._file, timeout=30, isolation_level=None)
            db.row_factory = sqlite3.Row
            # With a write-ahead log this loses nothing when a process dies, and only the last moments with the power.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
            self._local.db = db
        return self._local.db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite itself rolls back where the disk is full
                db.execute("ROLLBACK")
            raise

    def _held(self, db: sqlite3.Connection, claim: Claim) -> bool:
        """Renew a claim that is still one. A lease that ran out without anybody noticing counts as held."""
        lease = self._clock() + LEASE_SECONDS
        return db.execute("UPDATE jobs SET lease = ? WHERE claim = ?", (lease, claim.token)).rowcount == 1

    def _end(self, db: sqlite3.Connection, id: str, state: State, error: LienzoError | None = None) -> None:
        db.execute(
            "UPDATE jobs SET state = ?, version = version + 1, claim = NULL, lease = NULL, preview = NULL, ended = ?,"
            " error = ? WHERE id = ?",
            (state, self._clock(), error and json.dumps(as_data(error)), id),
        )
        db.execute("DELETE FROM pictures WHERE job = ? AND role != 'result'", (id,))

    def _keep(self, db: sqlite3.Connection, id: str, **pictures: bytes) -> None:
        rows = [(id, role, data) for role, data in pictures.items()]
        db.executemany("INSERT OR REPLACE INTO pictures (job, role, data) VALUES (?, ?, ?)", rows)

    def _picture(self, id: str, role: str) -> bytes | None:
        query = "SELECT data FROM pictures WHERE job = ? AND role = ?"
        row = self._connection().execute(query, (id, role)).fetchone()
        return row and row["data"]

    def _full(self, db: sqlite3.Connection) -> Busy:
        """The refusal of a full queue: a place is free when the first of its jobs has ended."""
        last = db.execute(
            "SELECT (ended - started) / work FROM jobs WHERE state = 'done' ORDER BY ended DESC LIMIT 9"
        ).fetchall()
        pace = median(rate for (rate,) in last) if last else _SECONDS_PER_WORK
        now = self._clock()
        open_jobs = db.execute(f"SELECT work, started FROM jobs WHERE {_OPEN}").fetchall()
        # One that is not begun yet has all its time before it.
        left = min(min(pace * row["work"], self._most_seconds) - (now - (row["started"] or now)) for row in open_jobs)
        busy = Busy(
            f"{len(open_jobs)} optimisations wait or are painted, and more are not taken.", hint="Try again later."
        )
        busy.retry_after = max(1, round(left))
        return busy


def thinned(losses: Losses) -> list[Mapping[str, float]]:
    """At most :data:`MOST_LOSSES` of the losses: where there are more, every other one, but always the last."""
    kept = list(losses)
    while len(kept) > MOST_LOSSES:
        kept = kept[:-1][::2] + kept[-1:]
    return kept


def no_such_job(id: str) -> NotFound:
    """The refusal of an id that no job has, as far as the asker may know."""
    return NotFound(
        f"there is no job '{id[:80]}'.", hint="Jobs are forgotten a day after they expired, or earlier.", field="id"
    )


def _interrupted() -> LienzoError:
    return LienzoError(
        f"the optimiser was interrupted {MOST_ATTEMPTS} times while it painted this.",
        hint="Ask for a smaller size; the server's log says more.",
        code="interrupted",
    )
