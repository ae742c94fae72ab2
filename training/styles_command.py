"""``lienzo-train styles``: a fast network for each cluster of style, one after the other or on many machines."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePath

from shared import fast_models, galleries
from shared.console import bar
from shared.errors import InvalidInput, LienzoError, ModelRefused
from shared.fast_models import Card, ClusterCard
from shared.galleries import Gallery, open_gallery
from training.clusters import NEAREST, Cluster, Clustering
from training.ray_tasks import check_engine, run_on_ray
from training.train_command import StyleJob, StyleSource, run_style_job, style_sources

log = logging.getLogger(__name__)


class StylesFailed(LienzoError):
    """Some clusters have no network; the others do."""

    code = "styles_failed"


def picture_jobs(paths: Sequence[Path], pattern: StyleJob, *, source: str = "") -> list[StyleJob]:
    """One job for each picture among ``paths`` and in the folders among them, named after its file.

    Raises:
        InvalidInput: a name leaves no slug.
    """
    jobs = []
    for style in (style for path in paths for style in style_sources(path, source)):
        slug = slug_of(galleries.texts_from_name(PurePath(style.path.name))["title"] or style.path.stem)
        jobs.append(replace(pattern, slug=slug, title="", styles=(style,), cluster=None))
    return jobs


def slug_of(title: str) -> str:
    """The slug of a style picture's title; see :func:`shared.fast_models.slugged`."""
    slug = fast_models.slugged(title)
    if not slug:
        raise InvalidInput(f"'{title}' leaves no slug.", hint="Give the file a name of letters and digits.")
    return slug


def cluster_jobs(
    file: Path,
    pattern: StyleJob,
    *,
    members: int,
    only: Sequence[str] = (),
    source: str = "",
    skip_done: bool = True,
) -> list[StyleJob]:
    """One job for each cluster in ``file``.

    Args:
        file: what ``lienzo-train clusters`` wrote.
        pattern: everything that the jobs have in common.
        members: pictures nearest to the cluster's centre that its network learns from; 1: the medoid alone.
        only: ids of the clusters to take; all where empty.
        source: where the style pictures come from, for the cards; the gallery's own word where not given.
        skip_done: leave out the clusters that have a network in ``pattern.output`` already.

    Raises:
        InvalidInput: a cluster does not exist, or a picture is not in its gallery any more.
    """
    clustering = Clustering.load(file)
    known = {cluster.id: cluster for cluster in clustering.clusters}
    if unknown := [id for id in only if id not in known]:
        raise InvalidInput(
            f"there is no cluster '{unknown[0]}' in '{file}'.",
            hint=f"Clusters are: {', '.join(known)}.",
            field="only",
        )
    if not 1 <= members <= NEAREST:
        raise InvalidInput(f"members is {members}, expected 1 to {NEAREST}.", field="members")
    gallery = cache(open_gallery)
    jobs = []
    for cluster in known.values():
        if only and cluster.id not in only:
            continue
        card = ClusterCard(
            id=cluster.id,
            style_space=clustering.style_space,
            centre=tuple(round(x, 6) for x in cluster.centre),
            radius=cluster.radius,
        )
        styles = _sources(cluster, members, gallery, source)
        job = replace(
            pattern, slug=cluster.id, title=cluster.title[: fast_models.LONGEST_NAME], styles=styles, cluster=card
        )
        if skip_done and _is_done(job):
            log.info("%s has its network already", job.slug)
        else:
            jobs.append(job)
    return jobs


def run_jobs(jobs: Sequence[StyleJob], *, engine: str, workers: int | None = None) -> Iterator[Card]:
    """Run the jobs and yield their cards as they are done.

    Args:
        engine: ``local``: one after the other in this process; ``ray``: see :func:`training.ray_tasks.run_on_ray`.
        workers: jobs at a time under Ray; as many as it has room for where not given.

    Raises:
        InvalidInput: there is no such engine, or it is not installed, or ``workers`` is below 1.
        StylesFailed: some jobs failed; after all others are done.
    """
    check_engine(engine, workers)
    failures: list[tuple[str, Exception]] = []
    run = _run_here if engine == "local" else _run_on_ray
    yield from run(jobs, failures, workers)
    if failures:
        slug, error = failures[0]
        others = f" (and {len(failures) - 1} more failed)" if len(failures) > 1 else ""
        raise StylesFailed(
            f"{len(failures)} of {len(jobs)} clusters have no network; '{slug}': {error}{others}",
            hint="Mend the cause and run the same command again: networks that are done are kept.",
        )


def _run_here(jobs: Sequence[StyleJob], failures: list[tuple[str, Exception]], _: int | None) -> Iterator[Card]:
    for job in jobs:
        try:
            card = run_style_job(job)
        except (LienzoError, OSError) as error:
            log.error("%s: %s", job.slug, error)
            failures.append((job.slug, error))
        else:
            if card is not None:
                yield card


def _run_on_ray(jobs: Sequence[StyleJob], failures: list[tuple[str, Exception]], workers: int | None) -> Iterator[Card]:
    with bar("training clusters", len(jobs)) as update:
        for done, (job, result) in enumerate(run_on_ray(_run_quietly, jobs, workers), start=1):
            if isinstance(result, Exception):
                log.error("%s: %s", job.slug, result)
                failures.append((job.slug, result))
            else:
                yield Card.model_validate_json(result)
            update(done)


def _run_quietly(job: StyleJob, threads: int, folder: Path) -> str:
    """On a Ray worker, whose output goes to Ray's log; paths are relative to ``folder``."""
    import torch

    os.chdir(folder)
    # Ray sets OMP_NUM_THREADS to 1; the task was given this many cores.
    torch.set_num_threads(threads)
    return run_style_job(job).model_dump_json()


def _sources(cluster: Cluster, members: int, gallery: Callable[[str], Gallery], source: str) -> tuple[StyleSource, ...]:
    found = []
    for member in cluster.nearest[:members]:
        picture = gallery(member.gallery).by_id(member.id)
        found.append(StyleSource(picture.path, picture.title, picture.artist, picture.date, source or picture.credit))
    return tuple(found)


def _is_done(job: StyleJob) -> bool:
    """Whether the output folder has a whole model of this very cluster."""
    try:
        card = fast_models.read_card(job.output / job.slug)
    except ModelRefused:
        return False
    return card.cluster == job.cluster
