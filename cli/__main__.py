"""`python -m cli`: one module per command."""

import click

from cli.commands import COMMANDS
from cli.lazy import LazyGroup
from schemas.errors import Outage, UserError


class Main(LazyGroup):
    def invoke(self, ctx: click.Context) -> object:
        """A person's mistake, or a part that is away, is one line and an exit code, whichever command met it."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"tidemill: {error}", err=True)
            ctx.exit(error.exit_code)
        except Outage as error:
            click.echo(f"tidemill: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)


@click.command(cls=Main, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemill", message="tidemill %(version)s")
def main() -> None:
    """Event-driven streaming inference and feedback: Kafka requests in, Triton predictions out, labels back into a safer model."""


if __name__ == "__main__":
    main(prog_name="tidemill")
