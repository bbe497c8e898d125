"""The demonstration's picture."""

import sys

import pytest

from demo.picture import ABOVE, BELOW, Episode, draw
from demo.results import draw as draw_or_say

matplotlib_image = pytest.importorskip("matplotlib.image")


def colours(path):
    """The colours of a PNG, as #rrggbb."""
    pixels = (matplotlib_image.imread(path)[..., :3] * 255).round().astype(int) @ (1 << 16, 1 << 8, 1)
    return {f"#{pixel:06x}" for pixel in set(pixels.ravel().tolist())}


@pytest.mark.parametrize(
    ("rates", "episodes", "above"),
    [
        ([3.0, 27.0, 39.0, 4.0], [Episode(2.0, 3.0, 2.0, 39.0)], True),
        ([3.0, 4.0, 3.0, 20.0], [], False),
        ([0.0], [], False),
        ([60.0], [Episode(1.0, 1.0, 1.0, 60.0)], True),
    ],
)
def test_what_is_above_the_limit_has_a_colour_of_its_own(tmp_path, rates, episodes, above):
    path = tmp_path / "picture of it"
    draw(path, range(len(rates) + 1), rates, 20, episodes)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert (ABOVE in colours(path)) == above
    assert (BELOW in colours(path)) == (max(rates) > 0)


class Cursor:
    """What the database says of the episodes."""

    def execute(self, statement):
        assert "bandwidth_episodes" in statement

    def __iter__(self):
        return iter([(1002.0, 1003.0, 2.0, 39.0)])


def test_the_demonstration_prints_where_its_picture_is(tmp_path, capsys):
    path = tmp_path / "p.png"
    draw_or_say(path, [1000.0, 1001.0, 1002.0, 1003.0], [3.0, 27.0, 39.0], Cursor())
    assert capsys.readouterr().out.split() == ["The", "picture", "of", "it:", str(path)]
    assert ABOVE in colours(path)


def test_without_matplotlib_there_is_a_line_instead(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "demo.picture")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_or_say(tmp_path / "p.png", [1000.0, 1001.0], [3.0], Cursor())
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("No picture: ")
    assert said.endswith("; pip install '.[demo]'")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_line_too(tmp_path, capsys):
    draw_or_say(tmp_path / "nowhere" / "p.png", [1000.0, 1001.0], [3.0], Cursor())
    assert "No picture: " in capsys.readouterr().out
