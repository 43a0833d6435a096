#!/usr/bin/env bash
# Start a SLURM of one node on this machine, for tests: start.sh FOLDER. Run as root.
#
# Prints nothing when all is up. FOLDER then holds slurm.conf (for SLURM_CONF), the daemons' logs and
# their process ids; stop.sh FOLDER ends them. Needs Debian's slurm-wlm and munge.
set -euo pipefail
folder=$(realpath "$1")
host=$(hostname -s)

mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
chmod 755 "$folder" "$folder/munge"
head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 400 "$folder/munge/key"
chown -R munge: "$folder/munge"
runuser -u munge -- munged --force --num-threads 2 --socket "$folder/munge/socket" \
    --key-file "$folder/munge/key" --pid-file "$folder/munge/pid" \
    --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"

cat >"$folder/slurm.conf" <<EOF
ClusterName=capstream-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURM_TEST_PORT:-16817}
SlurmdPort=$((${SLURM_TEST_PORT:-16817} + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF

export SLURM_CONF=$folder/slurm.conf
slurmctld -c -f "$SLURM_CONF"
slurmd -c -f "$SLURM_CONF" -N "$host"
for _ in $(seq 60); do
    if sinfo --noheader --states=idle --format=%n 2>/dev/null | grep -q .; then
        exit 0
    fi
    sleep 0.5
done
echo "start.sh: no node came up; see $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1
