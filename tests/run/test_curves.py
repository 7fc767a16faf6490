import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcps.algorithms import ALGORITHMS
from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation, Measurement, Played, RunRecord
from diffcps.records.settings import Settings
from diffcps.run.curves import curves_figure, save_curves
from diffcps.types import DatasetInfo, EnvironmentSpec, Spec, UserError

REFERENCE = (-20.3, 3234.3)
BOUNDED = "Denoising loss $L_c$ and its bound kappa"


def write_run(
    run: Path,
    *,
    seeds: tuple[int, ...] = (0, 1, 2, 3),
    kappas: tuple[float, ...] = (),
    evaluations: int = 12,
    algorithm: str = "diffcps",
    env: str | None = "Hopper-v5",
    reference: tuple[float, float] | None = REFERENCE,
    stops: dict[int, int] | None = None,
    sweep: dict[str, tuple[float, ...]] | None = None,
) -> RunFolder:
    """A run folder with plausible numbers. `stops`: after how many updates a member leaves the run."""
    updates, every, log_every = 5000 * evaluations, 5000, 500
    method = ALGORITHMS[algorithm]
    record = RunRecord(
        algorithm=algorithm,
        config=method.Config(),
        sweep=sweep or ({"kappa": kappas} if kappas else {}),
        settings=Settings(seeds=seeds, updates=updates, eval_every=every, log_every=log_every),
        environment=None if env is None else EnvironmentSpec(env),
        reference=reference,
        dataset=DatasetInfo("hopper-medium-replay.hdf5", "0"),
        transitions=1000,
        data_return=None,
        spec=Spec(11, 3),
        command="",
        versions={},
        device="",
    )
    measured, scored = [], []
    for update in range(log_every, updates + 1, log_every):
        for member in record.members:
            if stops and update > stops.get(member.index, updates):
                continue
            random = np.random.default_rng([member.index, update])
            kappa, rise = member.swept.get("kappa", 0.05), 1 - math.exp(-update / 15000)
            known = {
                "actor/bc_loss": kappa + 0.5 * math.exp(-update / 1500) + 0.003 * random.random(),
                "dual/multiplier": 1 + (0.06 / kappa) * rise + 0.05 * member.seed * rise,
                "critic/q": 240 * rise * (1 - 1.2 * kappa) + 4 * random.normal(),
                "critic/loss": 40 * math.exp(-update / 3000) + 2 + 0.3 * random.normal(),
            }
            metrics = {name: known.get(name, rise) for name in method.METRICS if name != "selection/loss"}
            measured.append(Measurement(update, member, metrics, 98.0))
            if update % every == 0:
                score = 3000 * rise * (1 - 1.5 * kappa) * (1 - 0.15 * random.random()) - 60 * member.seed
                returns = tuple(score + 10.0 * (episode - 4.5) for episode in range(10)) if env else ()
                mean = float(np.mean(returns)) if env else None
                lengths = (1000,) * len(returns)
                scored.append(Evaluation(update, member, mean, returns, lengths, {"selection/loss": 0.05}))
    run.mkdir(parents=True)
    folder = RunFolder(run)
    folder.write_record(record)
    folder.append_measurements(measured)
    folder.append_evaluations(scored)
    return folder


def read(folder: RunFolder) -> tuple[RunRecord, list[Measurement], list[Evaluation]]:
    record = folder.read_record()
    return record, folder.read_measurements(record.members), folder.read_evaluations(record.members)


def titles(run: RunFolder) -> list[str]:
    return [axes.get_title(loc="left") for axes in curves_figure(*read(run)).axes]


def bold_lines(axes) -> list[Any]:
    return [line for line in axes.lines if line.get_linewidth() == 1.8]


def test_picture_is_a_png_of_the_figures_size_and_nothing_else_is_left(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluations=2)
    before = set(run.path.iterdir())
    save_curves(run, run.curves)
    data = run.curves.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    inches = curves_figure(*read(run)).get_size_inches()
    assert (width, height) == pytest.approx(150 * inches, abs=1)
    assert set(run.path.iterdir()) == before | {run.curves}


def test_failure_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", evaluations=1)
    run.curves.write_bytes(b"old")

    def full(self, file, **_):
        file.write(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    before = set(run.path.iterdir())
    with pytest.raises(UserError, match=r"curves.png: the picture cannot be written \(No space left on device\)"):
        save_curves(run, run.curves)
    assert run.curves.read_bytes() == b"old"
    assert set(run.path.iterdir()) == before


@pytest.mark.parametrize(
    ("algorithm", "env", "expected"),
    [
        (
            "diffcps",
            "Hopper-v5",
            ["Score", "Denoising loss $L_c$ and its bound kappa", "Lagrange", "Q of", "Critic loss"],
        ),
        ("diffcps", None, [BOUNDED, "Lagrange", "Q of", "Critic loss"]),
        ("diffusion_ql", "Hopper-v5", ["Score", "Denoising loss $L_d$", "Q of", "Critic loss"]),
        ("diffusion_bc", None, ["Denoising loss $L_d$", "Norm of the policy's gradient"]),
    ],
)
def test_a_panel_for_each_metric_there_is(tmp_path: Path, algorithm: str, env: str | None, expected: list[str]) -> None:
    found = titles(write_run(tmp_path / "run", algorithm=algorithm, env=env, evaluations=1))
    assert len(found) == len(expected)
    for title, start in zip(found, expected, strict=True):
        assert title.startswith(start)


def test_mean_and_seeds_of_the_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=(3, 4), evaluations=3)
    config, metrics, evaluations = read(run)
    score = curves_figure(config, metrics, evaluations).axes[0]
    first, second, mean = score.lines
    own = [[row.score or 0.0 for row in evaluations if row.member.seed == seed] for seed in (3, 4)]
    assert list(np.asarray(first.get_ydata())) == own[0]
    assert list(np.asarray(second.get_ydata())) == own[1]
    assert list(np.asarray(mean.get_xdata())) == [5000, 10000, 15000]
    np.testing.assert_allclose(np.asarray(mean.get_ydata()), np.mean(own, axis=0))


def test_normalised_scale_where_the_reference_is_known(tmp_path: Path) -> None:
    known, unknown = (
        curves_figure(*read(write_run(tmp_path / str(r), evaluations=2, reference=r))) for r in (REFERENCE, None)
    )
    known.draw_without_rendering()
    (right,) = known.axes[0].child_axes
    low, high = known.axes[0].get_ylim()
    np.testing.assert_allclose(right.get_ylim(), [100 * (y + 20.3) / (3234.3 + 20.3) for y in (low, high)])
    assert unknown.axes[0].child_axes == []


def test_mean_ends_where_a_seed_stops(tmp_path: Path) -> None:
    config, metrics, evaluations = read(write_run(tmp_path / "run", seeds=(0, 1), stops={1: 12000}, evaluations=4))
    score = curves_figure(config, metrics, evaluations).axes[0]
    lengths = [len(np.asarray(line.get_xdata())) for line in score.lines]
    assert lengths == [4, 2, 2]  # seed 0, seed 1, mean


def test_sweep_has_a_legend_and_a_dashed_bound_each(tmp_path: Path) -> None:
    figure = curves_figure(*read(write_run(tmp_path / "run", kappas=(0.02, 0.05, 0.1), seeds=(0, 1), evaluations=2)))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["kappa = 0.02", "kappa = 0.05", "kappa = 0.1"]
    colours = [line.get_color() for line in legend.get_lines()]
    assert len(set(colours)) == 3
    assert [line.get_color() for line in bold_lines(figure.axes[0])] == colours
    bounds = [line for line in figure.axes[1].lines if line.get_linestyle() == "--"]
    assert [np.asarray(line.get_ydata())[0] for line in bounds] == [0.02, 0.05, 0.1]
    assert [line.get_color() for line in bounds] == colours


def test_further_rules_are_thin_lines_of_their_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kappas=(0.02, 0.05), seeds=(0, 1), evaluations=2)
    record, metrics, evaluations = read(run)
    also = [dataclasses.replace(row, also={"sample": Played(10.0 * row.member.seed, (), ())}) for row in evaluations]
    plain, score = (curves_figure(record, metrics, rows).axes[0] for rows in (evaluations, also))
    further = [line for line in score.lines if line.get_linestyle() == ":"]
    assert len(score.lines) == len(plain.lines) + 2 and len(further) == 2
    assert [list(np.asarray(line.get_xdata())) for line in further] == [[5000, 10000]] * 2
    assert [list(np.asarray(line.get_ydata())) for line in further] == [[5.0, 5.0]] * 2
    assert score.get_title(loc="left") == plain.get_title(loc="left") + "; by sample (dotted)"


def test_many_combinations_have_different_colours(tmp_path: Path) -> None:
    kappas = tuple(0.01 * i for i in range(1, 12))
    run = write_run(tmp_path / "run", kappas=kappas, seeds=(0,), evaluations=1)
    (legend,) = curves_figure(*read(run)).legends
    assert len({tuple(line.get_color()) for line in legend.get_lines()}) == 11
    save_curves(run, run.curves)


def test_one_seed_and_one_evaluation_is_a_visible_point(tmp_path: Path) -> None:
    figure = curves_figure(*read(write_run(tmp_path / "run", seeds=(0,), evaluations=1)))
    (line,) = figure.axes[0].lines
    assert line.get_marker() == "o"
    assert list(figure.axes[0].collections) == []  # no band
    assert figure.legends == []
    assert figure.get_suptitle() == "diffcps on hopper-medium-replay.hdf5\nHopper-v5  ·  seed 0  ·  5,000 updates"


def test_gaps_do_not_tear_a_line(tmp_path: Path) -> None:
    config, metrics, evaluations = read(write_run(tmp_path / "run", seeds=(0,), evaluations=1))
    metrics = [
        dataclasses.replace(row, metrics={**row.metrics, "actor/bc_loss": None}) if row.update % 1000 else row
        for row in metrics
    ]
    line = curves_figure(config, metrics, evaluations).axes[1].lines[0]
    assert list(np.asarray(line.get_xdata())) == [1000, 2000, 3000, 4000, 5000]


def test_unfinished_line_and_empty_logs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluations=1)
    with open(run.metrics, "a") as file:
        file.write('{"update": 55')
    save_curves(run, run.curves)
    run.metrics.unlink()
    run.evaluations.unlink()
    save_curves(run, run.curves)
    assert curves_figure(run.read_record(), [], []).axes == []


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_every_method_has_panels_of_its_own_metrics(tmp_path: Path, algorithm: str) -> None:
    """Titles come from the method's METRICS, and an axis is logarithmic only where the method says so."""
    run = write_run(tmp_path / "run", algorithm=algorithm, evaluations=1)
    _, *panels = curves_figure(*read(run)).axes
    main = [metric for metric in ALGORITHMS[algorithm].METRICS.values() if metric.symbol]
    assert len(panels) == len(main) >= 1
    for axes, metric in zip(panels, main, strict=True):
        assert axes.get_title(loc="left").startswith(metric.title)
        assert axes.get_yscale() == metric.scale


def test_a_negative_value_is_drawn_whatever_the_scale(tmp_path: Path) -> None:
    record, metrics, evaluations = read(write_run(tmp_path / "run", seeds=(0,), evaluations=1))
    metrics[0] = dataclasses.replace(metrics[0], metrics={**metrics[0].metrics, "critic/loss": -1.0})
    axes = curves_figure(record, metrics, evaluations).axes[-1]
    assert axes.get_title(loc="left").startswith("Critic loss") and axes.get_yscale() == "linear"
    assert min(np.asarray(axes.lines[0].get_ydata())) == -1.0


def test_a_legend_of_many_groups_stays_inside_the_picture(tmp_path: Path) -> None:
    sweep = {"kappa": (0.03, 0.1), "multiplier_learning_rate": (3e-5, 3e-4, 3e-3)}
    figure = curves_figure(*read(write_run(tmp_path / "run", seeds=(0,), evaluations=1, sweep=sweep)))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, width = legend.get_window_extent(), figure.bbox.width
    assert box.x0 >= 0 and box.x1 <= width
