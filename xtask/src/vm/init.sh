#!/bin/sh
# The first process of a virtual machine: runs what the kernel's parameter `machine` names, and turns the machine off.
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root CI=true TERM=dumb
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm /tmp
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
# Not a file system of its own: the workspace may be there.
chmod 1777 /tmp
mount -t securityfs none /sys/kernel/security
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up

# Runs tests of one binary, through a command if `within` names one: all, or those whose names contain one of the words.
run() {
    echo "vm: run $1"
    binary=$1
    shift
    $within /bin/timeout 1800 "/tests/$binary" --test-threads=1 "$@" 2>&1
    echo "vm: status $? of $binary"
}

echo "vm: begin $(uname -r)"
. "/machines/$machine"
for setting in perf_event_paranoid unprivileged_bpf_disabled yama/ptrace_scope; do
    echo "vm: $setting $(cat /proc/sys/kernel/$setting)"
done
echo "vm: kernel log"
dmesg
echo "vm: end"
poweroff -f
