"""Segment-based and event-based metrics of detected events, by sed_eval.

Runs as a program in an environment of its own, because sed_eval needs other versions than ours: JSON on
standard input and output. To make such an environment:

    uv venv build/sed-eval && uv pip install --python build/sed-eval sed_eval "setuptools<81"
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLLARS = (0.5, 1.0)  # seconds: tolerance of start, and of end where half of the event is shorter

Rows = list[tuple[str, float, float]]  # class, start, end


def measure(
    python: Path, class_names: Sequence[str], files: Sequence[tuple[float, Rows, Rows]]
) -> dict[str, float]:
    """Metrics over all files, each its duration, true events and detected events.

    `segment_f1` and `segment_error_rate` in segments of 1 s, `event_f1_0.5` and `event_f1_1.0` with collars,
    micro-averaged over classes. Raises `OSError` or `subprocess.CalledProcessError` if `python` is no
    interpreter with sed_eval.
    """
    request = json.dumps({"class_names": list(class_names), "files": list(files)})
    command = [str(python), "-W", "ignore", str(Path(__file__).resolve())]
    done = subprocess.run(command, input=request, text=True, capture_output=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _evaluate(request: dict[str, Any]) -> dict[str, float]:
    import dcase_util
    import sed_eval

    names = request["class_names"]
    segments = sed_eval.sound_event.SegmentBasedMetrics(names, time_resolution=1.0)
    events = {c: sed_eval.sound_event.EventBasedMetrics(names, t_collar=c) for c in COLLARS}
    for number, (duration, truth, found) in enumerate(request["files"]):
        reference, estimated = (
            dcase_util.containers.MetaDataContainer(
                [
                    {"filename": f"{number}.wav", "event_label": label, "onset": start, "offset": end}
                    for label, start, end in rows
                ]
            )
            for rows in (truth, found)
        )
        segments.evaluate(reference, estimated, evaluated_length_seconds=duration)
        for metric in events.values():
            metric.evaluate(reference, estimated)
    overall = segments.results_overall_metrics()
    result = {
        "segment_f1": overall["f_measure"]["f_measure"],
        "segment_precision": overall["f_measure"]["precision"],
        "segment_recall": overall["f_measure"]["recall"],
        "segment_error_rate": overall["error_rate"]["error_rate"],
    }
    for collar, metric in events.items():
        result[f"event_f1_{collar}"] = metric.results_overall_metrics()["f_measure"]["f_measure"]
    return {name: float(value) for name, value in result.items()}


if __name__ == "__main__":
    print(json.dumps(_evaluate(json.load(sys.stdin))))
