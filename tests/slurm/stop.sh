#!/usr/bin/env bash
# End what start.sh started: stop.sh FOLDER
set -u
for pid_file in "$1"/slurmd.pid "$1"/slurmctld.pid "$1"/munge/pid; do
    if [ -e "$pid_file" ]; then
        kill "$(cat "$pid_file")"
    fi
done
