"""``lienzo-train tune-search``: what the content search finds, with which weights, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from shared import weights
from shared.console import bar, console, explain_errors, stages
from shared.errors import InvalidInput
from shared.files import write_atomically


@explain_errors
def tune_search(
    queries: Annotated[
        list[Path],
        typer.Option(help="JSON: a list of title, description and accepted ids, or lists by name; repeatable."),
    ],
    elsewhere: Annotated[
        Path | None, typer.Option(help="JSON: texts that no picture fits, or lists by name; the first calibrates.")
    ] = None,
    gallery: Annotated[str, typer.Option(help="'met' or a folder of pictures.")] = "met",
    sentences: Annotated[Path | None, typer.Option(help="A sentence transformer's folder; minilm if left out.")] = None,
    embedding: Annotated[
        Path | None, typer.Option(help="A joint embedding's folder, to search by pictures too; needs --index.")
    ] = None,
    index_folder: Annotated[
        Path | None, typer.Option("--index", help="The gallery's index, with the embedding's space.")
    ] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything here too.")] = None,
) -> None:
    """Measure the content search by each of its parts and by all, and find the weights and the threshold.

    The row "tuned" is five-fold cross-validation: no query is searched with weights that it helped to choose.

    Example: `lienzo-train tune-search --queries everyday.json --elsewhere nonsense.json`
    """
    from shared.galleries import open_gallery
    from shared.gallery_index import GalleryIndex
    from shared.hybrid_search import MIN_SIMILARITY, WEIGHTS, HybridIndex, SentenceIndex, mean_similarity
    from shared.image_encoders import open_encoder
    from shared.joint_embedding import JointEmbedding, JointEncoder
    from shared.retrieval import SENTENCES, joint_pictures
    from shared.sentence_encoder import SentenceEncoder
    from shared.text_search import TextIndex
    from training import search_tuning

    opened = open_gallery(gallery)
    asked = [query for path in queries for query in search_tuning.read_queries(path, opened)]
    texts = search_tuning.read_texts(elsewhere) if elsewhere else {}
    if sentences is None:
        with stages() as progress:
            sentences = weights.fetch(SENTENCES, progress=progress)
    words = TextIndex(opened)
    with bar("reading the gallery's texts") as update:
        meaning = SentenceIndex.open(
            opened, SentenceEncoder.open(sentences), cache=weights.cache_dir(), on_text=lambda *done: update(*done)
        )
    joint = None
    if embedding is not None:
        if index_folder is None:
            raise InvalidInput(
                "an embedding needs the gallery's index in its space.",
                hint="Make one with lienzo-train index --encoder joint:FOLDER, and name it with --index.",
                field="index",
            )
        loaded = JointEmbedding.load(embedding, sentences=meaning.encoder)
        space = JointEncoder(loaded, lambda: open_encoder(loaded.image_encoder.name))
        joint = joint_pictures(opened, GalleryIndex.open(index_folder, opened, [space]), loaded)
    index = HybridIndex(words, meaning, joint)

    def similarities(titles_and_descriptions: list[tuple[str, str]]) -> dict[str, np.ndarray]:
        found = []
        with bar("searching", len(titles_and_descriptions)) as update:
            for title, description in titles_and_descriptions:
                found.append(index.similarities(words.english(title, description)))
                update(len(found))
        return {name: np.stack([each[name] for each in found]) for name in index.parts}

    found = similarities([(query.title, query.description) for query in asked])
    rows = {name: search_tuning.ranks(each, asked) for name, each in found.items()}
    rows["tuned"] = search_tuning.cross_validated_ranks(found, asked)
    rows["as shipped"] = search_tuning.ranks(mean_similarity(found, WEIGHTS), asked)
    best = search_tuning.tune(found, asked)
    table = Table("search", "hit@1", "hit@5", "MRR", title=f"{len(asked)} queries, means and 95 % intervals")
    measured = {name: search_tuning.measures(each) for name, each in rows.items()}
    for name, each in measured.items():
        table.add_row(name, *(f"{m.mean:.3f} ({m.low:.2f}–{m.high:.2f})" for m in each.values()))
    console.print(table)
    console.print("best weights over all: " + ", ".join(f"{name} {weight:g}" for name, weight in best.items()))

    hits = rows["as shipped"] <= 5
    refusals = {}
    if texts:
        answerable = mean_similarity(found, WEIGHTS).max(axis=1)[hits]
        foreign = {
            name: mean_similarity(similarities([(text, "") for text in each]), WEIGHTS).max(axis=1)
            for name, each in texts.items()
        }
        chosen = search_tuning.calibrate(answerable, next(iter(foreign.values())))
        table = Table("texts from elsewhere", "threshold", "let through", "queries with a hit answered")
        for name, each in foreign.items():
            for threshold in (chosen.threshold, MIN_SIMILARITY):
                refusal = search_tuning.judge(answerable, each, threshold)
                refusals.setdefault(name, []).append(dataclasses.asdict(refusal))
                table.add_row(name, f"{threshold:.3f}", f"{refusal.let_through:.2f}", f"{refusal.answered:.2f}")
        console.print(table)
    if json_path is not None:
        plain = {name: {k: dataclasses.asdict(m) for k, m in each.items()} for name, each in measured.items()}
        content = {"queries": len(asked), "measures": plain, "best_weights": best, "refusals": refusals}
        write_atomically(json_path, (json.dumps(content, indent=1) + "\n").encode())
