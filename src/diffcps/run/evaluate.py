"""Scores: of the members while they train, and of a trained run on new episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffcps.data.scaling import Scaling
from diffcps.data.split import rows_of, some_episodes
from diffcps.envs.make import check_fits
from diffcps.envs.names import Environment, named
from diffcps.evaluation.rollout import Episodes, roll_out
from diffcps.evaluation.video import record_video
from diffcps.records.environment import reference_of
from diffcps.records.record import Evaluation, MemberEpisodes, Played, RunEvaluation, RunRecord
from diffcps.run.policy import Checkpoint, MemberPolicies, load_policy, load_run
from diffcps.run.preflight import check_environment, check_seeds
from diffcps.run.progress import Display
from diffcps.tasks.references import normalised_score
from diffcps.training.loop import Interrupted, Training
from diffcps.training.members import Member, Program
from diffcps.types import Dataset, EnvAction, EnvironmentSpec, EnvObservation, UserError

DIAGNOSE_ROWS = 4096
"""Rows, the same at every evaluation, on which the diagnostics are measured."""


def rows_to_diagnose(dataset: Dataset, episode_steps: int = 0) -> Dataset:
    """`DIAGNOSE_ROWS` rows, drawn with replacement, always the same.

    For a method that reads windows they are whole episodes of at least `episode_steps` steps, until there are as many
    rows.
    """
    if episode_steps:
        return some_episodes(dataset, DIAGNOSE_ROWS, episode_steps)
    drawn = np.random.default_rng(0).integers(dataset.size, size=DIAGNOSE_ROWS)
    return rows_of(dataset, drawn)


def evaluate_members(
    program: Program,
    further: Mapping[str, Program],
    record: RunRecord,
    training: Training,
    rows: Dataset,
    display: Display,
    stop_requested: Callable[[], bool],
) -> list[Evaluation]:
    """Diagnosis on `rows` and whole episodes of every member that is left, after `training.update` updates.

    `further` acts by further rules, from the same start seeds. Episodes that cannot be played, by whichever rule, cost
    the scores and nothing else: the display is told, and the rows hold the failure.
    Raises `Interrupted` where it is asked to stop: the state is saved by now, and a run that goes on begins with this.
    """
    diagnosis = program.diagnose(training.state, rows)
    own, also, failure = None, dict[str, Episodes](), None
    if record.environment is not None:
        how = record, record.environment, training, display, stop_requested
        try:
            own = _play(program, *how)
            also = {rule: _play(acting, *how) for rule, acting in further.items()}
        except Interrupted:
            raise
        except Exception as error:  # an environment is foreign code and raises what it likes
            own, failure = None, _failure_text(error)
            display.note(
                f"no score after update {training.update}: {record.environment} could not be played ({failure}); "
                "the state is saved and the run goes on"
            )
    evaluations: list[Evaluation] = []
    for member in program.members:
        if not training.alive[member.index]:
            continue
        score, returns, lengths = (None, (), ()) if own is None else _played(own, member)
        found = of_member(diagnosis, member)
        by_rule = {rule: _played(episodes, member) for rule, episodes in also.items()}
        evaluations.append(Evaluation(training.update, member, score, returns, lengths, found, failure, by_rule))
    return evaluations


def _played(episodes: Episodes, member: Member) -> Played:
    returns = tuple(episodes.returns[member.index].tolist())
    return Played(float(np.mean(returns)), returns, tuple(episodes.lengths[member.index].tolist()))


def _play(
    program: Program,
    record: RunRecord,
    environment: EnvironmentSpec,
    training: Training,
    display: Display,
    stop_requested: Callable[[], bool],
) -> Episodes:
    def on_step(step: int, alive: int) -> None:
        display.evaluating(step, alive)
        if stop_requested():
            raise Interrupted(training.update)

    return roll_out(
        MemberPolicies(program, training.state, Scaling.of(record.dataset), training.update),
        environment,
        len(program.members),
        record.settings.episodes,
        seed=record.settings.eval_seed,
        on_step=on_step,
    )


def _failure_text(error: Exception) -> str:
    """An error in one line; its kind, too, where it is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else ": ".join([type(error).__name__, *([text] if text else [])])


def of_member(metrics: Mapping[str, np.ndarray], member: Member) -> dict[str, float | None]:
    """A member's numbers. JSON has no NaN: one that no update of the interval reported is None."""
    values = {name: float(value[member.index]) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def evaluate(
    run: str | Path,
    checkpoint: Checkpoint | int = "best",
    *,
    episodes: int = 20,
    seed: int = 1000,
    environment: Environment | None = None,
    action_choice: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> RunEvaluation:
    """Whole episodes with every member of a run, from start states that training did not use.

    Episode e starts from seed `seed` + e. `environment` is another one than the run's: an id, an `EnvironmentSpec`, or
    a function without arguments that makes one. The result is also written into the run folder, below `evaluations`: a
    file for each environment, checkpoint, seed and way to act. Raises `UserError`.
    """
    loaded = load_run(run, checkpoint, action_choice)
    record, members = loaded.record, loaded.record.members
    scored_in = record.environment if environment is None else named(environment)
    if scored_in is None:
        raise UserError(f"{run}: was trained without an environment; name one with --env")
    check_fits(record.spec, record.dataset, scored_in)
    check_seeds("seed plus episodes", seed + episodes - 1)
    check_environment(scored_in, record.spec.observation_size, seed)
    played = roll_out(loaded.policies(seed), scored_in, len(members), episodes, seed=seed, on_step=on_step)
    reference = reference_of(record.dataset, scored_in)
    rows: list[MemberEpisodes] = []
    for member, updates in zip(members, loaded.updates, strict=True):
        returns = played.returns[member.index]
        score = float(returns.mean())
        rows.append(
            MemberEpisodes(
                member=member,
                updates=updates,
                score=score,
                std=float(returns.std()),
                normalised=None if reference is None else float(normalised_score(score, reference)),
                success_at_last_step=_share(played.success_at_last_step, member),
                success_at_any_step=_share(played.success_at_any_step, member),
                returns=tuple(returns.tolist()),
                lengths=tuple(played.lengths[member.index].tolist()),
            )
        )
    choice = getattr(record.config, "action_choice", None)
    result = RunEvaluation(record.algorithm, str(checkpoint), scored_in, episodes, seed, choice, tuple(rows))
    loaded.folder.write_evaluation(result)
    return result


def _share(successes: np.ndarray | None, member: Member) -> float | None:
    """Of a member's episodes; None where the environment does not say."""
    return None if successes is None else float(successes[member.index].mean())


def film(
    run: str | Path,
    path: Path,
    checkpoint: Checkpoint | int = "best",
    *,
    member: int,
    seed: int,
    environment: EnvironmentSpec,
    action_choice: str | None = None,
) -> float:
    """Writes an mp4 of one episode of a member and returns the return of what is seen (extra: video)."""
    follow = load_policy(run, checkpoint, member=member, action_choice=action_choice, seed=seed).episode()

    def act(observation: EnvObservation, step: int) -> EnvAction:
        return follow(observation)

    return record_video(act, environment, path, seed=seed)
