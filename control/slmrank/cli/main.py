"""The `control` command: verbs are loaded when they are called, so that `--help` is instant."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback

import click

from slmrank import __version__
from slmrank.cli.interrupt import interrupt_on_sigterm
from slmrank.errors import ControlError, MissingDependencyError
from slmrank.processes import process_count
from slmrank.surrogates import for_terminal

# verb -> (module, one-line help); the help stands here so that listing imports nothing.
VERBS = {
    "demo": ("demo", "Run everything below on the shipped demo spec and report"),
    "spec": ("spec", "Show a spec with every default, or all keys with their documentation"),
    "status": ("status", "Say which artifacts of a spec are made, stale or missing"),
    "data": ("steps", "Build or read the labelled job-search set"),
    "import": ("steps", "Bring a base model in as a ranker checkpoint"),
    "trim": ("steps", "Trim the vocabulary to what the texts use"),
    "summarize": ("summarize", "Summarise job descriptions into the summary store"),
    "publish": ("publish", "Copy the summaries into the store that all servers share"),
    "watch": ("watch", "Follow new, changed and deleted jobs into the shared store"),
    "finetune": ("steps", "Fine-tune the base model on labelled pairs"),
    "mine": ("mine", "Turn the ranker's own mistakes into training pairs"),
    "prune": ("steps", "Prune the fine-tuned model: OSSCAR on MLP neurons, fewer layers"),
    "recover": ("steps", "Distil the unpruned model into the pruned one"),
    "evaluate": ("evaluate", "Measure ranking quality of every stage on held-out queries"),
    "train-summarizer": ("train_summarizer", "Train the language model that writes summaries"),
    "compress-table": ("compress_table", "Compare summarizers at equal budgets with full texts"),
    "vary": ("vary", "Compare one spec with other values: steps, stages, adapters"),
    "compress-search": ("compress_search", "Find the cheapest compression within a loss"),
    "depth-table": ("depth_table", "Measure what ranking fewer jobs under load costs"),
    "ladder": ("ladder", "Measure every step from the plain model to the served engine"),
    "export": ("export", "Write trained rankers as small folders: adapter, record, log, card"),
    "build": ("build", "Build the inference engine and check its scores"),
    "repo": ("steps", "Generate the Triton model repository"),
    "serve": ("serve", "Run tritonserver over a repository"),
    "score": ("score", "Score jobs for a query over gRPC"),
    "score-catalogue": ("score_catalogue", "Score many queries offline, here or on Ray"),
    "gateway": ("gateway", "Rerank over HTTP: the endpoint that Cohere and TEI clients speak"),
    "ui": ("ui", "Look at a ranker in the browser, or at two side by side"),
    "sweep": ("sweep", "Measure throughput and latency with perf_analyzer"),
    "slo": ("sweep", "Find the highest rate that keeps a latency objective"),
    "tune": ("tune", "Search the repository's settings for the best rate at the objective"),
    "report": ("report", "Draw what was measured, or compare two measurements"),
    "capacity": ("capacity", "Turn the rate at the objective into replicas"),
    "autoscale": ("autoscale", "Try autoscaling policies on traffic before a cluster does"),
    "deploy": ("deploy", "Render, check and roll out Kubernetes manifests"),
    "verify": ("verify", "Compare a repository's files with its manifest"),
    "receive": ("receive", "Put an artifact into place, checked by its hash; pods run it"),
    "smoke": ("smoke", "Compare a running server with its known answers"),
    "doctor": ("doctor", "Say what this machine has against what each target needs"),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"slmrank.cli.{VERBS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            if not near:
                raise
            text = f"{error.message} Did you mean {near[0]!r}?"
            raise click.UsageError(text, ctx) from error


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="control")
@click.option("--debug", is_flag=True, help="show the traceback of an error")
def cli(debug: bool) -> None:
    """Fine-tune, prune, summarise, build, serve and measure a small-language-model ranker.

    Every verb takes a bundle spec (YAML) and makes what it needs first; what did not change is
    found, not redone. Start with: control demo
    """


def main() -> None:
    """Entry point: the only place where errors become text and exit codes."""
    # Two cores are often shared: waiting threads that spin made a training step 1.7 times slower
    # beside one busy process (9.9 s against 5.7 s); alone there was no difference beyond noise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if process_count() == 1:  # a launcher ends its processes wherever they wait
        interrupt_on_sigterm()
    out = sys.stdout
    if out is None:  # closed: the result would be lost, and the status say that it was told
        sys.exit("Error: standard output is closed. Fix: redirect it to a file, or to /dev/null")
    debug = "--debug" in sys.argv[1:]
    told: dict[str, bool] = {}
    try:
        status = cli.main(standalone_mode=False, obj=told)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if _wants_json(told):
            context = getattr(error, "ctx", None)
            verb = context.command_path if context else "control"
            _print_error(error, error.exit_code, error.format_message(), f"see `{verb} --help`")
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing half-made was kept", err=True)
        sys.exit(130)
    except SystemExit:
        # Where nobody reads on, click wraps what it writes to, and ends with 1 by itself.
        if sys.stdout is not out:
            sys.exit(141)
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ControlError):
            known = error
        elif isinstance(error, ModuleNotFoundError) and error.name in _OF_TRAINING:
            known = MissingDependencyError(
                f"this needs {error.name}, which is not installed", "pip install 'slmrank[train]'"
            )
        elif isinstance(error, OSError):
            name = f" ({error.filename})" if error.filename else ""
            hint = "check disk space and permissions"
            if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
                hint = "give another place"
            known = ControlError(f"{error.strerror or error}{name}", hint)
        else:
            hint = "it may be a fault of slmrank: report it"
            if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
                hint = "smaller batches, or another machine"
            told_of = f"unexpected {type(error).__name__}: {error}"
            known = ControlError(told_of, f"{hint}; traceback: {_kept_traceback()}")
        report_error(known, as_json=_wants_json(told))
        sys.exit(known.exit_code)
    sys.exit(status if isinstance(status, int) else 0)


# Where no step has asked for them first.
_OF_TRAINING = ("torch", "transformers", "peft", "accelerate", "safetensors")


def _kept_traceback() -> str:
    """The file that holds it: what failed after hours is not run again for it."""
    try:
        handle, name = tempfile.mkstemp(prefix="slmrank-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(traceback.format_exc())
    except OSError:
        return "under --debug"
    return name


def _wants_json(told: dict[str, bool]) -> bool:
    """Whether an error is an object on stdout: where a result stands there already it would be a
    second document, and goes to stderr as text."""
    return "--json" in sys.argv[1:] and not told.get("result")


def report_error(error: ControlError, *, as_json: bool) -> None:
    """One error to stderr, or with --json as an object to stdout."""
    if as_json:
        _print_error(error, error.exit_code, error.message, error.hint)
        return
    label = click.style("Error: ", fg="red", bold=True, reset=True)
    click.echo(label + for_terminal(error.message), err=True)
    if error.hint:
        click.echo(f"Fix: {for_terminal(error.hint)}", err=True)


def _print_error(error: Exception, code: int, message: str, hint: str) -> None:
    body = {"code": code, "kind": type(error).__name__, "message": message, "hint": hint}
    text = json.dumps({"schema": 1, "error": body})
    try:
        click.echo(text)
    except OSError:  # nobody reads it, or its disk is full: the exit code says it all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            click.echo(text, err=True)


if __name__ == "__main__":
    main()
