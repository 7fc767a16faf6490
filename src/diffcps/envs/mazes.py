"""D4RL's three mazes: walls, cells, positions in both of D4RL's frames, and the shortest way from cell to cell.

The same walls serve AntMaze (`diffcps.envs.ant_maze`) and Maze2D (`diffcps.envs.point_maze`), in different frames and
with different goals. A cell is (row, column) in the map as printed, (0, 0) at the top left.

Reference: https://github.com/Farama-Foundation/D4RL, d4rl/locomotion/maze_env.py and d4rl/pointmaze/maze_model.py.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

Cell = tuple[int, int]

_UMAZE = ("#####", "#...#", "###.#", "#g..#", "#####")
_MEDIUM = ("########", "#..##..#", "#..#..g#", "##...###", "#..#...#", "#g#..#.#", "#...#g.#", "########")
_LARGE = (
    "############",
    "#....#g....#",
    "#.##.#.#.#.#",
    "#....g.#..g#",
    "#.####.###.#",
    "#.g#.#.....#",
    "##.#.#.#.###",
    "#..#g.g#.g.#",
    "############",
)


@dataclass(frozen=True)
class Maze:
    """A map and the frame in which positions on it are given.

    The centre of cell (row, column) is `unit * (column, row) + offset` where x runs along the columns, as in AntMaze,
    and `unit * (row, column) + offset` where it runs along the rows, as in Maze2D.
    """

    rows: tuple[str, ...]
    """`#` is a wall, `g` a free cell that D4RL's AntMaze collection takes for a goal, `.` any other free cell."""
    goal: Cell
    """The cell of the goal at test."""
    unit: float
    """Side of a cell."""
    offset: float
    x_along_columns: bool
    start: Cell = (1, 1)
    """Where AntMaze starts; Maze2D starts anywhere."""

    @property
    def walls(self) -> np.ndarray:
        """Which cells are walls, (rows, columns) bool."""
        return np.array([[letter == "#" for letter in row] for row in self.rows])

    @property
    def free_cells(self) -> list[Cell]:
        """Cells that are no walls, row by row."""
        return [(int(row), int(column)) for row, column in np.argwhere(~self.walls)]

    @property
    def collection_goals(self) -> list[Cell]:
        """The cells marked `g`, row by row."""
        return [cell for cell in self.free_cells if self.rows[cell[0]][cell[1]] == "g"]

    def centre(self, cell: Cell) -> np.ndarray:
        """Position (x, y) of a cell's centre."""
        return self.unit * np.array(cell[::-1] if self.x_along_columns else cell, float) + self.offset

    def map_position(self, xy: np.ndarray) -> np.ndarray:
        """Positions "*n 2" in cells: (row, column), whole numbers at the centres."""
        position = (np.asarray(xy) - self.offset) / self.unit
        return position[..., ::-1] if self.x_along_columns else position

    def cell(self, xy: np.ndarray) -> Cell:
        """The cell whose square holds the position (x, y)."""
        row, column = np.rint(self.map_position(xy)).astype(int)
        return int(row), int(column)

    def steps_to(self, goal: Cell) -> np.ndarray:
        """Moves from each cell to `goal`, neighbour by neighbour, (rows, columns) int; -1 for walls. Breadth first."""
        steps = np.full(self.walls.shape, -1)
        steps[goal] = 0
        waiting = deque([goal])
        while waiting:
            row, column = waiting.popleft()
            for neighbour in ((row - 1, column), (row, column - 1), (row + 1, column), (row, column + 1)):
                if steps[neighbour] < 0 and self.rows[neighbour[0]][neighbour[1]] != "#":
                    steps[neighbour] = steps[row, column] + 1
                    waiting.append(neighbour)
        return steps


def next_cell(steps: np.ndarray, cell: Cell) -> Cell:
    """The neighbour that is nearest to the goal of `steps` (what `Maze.steps_to` returned); the goal stays itself."""
    if steps[cell] == 0:
        return cell
    row, column = cell
    neighbours = ((row - 1, column), (row, column - 1), (row + 1, column), (row, column + 1))
    return min((neighbour for neighbour in neighbours if steps[neighbour] >= 0), key=lambda free: steps[free])


def goal_beside(maze: Maze, cell: Cell, generator: np.random.Generator) -> np.ndarray:
    """A goal (2,) as AntMaze draws it for a cell: the centre moved by U[0, 1] + U[0, 0.5] on each axis, not below 0."""
    noise = generator.uniform(0.0, 0.25, 2) + generator.uniform(0.0, 0.125, 2)
    return np.maximum(maze.centre(cell) + maze.unit * noise, 0.0)


def _ant(rows: tuple[str, ...], goal: Cell) -> Maze:
    """Cells of 4 m; the start cell (1, 1) is the origin."""
    return Maze(rows, goal, unit=4.0, offset=-4.0, x_along_columns=True)


def _point(rows: tuple[str, ...], goal: Cell) -> Maze:
    """Unit cells. D4RL builds the walls around index + 1 and hangs the ball at 1.2: whence 0.2 between the two."""
    return Maze(rows, goal, unit=1.0, offset=-0.2, x_along_columns=False)


ANT_MAZES = {"umaze": _ant(_UMAZE, (3, 1)), "medium": _ant(_MEDIUM, (6, 6)), "large": _ant(_LARGE, (7, 9))}
POINT_MAZES = {"umaze": _point(_UMAZE, (1, 1)), "medium": _point(_MEDIUM, (6, 6)), "large": _point(_LARGE, (7, 9))}
