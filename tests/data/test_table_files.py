"""Table files as other programs write them, and what cannot be read without guessing."""

import pytest

from tlexp.data.readers.tables import text_table
from tlexp.errors import UsageError


def rows(n=40, **changed):
    """Returns the lines of `n` texts of two classes, some of them changed."""
    return [changed.get(f"row{number}", f"text {number},{'ab'[number % 2]}") for number in range(1, n + 1)]


def write(folder, lines, name="t.csv"):
    """Writes a table and returns its path."""
    (folder / name).write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(folder / name)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"row5": '"text 5,b'}, 5),  # never closed
        ({"row5": '"text 5,b', "row15": '"text 15",b'}, 5),  # closed where another opens
        ({"row5": '"text 5,b', "row15": 'size 5",b'}, 5),  # closed at the end of another's text
        ({"row5": '"text 5,b', "row6": 'size 5",a'}, 5),
        ({"row7": '"he said "hi" again",b'}, 7),
        ({"row9": "text 9, and more,b"}, 9),
    ],
)
def test_rows_that_would_become_others_are_refused_by_their_number(tmp_path, changed, number):
    with pytest.raises(UsageError, match=rf"t.csv: not a readable table \(row {number} has "):
        text_table(write(tmp_path, rows(**changed)))


def test_quotation_marks_are_read_as_programs_write_them(tmp_path):
    quoted = {"row1": '"one, ""two""\nthree",b', "row2": '5" disk,a', "row3": '"",b', "row4": 'he said "hi",a'}
    table = text_table(write(tmp_path, rows(**quoted)), on_bad="skip")
    assert table.inputs.texts[:3] == ('one, "two"\nthree', '5" disk', 'he said "hi"')
    assert [skipped.reason for skipped in table.skipped] == ["has no text"]
    poem = {"row1": '"first line, a\nsecond line, b\nthird line, c",b'}
    assert len(text_table(write(tmp_path, rows(**poem))).labels) == 40
    escaped = {"row1": r'"he said \"hi, you\" again",b', "row2": r'"ends with \"",a', "row3": r"C:\\texts,b"}
    assert text_table(write(tmp_path, rows(**escaped))).inputs.texts[:3] == (
        'he said "hi, you" again',
        'ends with "',
        r"C:\texts",
    )
    assert text_table(write(tmp_path, rows(row3=r"C:\new,b"))).inputs.texts[2] == r"C:\new"
    long = "word " * 40_000
    assert text_table(write(tmp_path, rows(row3=f'"{long}",b'))).inputs.texts[2] == long


@pytest.mark.parametrize("columns", ["text,label", "label,text", "id,label,text", "id,text,label", "text,label,id"])
def test_texts_of_several_lines_are_texts_wherever_the_label_is(tmp_path, columns):
    names = columns.split(",")
    texts = ['"line one\nline two"', '"scores:\nfood,1\nbye"', '"a, 1\nb"', "plain", '"x, ""y""\n\nz"', "plain too"] * 2
    rows = [{"text": text, "label": str(n % 2), "id": str(n)} for n, text in enumerate(texts)]
    content = "\n".join(",".join(row[name] for name in names) for row in rows)
    (tmp_path / "t.csv").write_text(f"\n{columns}\n{content}\n   \n")
    table = text_table(str(tmp_path / "t.csv"))
    assert table.inputs.texts[:5] == ("line one\nline two", "scores:\nfood,1\nbye", "a, 1\nb", "plain", 'x, "y"\n\nz')
    assert table.labels.tolist() == [n % 2 for n in range(12)]


@pytest.mark.parametrize("columns", ["label,text", "id,label,text"])
def test_an_open_quotation_mark_is_found_where_the_label_comes_first(tmp_path, columns):
    lines = [f"{'ab'[n % 2]},text {n}" for n in range(1, 41)]
    lines[4], lines[8] = 'b,"text 5', 'b,size 5"'
    if columns.startswith("id"):
        lines = [f"{n},{line}" for n, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text(f"{columns}\n" + "\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="row 5 has a quotation mark that is not closed"):
        text_table(str(tmp_path / "t.csv"))


def test_a_header_that_is_not_closed_is_one_line(tmp_path):
    (tmp_path / "t.csv").write_text('text,"label\n' + "some text,a\n" * 20_000)
    with pytest.raises(UsageError, match=r"t\.csv: (has no column label|not a readable table)") as caught:
        text_table(str(tmp_path / "t.csv"))
    assert len(str(caught.value)) < 1000


def test_several_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,text,other,other\n" + "x,a,y,1,2\nz,b,w,1,2\n")
    with pytest.raises(UsageError, match=r"t.csv: has several columns text; rename those that are not meant"):
        text_table(str(tmp_path / "t.csv"))
    assert text_table(str(tmp_path / "t.csv"), text="label", label="label").classes == ("a", "b")
    (tmp_path / "t.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b", "label": "a"}\n')
    with pytest.raises(UsageError, match=r"t.jsonl: not a readable table \(line 2: has label twice\)"):
        text_table(str(tmp_path / "t.jsonl"))


def test_half_a_character_is_named_by_its_row(tmp_path):
    lines = ['{"text": "x", "label": "a"}', r'{"text": "\ud83d", "label": "b"}', '{"text": "y", "label": "b"}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    reason = "row 2 holds half of a surrogate pair in its text, which is no character; fix or remove it, or set on_bad"
    with pytest.raises(UsageError, match=reason):
        text_table(str(tmp_path / "t.jsonl"))
    assert text_table(str(tmp_path / "t.jsonl"), on_bad="skip").inputs.texts == ("x", "y")
    (tmp_path / "t.jsonl").write_text("\n".join([lines[0], r'{"text": "\ud83d\ude00", "label": "b"}']))
    assert text_table(str(tmp_path / "t.jsonl")).inputs.texts == ("x", "\U0001f600")
