"""`python -m cli`: one module per command, imported only when it is the one asked for, so that help answers at once."""

import importlib
import importlib.util

import click

from cli.commands import COMMANDS
from schemas.errors import UserError


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, command in COMMANDS.items() if _exists(command.target)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        """A person's mistake is one line and an exit code, whichever command met it."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"tidemill: {error}", err=True)
            ctx.exit(error.exit_code)


def _exists(target: str) -> bool:
    return importlib.util.find_spec(target.partition(":")[0]) is not None


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemill", message="tidemill %(version)s")
def main() -> None:
    """Event-driven streaming inference and feedback: Kafka requests in, Triton predictions out, labels back into a safer model."""


if __name__ == "__main__":
    main(prog_name="tidemill")
