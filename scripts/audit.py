"""Looks up every package of requirements.lock among the known vulnerabilities, by pip-audit.

    .venv/bin/pip install -e ".[dev,release]"
    .venv/bin/python scripts/audit.py [ADDRESS]

The lock is read as it lies here; what is known is asked of OSV (https://osv.dev), or of a mirror of it at ADDRESS. Ends
with 1 if a package has a vulnerability, or if the audit breaks off. Where pip-audit is not installed, or the address
does not even know of an old vulnerability, nothing can be audited: it says so, and ends with 0.
"""

import importlib.util
import json
import subprocess
import sys
from urllib.request import Request, urlopen

from lock import LOCK

OSV = "https://api.osv.dev/v1/query"
# Leaks credentials (CVE-2018-18074). An address that does not know that knows nothing.
KNOWN = {"package": {"name": "requests", "ecosystem": "PyPI"}, "version": "2.19.0"}


def obstacle(address: str) -> str | None:
    """Why nothing can be audited; None where it can."""
    if importlib.util.find_spec("pip_audit") is None:
        return "pip-audit is not installed (pip install -e '.[release]')"
    try:
        with urlopen(Request(address, json.dumps(KNOWN).encode()), timeout=20) as answer:
            known = json.load(answer)
    except (OSError, ValueError) as error:
        return f"{address} does not answer ({error})"
    return None if isinstance(known, dict) and known.get("vulns") else f"{address} knows of no vulnerabilities"


def main(address: str = OSV) -> int:
    if reason := obstacle(address):
        print(f"audit skipped, {LOCK.name} was not looked up: {reason}", file=sys.stderr)
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--strict"]
    command += ["--vulnerability-service", "osv", "--osv-url", address, "--progress-spinner", "off"]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
