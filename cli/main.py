"""`pli`: the commands, and what every one of them does with an error.

Exit codes: 0 done · 1 done, and the answer is bad (lost answers, alarms, a failed verification) ·
2 wrong input, configuration or state of a file · 3 a service cannot be reached · 130 interrupted.
"""

from __future__ import annotations

import sys

import structlog
import typer
from stamina.instrumentation import set_on_retry_hooks

from cli.commands import bench, demo, services, status, up, verify
from pli.errors import PliError

app = typer.Typer(
    help="pli collects the answers of a national school assessment; only the vault knows whose they are.",
    epilog="Exit codes: 0 done; 1 done, and the answer is bad; 2 wrong input or configuration; "
    "3 a service cannot be reached; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("server")(services.server)
app.command("relay")(services.relay)
app.command("vault")(services.vault)
app.command("status")(status.status)
app.command("verify")(verify.verify)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Runs a command; an error of ours is one message on stderr and its exit code."""
    # Neither retries nor warnings of libraries belong between a command's output.
    set_on_retry_hooks([])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        app(standalone_mode=True)
    except PliError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
