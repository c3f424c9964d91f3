SUMMARY = "Runs models on this device and keeps them up to date"
DESCRIPTION = "The device's side of Dunlin: serves ONNX models over the Open Inference Protocol, verifies, proves and switches \
               to what its controller assigns, returns by itself to what worked, and reports how the models do."
SECTION = "net"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE-MIT;md5=0dc2c33bdf23c8bc5cb3bef90ea31738 \
                    file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The archives that `cargo xtask package --kind tar` makes lie in this folder; one made with --board bounds the agent's memory
# and says what the device is.
DUNLIN_ARCHIVES ?= "${TOPDIR}/dunlin"

# Machines that none of these triples is for are passed over: of arm, those before ARMv7.
COMPATIBLE_HOST = "${@'(aarch64|arm|x86_64).*-linux.*' if d.getVar('DUNLIN_TRIPLE') else 'null'}"
DUNLIN_TRIPLE:aarch64 = "aarch64-unknown-linux-musl"
DUNLIN_TRIPLE:armv7a = "armv7-unknown-linux-musleabihf"
DUNLIN_TRIPLE:armv7ve = "armv7-unknown-linux-musleabihf"
DUNLIN_TRIPLE:x86-64 = "x86_64-unknown-linux-musl"
SRC_URI = "file://${DUNLIN_ARCHIVES}/dunlin-agent-${PV}-${DUNLIN_TRIPLE}.tar.xz"
S = "${UNPACKDIR}/dunlin-agent-${PV}"

inherit systemd update-rc.d useradd

SYSTEMD_SERVICE:${PN} = "dunlin-agent.service"
INITSCRIPT_NAME = "dunlin-agent"
INITSCRIPT_PARAMS = "defaults 95 5"
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --home-dir ${localstatedir}/lib/dunlin --no-create-home --shell /sbin/nologin dunlin"

# It is built and stripped already, and links nothing of the image.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
# nooelint: oelint.vars.insaneskip - nothing is left to strip
INSANE_SKIP:${PN} += "already-stripped"
do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    cp -R --no-preserve=ownership ${S}/rootfs/. ${D}/
    install -d -m 0700 -o dunlin -g dunlin ${D}${localstatedir}/lib/dunlin
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'false', 'true', d)}; then
        rm -r ${D}${nonarch_libdir}/systemd ${D}${nonarch_libdir}/sysusers.d ${D}${nonarch_libdir}/tmpfiles.d
    fi
    if ${@bb.utils.contains('DISTRO_FEATURES', 'sysvinit', 'true', 'false', d)}; then
        install -D -m 0755 ${S}/init/sysv/etc/init.d/dunlin-agent ${D}${sysconfdir}/init.d/dunlin-agent
    fi
}

# nooelint: oelint.var.filesoverride - what others wrote of a static program goes where the program goes
FILES:${PN}-doc = ""
FILES:${PN} += "${docdir}/dunlin-agent ${nonarch_libdir}/dunlin ${nonarch_libdir}/sysusers.d ${nonarch_libdir}/tmpfiles.d ${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/dunlin/agent.toml"
