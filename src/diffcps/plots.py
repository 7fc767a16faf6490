"""The look of all pictures, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffcps.storage import SOFTWARE, check_ours, replaced
from diffcps.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, TEAL = "#3b6ea5", "#d9822b", "#4f9d69", "#b5483f", "#7d62a8", "#3d9aa8"
INK, GREY = "#2b2b2b", "#8a8a8a"


def tidy(axes: Axes) -> None:
    """Two spines, faint horizontal lines behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def save_figure(figure: Figure, path: Path, dpi: int = 150, *, within_run: bool = False) -> None:
    """Writes a picture (.png or .pdf, by its name) as a whole, marked as ours.

    Raises `UserError` where it cannot be written, or would replace one that is not ours; in a run folder
    (`within_run`) everything is.
    """
    if not within_run:
        check_ours(path)
    kind = path.suffix.removeprefix(".")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            metadata = {"Creator" if kind == "pdf" else "Software": SOFTWARE}
            figure.savefig(file, dpi=dpi, format=kind, metadata=metadata)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be written ({error.strerror}); check the folder") from error
