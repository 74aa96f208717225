#!/bin/sh
# Runs a program in a pod of this node, in its network namespace and its cgroup: exec.sh NAMESPACE/POD PROGRAM...
# The image has Python and no curl: exec.sh default/a plexus-python /opt/compose/get.py http://10.96.0.1/
set -eu
cgroups=/host/cgroup
[ ! -d "$cgroups/unified" ] || cgroups=$cgroups/unified
for found in "$cgroups/plexus-compose/$PLEXUS_NODE/${1%%/*}.${1##*/}."*; do
    read -r holder <"$found/cgroup.procs" || { echo "exec: $1 does not run on $PLEXUS_NODE" >&2; exit 1; }
    shift
    echo $$ >"$found/cgroup.procs"
    exec nsenter "--net=/proc/$holder/ns/net" -- "$@"
done
