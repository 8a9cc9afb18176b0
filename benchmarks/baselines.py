"""The servers that ours is compared with, each a process: `python -m benchmarks.baselines KIND --port N`.

`seed`      as small public projects build it: FastAPI, PyTorch as it comes, all threads, base64 in JSON, one
            request at a time, every feature map in the answer; a second path answers without maps
`fastapi`   FastAPI and our classifier, with workers, and batches of what has queued
`litserve`  LitServe and our classifier
`trivial`   reads the body and answers at once: what the load client can do
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import litserve
import orjson
import uvicorn
from aiohttp import web
from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel

from audiocnn.audio import synthetic
from audiocnn.classifier import Classifier
from audiocnn.options import Options

PATHS = {"seed": "/inference", "fastapi": "/predict", "litserve": "/predict", "trivial": "/predict"}
WITHOUT_MAPS = "/inference-without-maps"
_VARIABLE = "AUDIOCNN_RIVAL"  # uvicorn's and LitServe's workers are processes of their own
_MAX_BODY_BYTES = 1 << 26


@dataclass(frozen=True)
class Settings:
    """What every worker needs to know. `delay` is in ms; `threads` 0 means as many as there are cores."""

    model: str
    device: str
    threads: int
    batch: int
    delay: int
    ready_folder: str  # a worker that can answer leaves a file here, named by its process id

    @classmethod
    def read(cls) -> "Settings":
        """From the environment of a worker."""
        return cls(**json.loads(os.environ[_VARIABLE]))

    def classifier(self) -> Classifier:
        """Loaded, warm, and reported as ready."""
        classifier = Classifier.load(Path(self.model), device=self.device, threads=self.threads or None)
        classifier.predict_batch([synthetic.wav("rain")])
        Path(self.ready_folder, str(os.getpid())).touch()
        return classifier


def answers(classifier: Classifier, clips: Sequence[bytes]) -> list[bytes]:
    """The JSON of every clip; an intact clip is assumed."""
    results = classifier.predict_batch(clips)
    return [orjson.dumps(r.to_dict()) for r in results]


class InferenceRequest(BaseModel):
    """The body that the seeds' page sends."""

    audio_data: str


def seed_style() -> FastAPI:
    """The application. Its engine is PyTorch on a checkpoint folder.

    Where the seeds differ among themselves the faster way is taken: decoding and log-mel are ours, values
    are rounded to four digits, and without maps the answer is the predictions alone.
    """
    classifier = Settings.read().classifier()
    drawn = {"top_k": 3, "feature_maps": "json", "spectrogram": "true", "waveform": "true"}
    with_maps = Options.parse(drawn, classifier.config)
    without = Options.parse({"top_k": 3}, classifier.config)
    app = FastAPI()

    def answer(request: InferenceRequest, options: Options) -> dict[str, Any]:
        (result,) = classifier.predict_batch([base64.b64decode(request.audio_data)], [options])
        return result.to_dict()

    # Blocking work in an async function: one request at a time, as there.
    @app.post(PATHS["seed"], response_model=None)
    async def inference(request: InferenceRequest) -> dict[str, Any]:
        return answer(request, with_maps)

    @app.post(WITHOUT_MAPS, response_model=None)
    async def inference_without_maps(request: InferenceRequest) -> dict[str, Any]:
        return answer(request, without)

    return app


class Batcher:
    """Requests that wait are answered together: up to `batch`, the first waiting at most `delay_ms`."""

    def __init__(self, classifier: Classifier, batch: int, delay_ms: int) -> None:
        self._classifier, self._batch, self._delay_seconds = classifier, batch, delay_ms / 1000
        self._queue: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    async def ask(self, clip: bytes) -> bytes:
        """The JSON answer to one clip."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        await self._queue.put((clip, future))
        return await future

    async def run(self) -> None:
        """For ever, until cancelled."""
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
            replies = await loop.run_in_executor(self._thread, answers, self._classifier, clips)
            for (_, future), reply in zip(items, replies, strict=True):
                if not future.done():  # a client that went away has cancelled it
                    future.set_result(reply)


def fastapi_style() -> FastAPI:
    """The application: raw bytes in, the same JSON out as ours."""
    settings = Settings.read()
    batcher = Batcher(settings.classifier(), settings.batch, settings.delay)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post(PATHS["fastapi"])
    async def predict(request: Request) -> Response:
        return Response(await batcher.ask(await request.body()), media_type="application/json")

    return app


async def _body(request: Request) -> bytes:
    return await request.body()


class LitServeStyle(litserve.LitAPI):  # type: ignore[misc]
    """The same bytes in, the same JSON out; LitServe reads only JSON and forms unless it is told how."""

    def setup(self, device: str) -> None:
        """Called once in every worker."""
        self._classifier = Settings.read().classifier()

    def decode_request(self, request: Annotated[bytes, Depends(_body)]) -> bytes:
        """The clip."""
        return request

    def predict(self, clips: bytes | list[bytes]) -> bytes | list[bytes]:
        """One clip, or a list of them if batches are on."""
        if isinstance(clips, bytes):
            return answers(self._classifier, [clips])[0]
        return answers(self._classifier, clips)

    def encode_response(self, answer: bytes) -> Response:
        """The answer as it is."""
        return Response(answer, media_type="application/json")


def run_litserve(settings: Settings, workers: int, port: int) -> None:
    """Serve until a signal."""
    api = LitServeStyle(max_batch_size=settings.batch, batch_timeout=settings.delay / 1000)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: serves until a signal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baselines")
    parser.add_argument("kind", choices=list(PATHS))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--delay", type=int, default=0, help="ms")
    parser.add_argument("--ready-folder", required=True)
    args = parser.parse_args(arguments)
    settings = Settings(args.model, args.device, args.threads, args.batch, args.delay, args.ready_folder)
    os.environ[_VARIABLE] = json.dumps(asdict(settings))
    if args.kind == "trivial":
        run_trivial(args.ready_folder, args.port)
    elif args.kind == "litserve":
        run_litserve(settings, args.workers, args.port)
    else:
        app = "benchmarks.baselines:" + ("seed_style" if args.kind == "seed" else "fastapi_style")
        uvicorn.run(
            app,
            factory=True,
            workers=args.workers,
            port=args.port,
            log_level="warning",
            access_log=False,
            timeout_worker_healthcheck=120,  # a worker that is still importing torch is not dead
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
