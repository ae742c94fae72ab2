"""Films for the tests, drawn here: a few frames and a tone."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 12


def write_film(
    path: Path,
    pictures: Iterable[np.ndarray],
    *,
    stamps: Iterable[int] | None = None,
    sound: str | None = "aac",
    rotation: int = 0,
    aspect: Fraction = Fraction(1),
    codec: str = "libx264",
) -> Path:
    """A film of ``uint8 [H, W, 3]`` pictures, with a second of a tone a dozen frames.

    Args:
        stamps: times of the frames, in twelfths of a second; one after the other where not given.
        sound: the audio's codec; None for none.
        rotation: degrees counter-clockwise by which a player turns it.
        aspect: width of a pixel by its height.
    """
    pictures = list(pictures)
    with av.open(str(path), "w") as film:
        height, width = pictures[0].shape[:2]
        video = film.add_stream(codec, rate=RATE, options={"crf": "4"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        audio = film.add_stream(sound, rate=48000) if sound else None
        for stamp, picture in zip(stamps or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = stamp, Fraction(1, RATE)
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        if audio is not None:
            seconds = len(pictures) / RATE
            tone = np.sin(np.arange(int(48000 * seconds)) / 48000 * 2 * np.pi * 440).astype(np.float32)
            block = audio.codec_context.frame_size or 1024
            for at in range(0, len(tone), block):
                samples = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(tone[None, at : at + block]), format="fltp", layout="mono"
                )
                samples.sample_rate, samples.pts, samples.time_base = 48000, at, Fraction(1, 48000)
                film.mux(audio.encode(samples))
            film.mux(audio.encode(None))
    return path


def packets(path: Path) -> list[tuple[bytes, Fraction, Fraction]]:
    """The audio's packets: bytes, and time and duration in seconds."""
    with av.open(str(path)) as film:
        return [
            (bytes(packet), packet.pts * packet.time_base, packet.duration * packet.time_base)
            for packet in film.demux(audio=0)
            if packet.size
        ]


def stamps(path: Path) -> list[Fraction]:
    """The times of the frames, in seconds."""
    with av.open(str(path)) as film:
        return [frame.pts * frame.time_base for frame in film.decode(video=0)]
