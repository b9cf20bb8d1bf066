"""Known vulnerabilities of the pinned packages: `make check` asks OSV through pip-audit, where it can be reached.

Exit code: 0 none are known, or nobody could be asked (it says so); 1 there are some; 3 pip-audit itself failed.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
PINS = ("pins.txt", "cuda.txt")
OSV = os.environ.get("OSV_URL", "https://api.osv.dev/v1/query")
TOOL = "pip-audit>=2.9,<3"
TIMEOUT_SECONDS = 5.0


def main(uv: str) -> int:
    problem = why_unreachable(OSV)
    if problem:
        return not_checked(f"{OSV} cannot be reached ({problem})")
    pins = [word for name in PINS for word in ("--requirement", str(HERE / name))]
    command = [uv, "tool", "run", "--from", TOOL, "pip-audit", "--vulnerability-service", "osv", "--osv-url", OSV]
    done = subprocess.run([*command, "--disable-pip", "--format", "json", *pins], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"vulnerabilities: pip-audit failed: {last}", file=sys.stderr)
        return 3
    known = [(one["name"], one["version"], vuln) for one in packages for vuln in one.get("vulns", ())]
    for name, version, vuln in known:
        print(f"vulnerabilities: {name} {version}: {vuln['id']}, fixed in {', '.join(vuln['fix_versions']) or 'none'}")
    print(f"vulnerabilities: {len(known)} known in {len(packages)} pinned packages")
    return 1 if known else 0


def why_unreachable(url: str) -> str | None:
    """None: something answers there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return str(error)
    return None


def not_checked(why: str) -> int:
    print(f"vulnerabilities: NOT CHECKED: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
