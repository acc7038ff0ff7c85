"""One folder a model: its spec and its torch module. And the one Triton backend file that hosts them all."""
