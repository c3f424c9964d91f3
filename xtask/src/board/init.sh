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
commit=5
if [ ! -e /etc/dunlin/look ]; then
    # Its power is cut. The kernel writes nothing by itself for ten minutes: what was not synced is lost, however slow the board.
    echo 0 > /proc/sys/vm/dirty_writeback_centisecs
    commit=600
fi
$b mount -t ext4 -o "commit=$commit" /dev/vda /data || echo "board: no disk"
if [ -e /etc/dunlin/look ]; then
    # As on a device, the program lies on a disk, and memory holds what was read of it.
    [ -e /data/bin ] || { $b mkdir /data/bin && $b cp /bin/dunlin-agent /data/bin/dunlin-agent; }
    $b rm /bin/dunlin-agent
    $b sync
    echo 1 > /proc/sys/vm/drop_caches
    export PATH=/data/bin:/bin
fi
export DUNLIN_AGENT_CONFIG=/etc/dunlin/agent.toml
# Prints what the kernel knows of the agent, again and again; at once, so that none of the agent's lines comes between.
look() {
    while $b sleep "$1"; do
        text="look: uptime $($b cat /proc/uptime)"
        for process in $($b pidof dunlin-agent); do
            text="$text
look: stat $($b cat "/proc/$process/stat")
look: memory $($b grep ^Pss: "/proc/$process/smaps_rollup")"
        done
        echo "$text
look: disk $($b grep ' vda ' /proc/diskstats)
look: network $($b grep eth0 /proc/net/dev)
look: free $($b grep ^MemAvailable: /proc/meminfo)
look: end"
    done
}
# Asks from the start of the agent on until a model answers.
ask() {
    echo "board: the agent starts at $($b cat /proc/uptime)"
    url="$($b cat /etc/dunlin/url)"
    question="$($b cat /etc/dunlin/question)"
    while :; do
        case "$($b wget -q -O - --header 'Content-Type: application/json' --post-data "$question" "$url" 2>&1)" in
        *model_version*) break ;;
        *) $b usleep 50000 ;;
        esac
    done
    echo "board: the first answer at $($b cat /proc/uptime)"
}
if [ -e /data/dunlin ]; then
    [ ! -e /etc/dunlin/question ] || ask &
else
    dunlin-agent enrol "$($b cat /etc/dunlin/claim)" --device board 2>&1 | $b cat
fi
[ ! -e /etc/dunlin/look ] || look "$($b cat /etc/dunlin/look)" &
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
