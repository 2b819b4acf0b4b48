"""The process of `sidestep` and of `python -m sidestep`; nothing large is imported before an interrupt is handled."""

import signal
import sys


def main() -> None:
    """Runs the command line as the whole of a process."""
    try:
        from sidestep.cli import main as run

        run()
    except KeyboardInterrupt:
        # While the commands themselves were imported; from there on they tell it in their own words.
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        # The work has ended in order; a further Ctrl-C need not wait for what else the interpreter does.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
