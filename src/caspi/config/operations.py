"""Around the run: tracking settings, readiness, cost, and watching it."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from caspi.config.base import Count, Fraction, Positive, Section


class Env(Section):
    """Ask for the tracking and cache settings, write them as shell exports; secrets are never written."""

    output: Path = Path(".caspi.env")
    """Shell file that `scripts/setup_wandb.sh` sources."""
    wandb_project: str = "qwen3-asr-hebrew"
    """Offered as the project name; `WANDB_PROJECT` comes first."""
    wandb_run_name: str = "round2-gradual-unfreezing"
    """Offered as the run name; `WANDB_RUN_NAME` comes first."""
    cuda_visible_devices: str = "0,1"
    """Exported as CUDA_VISIBLE_DEVICES unless that is set."""
    pytorch_cuda_alloc_conf: str = "expandable_segments:True"
    """Exported as PYTORCH_CUDA_ALLOC_CONF unless that is set."""


class Check(Section):
    """Is this machine ready to train?"""

    fetch: bool = False
    """Download models and datasets beforehand; interrupted downloads continue."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of lines."""
    timeout_seconds: Positive = 4.0
    """Time each question to a server may take."""
    deadline_seconds: Positive = 12.0
    """Time for all of them together; what has not answered by then is unknown."""
    collective_seconds: Positive = 90.0
    """Time for the sum over all GPUs, with starting its processes."""
    collective_mib: Count = 256
    """Size of what is summed."""
    fetch_attempts: Count = 5
    """Tries per download before it counts as failed."""
    num_gpus: Count = 2
    min_gpu_memory_gib: Positive = 39.0
    """Memory of each GPU; an A100-40GB reports 39.4."""
    min_ram_gib: Positive = 117.0
    """The guide asks for 128 GB, which is 119.2 GiB; machines report a little less than they are sold with."""
    models_gib: Positive = 8.0
    """Disk for Qwen3-ASR-1.7B and the forced aligner in bf16, with room for the Round 1 model."""
    datasets_gib: Positive = 50.0
    """Disk for the training datasets (the guide's figure)."""
    max_clock_skew_seconds: Positive = 60.0


class Plan(Section):
    """What a run will need before anything is rented. All rates are predictions until measured."""

    gpu: str = "A100-40GB"
    """GPU model, see `ops.cost.GPUS`."""
    num_gpus: Count = 2
    price: Positive | None = None
    """USD per hour for all GPUs together; default: the dated table in `config.prices`."""
    prices: Path | None = None
    """TOML file of `[[price]]` tables (provider, gpu, num_gpus, usd_per_hour, is_spot, date, source) that come before
    the dated table."""
    measure: bool = False
    """Measure products, bandwidth and launches on this machine's GPU, and predict from these."""
    mfu_fraction: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of the GPU's peak that training reaches, where it is known; without, a roofline predicts it."""
    official_mfu_fraction: Annotated[float, Field(gt=0, le=1)] = 0.039
    """What Round 1 reached on A100s with the official script, for comparison."""
    product_fraction: Fraction = 0.80
    """Share of the data sheet's matrix rate that products attain (790 of 989 TFLOP/s measured on an H200)."""
    bandwidth_fraction: Fraction = 0.85
    """Share of the data sheet's bandwidth that copying attains."""
    microseconds_per_launch: Positive = 8.0
    """Python's time for one operation."""
    num_utterances: Count = 73_579
    """Training utterances when the manifest does not exist yet."""
    mean_duration_seconds: Positive = 5.7
    """Mean length when the manifest does not exist yet."""
    target_tokens_per_second: Positive = 4.0
    """Transcript tokens per second of audio, counted on Hebrew with the model's tokenizer."""
    evaluation_hours: Positive = 2.0
    buffer_hours: float = Field(default=1.0, ge=0)
    """Paid time for restarts."""
    spot_hours_between_interruptions: Positive = 4.0
    """Mean time until a spot machine is taken away: an assumption, no provider states it."""
    spot_restart_hours: Positive = 0.5
    """Paid time from a new spot machine until it trains: set-up, data, checkpoint; an assumption."""
    max_memory_fraction: Fraction = 0.95
    """More of the card's memory than this does not fit."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of tables."""


class Launch(Section):
    """Run a task file of `cloud/` on rented machines with SkyPilot, after showing what it will cost."""

    task: tyro.conf.Positional[Path] = Path("cloud/lambda_2x_a100_40gb.yaml")
    go: bool = False
    """Run the command; without, it is only printed."""
    yes: bool = False
    """With --go: do not ask on a terminal."""
    mirror: str | None = None
    """Address for copies of the checkpoints, as for `caspi train --mirror`."""
    max_budget_usd: Annotated[Positive | None, tyro.conf.arg(aliases=["--max-budget"])] = 50.0
    """USD at which the run saves and stops; a task that is predicted to cost more is not started."""
    price: Positive | None = None
    """USD per hour for all machines together; default: the dated table in `config.prices`."""
    name: str = "caspi-round2"
    """Of the cluster or the managed job."""
    sky: str = "sky"
    """The program. SkyPilot needs an environment of its own: `uv tool install skypilot[lambda,runpod,verda]`."""
    required_secrets: tuple[str, ...] = ("HF_TOKEN",)
    """Variables that must be set here; SkyPilot takes their values from the environment, never from the command."""
    optional_secrets: tuple[str, ...] = (
        *("WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    )
    """Passed on as secrets where they are set here."""
    passed_on: tuple[str, ...] = (
        *("WANDB_PROJECT", "WANDB_RUN_NAME", "WANDB_MODE", "WANDB_DISABLED", "WANDB_PHASE0_LOGGING"),
        *("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
    )
    """Passed on as they are where they are set here."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of text; never with --go."""


class Report(Section):
    """Write a page again from the files of its step."""

    page: tyro.conf.Positional[Literal["index", "audit"]] = "index"
    """`index`: index.html of a demo; `audit`: audit.html beside an audit's report."""
    folder: Path | None = None
    """Folder of the audit; default: the recipe's `audit.output`."""
    manifest: Path | None = None
    """The audited manifest; default: the recipe's `audit.manifest`."""
    embed_audio: Literal["none", "worst", "review"] | None = None
    """Clips whose audio audit.html carries; default: the recipe's `audit.embed_audio`."""


class Watch(Section):
    """How a training run is doing, from the files it writes."""

    run_dir: tyro.conf.Positional[Path] = Path("qwen3-asr-hebrew-round2")
    """Output folder of `caspi train`; only `--page` writes into it."""
    once: bool = False
    """Show it once; without, again and again until the run ends."""
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON, once."""
    page: bool = False
    """Write RUN_DIR/run.html and stop."""
    bundle: Path | None = None
    """Pack what a bug report needs into this .tar.gz, without secrets, and stop."""
    price: Positive | None = None
    """USD per hour for all GPUs together; default: the recipe's, or that of this machine's GPUs in `config.prices`."""
    refresh_seconds: Positive = 5.0
    """Time between two looks at the run."""
    max_silence_seconds: Positive = 900.0
    """A run that has written nothing for so long has probably hung. The slowest pause is an evaluation."""
    max_temperature_celsius: Positive = 85.0
    """GPU temperature above which it slows down (the guide's figure)."""
    max_budget_usd: Annotated[Positive | None, tyro.conf.arg(aliases=["--max-budget"])] = None
    """Spending at which to send SIGTERM to the run, which then saves and ends; only while this watches, and only on the
    run's own machine. `caspi train --max-budget` needs nobody who watches."""
    budget_alerts_usd: tuple[Positive, ...] = (25.0, 40.0, 50.0)
    """Spending at which to look at the run (the guide's figures)."""
    rollback_hint_usd: Positive = 60.0
    """Spending at which the guide considers going back to a model that works."""
    nvidia_smi_timeout_seconds: Positive = 5.0
    rate_window_entries: Annotated[int, Field(ge=2)] = 10
    """Newest training entries of the stage from which the time left is estimated."""
    num_log_lines: Count = 50
    """Last lines of training.log in the bundle (the guide's figure)."""
    num_metrics_lines: Count = 200
    """Last lines of metrics.jsonl in the bundle."""
