################################################################################
#
# dunlin-agent
#
################################################################################

DUNLIN_AGENT_VERSION = 0.1.0
DUNLIN_AGENT_SOURCE = dunlin-agent-$(DUNLIN_AGENT_VERSION)-$(DUNLIN_AGENT_TRIPLE).tar.xz
DUNLIN_AGENT_SITE = file://$(call qstrip,$(BR2_PACKAGE_DUNLIN_AGENT_ARCHIVES))
DUNLIN_AGENT_LICENSE = MIT or Apache-2.0
DUNLIN_AGENT_LICENSE_FILES = LICENSE-MIT LICENSE-APACHE

ifeq ($(BR2_aarch64),y)
DUNLIN_AGENT_TRIPLE = aarch64-unknown-linux-musl
else ifeq ($(BR2_arm),y)
DUNLIN_AGENT_TRIPLE = armv7-unknown-linux-musleabihf
else
DUNLIN_AGENT_TRIPLE = x86_64-unknown-linux-gnu
endif

# Whoever builds the archive has its digest; there is none to know beforehand.
BR_NO_CHECK_HASH_FOR += $(DUNLIN_AGENT_SOURCE)

define DUNLIN_AGENT_INSTALL_TARGET_CMDS
	cp -R $(@D)/rootfs/. $(TARGET_DIR)/
endef

define DUNLIN_AGENT_INSTALL_INIT_OPENRC
	$(INSTALL) -D -m 0755 $(@D)/init/openrc/etc/init.d/dunlin-agent \
		$(TARGET_DIR)/etc/init.d/dunlin-agent
endef

define DUNLIN_AGENT_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(@D)/init/sysv/etc/init.d/dunlin-agent \
		$(TARGET_DIR)/etc/init.d/S95dunlin-agent
endef

define DUNLIN_AGENT_USERS
	dunlin -1 dunlin -1 * /var/lib/dunlin - - Dunlin agent
endef

define DUNLIN_AGENT_PERMISSIONS
	/var/lib/dunlin d 0700 dunlin dunlin - - - - -
endef

$(eval $(generic-package))
