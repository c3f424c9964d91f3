#!/bin/sh
# Installs the agent from the folder that this script lies in, or removes it.
#
#   ./install.sh [--root DIR] [--init systemd|openrc|sysv]
#   ./install.sh --remove [--root DIR]     keeps settings and state
#   ./install.sh --purge  [--root DIR]     keeps nothing
#
# --root is for images: nothing is started, and its user is made with tools of this machine.
set -eu
# Whoever installs may have another one.
umask 022
here=$(cd "$(dirname "$0")" && pwd)
root='' init='' action=install

fail() {
	echo "install.sh: $*" >&2
	exit 1
}

while [ $# -gt 0 ]; do
	case $1 in
	--root)
		[ -d "${2:-}" ] || fail "--root needs a folder that is there, not '${2:-}'"
		root=$(cd "$2" && pwd)
		[ "$root" != / ] || root=''
		shift
		;;
	--init)
		init=${2:-}
		shift
		;;
	--remove) action=remove ;;
	--purge) action=purge ;;
	*) fail "$1 is not known; the head of this script says what is" ;;
	esac
	shift
done

if [ -z "$init" ]; then
	if [ -e "$root/usr/lib/systemd/systemd" ] || [ -e "$root/lib/systemd/systemd" ]; then
		init=systemd
	elif [ -x "$root/sbin/openrc-run" ]; then
		init=openrc
	else
		init=sysv
	fi
fi
case $init in
systemd) trees=rootfs ;;
openrc | sysv) trees="rootfs init/$init" ;;
*) fail "--init is systemd, openrc or sysv, not '$init'" ;;
esac
cd "$here"
for tree in $trees; do
	[ -d "$tree" ] || fail "the archive is not whole: $here has no folder $tree"
done

# Whether the services of $root are those that run here.
live() {
	[ -z "$root" ] && case $init in
	systemd) [ -d /run/systemd/system ] ;;
	openrc) [ -e /run/openrc/softlevel ] ;;
	sysv) true ;;
	esac
}

# A line for every file that is installed: the tree it is in, and its path there.
files() {
	for tree in $trees; do
		(cd "$tree" && find . ! -type d) | while read -r file; do
			case $init:$file in
			systemd:*) ;;
			*:./usr/lib/systemd/* | *:./usr/lib/sysusers.d/* | *:./usr/lib/tmpfiles.d/*) continue ;;
			esac
			echo "$tree ${file#./}"
		done
	done
}

make_user() {
	if grep -q '^dunlin:' "$root/etc/passwd" 2>/dev/null; then
		return
	fi
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers ${root:+--root="$root"} "$here/rootfs/usr/lib/sysusers.d/dunlin.conf"
	elif command -v useradd >/dev/null; then
		useradd ${root:+--prefix "$root"} --system --user-group --home-dir /var/lib/dunlin --no-create-home \
			--shell /sbin/nologin dunlin
	elif [ -z "$root" ]; then
		addgroup -S dunlin
		adduser -S -D -H -h /var/lib/dunlin -s /sbin/nologin -G dunlin dunlin
	else
		fail "there is neither systemd-sysusers nor useradd here to make the user dunlin in $root"
	fi
}

if [ "$action" = install ]; then
	files | while read -r tree file; do
		target="$root/$file"
		mkdir -p "$(dirname "$target")"
		case $file in
		etc/dunlin/*)
			# Settings that were changed stay.
			if [ -e "$target" ] && ! cmp -s "$tree/$file" "$target"; then
				echo "$target was changed and stays; the new one is $target.new"
				target=$target.new
			fi
			;;
		esac
		# Beside and renamed: a program that runs can not be written to. Owner and mode are not those that unpacking left.
		rm -f "$target.installing"
		cp "$tree/$file" "$target.installing"
		[ "$(id -u)" -ne 0 ] || chown 0:0 "$target.installing"
		case $file in
		usr/bin/* | usr/lib/dunlin/* | etc/init.d/*) chmod 0755 "$target.installing" ;;
		*) chmod 0644 "$target.installing" ;;
		esac
		case $file in
		# Cut off in between, the program before is whole, or the new one is.
		usr/bin/*) sync ;;
		esac
		mv "$target.installing" "$target"
	done
	[ -x "$root/usr/bin/dunlin-agent" ] || fail "$root/usr/bin/dunlin-agent is not there"
	make_user
	owner=$(sed -n 's/^dunlin:[^:]*:\([0-9]*:[0-9]*\):.*/\1/p' "$root/etc/passwd")
	mkdir -p "$root/var/lib/dunlin"
	chmod 0700 "$root/var/lib/dunlin"
	chown "$owner" "$root/var/lib/dunlin"
	case $init in
	systemd)
		if live; then
			mkdir -p /run/dunlin
			chown "$owner" /run/dunlin
			systemctl daemon-reload
			systemctl enable dunlin-agent.service
			systemctl restart dunlin-agent.service
		else
			mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
			ln -sf /usr/lib/systemd/system/dunlin-agent.service "$root/etc/systemd/system/multi-user.target.wants/"
		fi
		;;
	openrc)
		mkdir -p "$root/etc/runlevels/default"
		ln -sf /etc/init.d/dunlin-agent "$root/etc/runlevels/default/dunlin-agent"
		if live; then
			rc-service --ifstarted dunlin-agent restart
		fi
		;;
	sysv)
		# busybox starts what is called S??*, sysvinit what stands in the folder of its runlevel.
		if [ -e "$root/etc/init.d/rcS" ] && [ ! -d "$root/etc/rc5.d" ]; then
			ln -sf dunlin-agent "$root/etc/init.d/S95dunlin-agent"
		else
			for level in 2 3 4 5; do
				mkdir -p "$root/etc/rc$level.d"
				ln -sf ../init.d/dunlin-agent "$root/etc/rc$level.d/S95dunlin-agent"
			done
		fi
		if live && /etc/init.d/dunlin-agent status; then
			/etc/init.d/dunlin-agent restart
		fi
		;;
	esac
	echo "installed; enrol with \`dunlin-agent enrol TOKEN\` as the user dunlin, then start the service dunlin-agent"
else
	if live; then
		case $init in
		systemd) systemctl disable --now dunlin-agent.service || true ;;
		openrc) rc-service dunlin-agent stop || true ;;
		sysv) [ ! -x /etc/init.d/dunlin-agent ] || /etc/init.d/dunlin-agent stop ;;
		esac
	fi
	rm -f "$root/etc/systemd/system/multi-user.target.wants/dunlin-agent.service" \
		"$root/etc/runlevels/default/dunlin-agent" "$root/etc/init.d/S95dunlin-agent" "$root"/etc/rc[2-5].d/S95dunlin-agent
	files | while read -r _ file; do
		case $file in
		etc/dunlin/*) ;;
		*)
			rm -f "$root/$file"
			# Folders that are the agent's alone.
			rmdir "$root/$(dirname "$file")" 2>/dev/null || true
			;;
		esac
	done
	if [ "$action" = purge ]; then
		rm -rf "$root/etc/dunlin"
		for folder in "$root/var/lib/dunlin" "$root/run/dunlin"; do
			[ -d "$folder" ] || continue
			find "$folder" -mindepth 1 -delete
			rmdir "$folder" 2>/dev/null || true
		done
	fi
fi
sync
