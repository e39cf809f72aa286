"""Which files are read, as what, and what is said of the others."""

import os
import shutil
import unicodedata
import warnings

import pytest
from made_up import paint

from ssl_weighting.data.images import Images
from ssl_weighting.errors import DataWarning, UserError


def set_up(folders, **changes):
    """The data, and what was said."""
    given = {"labeled": folders / "labelled", "unlabeled": folders / "pool", "size": 8, "split_seed": 0}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = Images(**(given | changes))
        data.setup("fit")
    assert all(warning.category is DataWarning for warning in said), [str(w.message) for w in said]
    return data, [str(warning.message) for warning in said]


def names(data):
    return [file.name for file in data.sets["unlabeled"].source.files]


def test_links_are_followed_and_none_twice(folders):
    paint(folders / "far" / "deep" / "f.png", 200)
    paint(folders / "camera" / "g.png", 201)
    (folders / "labelled" / "a" / "more").symlink_to("../../far")
    (folders / "pool" / "camera").symlink_to("../../" + folders.name + "/camera")
    (folders / "pool" / "z").mkdir()
    paint(folders / "pool" / "z" / "h.png", 202)
    (folders / "pool" / "again").symlink_to("z")
    (folders / "pool" / "z" / "loop").symlink_to("..")
    data, said = set_up(folders)
    found = names(data)
    assert "a/more/deep/f.png" in found
    assert found[-2:] == ["unlabeled/camera/g.png", "unlabeled/z/h.png"]
    assert len(found) == 12 + 1 + 8 + 2
    (line,) = said
    assert "passed over 2 links (to folders that are read anyway: " in line
    assert "again" in line and "z/loop" in line


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(folders):
    (folders / "pool" / "gone.png").symlink_to("/nowhere/gone.png")
    data, (line,) = set_up(folders)
    assert "1 of 21 images cannot be read and are left out (the first: no file): unlabeled/gone.png" in line
    assert len(data.sets["unlabeled"]) == 6 + 8
    (folders / "labelled" / "b" / "gone.png").symlink_to("/nowhere/gone.png")
    with pytest.raises(UserError, match=r"1 of its images cannot be read \(no file\): b/gone\.png"):
        set_up(folders)


def test_a_class_behind_a_broken_link_is_not_forgotten(folders):
    (folders / "labelled" / "c").symlink_to("/nowhere/c")
    with pytest.raises(UserError, match="c cannot be read"):
        set_up(folders)


def test_a_pipe_is_no_image(folders):
    os.mkfifo(folders / "pool" / "pipe.png")
    _, (line,) = set_up(folders)
    assert "unlabeled/pipe.png" in line


def test_hidden_and_system_folders_are_no_data_and_named(folders):
    for where in ("@eaDir", ".git", "__MACOSX", "lost+found", "$RECYCLE.BIN", "#recycle", "a/@eaDir/0.png"):
        paint(folders / "labelled" / where / "thumb.png", 300)
        paint(folders / "pool" / where / "thumb.png", 300)
    data, said = set_up(folders)
    assert data.class_names == ["a", "b"]
    assert len(names(data)) == 20
    assert len(said) == 2
    assert all("passed over 7 hidden or system folders (2 @eaDir, " in line for line in said)
    assert all("1 lost+found" in line and "1 $RECYCLE.BIN" in line for line in said)


def test_a_class_may_have_an_odd_name(folders):
    for i, name in enumerate(("#1", "$5", "_other", "__unknown__", "~x")):
        paint(folders / "labelled" / name / "0.png", 400 + i)
    data, said = set_up(folders)
    assert data.class_names == ["#1", "$5", "__unknown__", "_other", "a", "b", "~x"]
    assert not said


def test_files_of_other_kinds_are_counted_and_jfif_is_read(folders):
    for i in range(3):
        (folders / "pool" / f"{i}.HEIC").write_bytes(b"x")
    (folders / "pool" / "notes").write_text("x")
    (folders / "pool" / ".DS_Store").write_text("x")
    paint(folders / "pool" / "x.jfif", 500)
    paint(folders / "labelled" / "lost.png", 501)
    data, said = set_up(folders)
    assert "unlabeled/x.jfif" in names(data)
    assert "passed over 1 image (in no class's folder: lost.png)" in said[0]
    assert "passed over 1 hidden file; 4 files (of kinds that are not read: 3 .heic, 1 without" in said[1]


def test_the_test_images_and_the_pool_inside_the_labelled_folder_are_no_classes(folders):
    for c, name in enumerate("ab"):
        paint(folders / "labelled" / "held out" / name / "0.png", 600 + c)
    shutil.move(folders / "pool", folders / "labelled" / "a" / "unsorted")
    data, said = set_up(
        folders, test=folders / "labelled" / "held out", unlabeled=folders / "labelled" / "a" / "unsorted"
    )
    assert data.class_names == ["a", "b"]
    assert len(names(data)) == 20
    assert "passed over 2 folders (given as another part: unsorted, held out)" in said[0]


def test_class_names_are_compared_in_one_unicode_form(folders):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    paint(folders / "labelled" / composed / "0.png", 700)
    paint(folders / "labelled" / decomposed / "1.png", 701)
    paint(folders / "test" / decomposed / "2.png", 702)
    data, said = set_up(folders, test=folders / "test")
    assert data.class_names == ["a", "b", composed]
    assert data.sets["test"].labels.tolist() == [2]
    assert [line for line in said if "2 folders are called 'café', in different Unicode forms" in line]


def test_a_table_of_absolute_paths_and_one_file_of_two_classes(folders):
    paths = sorted((folders / "labelled").rglob("*.png"))
    rows = [f"{path},{path.parent.name}" for path in paths] + [f"../{folders.name}/pool/0.png,"]
    table = folders / "t.csv"
    table.write_text("\n".join(["path,label", *rows]))
    data, said = set_up(folders, labeled=table, unlabeled=None)
    assert len(names(data)) == 13
    assert not said
    table.write_text("\n".join(["path,label", *rows, f"labelled/../{paths[2].relative_to(folders)},b"]))
    with pytest.raises(
        UserError, match=r"rows 3 and 14 are the same file .* of class 'a' and once of 'b'; keep one"
    ):
        set_up(folders, labeled=table, unlabeled=None)
