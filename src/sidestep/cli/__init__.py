"""The command line: each command reads its options and calls one public function.

Imports of torch and diffusers happen inside the commands, so that `--help` answers at once.
"""

from sidestep.cli.main import app, main

__all__ = ["app", "main"]
