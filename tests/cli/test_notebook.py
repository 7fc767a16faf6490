"""In a notebook's cell commands print lines, and draw nothing over."""

import pytest

from diffcps.cli.main import main


@pytest.mark.parametrize(("kernel", "drawn"), [("", True), ("4242", False)])
def test_no_codes_of_a_terminal(kernel, drawn, monkeypatch, capsys, tmp_path):
    """Kernels tell what they start to print colours; a number in JPY_PARENT_PID says that one of them is above."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-color")
    monkeypatch.setenv("TTY_COMPATIBLE", "")
    monkeypatch.setenv("JPY_PARENT_PID", kernel)
    if not kernel:
        monkeypatch.delenv("JPY_PARENT_PID")
    assert main(["data", "show", "builtin", "--out", str(tmp_path / "data.png")]) == 0
    assert ("\x1b" in capsys.readouterr().out) == drawn
