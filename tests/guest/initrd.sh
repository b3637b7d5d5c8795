#!/bin/busybox sh
# First process of the guest: finds the disk that holds the root and hands over to it.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
for disk in /sys/block/vd*; do
    if [ "$(cat "$disk/serial")" = root ]; then mount -t ext4 "/dev/${disk##*/}" /root; fi
done
umount /dev /sys /proc
exec switch_root /root /sbin/guest-init
