"""Saving figures: same bytes, no display, no pyplot, one line where matplotlib is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prerank.errors import InputError
from prerank.report.canvas import log_axis, new_figure, save_figure, style_of


def test_a_figure_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        figure, axes = new_figure(1, 2)
        for ax in axes:
            ax.plot([1, 2, 3], [3, 1, 2], **style_of("x", ["x"]))
            ax.fill_between([1, 3], [0, 1], [2, 3], alpha=0.2)
        paths.append(save_figure(figure, tmp_path / folder, "gauc@5/source:rank x"))
    for first, second in zip(*paths, strict=True):
        assert first.name in ("gauc-5-source-rank-x.svg", "gauc-5-source-rank-x.png")
        assert first.read_bytes() == second.read_bytes()
    assert paths[0][0].read_text().startswith("<?xml")
    assert paths[0][1].read_bytes().startswith(b"\x89PNG")


def test_series_are_told_apart() -> None:
    names = [f"run {k}" for k in range(24)]
    styles = [tuple(style_of(name, names).values()) for name in names]
    assert len(set(styles)) == len(names)


def test_ticks_of_a_log_axis_are_plain_numbers() -> None:
    figure, (ax,) = new_figure()
    ax.plot([0.002, 0.04], [1, 2])
    log_axis(ax.xaxis)
    figure.draw_without_rendering()
    assert ax.get_xscale() == "log"
    assert "0.01" in [label.get_text() for label in ax.get_xticklabels()]


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'prerank\[report\]'"):
        new_figure()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    figure, _ = new_figure()
    with pytest.raises(InputError, match="cannot hold figures"):
        save_figure(figure, tmp_path / "file" / "inside", "x")


def test_the_room_needs_neither_matplotlib_nor_pyplot_nor_torch(tmp_path: Path) -> None:
    code = f"""
import sys
import prerank.report
assert "matplotlib" not in sys.modules
from prerank.report import metric_figure, save_figure
found = {{"value": 0.5, "low": 0.4, "high": 0.6}}
figure = metric_figure({{"runs": {{"a": {{"metrics": {{"gauc/T1": found}}}}}}}}, "gauc/T1")
save_figure(figure, {str(tmp_path)!r}, "x")
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
