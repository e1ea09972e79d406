#!/usr/bin/env bash
# A real Slurm on one machine, for tests: munge, a controller and four nodes, each node a host of its own with
# its network, host name, processes and /dev/shm. No systemd, no cgroups. Needs root, and on Debian the packages
# that `install` installs.
#
#   cluster.sh install              install Slurm, munge and iproute2
#   cluster.sh start|stop DIR       DIR (absolute and short: unix sockets are in it) holds all state and logs
#   cluster.sh exec DIR COMMAND...  run a command where the controller can be reached
#   cluster.sh crash|boot DIR NODE  kill a node's daemon and all its processes with SIGKILL | start it again
#   cluster.sh cut|heal DIR NODE    unplug | replug a node's cable
#   cluster.sh crash|boot DIR head  the same with the controller, whose state survives
#
# Nodes are n1 to n4 (10.99.0.1 to .4), the controller is `head` (10.99.0.254), on a bridge inside the head's
# namespace: the machine's own network is not touched. Partitions: `test`, the default, and `urgent`, whose jobs
# preempt those of `test`. Each node has two GPUs, in name: device files that are /dev/null by number.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

nodes=4
cpus=4
gpus=2
port=16800
preempt_grace=20

stop() {
    printf 'cluster.sh: %s\n' "$1" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /{ /^#/p }' "$0" >&2
    exit 2
}

# Nothing of an outer job may leak into the daemons, and from there into the jobs.
forget_outer_job() {
    local name
    for name in $(compgen -e | grep -E '^(SLURM_|SBATCH_|SRUN_|PMIX?_)' || true); do unset "$name"; done
}

node_names() { seq -f 'n%g' 1 "$nodes"; }
at_head() { nsenter --net="/run/netns/$prefix-head" -- "$@"; }

# The start time of a process: with it a pid can't be mistaken for that of a later process.
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# alive NAME: the daemon is there. A zombie has no command line, and counts as dead.
alive() {
    local pid start
    read -r pid start 2>/dev/null <"$dir/run/$1.pid" || return 1
    [[ $(started "$pid") = "$start" ]] && [[ -n $(tr -d '\0' 2>/dev/null <"/proc/$pid/cmdline") ]]
}

pid_of() { cut -d' ' -f1 "$dir/run/$1.pid"; }

spawn() {
    local name=$1 pid
    shift
    setsid "$@" </dev/null >>"$dir/log/$name.out" 2>&1 &
    pid=$!
    echo "$pid $(started "$pid")" >"$dir/run/$name.pid"
    disown
}

spawn_head() {
    spawn head nsenter --net="/run/netns/$prefix-head" -- unshare --uts --mount bash "$dir/etc/head.sh"
}

spawn_node() {
    spawn "$1" nsenter --net="/run/netns/$prefix-$1" -- unshare --uts --ipc --mount --pid --fork \
        --kill-child=SIGKILL --mount-proc bash "$dir/etc/node.sh" "$1"
}

write_configuration() {
    local node gpu
    mkdir -p "$dir"/{etc,run,log,state,munge,dev}
    chmod 755 "$dir" "$dir/munge"
    for node in $(node_names); do
        mkdir -p "$dir/spool/$node" "$dir/tmp/$node"
        chmod 1777 "$dir/tmp/$node"
    done
    for ((gpu = 0; gpu < gpus; gpu++)); do
        mknod "$dir/dev/nvidia$gpu" c 1 3
        for node in $(node_names); do
            echo "NodeName=$node Name=gpu File=$dir/dev/nvidia$gpu"
        done
    done >"$dir/etc/gres.conf"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=head(10.99.0.254)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again; 5 is the least.
AuthInfo=socket=$dir/munge/s,cred_expire=5
SlurmctldPidFile=$dir/run/slurmctld.own
SlurmdPidFile=$dir/run/slurmd.%n.own
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
TmpFS=$dir/tmp/%n
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=3
SlurmdTimeout=15
MessageTimeout=10
TCPTimeout=2
CompleteWait=0
MailProg=/bin/true
GresTypes=gpu
NodeName=n[1-$nodes] NodeAddr=10.99.0.[1-$nodes] Port=$((port + 1)) CPUs=$cpus RealMemory=4000 Gres=gpu:$gpus State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=$preempt_grace
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    printf '%s\n' '127.0.0.1 localhost' '10.99.0.254 head' >"$dir/etc/hosts"
    for node in $(node_names); do echo "10.99.0.${node#n} $node" >>"$dir/etc/hosts"; done
    cat >"$dir/etc/head.sh" <<HEAD
hostname head
mount --bind "$dir/etc/hosts" /etc/hosts
exec slurmctld -D -i -f "$SLURM_CONF"
HEAD
    # A shell is the node's process 1: it reaps the step daemons that slurmd leaves to init.
    cat >"$dir/etc/node.sh" <<NODE
hostname "\$1"
mount --bind "$dir/etc/hosts" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
slurmd -D -f "$SLURM_CONF" &
wait \$!
NODE
}

network_up() {
    local head=$prefix-head node
    ip netns add "$head"
    ip -n "$head" link set lo up
    ip -n "$head" link add br0 type bridge
    ip -n "$head" addr add 10.99.0.254/24 dev br0
    ip -n "$head" link set br0 up
    for node in $(node_names); do
        ip netns add "$prefix-$node"
        ip -n "$prefix-$node" link set lo up
        ip link add "p-$node" netns "$head" type veth peer name eth0 netns "$prefix-$node"
        ip -n "$head" link set "p-$node" master br0 up
        ip -n "$prefix-$node" addr add "10.99.0.${node#n}/24" dev eth0
        ip -n "$prefix-$node" link set eth0 up
    done
}

network_down() {
    local path
    for path in /run/netns/"$prefix"-*; do
        if [[ -e $path ]]; then ip netns del "${path##*/}"; fi
    done
}

# Every node usable, and nothing left of an earlier job.
ready() {
    alive head && [[ $(timeout 3 nsenter --net="/run/netns/$prefix-head" -- \
        sinfo -h -N -p test -o '%N %T' 2>/dev/null | sort -u | grep -cE ' (idle|mixed|allocated)$') = "$nodes" ]]
}

wait_until_ready() {
    local end=$((SECONDS + 60))
    while ((SECONDS < end)); do
        if ready; then return 0; fi
        sleep 0.1
    done
    timeout 3 nsenter --net="/run/netns/$prefix-head" -- sinfo -N >&2 || true
    tail -n 5 "$dir"/log/*.out >&2
    stop 'Slurm did not become ready within 60 s'
}

start_cluster() {
    local node
    [[ ! -e $dir/run ]] || stop "$dir: there is a cluster already"
    write_configuration
    network_up
    spawn munged munged -F --key-file="$dir/munge/key" --socket="$dir/munge/s" \
        --pid-file="$dir/run/munged.own" --seed-file="$dir/munge/seed"
    for _ in {1..100}; do
        [[ -S $dir/munge/s ]] && break
        sleep 0.05
    done
    spawn_head
    for node in $(node_names); do spawn_node "$node"; done
    wait_until_ready
}

stop_cluster() {
    local name
    [[ -d $dir/run ]] || return 0
    # A node's processes end with its first; those of the others are ended here.
    for name in $(node_names) head munged; do
        if alive "$name"; then kill -KILL "$(pid_of "$name")" 2>/dev/null || true; fi
    done
    network_down
    rm -rf "${dir:?}"/{etc,run,state,spool,tmp,munge,dev}
}

case ${1:-} in
install)
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
        slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2
    exit
    ;;
start | stop | exec | crash | boot | cut | heal) ;;
*) usage ;;
esac

dir=${2:-}
[[ $dir = /* && ${#dir} -lt 60 ]] || stop 'DIR must be absolute and short'
prefix=rs$(cksum <<<"$dir" | cut -c1-5)
forget_outer_job
export SLURM_CONF=$dir/etc/slurm.conf
name=${3:-}
case $1 in
crash | boot | cut | heal)
    [[ $name = head || " $(node_names | tr '\n' ' ')" = *" $name "* ]] || stop "no node ${name:-given}"
    ;;
esac
mkdir -p "$dir"
case $1 in
start) start_cluster ;;
stop) stop_cluster ;;
exec)
    shift 2
    exec nsenter --net="/run/netns/$prefix-head" -- unshare --mount bash -c \
        'mount --bind "$1" /etc/hosts; shift; exec "$@"' - "$dir/etc/hosts" "$@"
    ;;
crash) if alive "$name"; then kill -KILL "$(pid_of "$name")"; fi ;;
boot)
    if ! alive "$name"; then
        if [[ $name = head ]]; then spawn_head; else spawn_node "$name"; fi
    fi
    wait_until_ready
    ;;
cut) ip -n "$prefix-head" link set "p-$name" down ;;
heal) ip -n "$prefix-head" link set "p-$name" up ;;
esac
