#!/bin/bash
# The guest's init: makes the system usable, runs the command that run.sh sent, sends back its output, its
# status and what it left in /out, and powers off.
export PATH=/in/bin:/usr/sbin:/usr/bin HOME=/root LC_ALL=C TERM=dumb

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /in /out
# What bash names pipes by.
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /in

/lib/systemd/systemd-udevd --daemon --resolve-names=never
# Disks only: everything else a machine has would take longer than the rest of the start.
udevadm trigger --action=add --subsystem-match=block
udevadm settle

# port NAME: the device of that port to the host.
port() { grep -lx "$1" /sys/class/virtio-ports/*/name | sed 's|.*/\(vport[^/]*\)/name|/dev/\1|'; }

AGENT=$(port org.qemu.guest_agent.0) CONTROL=$(port control)
export AGENT CONTROL

# Disks go by their serial numbers, for the kernel's names follow the order on the bus: $D0, $D1, ...
payload='' results=''
for disk in /sys/block/vd*; do
    case $(<"$disk/serial") in
    payload) payload=/dev/${disk##*/} ;;
    results) results=/dev/${disk##*/} ;;
    D*) export "$(<"$disk/serial")=/dev/${disk##*/}" ;;
    esac
done

tar -xf "$payload" -C /in
(cd /in && exec bash .command) >"$(port output)" 2>&1 </dev/null
status=$?
if [[ -n $results ]]; then tar -cf "$results" -C /out . || status=125; fi
sync
echo "$status" >"$(port status)"
busybox poweroff -f
