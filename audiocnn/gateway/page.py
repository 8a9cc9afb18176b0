"""The page at `/ui`: drop a sound and see what it is, and why; or listen live.

Gradio carries the controls and the uploads. Everything to look at is HTML from `audiocnn.gateway.cards` and
`audiocnn.gateway.drawing`; the live tab is a script of its own that speaks to `/ws/predict`. Each clip is one
request to TorchServe.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any, Protocol

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: nobody is told anything

import gradio as gr
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount

from audiocnn.errors import AudioError, ServerError
from audiocnn.gateway import cards
from audiocnn.gateway.auth import AccessControl, request_id_in
from audiocnn.gateway.errors import GatewayError, SoundGoneError, body_of
from audiocnn.gateway.model_info import ALL_CLASSES
from audiocnn.gateway.multipart import Budget
from audiocnn.gateway.page_key import LoginMiddleware, admit
from audiocnn.gateway.page_routes import PageRoutes
from audiocnn.gateway.page_uploads import KEPT_SECONDS, Uploads
from audiocnn.gateway.settings import Settings
from audiocnn.gateway.words import all_words
from audiocnn.labels import describe
from audiocnn.private_folder import PrivateFolder, remove_abandoned

log = logging.getLogger("audiocnn.gateway.page")

PATH = "/ui"
SAMPLES = Path("samples")

_PREFIX = "audiocnn-ui-"

_HERE = Path(__file__).parent
_CLEAN_SECONDS = (60, KEPT_SECONDS)  # how often uploads are looked through, and how old one may become
_LIVE_BARS = 6
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
    '<text y=".9em" font-size="90">👂</text></svg>'
)
_MANIFEST = {
    "name": "What is this sound?",
    "start_url": "ui/",
    "icons": [{"src": "favicon.ico", "sizes": "any"}],
}
_EVERYTHING = {
    "top_k": ALL_CLASSES,
    "feature_maps": "png",
    "evidence": True,
    "spectrogram": True,
    "waveform": True,
}

Answer = dict[str, Any]
Shown = tuple[Any, ...]  # updates of the outputs, in their order


class Ask(Protocol):
    """What the page needs of the gateway: TorchServe's answer, or an error of `gateway.errors`."""

    def __call__(self, audio: bytes, request_id: str, options: dict[str, Any]) -> Awaitable[Answer]:
        """Predict."""


Admit = Callable[[Request], None]  # counts one clip of this caller; raises `GatewayError`


class Page:
    """What happens when something is dropped or picked."""

    def __init__(self, ask: Ask, admit: Admit, budget: Budget) -> None:
        self._ask = ask
        self._admit = admit
        self._budget = budget

    async def analyse(self, path: str | None, request: gr.Request) -> AsyncIterator[Shown]:
        """Say that it is heard, then show everything about it."""
        if path is None:
            yield self._empty(cards.waiting())
            return
        yield cards.listening(), *[gr.skip()] * 6
        try:
            began = time.perf_counter()
            answer = await self._answer(path, request, _EVERYTHING)
            asked = time.perf_counter()
            wave, mel, maps = await asyncio.to_thread(_draw, answer)
            times = (1000 * (asked - began), 1000 * (time.perf_counter() - asked))
        except (AudioError, ServerError, GatewayError) as error:
            yield self._empty(_problem(error))
            return
        except Exception:  # or the page would say "Listening" for ever
            log.exception("the page failed at %s", Path(path).name)
            yield self._empty(cards.problem("internal_error", "The server's log has the reason."))
            return
        picker = _picker(answer) if not answer["is_silent"] else gr.update(visible=False)
        yield (
            cards.headline(answer, *times),
            gr.update(value=cards.timeline(answer)),
            wave,
            picker,
            mel,
            cards.all_classes(answer),
            maps,
        )

    async def pick(self, path: str | None, name: str, request: gr.Request) -> Shown:
        """Waveform and spectrogram again, with what speaks for another class."""
        if path is None:
            return gr.skip(), gr.skip()
        wanted = {"class": name, "evidence": True, "spectrogram": True, "waveform": True}
        try:
            answer = await self._answer(path, request, wanted)
        except (AudioError, ServerError, GatewayError) as error:
            return gr.skip(), _problem(error)
        return cards.wave_card(answer), cards.mel_card(answer)

    async def _answer(self, path: str, request: gr.Request, options: dict[str, Any]) -> Answer:
        inner = request.request
        assert isinstance(inner, Request)
        self._admit(inner)
        try:
            with self._budget.holding(Path(path).stat().st_size):
                audio = await asyncio.to_thread(Path(path).read_bytes)
                return await self._ask(audio, request_id_in(inner.headers), options)
        except FileNotFoundError:
            raise SoundGoneError("What was uploaded is deleted after minutes: give it again.") from None

    def _empty(self, headline: str) -> Shown:
        return headline, "", "", gr.update(visible=False), "", "", ""


def _draw(answer: Answer) -> tuple[str, str, str]:
    return cards.wave_card(answer), cards.mel_card(answer), cards.map_cards(answer)


def _problem(error: AudioError | ServerError | GatewayError) -> str:
    inner = body_of(error)["error"]
    return cards.problem(inner["code"], inner["message"])


def _picker(answer: Answer) -> Any:
    """All classes, surest first, the top one chosen."""
    names = [row["class"] for row in answer["predictions"]]
    choices = [(f"{describe(name).emoji} {name.replace('_', ' ')}", name) for name in names]
    return gr.update(choices=choices, value=names[0], visible=True)


def build_page(ask: Ask, admit: Admit, budget: Budget, samples: Path = SAMPLES) -> gr.Blocks:
    """The page; `samples` is a folder of WAV files to try, if there is one."""
    page = Page(ask, admit, budget)
    blocks = gr.Blocks(title="What is this sound?", analytics_enabled=False, delete_cache=_CLEAN_SECONDS)
    with blocks:
        gr.HTML("<h1>What is this sound? <small>AudioCNN Serve</small></h1>", elem_id="title")
        with gr.Tabs():
            with gr.Tab("A sound", id="file"):
                _file_tab(page, samples)
            with gr.Tab("Live", id="live"):
                gr.HTML(
                    _live_html(), js_on_load=(_HERE / "live.js").read_text(encoding="utf-8"), elem_id="live"
                )
    blocks.queue(api_open=False, default_concurrency_limit=16, max_size=256)
    return blocks


def _file_tab(page: Page, samples: Path) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            audio = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label="Your sound",
                elem_id="sound",
                editable=False,
                buttons=[],
            )
            _examples(audio, samples)
        with gr.Column(scale=3, min_width=320):
            headline = gr.HTML(cards.waiting(), elem_id="headline")
    timeline = gr.HTML(elem_id="timeline")
    wave = gr.HTML(elem_id="wave")
    picker = gr.Dropdown(label="Show what speaks for", visible=False, elem_id="picker", filterable=True)
    mel = gr.HTML(elem_id="mel")
    classes = gr.HTML(elem_id="classes")
    maps = gr.HTML(elem_id="maps")
    audio.change(
        page.analyse,
        audio,
        [headline, timeline, wave, picker, mel, classes, maps],
        show_progress="hidden",
        api_visibility="private",
    )
    picker.input(page.pick, [audio, picker], [wave, mel], show_progress="minimal", api_visibility="private")


def _examples(audio: gr.Audio, samples: Path) -> None:
    """A button for each sound in the folder."""
    files = sorted(samples.resolve().glob("*.wav"))
    if not files:
        return
    gr.HTML('<p class="hint">or try one that was made from arithmetic:</p>')
    with gr.Row(elem_id="examples"):
        for file in files:
            label = f"{describe(file.stem).emoji} {file.stem.replace('_', ' ')}"
            button = gr.Button(label, size="sm", min_width=100)
            button.click(
                lambda file=file: str(file), None, audio, show_progress="hidden", api_visibility="private"
            )


def _live_html() -> str:
    """What `live.js` fills: bars, a level and a spectrogram that scrolls."""
    row = '<li><span></span><span></span><i><b style="width:0%"></b></i><span></span></li>'
    card = cards.message(
        "🎙️", "Live", "The microphone is off.", "idle", f'<ol class="bars top">{row * _LIVE_BARS}</ol>'
    )
    return f"""<div class="live" data-words="{escape(json.dumps(all_words()))}">
<p><button class="start">🎙️ Start listening</button>
<span class="level" role="meter" aria-label="level"><b></b></span></p>
{card}
<div><h3>Mel spectrogram <small>the last 10 seconds</small></h3>
<div class="plot mel"><div class="inside"><canvas width="500" height="128"></canvas></div>
<div class="ticks y"></div>
<div class="ticks x"><span style="left:0%">−10</span><span style="left:50%">−5</span>
<span style="left:100%">now</span></div>
<em class="x-label">seconds</em><em class="y-label">Hz</em>
<div class="scale"><div><canvas width="1" height="64"></canvas></div><div class="ticks y">
<span style="bottom:0%">−100</span><span style="bottom:50%">−60</span><span style="bottom:100%">−20 dB</span>
</div></div></div>
<p class="foot">Loudness in dB of full scale. Sound goes to this server only, and is not kept.</p>
</div></div>"""


def mount(
    app: FastAPI, ask: Ask, door: AccessControl, budget: Budget, settings: Settings, samples: Path = SAMPLES
) -> None:
    """Add the page to an application, at `/ui`; uploads and all else of it need a key if there are any."""
    _add_roots(app)
    folder = _upload_folder()
    blocks = build_page(ask, partial(admit, door), budget, samples)
    gr.mount_gradio_app(
        app,
        blocks,
        path=PATH,
        theme=_theme(),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        footer_links=[],
        max_file_size=settings.max_upload_bytes,
        allowed_paths=[str(samples.resolve())],
        show_error=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
    )
    blocks.has_launched = True  # until then Gradio does not ask whether a file was uploaded
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    routes = PageRoutes(mounted.app, blocks, folder, has_proxy=bool(settings.trusted_proxies))
    mounted.app = LoginMiddleware(Uploads(routes, door, settings, folder), door)


@cache
def _upload_folder() -> Path:
    """Where Gradio puts uploads: a folder of this process alone, for what is in it gets deleted.

    One for all applications of the process: Gradio reads the environment with every upload.
    """
    remove_abandoned(_PREFIX)
    private = PrivateFolder(_PREFIX)
    atexit.register(private.remove)
    folder = private.path.resolve() / "uploads"
    folder.mkdir(mode=0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def _add_roots(app: FastAPI) -> None:
    """What browsers ask for at the root, wherever the page is."""

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("ui/")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(_ICON, media_type="image/svg+xml")

    @app.get("/manifest.json", include_in_schema=False)
    async def manifest() -> Response:
        return JSONResponse(_MANIFEST)


def _theme() -> gr.themes.Base:
    """Fonts of the reader's machine: nothing is fetched from elsewhere."""
    return gr.themes.Base(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
