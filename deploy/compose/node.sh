#!/bin/sh
# What a host gives a dataplane: a file system to pin programs in, a cgroup (v2) of its own for socket hooks, a kubelet.
set -eu
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
cgroups=/host/cgroup
[ ! -d "$cgroups/unified" ] || cgroups=$cgroups/unified # beside v1
PLEXUS_CGROUP=$cgroups/plexus-compose/$PLEXUS_NODE
mkdir -p "$PLEXUS_CGROUP"
export PLEXUS_CGROUP
while :; do
    plexus-python /opt/compose/kubelet.py || true
    sleep 1
done &
exec plexus-python -m services.dataplane
