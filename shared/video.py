"""Films in and out, through PyAV: every frame painted, everything else kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from shared.errors import EngineUnavailable, InvalidInput
from shared.files import written_atomically
from shared.motion import STEADY, Steadier, missing
from shared.prefetching import prefetched


@dataclass(frozen=True)
class Container:
    """How a film is written into a kind of file."""

    format: str
    codec: str
    codec_options: Mapping[str, str]
    options: Mapping[str, str]


# Strokes are hard to compress: below these qualities the edges between them ring.
_H264 = {"crf": "18", "preset": "fast"}
CONTAINERS: dict[str, Container] = {
    ".mp4": Container("mp4", "libx264", _H264, {"movflags": "+faststart"}),
    ".mkv": Container("matroska", "libx264", _H264, {}),
    ".webm": Container("webm", "libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "5", "row-mt": "1"}, {}),
}
"""What is written, by the file's ending."""

SUFFIXES = (*CONTAINERS, ".mov", ".m4v", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".3gp", ".wmv", ".flv")
"""Endings by which a film is known; what it really is, is read from its bytes."""

_BT709, _LIMITED_RANGE = 1, 1


@dataclass(frozen=True)
class PaintedVideo:
    """What was written.

    Attributes:
        frames: how many.
        size: width and height, upright.
        codec: of the frames.
        audio: codecs of the audio that was copied.
    """

    frames: int
    size: tuple[int, int]
    codec: str
    audio: tuple[str, ...]


@dataclass(frozen=True)
class _Frame:
    """A frame on its way: upright, at the size that is painted, with its time stamp in the film's time base."""

    picture: np.ndarray
    pts: int


def container(path: Path) -> Container:
    """How a film of that name is written.

    Raises:
        InvalidInput: its ending is none of :data:`CONTAINERS`.
    """
    try:
        return CONTAINERS[path.suffix.lower()]
    except KeyError:
        raise InvalidInput(
            f"'{path}' ends in no kind of video that is written.",
            hint=f"End it in {', '.join(CONTAINERS)}.",
            field="output",
        ) from None


def paint_video(
    source: Path,
    output: Path,
    paint: Callable[[Image.Image], Image.Image],
    *,
    size: int | None = None,
    steady: float = STEADY,
    recipe: Mapping[str, str] | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> PaintedVideo:
    """Paint every frame of a film; the audio is copied as it is, packet by packet.

    Time stamps, frame rate and the shape of pixels are kept; a film that is to be turned is turned, and its sides
    become even, as its codec asks. Decoding, painting and encoding each have a thread. The file appears when it is
    whole, or not at all, whatever ends the work.

    Args:
        paint: from a frame to its painting, of the same size; called in one thread, in the order of the frames.
        size: longer side of the result in pixels; the film's own where not given.
        steady: 0 to 1; see :class:`shared.motion.Steadier`.
        recipe: what to write into the file's comment.
        on_frame: told how many frames are written, and how many there are, where the file says it.

    Raises:
        InvalidInput: the file is no film that can be read, or its audio does not go into this kind of file.
        EngineUnavailable: the extra ``video`` is not installed, or its FFmpeg lacks the encoder.
        OSError: the output cannot be written.
    """
    kind = container(output)
    av = _av()
    if kind.codec not in av.codecs_available:
        raise EngineUnavailable(f"this build of PyAV has no encoder {kind.codec}.", hint="Install PyAV's own wheel.")
    steadier = Steadier(steady)
    layout = _layout(source, size)
    frames = 0
    with ExitStack() as stack:
        film = stack.enter_context(_opened(source))
        video = film.streams.best("video")
        temporary = stack.enter_context(written_atomically(output))
        made = stack.enter_context(av.open(str(temporary), "w", format=kind.format, options=dict(kind.options)))
        stream = _video_stream(made, kind, video, layout)
        copies = {each.index: _audio_stream(made, each, output) for each in film.streams.audio}
        made.metadata.update(film.metadata)
        if recipe:
            made.metadata["comment"] = ", ".join(f"{name}: {value}" for name, value in recipe.items())
        made.start_encoding()  # a file or an encoder that cannot be opened is told before anything is painted
        decoded = stack.enter_context(prefetched(_decoded(film, video, layout)))
        painted = stack.enter_context(prefetched(_painted(decoded, paint, steadier)))
        for item in painted:
            if isinstance(item, _Frame):
                made.mux(stream.encode(_encodable(item, video.time_base)))
                frames += 1
                if on_frame:
                    on_frame(frames, video.frames or None)
            else:
                item.stream = copies[item.stream.index]
                made.mux(item)
        made.mux(stream.encode(None))
        if not frames:
            raise _unreadable(source)
    return PaintedVideo(frames, layout.size, kind.codec, tuple(each.codec_context.name for each in copies.values()))


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a film, upright, ``uint8 [H, W, 3]``, RGB.

    Raises:
        InvalidInput: the file is no film that can be read.
        EngineUnavailable: the extra ``video`` is not installed.
    """
    layout = _layout(path, None)
    with _opened(path) as film:
        for item in _decoded(film, film.streams.best("video"), layout):
            if isinstance(item, _Frame):
                yield item.picture


@dataclass(frozen=True)
class _Layout:
    """How frames become upright pictures.

    Attributes:
        size: width and height of the result, both even.
        turns: quarter turns, counter-clockwise.
    """

    size: tuple[int, int]
    turns: int


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise missing("av") from error
    return av


def _unreadable(source: Path, reason: str = "it has no frames") -> InvalidInput:
    return InvalidInput(
        f"'{source}' is no film that can be read, or is damaged: {reason}.",
        hint="Play it to its end elsewhere, or convert it anew.",
        field="picture",
    )


@contextmanager
def _opened(source: Path) -> Iterator[Any]:
    """The film to read; every failure of FFmpeg in the block is told as one of the film."""
    av = _av()
    if not source.is_file():
        raise InvalidInput(f"'{source}' is not a file.", hint="Name a video file.", field="picture")
    try:
        # A path that FFmpeg cannot take for the address of something else.
        with av.open(str(source.resolve())) as film:
            if not film.streams.video:
                raise InvalidInput(f"'{source}' has no pictures, only sound.", field="picture")
            film.streams.best("video").thread_type = "AUTO"
            yield film
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):  # the disk's fault, not the film's
            raise
        raise _unreadable(source, error.strerror) from error


def _layout(source: Path, size: int | None) -> _Layout:
    """What the first frame says of all."""
    with _opened(source) as film:
        first = next(film.decode(film.streams.best("video")), None)
    if first is None:
        raise _unreadable(source)
    turns = first.rotation // 90 % 4
    sides = (first.height, first.width) if turns % 2 else (first.width, first.height)
    scale = 1.0 if size is None else size / max(sides)
    # H.264 halves the colours' resolution: no side may be odd.
    width, height = (max(2, 2 * round(side * scale / 2)) for side in sides)
    return _Layout((width, height), turns)


def _video_stream(made: Any, kind: Container, video: Any, layout: _Layout) -> Any:
    stream = made.add_stream(kind.codec, rate=video.average_rate or video.guessed_rate, options=kind.codec_options)
    stream.width, stream.height = layout.size
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = video.time_base
    aspect = video.sample_aspect_ratio
    if aspect:
        stream.codec_context.sample_aspect_ratio = 1 / aspect if layout.turns % 2 else aspect
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


def _audio_stream(made: Any, audio: Any, output: Path) -> Any:
    codec = audio.codec_context.name
    try:
        copy = made.add_stream_from_template(audio)
    except ValueError as error:
        raise InvalidInput(
            f"the sound is {codec}, which does not go into a {output.suffix} file, and it is copied as it is.",
            hint="End the output in .mkv, which takes any.",
            field="output",
        ) from error
    copy.metadata.update(audio.metadata)
    return copy


def _decoded(film: Any, video: Any, layout: _Layout) -> Iterator[Any]:
    """Frames as :class:`_Frame`, and between them the packets of the audio, in the order of the file.

    Raises:
        InvalidInput: the film ends long before it says it does: FFmpeg reads what is left of it without a word.
    """
    end = Fraction(0)
    for packet in film.demux(video, *film.streams.audio):
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream is not video:
            if packet.dts is not None:  # else the empty packet at the end
                yield packet
            continue
        for frame in packet.decode():
            if frame.pts is None:
                raise InvalidInput("the film has frames without time stamps.", hint="Convert it to .mp4 first.")
            yield _Frame(_upright(frame, layout), frame.pts)
    if film.duration:
        promised = Fraction((film.start_time or 0) + film.duration, _av().time_base)
        if promised - end > max(1, 0.02 * promised):
            raise InvalidInput(
                f"the film is cut short: it ends after {float(end):.1f} s and should last {float(promised):.1f} s.",
                hint="Copy it anew, or convert it: what is left of it gets the right length then.",
                field="picture",
            )


def _upright(frame: Any, layout: _Layout) -> np.ndarray:
    width, height = reversed(layout.size) if layout.turns % 2 else layout.size
    picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    return np.ascontiguousarray(np.rot90(picture, layout.turns))


def _painted(decoded: Iterator[Any], paint: Callable[[Image.Image], Image.Image], steadier: Steadier) -> Iterator[Any]:
    for item in decoded:
        if isinstance(item, _Frame):
            painted = np.asarray(paint(Image.fromarray(item.picture)))
            yield _Frame(steadier(item.picture, painted), item.pts)
        else:
            yield item


def _encodable(frame: _Frame, time_base: Fraction) -> Any:
    encodable = (
        _av()
        .VideoFrame.from_ndarray(frame.picture, format="rgb24")
        .reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
    )
    encodable.pts, encodable.time_base = frame.pts, time_base
    return encodable
