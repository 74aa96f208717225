#!/bin/bash
# The guest's first program with this machine's files around it: what a booted Debian would have mounted and started,
# then the command, then the end. Started by init.c; the folder shared with the machine outside holds `command` (a shell
# script) and takes `status` (its exit status).
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

leave() {
    sync
    echo b >/proc/sysrq-trigger # with -no-reboot this ends qemu
    sleep 60
}

prepare() {
    mount -t sysfs sysfs /sys &&
        mount -t devtmpfs devtmpfs /dev && mkdir -p /dev/pts /dev/shm &&
        mount -t devpts devpts /dev/pts && mount -t tmpfs tmpfs /dev/shm &&
        mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp /dev/shm &&
        mkdir -p /run/netns /run/guest &&
        mount -t bpf bpf /sys/fs/bpf && mount -t cgroup2 cgroup2 /sys/fs/cgroup &&
        mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 shared /run/guest &&
        mkdir -p /lib/modules && mount --bind "$(cat /run/guest/modules)" /lib/modules &&
        hostname guest && ip link set lo up && ulimit -l unlimited
}

exec </dev/null >/dev/console 2>&1
if prepare; then
    PLEXUS_GUEST=yes setsid bash /run/guest/command </dev/null >/dev/ttyS1 2>&1
    echo $? >/run/guest/status
fi
leave
