"""diffcps evaluate, and diffcps table."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands, show, step_counter
from diffcps.cli.flags import add_action_choice, add_checkpoint
from diffcps.records.folder import RunFolder
from diffcps.storage import check_ours


def add(commands: Commands) -> None:
    """Adds the commands."""
    evaluate = commands.add_parser("evaluate", help="score the policies of a run", allow_abbrev=False)
    evaluate.add_argument("run", type=Path, help="run folder")
    evaluate.add_argument("--episodes", type=int, default=20, help="episodes per member [20]")
    add_checkpoint(evaluate)
    add_action_choice(evaluate)
    evaluate.add_argument(
        "--seed", type=int, default=1000, help="episode e starts from seed SEED + e [1000: not those of training]"
    )
    evaluate.add_argument("--env", metavar="ID", help="another environment of the same sizes [that of the run]")
    evaluate.add_argument("--env-kwargs", metavar="JSON", help='arguments of the environment, added: {"target": 0.9}')
    evaluate.add_argument("--max-episode-steps", type=int, metavar="N", help="another time limit of its episodes")
    evaluate.add_argument(
        "--video", type=Path, metavar="FILE.mp4", help="film one episode of the best member (extra: video)"
    )
    add_flag(evaluate)
    evaluate.set_defaults(command=_evaluate, parser=evaluate)

    table = commands.add_parser("table", help="the scores of runs as a Markdown table", allow_abbrev=False)
    table.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder; of a single one, a row for each evaluation"
    )
    table.set_defaults(command=_table, parser=table)


def _evaluate(options: argparse.Namespace) -> None:
    from diffcps.records.environment import chosen_environment
    from diffcps.run.evaluate import evaluate, film
    from diffcps.run.table import evaluation_table

    stored = RunFolder(options.run).read_record().environment
    if options.video is not None:
        check_ours(options.video)  # before the episodes are played
    result = evaluate(
        options.run,
        options.checkpoint,
        episodes=options.episodes,
        seed=options.seed,
        environment=chosen_environment(options.env, options.env_kwargs, options.max_episode_steps, stored),
        action_choice=options.action_choice,
        on_step=step_counter(),
    )
    show(evaluation_table(result))
    print(f"all returns: {RunFolder(options.run).evaluation_file(result)}")
    if options.video is not None:
        member = result.best.member.index
        total = film(
            options.run,
            options.video,
            options.checkpoint,
            member=member,
            seed=options.seed,
            environment=result.environment,
            action_choice=options.action_choice,
        )
        print(f"video: {options.video} (member {member}, return {total:.0f})")


def _table(options: argparse.Namespace) -> None:
    from diffcps.run.table import markdown

    print(markdown([RunFolder(run) for run in options.runs]))
