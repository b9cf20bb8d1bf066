# Source this file: `source scripts/setup_wandb.sh`. It asks the set-up questions and exports the answers.
# It never ends the calling shell: no `set -e`, no `exit`; a failure is reported and returned.

# CDPATH and hooks of cd would write into the answer.
_caspi_root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE:-$0}")/.." >/dev/null && pwd)
_caspi_settings="${CASPI_ENV_FILE:-$_caspi_root/.caspi.env}"
if [ ! -x "$_caspi_root/.venv/bin/caspi" ]; then
    echo "caspi is not installed: run 'make setup' or 'uv sync' in $_caspi_root first" >&2
    false
elif "$_caspi_root/.venv/bin/caspi" env --output "$_caspi_settings"; then
    . "$_caspi_settings"
else
    echo "nothing was exported" >&2
    false
fi
