"""Bodies into memory, and never further than allowed: nothing is written to disk.

Starlette's own form parser spools files to disk and counts afterwards. Here every chunk is counted when
it arrives, against the request's limit and against what all requests may hold together.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from audiocnn.gateway import server_timing
from audiocnn.gateway.content_encoding import decoded_chunks
from audiocnn.gateway.errors import BadRequestError, BusyError, UploadTooLargeError, WrongMediaTypeError
from audiocnn.gateway.settings import MIB, Settings
from audiocnn.options import AUDIO_FIELDS, AUDIO_FIELDS_TEXT, OPTION_NAMES

_MAX_FIELD_BYTES = 1 << 16
_MAX_FIELDS = 32
_MAX_PART_HEADER_BYTES = 4096
_PLAIN_ENCODINGS = ("binary", "8bit", "7bit")
_FORM_BYTES = MIB  # what boundaries, headers and option fields may add to the audio


class MemoryBudget:
    """Bytes that all requests together may hold."""

    def __init__(self, max_bytes: int) -> None:
        self._left = self._max = max_bytes

    @property
    def held(self) -> int:
        """Bytes that are taken now."""
        return self._max - self._left

    def take(self, count: int) -> None:
        """Raises `BusyError` if there are not so many left."""
        if count > self._left:
            raise BusyError("The server holds as many uploads as it can: ask again.")
        self._left -= count

    def give_back(self, count: int) -> None:
        """When the request that took them is done."""
        self._left += count

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Take so many until the block ends; raises `BusyError` if there are not so many left."""
        self.take(count)
        try:
            yield
        finally:
            self.give_back(count)


@dataclass
class Form:
    """A multipart body: sounds in their order, other fields by name.

    The name of a part decides: options are fields, `AUDIO_FIELDS` are sounds, whether they have a file name
    or not. A part of another name is a sound if it has a file name.
    """

    files: list[tuple[str, str, bytes]] = field(default_factory=list)  # field, file name, content
    fields: dict[str, str] = field(default_factory=dict)

    def only_file(self) -> bytes:
        """The clip of a form that must have one, in one of `AUDIO_FIELDS`; raises `BadRequestError`."""
        self.check_names()
        if len(self.files) != 1:
            sent = ", ".join(name for name, _, _ in self.files) or ", ".join(self.fields) or "nothing"
            raise BadRequestError(f"Send one sound file in the field file (got: {sent[:200]}).")
        return self.files[0][2]

    def check_names(self) -> None:
        """Raises `BadRequestError` for a sound whose field is none of `AUDIO_FIELDS`."""
        if wrong := [name for name, _, _ in self.files if name not in AUDIO_FIELDS]:
            raise BadRequestError(
                f"Send the sound as {AUDIO_FIELDS_TEXT}: there is no field {wrong[0][:40]!r}."
            )


@contextlib.asynccontextmanager
async def receiving(
    request: Request, settings: Settings, budget: MemoryBudget, *, max_bytes: int, copies: int = 1
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The chunks of the body, unpacked and counted; what they cost is given back when the block ends.

    `copies` is how many times the body is in memory while it is read, each of which counts.
    The time that they may take is the `BodyMiddleware`'s.
    """
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        if int(request.headers.get("content-length", "0")) > max_bytes:
            raise too_large(settings)
        received = 0
        async for chunk in decoded_chunks(request):
            received += len(chunk)
            if received > max_bytes:
                raise too_large(settings)
            budget.take(copies * len(chunk))
            taken += copies * len(chunk)
            yield chunk

    try:
        yield chunks()
    finally:
        budget.give_back(taken)


def too_large(settings: Settings) -> UploadTooLargeError:
    """The error that names the limit."""
    return UploadTooLargeError(
        f"At most {settings.max_upload_mb:g} MiB of audio in one request (MAX_UPLOAD_MB): send FLAC, or less."
    )


def form_limit(settings: Settings) -> int:
    """Bytes of a whole multipart body."""
    return settings.max_upload_bytes + _FORM_BYTES


def json_limit(settings: Settings) -> int:
    """Bytes of a JSON body whose audio is base64: four characters for three bytes."""
    return settings.max_upload_bytes * 4 // 3 + _FORM_BYTES


JSON_COPIES = 4  # of a JSON body in memory: the body, its text, the base64 and the audio


async def read_all(chunks: AsyncIterator[bytes]) -> bytes:
    """The whole body."""
    with server_timing.current().measured("receive"):
        return b"".join([chunk async for chunk in chunks])


async def read_form(
    request: Request,
    chunks: AsyncIterator[bytes],
    settings: Settings,
    fields: Collection[str] = OPTION_NAMES,
) -> Form:
    """Parse a multipart body as it arrives; parts with names in `fields` are no sounds."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise WrongMediaTypeError("Send multipart/form-data: curl -F file=@clip.wav ...")
    boundary = options.get(b"boundary")
    if not boundary:
        raise WrongMediaTypeError(
            "The Content-Type multipart/form-data has no boundary: let the HTTP library set this header."
        )
    try:
        reader = _FormReader(boundary, settings, fields)
        with server_timing.current().measured("receive"):
            async for chunk in chunks:
                reader.parser.write(chunk)
    except FormParserError as error:
        raise BadRequestError("The multipart body is malformed.") from error
    if not reader.is_complete:
        raise BadRequestError("The multipart body ends before its last boundary.")
    return reader.form


class _FormReader:
    """Collects what the parser finds."""

    def __init__(self, boundary: bytes, settings: Settings, fields: Collection[str]) -> None:
        self.form = Form()
        self.is_complete = False
        self._settings, self._fields = settings, fields
        self._audio_bytes = 0
        self._new_part()
        self.parser = MultipartParser(
            boundary,
            callbacks={
                "on_part_begin": self._new_part,
                "on_header_field": lambda data, start, end: self._header(self._name, data[start:end]),
                "on_header_value": lambda data, start, end: self._header(self._value, data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": lambda data, start, end: self._part_data(data[start:end]),
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def _new_part(self) -> None:
        self._name, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._headers = Message()
        self._field, self._file_name = "", ""
        self._is_sound = False

    def _header(self, target: bytearray, data: bytes) -> None:
        target += data
        if len(target) > _MAX_PART_HEADER_BYTES:
            raise BadRequestError("A part of the form has a header that is too long.")

    def _header_end(self) -> None:
        name, value = bytes(self._name).lower(), bytes(self._value)
        if name == b"content-disposition":
            self._read_disposition(value)
        elif name == b"content-type":
            self._headers["Content-Type"] = value.decode("latin-1")
        elif name == b"content-transfer-encoding":
            encoding = value.decode("latin-1").strip()
            if encoding.lower() not in _PLAIN_ENCODINGS:
                raise BadRequestError(
                    f"Content-Transfer-Encoding: {encoding[:40]} is not read. Send the bytes of the file."
                )
        self._name.clear()
        self._value.clear()

    def _read_disposition(self, value: bytes) -> None:
        plain = parse_options_header(value)[1]
        self._field = plain.get(b"name", b"").decode("utf-8", "replace")
        self._headers["Content-Disposition"] = value.decode("latin-1")
        extended = _file_name(self._headers)
        has_file_name = b"filename" in plain or extended is not None
        self._file_name = (
            plain[b"filename"].decode("utf-8", "replace") if b"filename" in plain else extended or ""
        )
        is_field = self._field in self._fields
        self._is_sound = self._field in AUDIO_FIELDS or (has_file_name and not is_field)

    def _headers_finished(self) -> None:
        if not self._field:
            raise BadRequestError("A part of the form has no name.")
        if self._is_sound and len(self.form.files) >= self._settings.max_files:
            raise BadRequestError(f"At most {self._settings.max_files} files in one request.")
        if not self._is_sound and len(self.form.fields) >= _MAX_FIELDS:
            raise BadRequestError("Too many fields in the form.")
        if self._field in self.form.fields:
            raise BadRequestError(f"The form has the field {self._field[:40]!r} more than once.")

    def _part_data(self, data: bytes) -> None:
        self._content += data
        if self._is_sound:
            self._audio_bytes += len(data)
            if self._audio_bytes > self._settings.max_upload_bytes:
                raise too_large(self._settings)
        elif len(self._content) > _MAX_FIELD_BYTES:
            raise BadRequestError(
                f"The field {self._field[:40]!r} is too long. A sound is sent as {AUDIO_FIELDS_TEXT}."
            )

    def _part_end(self) -> None:
        if self._is_sound:
            self.form.files.append((self._field, self._file_name, bytes(self._content)))
        else:
            self.form.fields[self._field] = _text(bytes(self._content), self._headers.get_content_charset())
        self._content = bytearray()

    def _end(self) -> None:
        self.is_complete = True


def _file_name(headers: Message) -> str | None:
    """`filename`, or `filename*` (RFC 5987) with its charset."""
    try:
        name = headers.get_filename()
    except ValueError:
        raise BadRequestError("The charset of a part's filename* is not known. Send UTF-8.") from None
    return name and name.encode("utf-8", "replace").decode()


def _text(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):  # Python has codecs that are no charsets, such as idna
        raise BadRequestError(f"The charset {(charset or '')[:40]!r} is not known. Send UTF-8.") from None
