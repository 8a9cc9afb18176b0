"""The servers that ours is compared with, each a process: `python -m benchmarks.baselines KIND --port N`.

`baseline`  as small public projects build it: FastAPI, eager PyTorch, all threads, base64 in JSON, one
            request at a time, all feature maps in the reply; a second path replies without maps
`fastapi`   FastAPI and our classifier, with workers and batches of waiting requests
`litserve`  LitServe and our classifier
`trivial`   reads the body and replies at once: the limit of the load generator
"""

# No `from __future__ import annotations`: LitServe hands an annotation to FastAPI as the object it is.

import argparse
import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import litserve
import orjson
import uvicorn
from aiohttp import web
from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel

from audiocnn import command
from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.options import Options

PATHS = {"baseline": "/inference", "fastapi": "/predict", "litserve": "/predict", "trivial": "/predict"}
WITHOUT_MAPS = "/inference-without-maps"
SETTINGS_VARIABLE = "AUDIOCNN_BASELINE"  # read by the worker processes of uvicorn and LitServe
_MAX_BODY_BYTES = 1 << 26


@dataclass(frozen=True)
class BaselineSettings:
    """What a worker needs. `delay` is in ms; `threads` 0 means all cores."""

    model: str
    device: str
    threads: int
    batch: int
    delay: int
    ready_folder: str  # a ready worker creates a file here, named by its process id

    @classmethod
    def read(cls) -> "BaselineSettings":
        """From the environment of a worker."""
        return cls(**json.loads(os.environ[SETTINGS_VARIABLE]))

    def classifier(self) -> Classifier:
        """Load the classifier, warm it up, and report this worker as ready."""
        classifier = Classifier.load(Path(self.model), device=self.device, threads=self.threads or None)
        classifier.predict_batch([synthetic.wav("rain")])
        Path(self.ready_folder, str(os.getpid())).touch()
        return classifier


def replies(classifier: Classifier, clips: Sequence[bytes]) -> list[bytes]:
    """The JSON of each clip."""
    return [orjson.dumps(result.to_dict()) for result in classifier.predict_batch(clips)]


class InferenceRequest(BaseModel):
    """The request body of the baseline."""

    audio_data: str


def baseline_app() -> FastAPI:
    """The application of `baseline`, on eager PyTorch and a checkpoint folder.

    Where public projects differ the faster choice is taken: decoding and log-mel are ours, values are rounded
    to four digits, and without maps the reply has only the predictions.
    """
    classifier = BaselineSettings.read().classifier()
    drawn = {"top_k": 3, "feature_maps": "json", "spectrogram": "true", "waveform": "true"}
    with_maps = Options.parse(drawn, classifier.config)
    without = Options.parse({"top_k": 3}, classifier.config)
    app = FastAPI()

    def answer(request: InferenceRequest, options: Options) -> dict[str, Any]:
        (result,) = classifier.predict_batch([base64.b64decode(request.audio_data)], [options])
        return result.to_dict()

    # Blocking work in an async function: one request at a time.
    @app.post(PATHS["baseline"], response_model=None)
    async def inference(request: InferenceRequest) -> dict[str, Any]:
        return answer(request, with_maps)

    @app.post(WITHOUT_MAPS, response_model=None)
    async def inference_without_maps(request: InferenceRequest) -> dict[str, Any]:
        return answer(request, without)

    return app


class Batcher:
    """Batches of up to `batch` waiting requests; the first one waits at most `delay_ms`."""

    def __init__(self, classifier: Classifier, batch: int, delay_ms: int) -> None:
        self._classifier, self._batch, self._delay_seconds = classifier, batch, delay_ms / 1000
        self._queue: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    async def predict(self, clip: bytes) -> bytes:
        """The JSON of one clip."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        await self._queue.put((clip, future))
        return await future

    async def run(self) -> None:
        """Answer batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            items = [await self._queue.get()]
            due = loop.time() + self._delay_seconds
            while len(items) < self._batch:
                try:
                    async with asyncio.timeout_at(due):
                        items.append(await self._queue.get())
                except TimeoutError:
                    break
            clips = [clip for clip, _ in items]
            answers = await loop.run_in_executor(self._thread, replies, self._classifier, clips)
            for (_, future), reply in zip(items, answers, strict=True):
                if not future.done():  # cancelled when the client disconnects
                    future.set_result(reply)


def fastapi_app() -> FastAPI:
    """The application of `fastapi`: raw bytes in, our JSON out."""
    settings = BaselineSettings.read()
    batcher = Batcher(settings.classifier(), settings.batch, settings.delay)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post(PATHS["fastapi"])
    async def predict(request: Request) -> Response:
        return Response(await batcher.predict(await request.body()), media_type="application/json")

    return app


async def _body(request: Request) -> bytes:
    return await request.body()


class LitServeApp(litserve.LitAPI):  # type: ignore[misc]
    """Raw bytes in, our JSON out; by default LitServe reads only JSON and forms."""

    def setup(self, device: str) -> None:
        """Called once in each worker."""
        self._classifier = BaselineSettings.read().classifier()

    def decode_request(self, request: Annotated[bytes, Depends(_body)]) -> bytes:
        """The clip."""
        return request

    def predict(self, clips: bytes | list[bytes]) -> bytes | list[bytes]:
        """One clip, or a list of them with batching."""
        if isinstance(clips, bytes):
            return replies(self._classifier, [clips])[0]
        return replies(self._classifier, clips)

    def encode_response(self, answer: bytes) -> Response:
        """The JSON as it is."""
        return Response(answer, media_type="application/json")


def run_litserve(settings: BaselineSettings, workers: int, port: int) -> None:
    """Serve until a signal."""
    api = LitServeApp(max_batch_size=settings.batch, batch_timeout=settings.delay / 1000)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, log_level="warning", access_log=False, generate_client_file=False)


def run_trivial(ready_folder: str, port: int) -> None:
    """Serve until a signal."""

    async def predict(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=b'{"predictions": [{"class": "nothing"}]}', content_type="application/json")

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_post(PATHS["trivial"], predict)
    Path(ready_folder, str(os.getpid())).touch()
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


def run_uvicorn(app: str, workers: int, port: int) -> None:
    """Serve until a signal."""
    uvicorn.run(
        f"benchmarks.baselines:{app}",
        factory=True,
        workers=workers,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_worker_healthcheck=120,  # importing torch may block a worker for many seconds
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=list(PATHS), help="see above")
    parser.add_argument("--port", type=command.number(int, 1, 65_535), required=True, help="on loopback")
    parser.add_argument("--workers", type=command.count, default=1, help="processes (%(default)s)")
    parser.add_argument("--model", default="", help="model file or checkpoint folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 (%(default)s)")
    parser.add_argument(
        "--threads", type=command.natural, default=0, help="of each worker; 0: all cores (%(default)s)"
    )
    parser.add_argument("--batch", type=command.count, default=1, help="clips in a batch (%(default)s)")
    parser.add_argument(
        "--delay", type=command.natural, default=0, help="ms to wait for a full batch (%(default)s)"
    )
    parser.add_argument("--ready-folder", required=True, help="ready workers create a file here")


@command.entry_point(_options, "trivial --port 9000 --ready-folder /tmp")
def main(args: argparse.Namespace) -> int:
    """Entry point: serves until a signal."""
    settings = BaselineSettings(**{each.name: getattr(args, each.name) for each in fields(BaselineSettings)})
    os.environ[SETTINGS_VARIABLE] = json.dumps(asdict(settings))
    if args.kind == "trivial":
        run_trivial(args.ready_folder, args.port)
    elif args.kind == "litserve":
        run_litserve(settings, args.workers, args.port)
    else:
        run_uvicorn(f"{args.kind}_app", args.workers, args.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
