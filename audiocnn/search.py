"""The sounds most similar to one: `audiocnn search QUERY.wav --in sounds.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiocnn.arrays import FloatArray
from audiocnn.embed import embed_file, open_embedder
from audiocnn.embedding_table import EmbeddingTable
from audiocnn.inputs import InputError
from audiocnn.printing import json_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def cosine_similarities(query: FloatArray, vectors: FloatArray) -> FloatArray:
    """Of a vector `(d,)` with each row of `(n, d)`, after the mean of the rows is subtracted: -1 to 1.

    Features are 0 or more and have large common parts; without the mean all sounds look alike.
    """
    mean = vectors.mean(axis=0) if len(vectors) > 1 else np.zeros_like(query)
    rows, own = vectors - mean, query - mean
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(own)
    return np.asarray(rows @ own / np.maximum(norms, 1e-12), dtype=np.float32)


def nearest(query: FloatArray, table: EmbeddingTable, top_k: int) -> list[dict[str, float | str]]:
    """The best window of each of the `top_k` most similar files."""
    similarity = cosine_similarities(query, table.vectors)
    rows: dict[str, dict[str, float | str]] = {}
    for number in np.argsort(-similarity, kind="stable"):
        file = table.files[number]
        if file not in rows:
            start, end = round(float(table.starts[number]), 3), round(float(table.ends[number]), 3)
            rows[file] = {
                "file": file,
                "start": start,
                "end": end,
                "similarity": round(float(similarity[number]), 4),
            }
        if len(rows) == top_k:
            break
    return list(rows.values())


@app.command(epilog="Example: audiocnn search bark.wav --in sounds.parquet")
def search(
    query: Annotated[str, typer.Argument(metavar="FILE", help="The sound to look for.")],
    table: Annotated[
        Path,
        typer.Option(
            "--in",
            metavar="TABLE",
            help="What `audiocnn embed` wrote, or the folder embeddings of `audiocnn batch`.",
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Files to list.")] = 10,
    model: Annotated[
        Path | None, typer.Option(help="That of the table (model_store, else the released).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (all).")] = None,
) -> None:
    """List the most similar sounds. Exit code 2: a file, a table or a model that cannot be used."""
    classifier = open_embedder(model, threads)
    known = EmbeddingTable.load(table)
    if known.model != classifier.engine.sha256:
        raise InputError(
            f"{table} was made with another model ({known.model[:12]}) than {classifier.engine.path} "
            f"({classifier.engine.sha256[:12]}): name it with --model, or embed again"
        )
    vector = np.stack([row[2] for row in embed_file(classifier, query)]).mean(axis=0)
    rows = nearest(vector, known, top_k)
    if as_json:
        print("\n".join(map(json_line, rows)))
        return
    shown = Table("similarity", "seconds", "file")
    for row in rows:
        shown.add_row(f"{row['similarity']:.3f}", f"{row['start']} to {row['end']}", escape(str(row["file"])))
    Console().print(shown)
