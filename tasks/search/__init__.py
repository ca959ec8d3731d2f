"""Find the best settings of a recipe: real trainings, chosen by Optuna, pruned early, continued after any interruption."""

import argparse
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name or path, as for train.py")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of all trials")
    parser.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="SETTING=RANGE",
        help="what varies: optimizer.lr=log:1e-4:1e-2, model.dropout=uniform:0:0.3[:STEP], model.num_layers=int:2:8[:STEP], "
        "batch.global_batch_size=log_int:16:512, optimizer.name=adamw,muon; or a YAML file of such lines; repeatable",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="trainings in all (20; of a grid all there are)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at the same time, each with its share (1)"
    )
    parser.add_argument(
        "--name", help="of the search's folder under run.folder (RUN-search); the same name continues it"
    )
    parser.add_argument(
        "--sampler", choices=("tpe", "random", "grid"), default="tpe", help="who chooses settings (tpe)"
    )
    parser.add_argument("--seed", type=int, help="of the sampler (0)")
    parser.add_argument(
        "--pruner", choices=("asha", "median", "none"), default="asha", help="who ends bad trials (asha)"
    )
    parser.add_argument("--reduction", type=int, metavar="N", help="asha lets one of N go on at each rung (3)")
    parser.add_argument(
        "--min-steps", type=int, metavar="N", help="steps before a trial may be pruned (half of schedule.steps)"
    )
    parser.add_argument(
        "--value", choices=("best", "last"), default="best", help="of a trial's validations, which one counts (best)"
    )
    _add_places(parser)
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="of all trials; else those of finished trials are removed, but for the best",
    )
    parser.add_argument("--report", action="store_true", help="write the report of what there is, and train nothing")


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Where trials are kept, and where and how they train."""
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE, for workers on several hosts (search.db in the folder)",
    )
    parser.add_argument(
        "--launcher",
        default="",
        metavar="COMMAND",
        help="what stands before train.py, as 'torchrun --standalone --nproc-per-node 2' or 'deepspeed --master_port {port}'; each "
        "of several jobs sees its part of the GPUs (this Python, one process)",
    )
    parser.add_argument(
        "--slurm",
        metavar="OPTIONS",
        help="search in a SLURM job array: options of `python -m launch slurm`, as '--nodes 1 --gpus-per-node 8 --time 8:00:00 "
        "--submit'",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="elements of that array, each with a trial at a time (1)"
    )


def run(options: argparse.Namespace) -> int:
    from config import ConfigError
    from tasks.search.question import launcher_words, read_question

    question, launcher = read_question(options), launcher_words(options.launcher)
    if options.report and not question.recipe.exists():
        raise ConfigError(f"{question.folder} is no search yet: leave --report out to begin it")
    try:
        from tasks.search.report import report
        from tasks.search.slurm import submit
        from tasks.search.study import open_study
        from tasks.search.worker import Worker

        study = open_study(question)
        if options.slurm is not None and not options.report:
            return submit(question, options)
        code = 0
        if not options.report:
            say = partial(print, flush=True)
            code = Worker(question, study, options.jobs, launcher, options.keep_checkpoints, say).work()
        print(report(question, study))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ConfigError(f"this needs {package}, which is not installed: pip install -e '.[search]'") from error
    if code:
        print("interrupted; the same command continues the search")
    return code
