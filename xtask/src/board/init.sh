#!/bin/sh
# The only program of a virtual board besides the agent: mounts, the network, and the agent in an endless day.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/lib/modules/$module"; done < /lib/modules/order
$b ip link set lo up
$b ip link set eth0 up
$b ip address add 10.0.2.15/24 dev eth0
# The kernel writes nothing by itself for ten minutes: what was not synced is lost, however slow the board.
echo 0 > /proc/sys/vm/dirty_writeback_centisecs
$b mount -t ext4 -o commit=600 /dev/vda /data || echo "board: no disk"
export DUNLIN_AGENT_CONFIG=/etc/dunlin/agent.toml
[ -e /data/dunlin ] || dunlin-agent enrol "$($b cat /etc/dunlin/claim)" --device board 2>&1 | $b cat
echo "board: up"
agent() {
    if [ -x /bin/strace ]; then
        # The control: what syncs says that it did, and does nothing.
        syncs=fsync,fdatasync,sync_file_range,msync,syncfs,sync
        strace --follow-forks --seccomp-bpf --output=/dev/null --trace=$syncs --inject=$syncs:retval=0 dunlin-agent run
    else
        dunlin-agent run
    fi
}
agent 2>&1 | $b cat
echo "board: the agent ended"
$b poweroff -f
