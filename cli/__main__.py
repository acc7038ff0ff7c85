"""`python -m cli`: one module per command."""

import click

from cli.commands import COMMANDS
from cli.lazy import LazyGroup
from schemas.errors import TidemillError, UserError


class Main(LazyGroup):
    def invoke(self, ctx: click.Context) -> object:
        """Whatever Tidemill raises on purpose, in any command, is one line and an exit code: a person's mistake its own, the rest 1."""
        try:
            return super().invoke(ctx)
        except TidemillError as error:
            click.echo(f"tidemill: {' '.join(line.strip() for line in str(error).splitlines())}", err=True)
            ctx.exit(error.exit_code if isinstance(error, UserError) else 1)


@click.command(cls=Main, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemill", message="tidemill %(version)s")
def main() -> None:
    """Event-driven streaming inference and feedback: Kafka requests in, Triton predictions out, labels back into a safer model."""


if __name__ == "__main__":
    main(prog_name="tidemill")
