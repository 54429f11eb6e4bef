"""The `m3di` command: its table of commands, and the process edge where errors become exit codes."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from cli import commands
from cli.options import with_common
from cli.output import Output
from stores.errors import M3diError

app = typer.Typer(
    name="m3di",
    help="Pretrain 3D medical image encoders with frozen 2D vision-language models.",
    epilog="Example: m3di demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for name, (command, example) in commands.TABLE.items():
    app.command(name, epilog=f"Example: {example}")(with_common(command))
for group, (purpose, members) in commands.GROUPS.items():
    grouped = typer.Typer(help=purpose, no_args_is_help=True, rich_markup_mode=None)
    for name, (command, example) in members.items():
        grouped.command(name, epilog=f"Example: {example}")(with_common(command))
    app.add_typer(grouped, name=group)


def _show_version(given: bool) -> None:
    if given:
        typer.echo(f"m3di {version('m3di')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code of cli.md."""
    output = Output(json=False, quiet=False, verbose=False)
    if "--debug" in arguments:
        return _run(arguments)  # errors keep their tracebacks
    try:
        return _run(arguments)
    except M3diError as error:
        output.error(f"{error.code} {error.message}", error.hint)
        return error.exit_code
    except MemoryError:
        output.error("E_MEMORY out of memory", "lower --workers or the batch size; what was committed is kept")
        return 5
    except BrokenPipeError:
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        return _explain(error, output)


def _explain(error: Exception, output: Output) -> int:
    """Tell wrong usage and a clean stop on a signal, which are told by their attributes, from a bug."""
    if hasattr(error, "format_message"):  # typer's usage errors are click's, or its own copy of them, by version
        output.error(f"E_CONFIG {error.format_message()}", _help_for(error))
        return 2
    if hasattr(error, "exit_code"):  # m3di.signals.Interrupted
        output.error(str(error), "run the same command again to continue")
        return int(error.exit_code)
    output.error(f"E_BUG {type(error).__name__}: {error}", "this is a bug in m3di: run again with --debug")
    return 1


def _help_for(error: Exception) -> str:
    """Where the remedy of wrong usage stands, and what one argument too many was meant to be."""
    context = getattr(error, "ctx", None)
    help_of = f"{getattr(context, 'command_path', None) or 'm3di'} --help lists what it takes"
    if context is None or "extra argument" not in str(error):
        return help_of
    if any(parameter.param_type_name == "argument" for parameter in context.command.params):
        return f"put several words into quotes; {help_of}"
    options = {option for parameter in context.command.params for option in parameter.opts}
    for what in ("store", "run"):
        if f"--{what}" in options:
            return f"a {what} is given by --{what} {what.upper()}; {help_of}"
    return help_of


def _run(arguments: list[str]) -> int:
    return int(app(args=arguments, prog_name="m3di", standalone_mode=False) or 0)


if __name__ == "__main__":
    main()
