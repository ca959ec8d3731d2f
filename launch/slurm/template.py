"""The shell text of a sbatch script, in the order in which it stands there. Doubled braces are for str.format."""

HEAD = """\
#!/bin/bash
# {title}. Edit it as you like and submit it in the folder of train.py:
#   mkdir -p {logs} && sbatch THIS_FILE
{options}
"""

ENVIRONMENT = """\
{lines}
# If NCCL chooses a wrong network between the nodes:
# export NCCL_SOCKET_IFNAME=ib0 NCCL_DEBUG=INFO
"""

PLACES = """\
job={job}
run={run}
logs={logs}/$job
mkdir -p "$logs"
"""

RENDEZVOUS = """\
# Rank 0 runs on the first node. Its name may not resolve on the others, so take the address that SLURM itself uses.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node "$head" | grep -oP 'NodeAddr=\\K\\S+')
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# The run reads when the job ends, and stops in time. Newer SLURMs set it themselves.
SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$(date +%s -d "$(squeue -h -j "$job" -o %e)")}
export MASTER_ADDR MASTER_PORT SLURM_JOB_END_TIME
"""

TORCHRUN = """\
bash -c 'trap "" USR1; exec {python} -m torch.distributed.run --nnodes {nodes} --nproc-per-node {ranks} \\
        --node-rank "$SLURM_NODEID" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "$@"' torchrun"""

TRAINING = """\
newest() {{ cat {latest} 2>/dev/null; }}
before=$(newest)
echo "$(date '+%F %T') job $job starts (restart ${{SLURM_RESTART_COUNT:-0}}) on $SLURM_JOB_NODELIST, rank 0 at $MASTER_ADDR:$MASTER_PORT"
{command} &
srun=$!
# SLURM warns of the time limit with USR1; TERM comes with a requeue, a preemption or the end. srun passes both on, and the
# run saves and exits. (Nothing but builtins in a trap: two signals at once would upset anything else.)
trap 'kill -USR1 $srun 2>/dev/null' USR1
trap 'kill -TERM $srun 2>/dev/null' TERM
wait $srun
while kill -0 $srun 2>/dev/null; do wait $srun; done  # a signal ends the wait, not srun
wait $srun
code=$?
"""

FRESH = """\
# run.resume=fresh sets an earlier run aside, until this job has made a checkpoint of its own: that it continues.
[[ -e $logs/began ]] || touch "$logs/began"
resume=()
[[ $run/checkpoints/latest -nt $logs/began ]] && resume=(run.resume=auto)
"""

BEFORE_TORCHRUN = """\
export EXIT_CODE_FILE=$(realpath "$logs")/exit_code
rm -f "$EXIT_CODE_FILE"
"""

AFTER_TORCHRUN = """\
code=$(cat "$EXIT_CODE_FILE" 2>/dev/null || echo $code)  # of train.py; torchrun's own is 1 for any but 0
"""

ENDING = """\
job_state=$(scontrol show job "$job" -o)
echo "$(date '+%F %T') job $job: train.py exited with $code"
to_be_continued() {
    [[ $job_state == *JobState=RUNNING* ]] || return 1  # cancelled, or already requeued by SLURM
    case $code in
        138) return 0 ;;                                  # asked to make room, or out of time; it has saved
        143) [[ $job_state =~ PreemptTime=[0-9] ]] ;;     # told to end: by a preemption, or by someone who means it
        75) return 0 ;;                                   # a rank, a host or a link did not answer
        *) return 1 ;;
    esac
}
if to_be_continued; then
    if [[ $(newest) != "$before" ]]; then
        rm -f "$logs/no_progress"
    elif [[ -e $logs/no_progress ]]; then
        echo "two starts in a row made no checkpoint, so the job is not requeued; the logs are in $logs"
        exit $code
    else
        touch "$logs/no_progress"
    fi
    trap '' TERM  # it comes with the requeue
    scontrol requeue "$job" && echo "$(date '+%F %T') job $job is requeued"
fi
exit $code
"""
