//! What `--help` and the manual teach, where it takes more than a line.

/// What the program is for, in a line.
pub const ABOUT: &str =
    "Personalised LoRA for recommendation, from raw ratings to an evaluated adapter";

/// The same in a paragraph.
pub const LONG_ABOUT: &str = "\
Personalised LoRA for recommendation, from raw ratings to an evaluated adapter.

One config file describes one experiment. `run` takes it through eight stages; each leaves a \
directory in the run directory, and a stage whose directory is complete is not done again. So the \
same command continues a run that was interrupted, and gives the same result bit for bit, with any \
number of processes.";

/// Examples and exit codes.
pub const EXAMPLES: &str = "\
Examples:
  reclora-launch run configs/quickstart.toml
      Run the shipped experiment; then open runs/quickstart/report/index.html
  reclora-launch run configs/quickstart.toml --set tune.epochs=3 --run-dir runs/three
      The same with one setting changed, kept apart
  reclora-launch predict runs/quickstart --user 27 --item 1483013
      How likely a user is to like an item, and the prompt that was used
  reclora-launch export runs/quickstart --user 27 --item 1483013 --out lora/
      That user's adapter for that item, as a directory Hugging Face PEFT loads
  reclora-launch submit configs/published.toml --nodes 4 --gpus-per-node 8 --time 2:00:00
      Hand a run to Slurm; then `status`, `logs --follow` and `cancel` with its run directory
  reclora-launch inspect configs/data/movietweetings-100k
      What is in raw ratings, and what a run would make of them
  reclora-launch config reference
      Every setting with its meaning and default
  reclora-launch synth data/synthetic --users 1000 --items 500 --ratings 100000 --seed 1
      Make ratings to try things on, of any size

Exit codes:
  0    done
  1    failure (disk, port, corrupt file, ...)
  2    the command line or the config can't work; nothing was started
  3    a rank or a node died; RUN/error.json has the details; trying again may help
  4    a rank reported an error, or attempts made no progress: the same would come again, do not requeue
  75   saved and stopped as SIGUSR1 asked: requeue, the same command continues
  129  stopped by a hangup  130  stopped by Ctrl-C  143  stopped by SIGTERM";

/// Of `run`.
pub const RUN_LONG: &str = "\
Runs an experiment: every stage that is not up to date, in order, then the report.

Stages: prepare (raw files to samples), embed (item embeddings), retrieve (top-K history items), count \
(what came before each sample), \
pretrain (CRM on the full data), few2many (the CRM's representation of every sample), tune \
(few-shot LoRA), evaluate (full test set), export (PEFT adapters).

--from and --until select stages by their place in this order, --only a single one. embed is left out where nothing reads the embeddings of items (retrieve.text_order and crm_order are recent).

Every stage except prepare and export runs as a group of worker processes. The run directory gets \
one directory per stage, report/, logs/<stage>/attempt_N/rank_R/{stdout,stderr}.log and, when a \
rank fails, error.json. Its config.toml is the resolved config: `run RUN/config.toml` continues \
the run from anywhere.";

/// Of `run`.
pub const RUN_EXAMPLES: &str = "\
Examples:
  reclora-launch run configs/quickstart.toml
  reclora-launch run configs/quickstart.toml --nproc-per-node 4
  reclora-launch run configs/quickstart.toml --from tune --set adapter.experts=4
  reclora-launch run configs/quickstart.toml --only evaluate --force
  reclora-launch run configs/quickstart.toml --until few2many
      The CRM and the baselines, on valid and on test, before any LLM is tuned
  reclora-launch run CONFIG --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29500
      On two nodes that share the run directory; the other runs the same with --node-rank 1

Exit codes: 0 done, 1 failure, 2 usage or config, 3 a rank or node died, 4 a rank's error would come again, \
75 paused by SIGUSR1, 129/130/143 stopped by a signal (the same command continues).

SIGUSR1 and SIGTERM let the ranks finish their step and save it (runtime.pause_timeout); Ctrl-C and a \
second SIGTERM do not wait for that.";

/// Of `synth`.
pub const SYNTH_LONG: &str = "\
Makes synthetic ratings in the layout of MovieLens-25M: movies.csv and ratings.csv, to be read with \
data.format = \"movielens_25m\" and data.label = { greater = 3.0 }.

There is something to learn in them. Each user likes some genres (by a film's first genre) and \
dislikes others, and this drifts over the user's time; films differ in quality and in popularity, \
users in kindness and activity. The rest is noise. The same numbers and seed give the same files, \
byte for byte. Memory grows with users and items only, not with ratings.

With --titles telling a title says what ids do not: an LLM that reads it has something to add to a CRM, \
most of all with many films and few ratings of each. --titles shuffled is the control: the same ratings, with \
titles that say nothing.";

/// Of `synth`.
pub const SYNTH_EXAMPLES: &str = "\
Examples:
  reclora-launch synth data/synthetic --users 1000 --items 500 --ratings 100000 --seed 1
  reclora-launch synth data/as-25m --users 162541 --items 62423 --ratings 25000095 --seed 1
      The size of MovieLens-25M, 0.7 GB

Then, in a config, or with --set data.path=...:
  [data]
  format = \"movielens_25m\"
  path = \"data/synthetic\"
  label = { greater = 3.0 }";

/// Of `verify`.
pub const VERIFY_LONG: &str = "\
Reads every file of a run again and compares it with the hashes that were written with it: manifests \
and the files they list, the columns of shards, checkpoints. Every damaged, missing or foreign file is \
named, with the command that rebuilds it.

Interrupted, the same command continues. A check that ends is forgotten: the next one reads \
everything. Reports, logs and inputs outside the run are not checked.";

/// Of `verify`.
pub const VERIFY_EXAMPLES: &str = "\
Examples:
  reclora-launch verify runs/quickstart
  reclora-launch verify runs/quickstart/dataset
  reclora-launch verify runs/quickstart/lens/lens-000003.shard
  reclora-launch verify runs/quickstart --json

Exit codes: 0 everything is as it was written, 1 something is not, 2 there is nothing to check.";
/// Of `inspect`.
pub const INSPECT_LONG: &str = "\
Looks at raw ratings before a run; nothing is written.

Shows the format, the files, each column with examples, how ratings and users are distributed, and what \
each step of the protocol (k_core, min_history, split) would drop and leave. Of a config it reads [data]. \
Of a directory the format is detected by the names of the files, and the protocol's settings are the \
defaults with the paper's rule for likes; --set changes them. For CSV and Parquet it shows each table's \
columns and guesses [data.columns], as lines to copy into a config.

Formats: movietweetings, movielens_100k, movielens_1m, movielens_10m, movielens_25m, bookcrossing, \
goodreads, csv, parquet. Files may be plain or .gz (Parquet has its own compression).";

/// Of `inspect`.
pub const INSPECT_EXAMPLES: &str = "\
Examples:
  reclora-launch inspect configs/quickstart.toml
      The ratings of an experiment, under its settings
  reclora-launch inspect data/ml-1m --set data.k_core=10
      A directory, its format detected, under another setting
  reclora-launch inspect events.csv
      The columns of a table, and the mapping they suggest
  reclora-launch inspect events.csv --set data.columns.user=who --set data.columns.item=what
      The same with columns that can't be guessed
  reclora-launch inspect data/ml-1m --json | jq .inspection.protocol.samples
      For scripts

Exit codes: 0 done (also where no sample would be left, which is said), 1 files that can't be read, \
2 usage or config.";

/// Of `submit`.
pub const SUBMIT_LONG: &str = "\
Submits a run to Slurm, as one job or as one per stage.

The script is written to RUN/slurm/ and can be read, changed and submitted again with sbatch; --dry-run \
only prints it. It starts one launcher per node, which starts the ranks there. The run directory, this \
executable, the data and the backbone must be on a file system that all nodes share.

Before the time limit, and when the job is preempted, the ranks finish their step and save it, and the job \
is requeued; so is one that lost a rank or a node. The result is that of an undisturbed run, to the bit. A \
job whose failure would come again is not requeued.";

/// Of `submit`.
pub const SUBMIT_EXAMPLES: &str = "\
Examples:
  reclora-launch submit configs/published.toml --nodes 4 --gpus-per-node 8 --time 2:00:00 --dry-run
      Look at the script
  reclora-launch submit configs/quickstart.toml --nodes 4 --nproc-per-node 2 --partition cpu
      Without GPUs
  reclora-launch submit CONFIG --nodes 4 --gpus-per-node 8 --partition gpu --cpu-partition cpu --array-of-stages
      Each stage as a job that waits for the one before; prepare and export without GPUs
  reclora-launch submit CONFIG --nodes 2 --sbatch=--constraint=a100 --sbatch=--mem=64G
      Any option of sbatch

Exit codes: 0 submitted, 1 sbatch refused it, 2 usage or config.";

/// Of `status`.
pub const STATUS_EXAMPLES: &str = "\
Examples:
  reclora-launch status runs/quickstart
  reclora-launch status runs/quickstart --json | jq -r .jobs[].state";

/// Of `logs`.
pub const LOGS_EXAMPLES: &str = "\
Examples:
  reclora-launch logs runs/quickstart --follow
      What the job says, until it ends
  reclora-launch logs runs/quickstart --rank 3 --stage tune --lines 20
      The end of what rank 3 said in its last attempt at a stage; also of runs without Slurm";

/// Of `cancel`.
pub const CANCEL_EXAMPLES: &str = "\
Examples:
  reclora-launch cancel runs/quickstart
      Returns when nothing of the run is left in the queue; submit again to continue";

/// Of `man`.
pub const MAN_EXAMPLES: &str = "\
Examples:
  reclora-launch man | man -l -
  reclora-launch man --out-dir ~/.local/share/man/man1
      One page per command";

/// Of `doctor`.
pub const DOCTOR_LONG: &str = "\
Looks at what a run will need, and says what is wrong and what to do about it. Nothing is written but a \
small file that is removed again.

Of the machine: cores, memory, shared memory, open files, loopback, the NVIDIA driver and NCCL's library. With \
a config: all that `run` looks at before its first stage (settings, raw files, headers of the weights, tokenizer, \
prompt template, devices, disk), and runtime.interface; whether the run directory can be \
written, has a clock like this machine's and no other launcher; and the hashes of what an earlier run \
left. With --rdzv-endpoint: whether node 0's address \
can be listened on here or reached from here.";

/// Of `doctor`.
pub const DOCTOR_EXAMPLES: &str = "\
Examples:
  reclora-launch doctor
  reclora-launch doctor configs/quickstart.toml
  srun --ntasks-per-node=1 reclora-launch doctor CONFIG --rdzv-endpoint node0:29500
      On every node of a job

Exit codes: 0 nothing is wrong (warnings may be there), 1 something is, 2 usage.";

/// Of `plan`.
pub const PLAN_LONG: &str = "\
Computes, without running anything, what a config means at a number of ranks: the parameters that are \
trained, the memory of each rank for them, the steps of training, the samples to score, and the bytes that \
each rank sends in a step and in all. Stage times are those measured in this run directory, if any. Numbers come from the config, the backbone's files and, where a run has got that \
far, its dataset. A config that `run` would refuse is refused.";

/// Of `plan`.
pub const PLAN_EXAMPLES: &str = "\
Examples:
  reclora-launch plan configs/quickstart.toml
  reclora-launch plan CONFIG --world-size 32
  reclora-launch plan CONFIG --set adapter.rank=16 --json | jq .tune";

/// Of `compare`.
pub const COMPARE_LONG: &str = "\
Puts the test metrics of runs side by side, and the settings in which they differ.

Differences in AUC and in gAUC (the AUC within each user) come with a 95 % interval of a paired bootstrap over \
users: a resample draws users, with all their samples, and both models are measured on the same draws, so what \
makes users hard for both does not blur the difference. The model of each run is compared with that of the first \
run, on the test samples that both runs have (the same user, item and time); within each run, every model with \
RecLoRA and with the CRM. An interval without 0 in it is a difference that is hardly chance, as far as these \
samples tell; another seed of the training is not in it.";

/// Of `compare`.
pub const COMPARE_EXAMPLES: &str = "\
Examples:
  reclora-launch compare runs/quickstart runs/three
  reclora-launch compare runs/a runs/b runs/c --model crm
  reclora-launch compare runs/a runs/b --json | jq .runs[1].differences.auc

Exit codes: 0 done, 1 a run is not evaluated or damaged, 2 usage.";

/// Of `monitor`.
pub const MONITOR_LONG: &str = "\
Shows what the ranks of a run do and how the machines they are on are doing, and says what holds the run up: \
data-bound, communication-bound, compute-bound, a straggler, stalled, throttled, memory near the limit, a lost \
GPU; each with the figures it rests on and one suggestion.

Every launcher writes what it sees of its node to monitor/ in the run directory, each second; this command only \
reads that. Without a run it looks at this machine's GPUs itself (NVML; without a driver it says so), or with --hosts \
at those of others.

In a terminal the view keeps itself up to date, until `q` is pressed; written to a file or a pipe it is repeated as \
text. --listen serves it as a page, as JSON and as metrics for Prometheus, with the names that NVIDIA's dcgm-exporter \
uses (dashboard: configs/grafana.json).

The time of a rank is split into data, forward, backward, communication (with nothing to compute) and optimizer. \
Threads share the first three: their mean counts, so that a rank which uses half of its threads shows 50 %. \
`queued` is the number of threads that could run and wait for a core; `gates` how evenly the experts are used \
(1 is even).";

/// Of `monitor`.
pub const MONITOR_EXAMPLES: &str = "\
Examples:
  reclora-launch monitor runs/quickstart                  # until q is pressed
  reclora-launch monitor runs/quickstart --once
  reclora-launch monitor runs/quickstart --json --interval 10 >> monitor.jsonl
  reclora-launch monitor --slurm 4711                     # the run of a Slurm job
  reclora-launch monitor                                  # this machine's GPUs
  reclora-launch monitor --hosts gpu1,gpu2                # those of other machines
  reclora-launch monitor runs/quickstart --listen 127.0.0.1:9400
  RECLORA_MONITOR_TOKEN=$(openssl rand -hex 16) reclora-launch monitor runs/quickstart --listen 0.0.0.0:9400";
